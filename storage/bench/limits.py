"""The limits that reading and writing are held against: disk, page cache, memory, codec alone."""

import errno
import json
import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from storage.arrays import Array, aligned_empty, as_bytes
from storage.blosc import decompress_into
from storage.errors import InputError
from storage.pagecache import resident_share
from storage.schema import Schema, shard_files
from storage.shard_reader import ShardReader
from storage.urls import store_of

PIECE = 16 * 2**20
PAGE = 4096
PLAIN_FILE = "plain-"
FIO_SECONDS = 2
MOST_RESIDENT = 0.01  # of a file that counts as cold
FIO_DEPTHS = (8, 32)  # requests under way: of fast disks 8 are not the limit
FIO_FILES = 64  # at most: they stand on its command line
FRAMES = 64  # events that are decompressed again and again


def strain_files(folder: Path, shards: Sequence[int]) -> list[Path]:
    """The files that hold the strain of some shards."""
    return [folder / shard_files(shard)["strain"] for shard in shards]


def read_plainly(files: Sequence[Path], threads: int, room: Array | None = None) -> int:
    """Read files from front to back in pieces of 16 MB; return how many bytes.

    Args:
        files: Which.
        threads: That read, each files of its own.
        room: Memory that is written to all over, as a loader's batches are; otherwise each thread
            has 16 MB, which stay in the processor's cache.
    """
    parts = as_bytes(np.empty(threads * PIECE, np.uint8) if room is None else room)
    size = max(PIECE, len(parts) // threads // PIECE * PIECE)

    def read(number: int) -> int:
        mine, place, total = parts[number * size :][:size], 0, 0
        for path in files[number::threads]:
            with path.open("rb", buffering=0) as file:
                while count := file.readinto(mine[place : place + PIECE]):
                    total, place = total + count, (place + PIECE) % size
        return total

    with ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(read, range(threads)))


def write_plainly(root: Path, lengths: Sequence[int], past_cache: bool) -> int:
    """Write files of such lengths, 16 MB at a time, each synced at its end; return how many bytes.

    Let them be new (`remove_plain_files`): to free what is there is no part of writing.

    Args:
        root: The folder.
        lengths: Of the files [bytes].
        past_cache: Whether past the page cache (O_DIRECT), but for what is less than a page.
    """
    total, piece = 0, _random_piece()
    for number, length in enumerate(lengths):
        whole = length // PAGE * PAGE if past_cache else length
        flags = os.O_WRONLY | os.O_CREAT | (os.O_DIRECT if past_cache else 0)
        descriptor = os.open(root / f"{PLAIN_FILE}{number}", flags, 0o666)
        try:
            for start in range(0, whole, PIECE):
                total += os.pwrite(descriptor, piece[: min(PIECE, whole - start)], start)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    return total


def remove_plain_files(root: Path) -> None:
    """Remove what `write_plainly` wrote."""
    for path in root.glob(f"{PLAIN_FILE}*"):
        path.unlink()


def can_write_past_cache(root: Path) -> bool:
    """Whether the file system of a folder takes writes past the page cache."""
    try:
        return write_plainly(root, [PAGE], past_cache=True) == PAGE
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise
        return False
    finally:
        remove_plain_files(root)


@cache
def _random_piece() -> memoryview:
    """16 MB that no disk compresses, in memory as disks want it, made once: outside of clocks."""
    piece = as_bytes(aligned_empty((PIECE,), np.dtype(np.uint8)))
    piece[:] = np.random.default_rng(1).bytes(PIECE)
    return piece


