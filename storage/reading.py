"""Reads the events of a batch from their shards, each straight into its row.

The events of a batch are sorted as they lie on the disk and cut into runs that follow each other in
a shard: single events in a global order, megabytes in a windowed one. A run is one system call, or
one request to an object store; threads do many at a time, and hold Python's lock for microseconds.
"""

import resource
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64, Num

from storage.arrays import Array, as_bytes
from storage.errors import DamagedDataError
from storage.local import LocalStore, WholeRead, read_whole
from storage.manifest import read_manifest, read_table
from storage.schema import Schema, shard_files
from storage.shard_reader import Piece, ShardReader
from storage.urls import Store

LONGEST_RUN = 8 * 2**20  # bytes: no disk gains from more, and threads share the work
MOST_IN_RUN = 256  # events, where they are small: a system call takes 1024 buffers
BYTES_PER_TASK = 6 * 2**20  # of strain: few steps for each event, and enough tasks for all threads
EVENTS_PER_REQUEST = 64  # of an object store: they are fetched at once
SHARDS_AT_ONCE = 16  # of an object store: so many are opened at once
DESCRIPTORS_SPARED = 256  # for everything else that the process has open


@dataclass(frozen=True)
class Batch:
    """Some events, in the order of the epoch.

    The arrays are views of a buffer that is used again: they hold until the next batch is taken.

    Attributes:
        strain: As stored; `EventStream.schema.encoding` says how to decode it to sigma.
        parameters: In the order of `EventStream.schema.parameters`.
        event: The events' numbers.
    """

    strain: Num[Array, "event detector time"]
    parameters: Float64[Array, "event parameter"]
    event: Int64[Array, "event"]


class Run(NamedTuple):
    """Events that follow each other in a shard.

    Attributes:
        shard: Its number.
        row: The first of them in the shard.
        places: Where in the batch each of them belongs.
    """

    shard: int
    row: int
    places: tuple[int, ...]

    def part(self, row: int, count: int) -> "Run":
        """Some of them."""
        return Run(self.shard, row, self.places[row - self.row :][:count])

    def singly(self) -> "Iterator[Run]":
        """Each by itself."""
        for row in range(self.row, self.row + len(self.places)):
            yield self.part(row, 1)


@dataclass
class Filling:
    """A batch while it is read.

    Attributes:
        batch: Its arrays.
        prove: Whether checksums are to be compared.
        damaged: The places in it that could not be read, and why.
    """

    batch: Batch
    prove: bool = True
    damaged: dict[int, DamagedDataError] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._strain, self._parameters = (
            as_bytes(self.batch.strain),
            as_bytes(self.batch.parameters),
        )
        count = max(1, len(self.batch.event))
        self._size, self._width = len(self._strain) // count, len(self._parameters) // count

    def row(self, place: int) -> memoryview:
        """Where the strain of the event at a place goes."""
        return self._strain[place * self._size : (place + 1) * self._size]

    def put_parameters(self, place: int, table: memoryview, row: int) -> None:
        """Put the parameters of an event, a row of its shard's table, to their place.

        As bytes: for a few numbers, numpy takes three times as long.
        """
        width = self._width
        self._parameters[place * width : (place + 1) * width] = table[
            row * width : (row + 1) * width
        ]


