"""Tar archives: the headers of our members, and a walk from one to the next that trusts nothing."""

import re
import tarfile
from collections.abc import Iterator
from functools import lru_cache

from storage.errors import DamagedDataError
from storage.urls import InputFile

BLOCK = 512  # a header, and the unit to which tar pads its members
LARGEST_MEMBER = 8**11  # bytes, the first number that its eleven octal digits do not hold
END_OF_TAR = bytes(2 * BLOCK)
_MEMBER = re.compile(r"\d{9,}\.[a-z0-9.]*[a-z0-9]")


def tar_header(name: str, size: int) -> bytes:
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


def padding(length: int) -> bytes:
    """The zeros behind a tar member's bytes."""
    return bytes(-length % BLOCK)


def walk_tar(file: InputFile, suffix: str, longest: int) -> Iterator[tuple[int, int]]:
    """Find members of a tar by their headers, up to the first that cannot be one of ours.

    Args:
        file: The tar.
        suffix: Of the names to look for.
        longest: Bytes that any member may have, but for some kB.

    Yields:
        Offset and length of each.
    """
    offset = 0
    while offset + BLOCK <= file.length:
        try:
            name, size = parse_tar_header(file.read(offset, BLOCK))
        except DamagedDataError:
            return
        offset += BLOCK
        if size > longest + 2**20 or offset + size > file.length:
            return
        if name.endswith(suffix):
            yield offset, size
        offset += round_up(size, BLOCK)


def parse_tar_header(header: bytes) -> tuple[str, int]:
    """Read the name and size of a member.

    Raises:
        DamagedDataError: It is not the header of a plain file with a name of ours.
    """
    if len(header) != BLOCK or not any(header):
        raise DamagedDataError("no tar header is there")
    try:
        checksum = int(header[148:156].rstrip(b" \0"), 8)
        size = int(header[124:136].rstrip(b" \0"), 8)
        name = header[:100].rstrip(b"\0").decode("ascii")
    except ValueError:
        raise DamagedDataError("the tar header holds no numbers") from None
    if sum(header) - sum(header[148:156]) + 8 * ord(" ") != checksum:
        raise DamagedDataError("the tar header has another checksum")
    # No links, no folders, and no name that leads out of a folder.
    if header[156:157] != b"0" or not _MEMBER.fullmatch(name) or not 0 <= size < LARGEST_MEMBER:
        raise DamagedDataError(f"the tar member {name!r} is none of an event's")
    if header != tar_header(name, size):  # a folder in the field `prefix`, a link's target
        raise DamagedDataError(f"the tar header of {name!r} holds more than name and size")
    return name, size


def round_up(value: int, multiple: int) -> int:
    """The smallest multiple that is not below a value."""
    return -(-value // multiple) * multiple
