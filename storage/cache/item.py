"""The file of an item of a cache: what it holds, its key, and checksums.

An item may have a rest, with a checksum of its own, that need not be read with it.
"""

import os
import struct
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from crc32c import crc32c

from storage.tar import round_up

KEY_BYTES = 16
TRAILER = KEY_BYTES + 8
BLOCK = 4096  # bytes to which the lengths of files are rounded up when they are counted
# Its key, what it holds, and how many bytes of that are its rest.
Item: TypeAlias = tuple[bytes, bytes] | tuple[bytes, bytes, int]


@dataclass(frozen=True)
class ReservedItem:
    """An item that is counted and begun.

    Attributes:
        key: Its key.
        content: What it holds.
        partial: Its file, until that has its name.
        file: That, open for writing.
        rest: How many bytes of the content are its rest.
    """

    key: bytes
    content: bytes
    partial: Path
    file: int
    rest: int = 0

    def write(self) -> None:
        """Write all of it."""
        parts = [memoryview(self.content), memoryview(_trailer(self.key, self.content, self.rest))]
        while parts:
            done = os.writev(self.file, parts)
            while parts and done >= len(parts[0]):
                done -= len(parts.pop(0))
            if parts:
                parts[0] = parts[0][done:]

    def drop(self) -> None:
        """Close its file, and remove it unless it has its name."""
        os.close(self.file)
        with suppress(OSError):
            self.partial.unlink(missing_ok=True)


def _trailer(key: bytes, content: bytes, rest: int) -> bytes:
    """What stands behind an item: its key, and the checksums of what it holds and of its rest."""
    length = len(content) - rest
    return key + struct.pack("<2I", _crc32c(content, 0, length, key), _crc32c(content, length))


def fits(trailer: bytes, key: bytes, content: bytes, length: int, whole: bool) -> bool:
    """Whether an item is as it was written, for the part of it that was read."""
    if len(trailer) != TRAILER or trailer[:KEY_BYTES] != key:
        return False
    first, rest = struct.unpack("<2I", trailer[KEY_BYTES:])
    if whole and len(content) > length and _crc32c(content, length) != rest:
        return False
    return bool(_crc32c(content, 0, length, key) == first)


def _crc32c(content: bytes, start: int, stop: int | None = None, key: bytes = b"") -> int:
    """The checksum of a part of bytes, which are not copied, and of a key behind it."""
    return crc32c(key, crc32c(memoryview(content)[start:stop]))


def room_of(content: bytes) -> int:
    """What an item counts for [bytes]."""
    return round_up(len(content) + TRAILER, BLOCK)
