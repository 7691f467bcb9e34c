"""Events that are read one by one, as a global order has them, in as few steps as there can be.

After each read the processor's caches hold strain in place of the interpreter, and a step of Python
takes several times as long as it would otherwise; other threads wait for it, too.
"""

import os
import threading
from collections.abc import Sequence
from ctypes import addressof, c_char
from typing import NamedTuple

import numpy as np
from crc32c import crc32c
from jaxtyping import Bool, Int64

from storage.arrays import PAGE, Array, aligned_empty, as_bytes
from storage.blosc import decompress_into
from storage.errors import DamagedDataError
from storage.kernel_reads import read_each
from storage.local import LocalFile


class Singles(NamedTuple):
    """Where events lie on a local disk.

    Attributes:
        places: In the batch.
        files: Of their shards, which stay open as long as they stand here.
        offsets: Of their payloads in the files.
        lengths: Of the payloads.
        crc32c: Checksums of the payloads.
    """

    places: Int64[Array, "event"]
    files: list[LocalFile]
    offsets: Int64[Array, "event"]
    lengths: Int64[Array, "event"]
    crc32c: Int64[Array, "event"]

    def read(self, rows: Sequence[memoryview], prove: bool) -> Bool[Array, "event"]:
        """Read uncompressed events, each straight to where it belongs.

        Args:
            rows: Where the strain of each goes: its bytes.
            prove: Whether to compare checksums.

        Returns:
            Which of them are there and sound; the others tell what is wrong when asked again.
        """
        sound = self._read([file.descriptor for file in self.files], rows)
        if prove:
            for number in np.flatnonzero(sound).tolist():
                sound[number] = crc32c(rows[number]) == self.crc32c[number]
        return sound

    def unpack(self, rows: Sequence[memoryview]) -> Bool[Array, "event"]:
        """Read compressed events, compare their checksums, and decompress them.

        Args:
            rows: Where the strain of each goes: its bytes.

        Returns:
            As `read`.
        """
        # As far behind a page's start as they lie in the file: else copying takes twice as long.
        pages = -(-(self.lengths + PAGE) // PAGE)
        starts = PAGE * (np.cumsum(pages) - pages) + self.offsets % PAGE
        room = scratch.room(PAGE * int(pages.sum()))
        edges = zip(starts.tolist(), (starts + self.lengths).tolist(), strict=True)
        frames = [room[start:end] for start, end in edges]
        # Frames begin anywhere, which the page cache alone allows.
        sound = self._read([file.cached for file in self.files], frames)
        for number in np.flatnonzero(sound).tolist():
            sound[number] = crc32c(frames[number]) == self.crc32c[number]
            if sound[number]:
                try:
                    decompress_into(frames[number], rows[number], "")
                except DamagedDataError:
                    sound[number] = False
        return sound

    def _read(self, descriptors: list[int], rows: Sequence[memoryview]) -> Bool[Array, "event"]:
        """Read each into its row; tell which are whole."""
        done = read_each(np.array(descriptors), _addresses(rows), self.lengths, self.offsets)
        if done is None:
            reads = zip(descriptors, rows, self.offsets.tolist(), strict=True)
            try:
                done = np.array([os.preadv(*(read[0], (read[1],), read[2])) for read in reads])
            except OSError:
                done = np.full(len(rows), -1)
        whole: Array = done == self.lengths
        return whole


def _addresses(rows: Sequence[memoryview]) -> Int64[Array, "row"]:
    """Where rows begin in memory."""
    return np.array([addressof(c_char.from_buffer(row)) for row in rows])


class _Scratch(threading.local):
    """Memory of each thread, used again: what is new has to be mapped page by page as it is read.

    Large enough for what one call reads at most (8 MB), it goes with the thread.
    """

    def __init__(self) -> None:
        self._buffer = memoryview(b"")

    def room(self, length: int) -> memoryview:
        """So many bytes, to be written over."""
        if len(self._buffer) < length:
            self._buffer = as_bytes(aligned_empty((length,), np.dtype(np.uint8)))
        return self._buffer[:length]


scratch = _Scratch()
