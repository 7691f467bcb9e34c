"""The file that is a WebDataset tar and a Zarr v3 shard at once: its layout, and writing it.

A Zarr shard has its index at the end and does not care where in the file the chunks lie; a tar
ends at two zero blocks and does not care what follows. So the chunks are the payloads of tar
members, and the index stands behind the tar's end:

    KEY.json | KEY.strain.npy | KEY.json | KEY.strain.npy | ... | two zero blocks | index | crc32c

Each uncompressed payload starts on a 4096-byte boundary, and consecutive payloads are a constant
stride apart: the JSON is padded with spaces to make it so. A compressed payload is a Blosc frame,
the member KEY.strain.blosc; such members follow each other without gaps.
"""

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np
from crc32c import crc32c
from jaxtyping import Num

from storage.arrays import Array
from storage.blosc import compress
from storage.encodings import Encoding
from storage.tar import BLOCK, END_OF_TAR, padding, round_up, tar_header
from storage.urls import OutputFile

ALIGNMENT = 4096
NPY_HEADER = 512
MISSING = (2**64 - 1, 2**64 - 1)  # Zarr's index entry of a chunk that is not there


def event_key(number: int) -> str:
    """The WebDataset key of an event: nine digits and no dot, at which webdataset would split."""
    return f"{number:09d}"


@dataclass(frozen=True)
class ShardLayout:
    """Where everything lies in a shard; of compressed events the lengths vary.

    Attributes:
        slots: Entries of the Zarr index (events of a full shard).
        shape: Shape of one event's strain, (detector, time).
        encoding: How it is stored.
        json_room: Bytes that the longest JSON of an event may take.
    """

    slots: int
    shape: tuple[int, int]
    encoding: Encoding
    json_room: int

    @property
    def dtype(self) -> np.dtype[Any]:
        """The stored type."""
        return self.encoding.dtype

    @property
    def payload(self) -> int:
        """Bytes of one event's strain, before compression."""
        return int(np.prod(self.shape)) * self.dtype.itemsize

    @property
    def stride(self) -> int:
        """Bytes from one uncompressed payload to the next."""
        return round_up(
            round_up(self.payload, BLOCK) + 2 * BLOCK + NPY_HEADER + self.json_room, ALIGNMENT
        )

    @property
    def index_size(self) -> int:
        """Bytes of the Zarr index at the end of the file, its checksum included."""
        return 16 * self.slots + 4

    @property
    def before_strain(self) -> int:
        """Bytes between an event's JSON and its payload."""
        return BLOCK if self.encoding.compressed else BLOCK + NPY_HEADER

    def payload_offset(self, row: int) -> int:
        """Where the uncompressed strain of the shard's event `row` begins."""
        first = round_up(2 * BLOCK + NPY_HEADER + self.json_room, ALIGNMENT)
        return first + row * self.stride

    def payload_end(self, row: int) -> int:
        """Where its tar member ends, its padding included."""
        return self.payload_offset(row) + round_up(self.payload, BLOCK)

    def file_size(self, events: int) -> int:
        """Bytes of a shard of so many uncompressed events."""
        return self.payload_end(events - 1) + len(END_OF_TAR) + self.index_size

    def json_size(self, row: int) -> int:
        """Bytes of the padded JSON member of the shard's event `row`."""
        if self.encoding.compressed:
            return round_up(self.json_room, BLOCK)
        start = self.payload_end(row - 1) if row else 0
        return self.payload_offset(row) - start - 2 * BLOCK - NPY_HEADER

    def before_payload(self, row: int, key: str, facts: Mapping[str, Any], length: int) -> bytes:
        """All that stands before an event's payload: its JSON, and the header of its strain.

        Args:
            row: Of the event in the shard.
            key: The WebDataset key.
            facts: What goes into its JSON.
            length: Bytes of its payload.
        """
        size = self.json_size(row)
        text = json.dumps(facts, allow_nan=False).encode()
        assert len(text) < size, f"JSON of {len(text)} bytes exceeds the room of {size}"
        parts = [tar_header(f"{key}.json", size), text.ljust(size - 1), b"\n"]
        if self.encoding.compressed:
            parts.append(tar_header(f"{key}.strain.blosc", length))
        else:
            parts += [tar_header(f"{key}.strain.npy", NPY_HEADER + length), self.npy_header()]
        return b"".join(parts)

    def npy_header(self) -> bytes:
        """The `.npy` header of an event, padded so that the payload that follows is aligned."""
        description = {"descr": self.dtype.str, "fortran_order": False, "shape": self.shape}
        text = repr(description).encode("latin1")
        prefix = b"\x93NUMPY\x01\x00" + struct.pack("<H", NPY_HEADER - 10)
        return prefix + text.ljust(NPY_HEADER - 11) + b"\n"

    def after_payloads(self, entries: Sequence[tuple[int, int]]) -> bytes:
        """All that stands behind the last event: the end of the tar, and the Zarr index."""
        filled = [*entries, *[MISSING] * (self.slots - len(entries))]
        index = np.array(filled, "<u8").tobytes()
        return END_OF_TAR + index + struct.pack("<I", crc32c(index))


class ShardWriter:
    """Writes one shard front to back; the file has its final name only when it is complete.

    Use as a context manager; leaving it before `finish` removes what was written.
    """

    def __init__(self, file: OutputFile, layout: ShardLayout) -> None:
        self.file = file
        self._layout = layout
        self._entries: list[tuple[int, int]] = []
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
        layout = self._layout
        codes = np.ascontiguousarray(strain, layout.dtype)
        blosc = layout.encoding.blosc
        stored = codes if blosc is None else compress(codes, blosc)
        payload = stored.data.cast("B") if isinstance(stored, np.ndarray) else memoryview(stored)
        before = layout.before_payload(len(self._entries), key, facts, len(payload))
        self.file.write(before)
        self._entries.append((self.file.length, len(payload)))
        self.file.write(payload)
        self.file.write(padding(len(payload)))
        self.crc32c.append(crc32c(payload))

    def close(self) -> None:
        """Close the tar and append the Zarr index; the file has no name yet."""
        self.file.write(self._layout.after_payloads(self._entries))

    def finish(self) -> tuple[int, str]:
        """Do the same, and give the file its name.

        Returns:
            Length in bytes and BLAKE3 digest of the file.
        """
        self.close()
        self.file.finish()
        return self.file.length, self.file.digest()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Remove what was written unless the file has its name."""
        self.file.discard()


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
