"""Reading events from a shard: by its Zarr index, straight to where they belong, and proved."""

import mmap
import struct
from array import array
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple, TypeVar

import numpy as np
from crc32c import crc32c
from jaxtyping import Bool, Int64, UInt64

from storage.arrays import PAGE, Array
from storage.blosc import decompress_into
from storage.encodings import Encoding
from storage.errors import MEND, UNREADABLE, DamagedDataError
from storage.local import LocalFile
from storage.singles import scratch
from storage.urls import InputFile, Store

T = TypeVar("T")

LARGEST_OVERHEAD = 16  # by which Blosc's frame may exceed what cannot be compressed
LARGEST_GAP = 2**16  # between the payloads of events that follow each other
_BETWEEN = memoryview(mmap.mmap(-1, LARGEST_GAP))  # takes what nobody wants; begins at a page


class Piece(NamedTuple):
    """Events of a shard that are read at once.

    Attributes:
        row: The first of them in the shard.
        count: How many.
        offset: Where the first payload begins.
        length: Bytes from there to the end of the last one.
    """

    row: int
    count: int  # type: ignore[assignment]  # of tuples, which nobody asks a piece for
    offset: int
    length: int


class ReplacedError(DamagedDataError):
    """A shard's file is another one than its index was read from: to be opened as a new one."""


