"""Files of a local disk that are whole or not there.

Long files go to the disk past the page cache, piece after piece, while the next piece is made.
Through the cache each byte would be copied and kept once more: measured, plain synced writes take
0.5 to 2 CPU-seconds/GB, and 0.03 past it, at 1.6 times the rate and more. So what was written is
not in memory when it is first read.
"""

import errno
import fcntl
import io
import os
import secrets
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import blake3
import numpy as np

from storage.arrays import PAGE, aligned_empty, as_bytes
from storage.errors import InputError, naming

# Bytes that go to the disk at once: whole pages. A thread that has written one waits up to 5 ms for
# the interpreter before it writes the next; at 8 MB, which a fast disk takes in 3 ms, that was half
# of its time.
PIECE = 32 * 2**20
PIECES = 3  # of a file that are in memory: one is filled, one is written, one waits for that
AHEAD = 4  # pieces after which the disk is asked to begin where they go through the page cache


class AtomicFile:
    """A file that is whole or not there: written as `NAME.partial`, synced, then renamed.

    Args:
        path: The file.
        contested: Whether another process may write the same file at the same time, as when a
            worker that was given up works on. Each then has a partial file of its own,
            `NAME.TOKEN.partial`; the last one that is renamed stays.

    Raises:
        InputError: A folder stands where the file belongs, or a file where a folder does.
    """

    def __init__(self, path: Path, contested: bool = False) -> None:
        _make_folder(path.parent)
        if path.is_dir():
            raise InputError(f"{path}: is a folder, where a file has to be; move it away")
        token = f".{secrets.token_hex(6)}" if contested else ""
        self._path = path
        self._partial = path.with_name(f"{path.name}{token}.partial")
        self._file: io.FileIO | None = self._partial.open("wb", buffering=0)
        self._digest = blake3.blake3()  # of all pieces but the last, which is not full
        self._piece, self._filled = _new_piece(), 0
        self._pieces: _PiecesUnderWay | None = None  # a short file needs no threads
        self.length = 0

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes."""
        assert self._file is not None, "written to after its end"
        rest = memoryview(data)
        self.length += len(rest)
        while len(rest):
            part = rest[: len(self._piece) - self._filled]
            self._piece[self._filled : self._filled + len(part)] = part
            self._filled += len(part)
            rest = rest[len(part) :]
            if self._filled == len(self._piece):
                if self._pieces is None:
                    self._pieces = _PiecesUnderWay(self._file, self._digest)
                with naming(self._path):
                    self._piece, self._filled = self._pieces.take(self._piece), 0

    def digest(self) -> str:
        """BLAKE3 of what was written."""
        if self._pieces is not None:
            with naming(self._path):
                self._pieces.wait()
        digest = self._digest.copy()
        digest.update(self._piece[: self._filled])
        return digest.hexdigest()

    def finish(self) -> None:
        """Give the file its name, when all its bytes are on the disk."""
        assert self._file is not None, "finished twice"
        descriptor, rest = self._file.fileno(), self._piece[: self._filled]
        start = whole = self.length - len(rest)
        with naming(self._path):
            if self._pieces is not None:
                self._pieces.wait()
                whole = self.length // PAGE * PAGE
                _write_at(descriptor, rest[: whole - start], start)
                self._end_pieces()
            _write_at(descriptor, rest[whole - start :], whole)  # no disk takes less than a page
            os.fsync(descriptor)
            self._file.close()
            self._partial.replace(self._path)
            self._file = None
            _sync_folder(self._path.parent)
        self._digest.update(rest)
        self._piece, self._filled = memoryview(b""), 0  # its memory comes free

    def discard(self) -> None:
        """Remove the partial file, if there still is one."""
        if self._file is not None:
            self._end_pieces()  # before all else: threads must not outlive the descriptor
            self._partial.unlink(missing_ok=True)
            with suppress(OSError):
                self._file.close()
            self._file = None
            self._piece, self._filled = memoryview(b""), 0

    def _end_pieces(self) -> None:
        if self._pieces is not None:
            self._pieces.end()
            self._pieces = None


class _PiecesUnderWay:
    """Writes the pieces of a file and digests them, in a thread each, while the next is filled.

    Args:
        file: That stays open until `end`, or until the threads have forgotten it.
        digest: Of the pieces.
    """

    def __init__(self, file: io.FileIO, digest: blake3.blake3) -> None:
        self._file, self._digest = file, digest
        # Of this file alone: after a fork, threads that others share would not be there.
        self._writing = ThreadPoolExecutor(1, "strainflow-write")
        self._digesting = ThreadPoolExecutor(1, "strainflow-digest")
        self._under_way = deque[tuple[memoryview, tuple[Future[Any], ...]]]()
        self._count = 0
        _set_past_cache(file.fileno(), True)

    def take(self, piece: memoryview) -> memoryview:
        """Take a full piece, and give one to be filled.

        Raises:
            OSError: A piece that was taken before could not be written.
        """
        work = (
            self._writing.submit(self._write, piece, self._count),
            self._digesting.submit(self._digest.update, piece),
        )
        self._under_way.append((piece, work))
        self._count += 1
        return _new_piece() if self._count < PIECES else self._done()

    def wait(self) -> None:
        """Wait until all pieces are written and digested.

        Raises:
            OSError: One could not be written.
        """
        while self._under_way:
            self._done()

    def end(self) -> None:
        """Begin no other piece, wait for the one that is being written, and end the threads."""
        for threads in (self._writing, self._digesting):
            threads.shutdown(cancel_futures=True)
        _set_past_cache(self._file.fileno(), False)

    def _done(self) -> memoryview:
        """Wait for the first piece under way; one that failed stays the first, and fails again."""
        piece, work = self._under_way[0]
        for part in work:
            part.result()
        self._under_way.popleft()
        return piece

    def _write(self, piece: memoryview, number: int) -> None:
        descriptor = self._file.fileno()
        _write_at(descriptor, piece, number * len(piece))
        if (number + 1) % AHEAD == 0 and not _goes_past_cache(descriptor):
            os.fdatasync(descriptor)


def _new_piece() -> memoryview:
    """Room for a piece; pages that nothing is written to take no memory."""
    return as_bytes(aligned_empty((PIECE,), np.dtype(np.uint8)))


def _write_at(descriptor: int, data: memoryview, offset: int) -> None:
    """Write all bytes, through the page cache where the file system cannot write these past it."""
    while len(data):
        try:
            count = os.pwrite(descriptor, data, offset)
        except OSError as error:
            if error.errno != errno.EINVAL or not _goes_past_cache(descriptor):
                raise
            _set_past_cache(descriptor, False)
            continue
        data, offset = data[count:], offset + count


def _goes_past_cache(descriptor: int) -> bool:
    return bool(fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT)


def _set_past_cache(descriptor: int, past: bool) -> None:
    """Write past the page cache from now on, if the file system can, or through it."""
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL) & ~os.O_DIRECT
    with suppress(OSError):  # not every file system has it
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | (os.O_DIRECT if past else 0))


def write_atomically(path: Path, data: bytes, contested: bool = False) -> None:
    """Write a small file whole, as `AtomicFile`."""
    file = AtomicFile(path, contested)
    try:
        file.write(data)
        file.finish()
    finally:
        file.discard()


def _make_folder(folder: Path) -> None:
    """Make a folder and those above it, as durable as the files in them."""
    if not folder.is_dir():
        _make_folder(folder.parent)
        try:
            folder.mkdir(exist_ok=True)
        except FileExistsError:
            raise InputError(
                f"{folder}: is a file, where a folder has to be; move it away"
            ) from None
        _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
