"""The digest of a whole file, at the speed of the disk: a thread reads ahead of what is digested.

Every proof of a shard's bytes rests on it, and every repair: a data set may be as large as a disk,
so how its files are read decides how long `verify` takes.
"""

import itertools
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from storage.arrays import aligned_empty, as_bytes
from storage.manifest import HASHES
from storage.urls import InputFile, Store

AHEAD = 2  # pieces that a disk is asked for while one is digested: with one it waits at times


def file_digest(store: Store, path: str, kind: str = "blake3") -> tuple[int | None, str]:
    """Length and digest of a file; None and nothing where there is none.

    A long file of a local disk that is not in memory is read past the page cache: what is proved
    are the bytes that the disk gives; and it goes 1.7 to 2.7 times as fast as plain reads.
    """
    try:
        file = store.open_once(path)
    except (FileNotFoundError, NotADirectoryError):
        return None, ""
    digest, length = HASHES[kind](), 0
    for piece in _pieces_ahead(file) if file.ahead else _pieces(file):
        digest.update(piece)
        length += len(piece)
    file.close()
    return length, digest.hexdigest()


def _pieces(file: InputFile) -> Iterator[memoryview]:
    """All bytes of a file, in pieces of which each holds until the next is asked for."""
    offset, piece = 0, memoryview(bytearray(min(file.piece, file.length + 1)))
    while count := file.read_into(offset, piece):
        yield piece[:count]
        offset += count


def _pieces_ahead(file: InputFile) -> Iterator[memoryview]:
    """The same, with a thread that reads the next pieces while one is worked on."""
    room = aligned_empty((AHEAD + 1, file.piece), np.dtype(np.uint8))
    free, coming = deque(map(as_bytes, room)), deque[tuple[memoryview, Future[int]]]()
    with ThreadPoolExecutor(1, "strainflow-read") as reading:
        for offset in itertools.count(0, file.piece):
            piece = free.popleft()
            coming.append((piece, reading.submit(file.read_into_each, offset, (piece,))))
            if free:
                continue
            piece, reads = coming.popleft()
            if not (count := reads.result()):
                return
            yield piece[:count]
            free.append(piece)
