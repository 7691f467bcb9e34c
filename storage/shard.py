"""The file that is a WebDataset tar and a Zarr v3 shard at once: its layout, writing and reading.

A Zarr shard has its index at the end and does not care where in the file the chunks lie; a tar
ends at two zero blocks and does not care what follows. So the chunks are the payloads of `.npy`
tar members, and the index stands behind the tar's end:

    KEY.json | KEY.strain.npy | KEY.json | KEY.strain.npy | ... | two zero blocks | index | crc32c

Each payload starts on a 4096-byte boundary, and consecutive payloads are a constant stride apart:
the JSON is padded with spaces to make it so.
"""

import json
import os
import struct
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import google_crc32c
import numpy as np
from jaxtyping import Num, UInt64

from storage.arrays import Array
from storage.errors import DamagedDataError
from storage.files import AtomicFile

ALIGNMENT = 4096
BLOCK = 512  # a tar header, and the unit to which tar pads its members
NPY_HEADER = 512
END_OF_TAR = bytes(2 * BLOCK)
MISSING = (2**64 - 1, 2**64 - 1)  # Zarr's index entry of a chunk that is not there


def event_key(number: int) -> str:
    """The WebDataset key of an event: nine digits and no dot, at which webdataset would split."""
    return f"{number:09d}"


@dataclass(frozen=True)
class ShardLayout:
    """Where everything lies in a shard of uncompressed events.

    Attributes:
        slots: Entries of the Zarr index (events of a full shard).
        shape: Shape of one event's strain, (detector, time).
        dtype: Its stored type.
        json_room: Bytes that the longest JSON of an event may take.
    """

    slots: int
    shape: tuple[int, int]
    dtype: np.dtype[Any]
    json_room: int

    @property
    def payload(self) -> int:
        """Bytes of one event's strain."""
        return int(np.prod(self.shape)) * self.dtype.itemsize

    @property
    def stride(self) -> int:
        """Bytes from one payload to the next."""
        return _round_up(
            _round_up(self.payload, BLOCK) + 2 * BLOCK + NPY_HEADER + self.json_room, ALIGNMENT
        )

    def payload_offset(self, row: int) -> int:
        """Where the strain of the shard's event `row` begins."""
        first = _round_up(2 * BLOCK + NPY_HEADER + self.json_room, ALIGNMENT)
        return first + row * self.stride

    def payload_end(self, row: int) -> int:
        """Where the tar member of the shard's event `row` ends, its padding included."""
        return self.payload_offset(row) + _round_up(self.payload, BLOCK)

    def file_size(self, events: int) -> int:
        """Bytes of a shard of so many events."""
        return self.payload_end(events - 1) + len(END_OF_TAR) + 16 * self.slots + 4

    def json_size(self, row: int) -> int:
        """Bytes of the padded JSON member of the shard's event `row`."""
        start = self.payload_end(row - 1) if row else 0
        return self.payload_offset(row) - start - 2 * BLOCK - NPY_HEADER

    def npy_header(self) -> bytes:
        """The `.npy` header of an event, padded so that the payload that follows is aligned."""
        description = {"descr": self.dtype.str, "fortran_order": False, "shape": self.shape}
        text = repr(description).encode("latin1")
        prefix = b"\x93NUMPY\x01\x00" + struct.pack("<H", NPY_HEADER - 10)
        return prefix + text.ljust(NPY_HEADER - 11) + b"\n"