class ShardReader:
    """A shard that is open for reading, with its index read and proved.

    Args:
        store: The data set.
        path: Of the shard.
        slots: Entries of its index.
        encoding: How its events are stored.
        checksums: CRC-32C of each event's payload, to be compared as it is read. Compressed events
            need them, which must not be decompressed when they are damaged.
        first_event: Number of the shard's first event, for messages.

    Attributes:
        path: Of the shard.
        name: Of its file, for messages.
        identity: Of the file on a local disk: which one it is, and when it was written.

    Raises:
        DamagedDataError: The file is missing, or its index is.
    """

    def __init__(
        self,
        store: Store,
        path: str,
        slots: int,
        encoding: Encoding,
        checksums: Sequence[int] | None = None,
        first_event: int = 0,
    ) -> None:
        self.path, self.name = path, store.where(path)
        self._store, self._encoding, self._first = store, encoding, first_event
        self._checksums = None if checksums is None else np.array(checksums, np.uint32)
        self._file: InputFile | None = None
        self.identity: tuple[int, ...] = ()
        self._is_adopted = False
        try:
            index = read_index(self.open(), slots, self.name)
            self._length = self.open().length
            self.identity = file.identity if (file := self.local_file) else ()
        except OSError as error:
            self.close()
            if error.errno not in UNREADABLE:
                raise
            what = f"its index cannot be read ({error.strerror})"
            raise DamagedDataError(f"{self.name}: {what}; {MEND}") from None
        except BaseException:
            self.close()
            raise
        # Arrays of Python's: of numpy's, taking one number takes four times as long.
        self._offsets, self._lengths = (array("Q", column.tobytes()) for column in index.T)

    @property
    def index(self) -> Int64[Array, "slot 2"]:
        """Offset and length of each payload; where there is none, impossible ones."""
        return np.array([self._offsets, self._lengths], np.uint64).T.astype(np.int64)

    def possible(self, size: int) -> Bool[Array, "slot"]:
        """Which entries of the index may be true: those that `place` does not refuse.

        Args:
            size: Bytes of the strain of each event, before compression.
        """
        offsets, lengths = self.index.T
        fits: Array = lengths == size
        if self._encoding.compressed:
            fits = (lengths > 0) & (lengths <= size + LARGEST_OVERHEAD)
        fits &= (offsets >= 0) & (offsets <= self._length - lengths)
        return fits

    def place(self, row: int, size: int) -> tuple[int, int]:
        """Where the payload of the shard's event `row` lies, and how long it is.

        Args:
            row: Of the event in the shard.
            size: Bytes of its strain, before compression.

        Raises:
            DamagedDataError: The event is not there, or cannot be as long as the index says.
        """
        offset, length = self._offsets[row], self._lengths[row]
        compressed = self._encoding.compressed
        if length != size if not compressed else not 0 < length <= size + LARGEST_OVERHEAD:
            raise self._damage(row, f"has {length} bytes by the index, {size} were expected")
        if offset + length > self._length:
            raise self._damage(row, "is cut off by the end of the file")
        return offset, length

    def pieces(self, row: int, count: int, size: int) -> Iterator[Piece]:
        """Cut a run of events into pieces of the file, each with hardly anything else in it.

        Args:
            row: The first event.
            count: How many.
            size: Bytes of the strain of each, before compression.

        Raises:
            DamagedDataError: One of them is not there.
        """
        first, (start, length) = row, self.place(row, size)
        end = start + length
        for other in range(row + 1, row + count):
            offset, length = self.place(other, size)
            if not end <= offset <= end + LARGEST_GAP:  # as no writer of ours leaves them
                yield Piece(first, other - first, start, end - start)
                first, start = other, offset
            end = offset + length
        yield Piece(first, row + count - first, start, end - start)

    def read(self, row: int, rows: Sequence[memoryview], prove: bool = True) -> None:
        """Read the strain of events that follow each other, each straight to where it belongs.

        Args:
            row: The first event.
            rows: Where the strain of each goes: its bytes.
            prove: Whether to compare checksums; those of compressed events always are.

        Raises:
            DamagedDataError: An event is not there or damaged, or the file ends before it.
        """
        if len(rows) == 1 and not self._encoding.compressed:
            self._read_one(row, rows[0])
            if prove or self._is_adopted:
                self._prove(row, rows[0])
            return
        for piece in self.pieces(row, len(rows), len(rows[0])):
            wanted = rows[piece.row - row :][: piece.count]
            if self._encoding.compressed:
                inside = piece.offset % PAGE  # copying misaligned bytes takes twice as long
                room = scratch.room(inside + piece.length)[inside:]
                there = self._asked(partial(_read_into, piece.offset, room), piece.row)
                self.unpack(piece, room[:there], wanted)
                continue
            self._read_apart(piece, wanted)
            if prove or self._is_adopted:
                for number, strain in enumerate(wanted, piece.row):
                    self._prove(number, strain)

    def unpack(self, piece: Piece, content: bytes | memoryview, rows: Sequence[memoryview]) -> None:
        """Put the strain of the events of a piece, read by itself, to where it belongs.

        Args:
            piece: Of `pieces`.
            content: Its bytes.
            rows: Where the strain of each event goes.

        Raises:
            DamagedDataError: One of them is damaged.
        """
        view = memoryview(content)
        for row, strain in enumerate(rows, piece.row):
            offset, length = self.place(row, len(strain))
            payload = view[offset - piece.offset :][:length]
            if len(payload) < length:
                raise self._damage(row, "is cut off by the end of the file")
            self._prove(row, payload)
            if self._encoding.compressed:
                decompress_into(payload, strain, f"{self.name}: event {self._first + row}")
            else:
                strain[:] = payload

    def release(self) -> None:
        """Close the file until it is read again; whoever is reading from it still can."""
        self._file = None

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    @property
    def is_open(self) -> bool:
        """Whether the file is open at present."""
        return self._file is not None

    @property
    def local_file(self) -> LocalFile | None:
        """The file, if it is open and on a local disk."""
        file = self._file
        return file if isinstance(file, LocalFile) else None

    def reopen(self) -> bool:
        """Open the file again, if it still is the one that the index is of; tell whether it is.

        One that the disk cannot open stays closed: who reads an event from it is told so.

        Raises:
            DamagedDataError: It is missing.
        """
        if self._is_adopted:
            return False
        file = self._opened_if_readable()
        if file is not None and not self._is_known(file):
            return False
        self._file = file
        return True

    def adopt(self, replaced: Callable[[], None]) -> None:
        """Open the file, though it is another one and damaged: some events may be where they were.

        It is no more the file that the index is of: `reopen` refuses it for ever, and each of its
        events is proved.

        Args:
            replaced: Is called before it is read from, where it is another one than the last.

        Raises:
            DamagedDataError: It is missing.
        """
        self._is_adopted, file = True, self._opened_if_readable()
        if isinstance(file, LocalFile) and file.identity != self.identity:
            replaced()
            self.identity = file.identity
        self._file = file

    def open(self) -> InputFile:
        """Open the file, unless it is.

        Raises:
            ReplacedError: It is another one by now.
            DamagedDataError: It is missing.
        """
        file = self._file
        if file is None:
            file = self._opened()
            if not self._is_known(file):
                what = "was replaced by another file while it was read"
                raise ReplacedError(f"{self.name}: {what}; unless that was a repair, {MEND}")
            self._file = file
        return file

    def _is_known(self, file: InputFile) -> bool:
        """Whether it may be the file that was open before; there may have been none."""
        if not isinstance(file, LocalFile) or not self.identity:
            return True
        return file.identity == self.identity

    def _opened_if_readable(self) -> InputFile | None:
        """The file opened anew; none if the disk cannot do so."""
        try:
            return self._opened()
        except OSError as error:
            if error.errno not in UNREADABLE:
                raise
            return None

    def _opened(self) -> InputFile:
        try:
            return self._store.open(self.path)
        except FileNotFoundError:
            raise DamagedDataError(f"{self.name}: is missing; {MEND}") from None

    def _read_one(self, row: int, strain: memoryview) -> None:
        offset, length = self.place(row, len(strain))
        there = self._asked(lambda file: file.read_into_each(offset, (strain,)), row)
        if there < length:  # it was longer when it was opened
            raise self._damage(row, "is cut off by the end of the file")

    def _asked(self, question: Callable[[InputFile], T], row: int) -> T:
        """Ask the file; what its disk cannot read is damage of the event."""
        try:
            return question(self.open())
        except OSError as error:
            if error.errno not in UNREADABLE:
                raise
            raise self._damage(row, f"cannot be read ({error.strerror})") from None

    def _read_apart(self, piece: Piece, rows: Sequence[memoryview]) -> None:
        """Read uncompressed events, and what stands between them past them, in one call."""
        parts, end = list[memoryview](), piece.offset
        for offset, strain in zip(self._offsets[piece.row :], rows, strict=False):
            if offset > end:
                parts.append(_BETWEEN[: offset - end])
            parts.append(strain)
            end = offset + len(strain)
        there = self._asked(lambda file: file.read_into_each(piece.offset, parts), piece.row)
        if there < piece.length:  # it was longer when it was opened
            raise self._damage(piece.row, "or one behind it is cut off by the end of the file")

    def _prove(self, row: int, payload: memoryview) -> None:
        if self._checksums is not None and crc32c(payload) != self._checksums[row]:
            raise self._damage(row, "has not the checksum that was written")

    def _damage(self, row: int, what: str) -> DamagedDataError:
        return DamagedDataError(f"{self.name}: event {self._first + row} {what}; {MEND}")


def _read_into(offset: int, buffer: memoryview, file: InputFile) -> int:
    return file.read_into(offset, buffer)


def read_index(file: InputFile, slots: int, name: str) -> UInt64[Array, "slot 2"]:
    """Read the Zarr index at the end of a shard.

    Args:
        file: The shard.
        slots: Entries of the index.
        name: Of the file, for the message.

    Raises:
        DamagedDataError: It is missing, or not as it was written.
    """
    size = 16 * slots + 4
    data = file.read(max(0, file.length - size), size) if size <= file.length else b""
    if len(data) != size or crc32c(data[:-4]) != struct.unpack("<I", data[-4:])[0]:
        raise DamagedDataError(
            f"{name}: the index at its end is missing or damaged (a truncated or overwritten "
            f"file); {MEND}"
        )
    return np.frombuffer(data[:-4], "<u8").reshape(slots, 2)