def runs_of(events: Int64[Array, "event"], schema: Schema) -> list[Run]:
    """Cut the events of a batch into runs, in the order in which they lie in the data set."""
    if not len(events):
        return []
    per_shard = schema.events_per_shard
    order = np.argsort(events, kind="stable")
    numbers = events[order]
    begins = np.ones(len(events), bool)
    begins[1:] = (np.diff(numbers) != 1) | (numbers[1:] % per_shard == 0)
    starts = np.flatnonzero(begins).tolist()
    most = max(1, min(MOST_IN_RUN, LONGEST_RUN // schema.event_bytes))
    shards, rows = (part.tolist() for part in np.divmod(numbers, per_shard))
    places = order.tolist()
    return [
        Run(shards[first], rows[first], tuple(places[first : min(first + most, stop)]))
        for start, stop in zip(starts, [*starts[1:], len(places)], strict=True)
        for first in range(start, stop, most)
    ]


def tasks_of(runs: Sequence[Run], events: int) -> Iterator[list[Run]]:
    """Put runs together so that each task has about so many events."""
    task, count = list[Run](), 0
    for run in runs:
        task.append(run)
        count += len(run.places)
        if count >= events:
            yield task
            task, count = [], 0
    if task:
        yield task


class Reading:
    """Reads batches from a data set; its methods may be called by many threads at a time.

    Indices, checksums and parameters of shards are kept from epoch to epoch, files are not.

    Args:
        store: The data set.
        schema: What it is.
        first_time_only: Whether the checksum of an uncompressed event on a local disk is compared
            only when it is read for the first time; otherwise every time.
        skip: Whether damaged events are noted, and do not raise.
        most_shards: Of so many, indices and tables are kept.
    """

    def __init__(
        self, store: Store, schema: Schema, first_time_only: bool, skip: bool, most_shards: int
    ) -> None:
        self._store, self._schema = store, schema
        self.is_local = isinstance(store, LocalStore)
        self._skip, self._most = skip, most_shards
        self._shards = dict[int, _OpenShard]()
        self._opened = deque[ShardReader]()
        once = first_time_only and self.is_local
        self._proved = np.zeros(-(-schema.events // 8), np.uint8) if once else None
        self._lock = threading.Lock()
        self._most_open = _most_open_files()
        if isinstance(store, LocalStore) and store.past_cache:
            self._most_open //= 2  # each has a second descriptor

    @property
    def events_per_task(self) -> int:
        """How many events a thread should be given at a time."""
        if not self.is_local:
            return EVENTS_PER_REQUEST
        return max(1, min(MOST_IN_RUN, BYTES_PER_TASK // self._schema.event_bytes))

    def filling(self, batch: Batch) -> Filling:
        """Begin to fill a batch, whose numbers of events are there."""
        return Filling(batch, self._proved is None or not self._are_proved(batch.event))

    def tasks(self, filling: Filling, threads: int = 1) -> Iterator[Callable[[], None]]:
        """What has to be done to fill a batch, in any order, by any thread.

        Args:
            filling: The batch.
            threads: That shall all find something to do in this batch alone.
        """
        read, events = self._read if self.is_local else self._fetch, filling.batch.event
        per_task = min(self.events_per_task, -(-len(events) // threads))
        for runs in tasks_of(runs_of(events, self._schema), per_task):
            yield partial(read, filling, runs)

    def finish(self, filling: Filling) -> None:
        """Note, when all is done, which events were proved."""
        if self._proved is not None and filling.prove:
            events = np.delete(filling.batch.event, list(filling.damaged))
            np.bitwise_or.at(self._proved, events >> 3, (1 << (events & 7)).astype(np.uint8))

    def _are_proved(self, events: Int64[Array, "event"]) -> bool:
        assert self._proved is not None
        return bool(np.all(self._proved[events >> 3] >> (events & 7) & 1))

    def release(self) -> None:
        """Close all files; they are opened again when they are needed."""
        with self._lock:
            while self._opened:
                self._opened.popleft().release()
            # One that was released while a thread was about to read has opened its file again.
            for shard in self._shards.values():
                shard.reader.release()

    def _read(self, filling: Filling, runs: Sequence[Run]) -> None:
        """Read runs one after the other."""
        for run in runs if filling.prove else self._read_at_once(filling, runs):
            try:
                self._read_run(filling, run)
            except DamagedDataError as error:
                if not self._skip:
                    raise
                if len(run.places) > 1:  # some of them may be sound
                    self._read(filling, list(run.singly()))
                else:
                    filling.damaged[run.places[0]] = error

    def _read_at_once(self, filling: Filling, runs: Sequence[Run]) -> list[Run]:
        """Read single events, as a global order has them; return the runs that are left."""
        asked, reads, left = list[Run](), list[WholeRead](), list[Run]()
        for run in runs:
            shard = self._shards.get(run.shard)
            read = None
            if shard is not None and len(run.places) == 1:
                read = shard.reader.whole_read(run.row, filling.row(run.places[0]))
            if shard is None or read is None:
                left.append(run)
            else:
                shard.copy_parameters(run, filling)
                asked.append(run)
                reads.append(read)
        left += [run for run, done in zip(asked, read_whole(reads), strict=True) if not done]
        return left

    def _read_run(self, filling: Filling, run: Run) -> None:
        shard = self._shard(run.shard)
        rows = [filling.row(place) for place in run.places]
        shard.reader.read(run.row, rows, filling.prove)
        shard.copy_parameters(run, filling)

    def _fetch(self, filling: Filling, runs: Sequence[Run]) -> None:
        """Read runs with the requests for all of them under way at once."""
        unknown = {run.shard for run in runs} - self._shards.keys()
        if unknown:
            with ThreadPoolExecutor(SHARDS_AT_ONCE, "strainflow-open") as pool:
                list(pool.map(self._open_early, unknown))
        fetched, alone = list[tuple[Run, _OpenShard, Piece]](), list[Run]()
        for run in runs:
            try:
                shard = self._shard(run.shard)
                pieces = shard.reader.pieces(run.row, len(run.places), self._schema.event_bytes)
                fetched += [(run, shard, piece) for piece in pieces]
            except DamagedDataError:
                alone.append(run)
        contents = self._store.read_ranges(
            [(shard.reader.path, piece.offset, piece.length) for _, shard, piece in fetched]
        )
        for (run, shard, piece), content in zip(fetched, contents, strict=True):
            part = run.part(piece.row, piece.count)
            try:
                shard.reader.unpack(piece, content, [filling.row(place) for place in part.places])
                shard.copy_parameters(part, filling)
            except DamagedDataError:
                alone.append(part)
        self._read(filling, alone)  # tells what is wrong with them

    def _open_early(self, number: int) -> None:
        with suppress(DamagedDataError):  # comes again where the events are known
            self._shard(number)

    def _shard(self, number: int) -> "_OpenShard":
        found = self._shards.get(number)
        if found is not None and found.reader.is_open:
            return found
        if found is None:
            found = _OpenShard.open(self._store, self._schema, number)
        with self._lock:
            self._shards[number] = found
            if self.is_local:  # else nothing is held open
                self._opened.append(found.reader)
            if len(self._shards) > self._most:
                del self._shards[next(iter(self._shards))]
            if len(self._opened) > self._most_open:
                # Another thread may be reading: the last one to let go closes the file.
                self._opened.popleft().release()
        return found


@dataclass(frozen=True)
class _OpenShard:
    """A shard's reader, and the parameters of its events."""

    reader: ShardReader
    parameters: memoryview

    @classmethod
    def open(cls, store: Store, schema: Schema, number: int) -> "_OpenShard":
        """Open a shard.

        Raises:
            DamagedDataError: Its manifest, its index or its parameters are damaged.
        """
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
        return cls(reader, as_bytes(parameters))

    def copy_parameters(self, run: Run, filling: Filling) -> None:
        """Put the parameters of some events to where they belong."""
        for row, place in enumerate(run.places, run.row):
            filling.put_parameters(place, self.parameters, row)


def _most_open_files() -> int:
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if allowed == resource.RLIM_INFINITY:  # which is -1
        allowed = sys.maxsize
    return max(16, allowed - DESCRIPTORS_SPARED)
