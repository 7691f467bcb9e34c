"""What is kept of the shards of a data set: where events lie, checksums, parameters, open files.

In tables over all shards, so that the events of a batch, which lie anywhere, are looked up in a few
steps of numpy: one by one, that takes longer than to read an event of 200 kB from the page cache.
"""

import resource
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Float64, Int64

from storage.arrays import Array
from storage.errors import DamagedDataError
from storage.local import LocalStore
from storage.manifest import read_manifest, read_table
from storage.schema import Schema, shard_files
from storage.shard_reader import ShardReader
from storage.singles import Singles
from storage.urls import Store

DESCRIPTORS_SPARED = 256  # for everything else that the process has open
MANY_FILES = 2**16  # that a process asks for
HELD = 64  # files that may be open beyond the most, until the threads that read them are done
# Those of a process keep their files open: they share what it may open.
_sharing = weakref.WeakSet["ShardTables"]()
_sharing_lock = threading.Lock()
_NOT_THERE = -1  # as an offset
_BYTES = 8 + 8 + 8 + 16 + 4  # of an event, here and in its shard's reader, beside its parameters


class ShardTables:
    """The tables; the methods may be called by many threads at a time.

    Args:
        store: The data set.
        schema: What it is.
        most: Of so many shards it is kept, of the last ones.
        replaced: Is told the number of a shard whose file is found to be another one than before.
    """

    def __init__(
        self,
        store: Store,
        schema: Schema,
        most: int,
        replaced: Callable[[int], None] | None = None,
    ) -> None:
        self._replaced = replaced
        # Of every shard that was ever open, as it may be forgotten and replaced then; 0: not yet.
        self._identities = np.zeros(schema.shards, np.int64)
        self._store, self._schema, self._most = store, schema, most
        self._is_local = isinstance(store, LocalStore)
        self._descriptors = most_open_files()
        # Past the page cache each file has a second one.
        self._per_file = 2 if isinstance(store, LocalStore) and store.past_cache else 1
        self._lock = threading.Lock()
        self._kept = dict[int, _Kept]()
        self._opened = deque[ShardReader]()
        # A last slot, which is also number -1, for shards of which nothing is kept. What is not
        # written to takes no memory.
        shape = (most + 1, schema.events_per_shard)
        self._slots = np.full(schema.shards, -1, np.int32)
        self._readers: list[ShardReader | None] = [None] * (most + 1)
        self._offsets, self._lengths = np.empty(shape, np.int64), np.empty(shape, np.int64)
        self._crc32c = np.empty(shape, np.int64)
        self._parameters = np.empty((*shape, len(schema.parameters)), np.float64)
        self._offsets[-1] = _NOT_THERE
        if self._is_local:
            with _sharing_lock:
                _sharing.add(self)
            _close_surplus()  # those before have more open than is theirs from now on

    @staticmethod
    def bytes_of_shard(schema: Schema) -> int:
        """What is kept of a shard takes [bytes]."""
        return schema.events_per_shard * (_BYTES + 8 * len(schema.parameters))

    @property
    def files_at_once(self) -> int:
        """How many files may be held while they are read, by all threads together."""
        if self._schema.shards <= self._most_open:
            return sys.maxsize
        return max(1, HELD // _number_sharing())

    @property
    def _most_open(self) -> int:
        """How many files may be open: its share of those of the process."""
        return max(1, self._descriptors // (self._per_file * _number_sharing()))

    def __contains__(self, shard: int) -> bool:
        """Whether a shard is kept."""
        return shard in self._kept

    def reader(self, shard: int) -> ShardReader:
        """A shard's reader; opened, if nothing is kept of it.

        A file that was closed and has been replaced since, as by a repair, is opened as a new one.

        Raises:
            DamagedDataError: Its manifest, its index or its parameters are damaged.
        """
        kept = self._kept.get(shard)
        if kept is not None and kept.reader.is_open:
            return kept.reader
        opened = None
        if kept is None or not kept.reader.reopen():
            try:
                opened = _Opened.open(self._store, self._schema, shard)
            except DamagedDataError:
                if kept is None:
                    raise
                # What was known of it finds those events that are left, if they are the same.
                kept.reader.adopt(partial(self._tell_replaced, shard))
        with self._lock:
            if opened is not None:
                now = self._kept.get(shard)
                # Unless another thread has done the same meanwhile.
                kept = self._keep(shard, opened) if now in (None, kept) else now
            assert kept is not None
            if self._is_local:  # else nothing is held open
                self._opened.append(kept.reader)
        if self._is_local:
            _close_surplus()
        return kept.reader

    def _tell_replaced(self, shard: int) -> None:
        if self._replaced is not None:
            self._replaced(shard)

    @property
    def is_used(self) -> bool:
        """Whether it has files open."""
        return bool(self._opened)

    def close_surplus(self) -> None:
        """Close the files that were opened first, of more than may be open."""
        if len(self._opened) <= self._most_open:
            return
        with self._lock:
            while len(self._opened) > self._most_open:
                # Another thread may be reading: the last one to let go closes the file.
                self._opened.popleft().release()

    def are_open(self, events: Int64[Array, "event"]) -> bool:
        """Whether the shards of some events are, all at a time, on a local disk."""
        if self.files_at_once < len(events):
            return False
        slots = self._slots[np.unique(events // self._schema.events_per_shard)].tolist()
        readers = map(self._readers.__getitem__, slots)
        return all(reader is not None and reader.is_open for reader in readers)

    def find(
        self,
        events: Int64[Array, "event"],
        order: Int64[Array, "event"],
        parameters: Float64[Array, "event parameter"],
    ) -> tuple[Singles, Int64[Array, "other"]]:
        """Look up events of open shards on a local disk, and put their parameters to their places.

        Args:
            events: Of a batch.
            order: Of its places, in which the events are to be read.
            parameters: Of the batch, to be written.

        Returns:
            What was found, and the places of the others; both in the order.
        """
        shards, rows = np.divmod(events[order], self._schema.events_per_shard)
        for shard in np.unique(shards).tolist():
            with suppress(DamagedDataError, OSError):  # which is told when it is read
                self.reader(shard).open()
        with self._lock:  # no slot gets another shard meanwhile
            slots = self._slots[shards]
            readers = map(self._readers.__getitem__, slots.tolist())
            files = [reader.local_file if reader else None for reader in readers]
            offsets = self._offsets[slots, rows]
            lengths, crc32c = self._lengths[slots, rows], self._crc32c[slots, rows]
            parameters[order] = self._parameters[slots, rows]
        there = (offsets != _NOT_THERE) & np.array([file is not None for file in files], bool)
        pairs = zip(files, there.tolist(), strict=True)
        open_files = [file for file, is_there in pairs if file and is_there]
        found = Singles(order[there], open_files, offsets[there], lengths[there], crc32c[there])
        return found, order[~there]

    def put_parameters(
        self, shard: int, row: int, places: tuple[int, ...], parameters: Array
    ) -> None:
        """Put the parameters of events that follow each other in a shard to their places.

        Raises:
            DamagedDataError: As `reader`.
        """
        while True:
            with self._lock:
                slot = self._slots[shard]
                if slot >= 0:
                    parameters[list(places)] = self._parameters[slot, row : row + len(places)]
                    return
            self.reader(shard)  # was forgotten, for others

    def release(self) -> None:
        """Close all files; they are opened again when they are needed."""
        with self._lock:
            while self._opened:
                self._opened.popleft().release()
            # One that was released while a thread was about to read has opened its file again.
            for kept in self._kept.values():
                kept.reader.release()

    def _note_identity(self, shard: int, reader: ShardReader) -> None:
        """Tell of a file that is another one than before, before anyone reads from it."""
        before, now = self._identities[shard], hash(reader.identity)
        self._identities[shard] = now
        if before not in (0, now) and self._replaced is not None:
            self._replaced(shard)

    def _keep(self, shard: int, opened: "_Opened") -> "_Kept":
        """Give a shard a slot: its own, a new one, or that of the one that was kept longest."""
        reader, crc32c = opened.reader, np.zeros(self._schema.events_per_shard, np.int64)
        crc32c[: len(opened.crc32c)] = opened.crc32c
        (offsets, lengths), possible = reader.index.T, reader.possible(self._schema.event_bytes)
        self._note_identity(shard, reader)
        # From here on nothing fails, or else two shards could come to one slot.
        last = self._kept.pop(shard, None)
        if last is not None:
            slot = last.slot
        elif len(self._kept) < self._most:
            slot = len(self._kept)
        else:
            oldest = next(iter(self._kept))
            slot = self._kept.pop(oldest).slot
            self._slots[oldest] = -1
        self._offsets[slot] = np.where(possible, offsets, _NOT_THERE)
        self._lengths[slot], self._crc32c[slot] = lengths, crc32c
        self._parameters[slot] = opened.parameters
        self._readers[slot], self._slots[shard] = reader, slot
        kept = self._kept[shard] = _Kept(reader, slot)
        return kept


@dataclass(frozen=True)
class _Kept:
    """A shard's reader, and its place in the tables."""

    reader: ShardReader
    slot: int


@dataclass(frozen=True)
class _Opened:
    """What is read of a shard when it is opened."""

    reader: ShardReader
    crc32c: tuple[int, ...]
    parameters: Float64[Array, "event parameter"]

    @classmethod
    def open(cls, store: Store, schema: Schema, number: int) -> "_Opened":
        manifest = read_manifest(store, schema, number)
        parameters = read_table(store, schema, manifest, "parameters")
        reader = ShardReader(
            store,
            shard_files(number)["strain"],
            schema.events_per_shard,
            schema.encoding,
            manifest.crc32c,
            manifest.first_event,
        )
        return cls(reader, manifest.crc32c, parameters)


def _number_sharing() -> int:
    """How many tables share what the process may open: those that have files open, one at least."""
    with _sharing_lock:
        return max(1, sum(each.is_used for each in _sharing))


def _close_surplus() -> None:
    """Let all tables of the process keep to their shares, as no other one closes its files."""
    with _sharing_lock:
        tables = list(_sharing)
    for each in tables:
        each.close_surplus()


def allow_many_files() -> None:
    """Let this process open as many files as the system allows it, if it asks: as a verb does.

    A set of more shards than may be open is read by opening and closing files. The usual limit of
    1,024 is there for programs that wait by `select`, which ours do not.
    """
    allowed, at_most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if allowed != resource.RLIM_INFINITY:
        wanted = MANY_FILES if at_most == resource.RLIM_INFINITY else min(at_most, MANY_FILES)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(allowed, wanted), at_most))


def most_open_files() -> int:
    """How many files may be open for reading, in the whole process."""
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if allowed == resource.RLIM_INFINITY:  # which is -1
        allowed = sys.maxsize
    return max(16, allowed - DESCRIPTORS_SPARED)