class MemoryCopy:
    """Copies a batch in memory, from one buffer to the next of three, as a ring of batches would.

    Args:
        size: Of a buffer [bytes].
        threads: That copy.
    """

    def __init__(self, size: int, threads: int) -> None:
        self._arrays = [aligned_empty((size,), np.dtype(np.uint8)) for _ in range(3)]
        for array in self._arrays:  # memory is slow when it is touched first
            array[:] = 1
        self._threads = threads
        self._edges = np.linspace(0, size, threads + 1).astype(int).tolist()

    def __call__(self) -> int:
        """Copy; return how many bytes."""

        def copy(part: int) -> None:
            here = slice(self._edges[part], self._edges[part + 1])
            for source, target in zip(self._arrays, self._arrays[1:], strict=False):
                target[here] = source[here]

        with ThreadPoolExecutor(self._threads) as pool:
            list(pool.map(copy, range(self._threads)))
        return sum(array.nbytes for array in self._arrays[1:])


class DecodeAlone:
    """Decompresses events that are in memory already, into the rows of a batch.

    Args:
        folder: The data set.
        schema: What it is; compressed.
        batch_size: Rows of the batch.
        threads: That decompress.
    """

    def __init__(self, folder: Path, schema: Schema, batch_size: int, threads: int) -> None:
        store, size = store_of(folder), schema.event_bytes
        reader = ShardReader(
            store, shard_files(0)["strain"], schema.events_per_shard, schema.encoding
        )
        file = store.open(reader.path)
        places = [reader.place(row, size) for row in range(min(FRAMES, len(schema.events_of(0))))]
        self._frames = [file.read(*place) for place in places]
        reader.close()
        file.close()
        strain = aligned_empty((batch_size, *schema.strain_shape), schema.encoding.dtype)
        self._rows = [as_bytes(row) for row in strain]
        self._threads, self._size = threads, size

    def __call__(self, events: int) -> int:
        """Decompress so many events; return the bytes that they became."""

        def decode(first: int) -> None:
            for number in range(first, min(first + 16, events)):
                row = self._rows[number % len(self._rows)]
                decompress_into(self._frames[number % len(self._frames)], row, "")

        with ThreadPoolExecutor(self._threads) as pool:
            list(pool.map(decode, range(0, events, 16)))
        return events * self._size


def least_resident(files: Sequence[Path]) -> float:
    """The share that is in the page cache of that file of which it is least."""
    return min(resident_share(path) for path in files)


def drop_from_cache(files: Sequence[Path]) -> None:
    """Have the kernel forget the pages of files, and see that it has.

    Raises:
        InputError: It has not: here cold reads cannot be measured.
    """
    for path in files:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            for _ in range(3):  # pages that somebody else is looking at stay
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                if resident_share(path) < MOST_RESIDENT:
                    break
                time.sleep(0.05)
            else:
                raise InputError(
                    f"{path}: stays in the page cache; measure warm reads only (--cold false), or "
                    "on another disk"
                )
        finally:
            os.close(descriptor)


def has_fio() -> bool:
    """Whether fio is installed."""
    return shutil.which("fio") is not None


def fio(files: Sequence[Path], block: int, random: bool, depth: int) -> tuple[int, float]:
    """Let fio read from files past the page cache; return how many bytes it read, and seconds.

    Args:
        files: Which.
        block: Bytes at a time, whole pages.
        random: Whether from anywhere; from front to back otherwise, one file after another.
        depth: Requests under way.
    """
    block = min(block, min(path.stat().st_size for path in files[:FIO_FILES]))
    block = max(PAGE, block // PAGE * PAGE)
    names = ":".join(str(path).replace(":", "\\:") for path in files[:FIO_FILES])
    command = [
        "fio",
        "--name=read",
        f"--filename={names}",
        f"--rw={'randread' if random else 'read'}",
        # In turn, as is fio's default, files that are read from front to back would be interleaved.
        f"--file_service_type={'roundrobin' if random else 'sequential'}",
        f"--bs={block}",
        "--direct=1",
        "--ioengine=libaio",
        f"--iodepth={depth}",
        f"--runtime={FIO_SECONDS}",
        "--time_based",
        "--readonly",
        "--output-format=json",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise InputError(f"fio: {' '.join(done.stderr.split())[:200]}; measure with --fio false")
    job: dict[str, Any] = json.loads(done.stdout)["jobs"][0]["read"]
    return int(job["io_bytes"]), max(job["runtime"], 1) / 1e3
