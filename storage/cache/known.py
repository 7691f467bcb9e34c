"""What a shard's manifest proves of the bytes of its files."""

from array import array
from dataclasses import dataclass

import blake3
import numpy as np
from crc32c import crc32c
from jaxtyping import Int64

from storage.arrays import Array
from storage.cache.item import KEY_BYTES
from storage.documents import parse_json
from storage.manifest import HASHES, recorded_digest
from storage.schema import shard_files
from storage.shard_reader import LARGEST_GAP


@dataclass(frozen=True)
class Part:
    """What is kept by itself, or is not kept.

    Attributes:
        path: Of the file.
        offset: Where it begins.
        length: How long it is.
        rest: What stands between it and the next event [bytes].
        row: The event's in its shard; None for anything else.
        with_rest: Whether that is wanted too.
    """

    path: str
    offset: int
    length: int
    rest: int = 0
    row: int | None = None
    with_rest: bool = False

    @property
    def size(self) -> int:
        """Bytes of all of it, its rest included."""
        return self.length + self.rest

    @property
    def end(self) -> int:
        """Where it ends, its rest included."""
        return self.offset + self.size


@dataclass
class KnownFile:
    """What a manifest says of one of its shard's files.

    Attributes:
        index: Where its events begin and end, from the index at its end.
    """

    kind: str
    digest: str
    length: int
    crc32c: "array[int]"
    index: tuple[Int64[Array, "event"], Int64[Array, "event"]] | None = None

    def key(self, offset: int, length: int) -> bytes:
        """The key of a range."""
        text = f"{self.kind}:{self.digest}:{offset}:{length}"
        return blake3.blake3(text.encode()).digest(KEY_BYTES)

    def learn_index(self, offset: int, content: bytes) -> None:
        """Take the Zarr index over, if this is it, and its events lie as our writer lays them."""
        if self.index is None and self._is_index(offset, content):
            events = len(self.crc32c)
            entries = np.frombuffer(content[: 16 * events], "<u8").astype(np.int64)
            begins, lengths = entries.reshape(events, 2).T.copy()
            ends = begins + lengths
            gaps = begins[1:] - ends[:-1]
            if (lengths > 0).all() and (gaps >= 0).all() and (gaps <= LARGEST_GAP).all():
                self.index = begins, ends

    def rows(self, offset: int, length: int) -> range | None:
        """The events that a range begins and ends with; None where it cuts one."""
        if self.index is None or length <= 0:
            return None
        first, last = map(int, map(np.searchsorted, self.index, (offset, offset + length)))
        if last >= len(self.crc32c) or first > last:
            return None
        is_whole = self.index[0][first] == offset and self.index[1][last] == offset + length
        return range(first, last + 1) if is_whole else None

    def proves(self, part: Part, content: bytes) -> bool:
        """Whether these are the bytes that were written there."""
        if part.row is not None:
            return bool(crc32c(memoryview(content)[: part.length]) == self.crc32c[part.row])
        if len(content) == self.length:
            return bool(HASHES[self.kind](content).hexdigest() == self.digest)
        return self._is_index(part.offset, content)

    def _is_index(self, offset: int, content: bytes) -> bool:
        if offset + len(content) != self.length or not 0 < 16 * len(self.crc32c) < len(content):
            return False
        checksum = crc32c(memoryview(content)[:-4])
        return bool(checksum.to_bytes(4, "little") == content[-4:])


def known_files(manifest: bytes, name: str) -> dict[str, KnownFile]:
    """What a manifest says of its shard's files.

    Raises:
        AttributeError, DamagedDataError, KeyError, OverflowError, TypeError: It is damaged.
    """
    document = parse_json(manifest, name)
    checksums = array("I", document["crc32c"])
    strain = shard_files(document["shard"])["strain"]
    files = {}
    for path, facts in document["files"].items():
        if type(facts["bytes"]) is not int:
            raise TypeError("a length")
        own = checksums if path == strain else array("I")
        files[path] = KnownFile(*recorded_digest(facts), facts["bytes"], own)
    return files
