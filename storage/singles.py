"""Events that are read one by one, as a global order has them, in as few steps as there can be.

After each read the processor's caches hold strain in place of the interpreter, and a step of Python
takes several times as long as it would otherwise; other threads wait for it, too.
"""

import os
import threading
import time
from contextlib import suppress
from ctypes import addressof, c_char
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from crc32c import crc32c
from jaxtyping import Bool, Int64

from storage.arrays import PAGE, Array, aligned_empty, as_bytes
from storage.blosc import decompress_into
from storage.errors import DamagedDataError
from storage.kernel_reads import read_each
from storage.local import LocalFile

SLOW = 1e9  # bytes a second and thread: of the page cache it is several times as many


@dataclass
class Pace:
    """Whether reads through the page cache wait for the disk, as the last ones did.

    Then the kernel is told of all events of a task before the first of them is read, so that it
    fetches them side by side. Of what is in memory, that would take longer than it saves.
    """

    is_slow: bool = False


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

    def part(self, first: int, count: int) -> "Singles":
        """Some of them."""
        there = slice(first, first + count)
        columns = (self.offsets[there], self.lengths[there], self.crc32c[there])
        return Singles(self.places[there], self.files[there], *columns)

    def read(self, strain: memoryview, size: int, prove: bool, pace: Pace) -> Bool[Array, "event"]:
        """Read uncompressed events, each straight to where it belongs.

        Args:
            strain: Of the batch: its bytes, a row an event.
            size: Of a row.
            prove: Whether to compare checksums.
            pace: Of the last reads; noted anew.

        Returns:
            Which of them are there and sound; the others tell what is wrong when asked again.
        """
        starts = self.places * size
        sound = self._read([file.descriptor for file in self.files], strain, starts, pace)
        if prove:
            for number in np.flatnonzero(sound).tolist():
                row = strain[starts[number] :][:size]
                sound[number] = crc32c(row) == self.crc32c[number]
        return sound

    def unpack(self, strain: memoryview, size: int, pace: Pace) -> Bool[Array, "event"]:
        """Read compressed events, compare their checksums, and decompress them.

        Args:
            strain: Of the batch: its bytes, a row an event.
            size: Of a row.
            pace: As for `read`.

        Returns:
            As `read`.
        """
        # As far behind a page's start as they lie in the file: else copying takes twice as long.
        pages = -(-(self.lengths + PAGE) // PAGE)
        starts = PAGE * (np.cumsum(pages) - pages) + self.offsets % PAGE
        room = scratch.room(PAGE * int(pages.sum()))
        # Frames begin anywhere, which the page cache alone allows.
        sound = self._read([file.cached for file in self.files], room, starts, pace)
        edges = zip(starts.tolist(), (starts + self.lengths).tolist(), strict=True)
        frames = [room[start:end] for start, end in edges]
        for number in np.flatnonzero(sound).tolist():
            sound[number] = crc32c(frames[number]) == self.crc32c[number]
            if sound[number]:
                row = strain[self.places[number] * size :][:size]
                try:
                    decompress_into(frames[number], row, "")
                except DamagedDataError:
                    sound[number] = False
        return sound

    def _read(
        self,
        descriptors: list[int],
        memory: memoryview,
        starts: Int64[Array, "event"],
        pace: Pace,
    ) -> Bool[Array, "event"]:
        """Read each to where it starts in memory; tell which are whole."""
        if not descriptors:  # which say nothing of the pace
            return np.zeros(0, bool)
        began = time.perf_counter()
        if pace.is_slow:
            self._announce(descriptors)
        addresses = addressof(c_char.from_buffer(memory)) + starts
        done = read_each(np.array(descriptors), addresses, self.lengths, self.offsets)
        if done is None:
            columns = (column.tolist() for column in (starts, self.lengths, self.offsets))
            try:
                done = np.array(
                    [
                        os.preadv(descriptor, (memory[start : start + length],), offset)
                        for descriptor, start, length, offset in zip(
                            descriptors, *columns, strict=True
                        )
                    ]
                )
            except OSError:
                done = np.full(len(starts), -1)
        pace.is_slow = int(self.lengths.sum()) < SLOW * (time.perf_counter() - began)
        whole: Array = done == self.lengths
        return whole

    def _announce(self, descriptors: list[int]) -> None:
        parts = zip(
            self.files, descriptors, self.offsets.tolist(), self.lengths.tolist(), strict=True
        )
        with suppress(OSError):  # it is advice
            for file, descriptor, offset, length in parts:
                if descriptor == file.cached:
                    os.posix_fadvise(descriptor, offset, length, os.POSIX_FADV_WILLNEED)


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