class ShardWriter:
    """Writes one shard front to back; the file has its final name only when it is complete.

    Use as a context manager; leaving it by an exception removes the partial file.
    """

    def __init__(self, path: Path, layout: ShardLayout) -> None:
        self._file = AtomicFile(path, contested=True)
        self._layout = layout
        self._rows = 0
        self.crc32c: list[int] = []

    def __enter__(self) -> Self:
        """Return the writer itself."""
        return self

    def add(self, key: str, strain: Num[Array, "detector time"], facts: Mapping[str, Any]) -> None:
        """Append one event.

        Args:
            key: The WebDataset key.
            strain: Its encoded strain.
            facts: What goes into its JSON.
        """
        row, layout = self._rows, self._layout
        size = layout.json_size(row)
        text = json.dumps(facts, allow_nan=False).encode()
        assert len(text) < size, f"JSON of {len(text)} bytes exceeds the room of {size}"
        codes = np.ascontiguousarray(strain, layout.dtype)
        payload = codes.data.cast("B")
        self._file.write(_tar_header(f"{key}.json", size))
        self._file.write(text.ljust(size - 1) + b"\n")
        self._file.write(_tar_header(f"{key}.strain.npy", NPY_HEADER + layout.payload))
        self._file.write(layout.npy_header())
        self._file.write(payload)
        self._file.write(bytes(-len(payload) % BLOCK))
        self.crc32c.append(google_crc32c.value(codes))  # takes arrays, but no memoryview
        self._rows += 1

    def finish(self) -> tuple[int, str]:
        """Close the tar, append the Zarr index, and give the file its name.

        Returns:
            Length in bytes and BLAKE3 digest of the file.
        """
        layout = self._layout
        entries = [(layout.payload_offset(row), layout.payload) for row in range(self._rows)]
        entries += [MISSING] * (layout.slots - self._rows)
        index = np.array(entries, "<u8").tobytes()
        self._file.write(END_OF_TAR)
        self._file.write(index)
        self._file.write(struct.pack("<I", google_crc32c.value(index)))
        return self._file.finish()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Remove what was written unless `finish` was reached."""
        self._file.discard()


class ShardReader:
    """An open shard, with its index read and proved.

    Raises:
        DamagedDataError: The file is missing, or its index is.
    """

    def __init__(self, path: Path, slots: int) -> None:
        self._path = path
        self._descriptor = -1
        try:
            self._descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            raise DamagedDataError(
                f"{path}: is missing; delete the shard's manifest and run simulate again"
            ) from None
        try:
            self.index = self._read_index(slots)
        except BaseException:
            self.close()
            raise

    def read_into(self, row: int, buffer: Num[Array, "detector time"]) -> None:
        """Read the strain of the shard's event `row` straight into a contiguous array.

        Raises:
            DamagedDataError: The event is not there, or the file ends before it.
        """
        offset, length = (int(value) for value in self.index[row])
        if length != buffer.nbytes:
            raise DamagedDataError(
                f"{self._path}: event {row} of this shard has {length} bytes according to the "
                f"index, {buffer.nbytes} were expected; delete the shard's manifest and run "
                "simulate again"
            )
        view = buffer.reshape(-1).view(np.uint8).data
        while length:  # a read may return less than was asked for
            count = os.preadv(self._descriptor, [view], offset)
            if count == 0:
                raise DamagedDataError(f"{self._path}: ends within event {row} of this shard")
            view, offset, length = view[count:], offset + count, length - count

    def close(self) -> None:
        """Close the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __del__(self) -> None:
        """Close the file with the last reference to it."""
        self.close()

    def _read_index(self, slots: int) -> UInt64[Array, "slot 2"]:
        size = 16 * slots + 4
        start = max(0, os.fstat(self._descriptor).st_size - size)
        data = os.pread(self._descriptor, size, start)
        if len(data) != size or google_crc32c.value(data[:-4]) != struct.unpack("<I", data[-4:])[0]:
            raise DamagedDataError(
                f"{self._path}: the index at its end is missing or damaged (a truncated or "
                "overwritten file); delete the shard's manifest and run simulate again"
            )
        return np.frombuffer(data[:-4], "<u8").reshape(slots, 2)


def longest_json(facts: Mapping[str, Any]) -> int:
    """An upper bound on the JSON of an event with these keys, whatever its numbers are."""
    template = json.dumps(_with_longest_numbers(facts))
    return len(template) + 1  # the newline at its end


def _with_longest_numbers(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _with_longest_numbers(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_with_longest_numbers(item) for item in value]
    return -2.2250738585072014e-308 if isinstance(value, float) else value


def _tar_header(name: str, size: int) -> bytes:
    """The header of a member: that of a nameless one of its size, with the name filled in."""
    header, checksum = _nameless_tar_header(size)
    encoded = name.encode("ascii")
    checksum += sum(encoded)
    field = f"{checksum:06o}\0 ".encode("ascii")  # the sum of all bytes, in bytes 148 to 155
    return encoded + header[len(encoded) : 148] + field + header[156:]


@lru_cache(maxsize=16)
def _nameless_tar_header(size: int) -> tuple[bytes, int]:
    """A member's header without its name, and its checksum."""
    member = tarfile.TarInfo("")
    member.size = size
    header = member.tobuf(tarfile.USTAR_FORMAT)
    return header, int(header[148:154], 8)


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
