"""Reads the events of a batch from their shards, each straight into its row.

The events of a batch are sorted as they lie on the disk and cut into runs that follow each other in
a shard: single events in a global order, megabytes in a windowed one. A run is one system call, or
one request to an object store; threads do many at a time, and hold Python's lock for microseconds.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int64, Num

from storage.arrays import Array, as_bytes
from storage.errors import DamagedDataError
from storage.local import LocalStore
from storage.proved import Proved
from storage.schema import Schema
from storage.shard_reader import Piece, ReplacedError, ShardReader
from storage.singles import Pace, Singles
from storage.tables import ShardTables
from storage.urls import Store

LONGEST_RUN = 8 * 2**20  # bytes: no disk gains from more, and threads share the work
MOST_IN_RUN = 256  # events, where they are small: a system call takes 1024 buffers
BYTES_PER_TASK = 6 * 2**20  # of strain: few steps for each event, and enough tasks for all threads
EVENTS_PER_REQUEST = 64  # of an object store: they are fetched at once
SHARDS_AT_ONCE = 16  # of an object store: so many are opened at once


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
        replaced: `Proved.replaced` as that was decided.
        damaged: The places in it that could not be read, and why.
        strain: Its bytes, a row an event.
        size: Of a row.
    """

    batch: Batch
    prove: bool = True
    replaced: int = 0
    damaged: dict[int, DamagedDataError] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.strain = as_bytes(self.batch.strain)
        self.size = len(self.strain) // max(1, len(self.batch.event))

    def row(self, place: int) -> memoryview:
        """Where the strain of the event at a place goes."""
        return self.strain[place * self.size : (place + 1) * self.size]


def runs_of(
    events: Int64[Array, "event"], places: Int64[Array, "place"], schema: Schema
) -> list[Run]:
    """Cut events of a batch into runs.

    Args:
        events: Of the batch.
        places: Some places in it, in the order in which their events lie in the data set.
        schema: What that is.
    """
    if not len(places):
        return []
    numbers = events[places]
    begins = np.append(True, ~_follow(numbers, schema))
    starts = np.flatnonzero(begins).tolist()
    most = max(1, min(MOST_IN_RUN, LONGEST_RUN // schema.event_bytes))
    shards, rows = (part.tolist() for part in np.divmod(numbers, schema.events_per_shard))
    listed = places.tolist()
    return [
        Run(shards[first], rows[first], tuple(listed[first : min(first + most, stop)]))
        for start, stop in zip(starts, [*starts[1:], len(listed)], strict=True)
        for first in range(start, stop, most)
    ]


def _follow(numbers: Int64[Array, "event"], schema: Schema) -> Bool[Array, "event-1"]:
    """Which events but the first follow the one before in its shard."""
    follow: Array = (np.diff(numbers) == 1) & (numbers[1:] % schema.events_per_shard != 0)
    return follow


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
        self._store, self._schema, self._skip = store, schema, skip
        self.is_local = isinstance(store, LocalStore)
        self._pace = Pace()
        self._proved = Proved(schema) if first_time_only and self.is_local else None
        forget = self._proved.forget if self._proved else None
        self._tables = ShardTables(store, schema, most_shards, forget)

    @property
    def events_per_task(self) -> int:
        """How many events a thread should be given at a time."""
        if not self.is_local:
            return EVENTS_PER_REQUEST
        return max(1, min(MOST_IN_RUN, BYTES_PER_TASK // self._schema.event_bytes))

    def filling(self, batch: Batch) -> Filling:
        """Begin to fill a batch, whose numbers of events are there."""
        if self._proved is None:
            return Filling(batch)
        replaced = self._proved.replaced  # first: what is replaced after it is noticed
        return Filling(batch, not self._proved.has(batch.event), replaced)

    def tasks(self, filling: Filling, threads: int = 1) -> Iterator[Callable[[], None]]:
        """What has to be done to fill a batch, in any order, by any thread.

        Args:
            filling: The batch.
            threads: That shall all find something to do in this batch alone.
        """
        events = filling.batch.event
        per_task = min(self.events_per_task, -(-len(events) // threads))
        left = np.argsort(events, kind="stable")
        if self.is_local and 2 * np.count_nonzero(_follow(events[left], self._schema)) < len(left):
            per_task = max(1, min(per_task, self._tables.files_at_once // threads))
            if self._tables.are_open(events):  # to look up all at once takes little
                singles, left = self._tables.find(events, left, filling.batch.parameters)
                for first in range(0, len(singles.places), per_task):
                    yield partial(self._read_found, filling, singles.part(first, per_task))
            for first in range(0, len(left), per_task):
                yield partial(self._read_singly, filling, left[first : first + per_task])
            return
        read = self._read if self.is_local else self._fetch
        for runs in tasks_of(runs_of(events, left, self._schema), per_task):
            yield partial(read, filling, runs)

    def finish(self, filling: Filling) -> None:
        """Note, when all is done, which events were proved."""
        if self._proved is not None and filling.prove:
            events = np.delete(filling.batch.event, list(filling.damaged))
            self._proved.note(events, filling.replaced)

    def _must_prove(self, filling: Filling) -> bool:
        """Whether to compare checksums, to be asked when the files that are read are open."""
        is_as_before = self._proved is None or self._proved.replaced == filling.replaced
        return filling.prove or not is_as_before

    def release(self) -> None:
        """Close all files; they are opened again when they are needed."""
        self._tables.release()

    def _read(self, filling: Filling, runs: Sequence[Run]) -> None:
        """Read runs one after the other."""
        for run in runs:
            try:
                self._read_run(filling, run)
            except DamagedDataError as error:
                if not self._skip:
                    raise
                if len(run.places) > 1:  # some of them may be sound
                    self._read(filling, list(run.singly()))
                else:
                    filling.damaged[run.places[0]] = error

    def _read_singly(self, filling: Filling, places: Int64[Array, "place"]) -> None:
        """Look up single events, open their files, and read them."""
        events, parameters = filling.batch.event, filling.batch.parameters
        singles, left = self._tables.find(events, places, parameters)
        self._read_found(filling, singles)
        self._read_again(filling, left)

    def _read_found(self, filling: Filling, singles: Singles) -> None:
        """Read single events; those that are not sound once more, which tells what is wrong."""
        strain, size = filling.strain, filling.size
        if self._schema.encoding.compressed:
            sound = singles.unpack(strain, size, self._pace)
        else:
            sound = singles.read(strain, size, self._must_prove(filling), self._pace)
        self._read_again(filling, singles.places[~sound])

    def _read_again(self, filling: Filling, places: Int64[Array, "place"]) -> None:
        events = filling.batch.event
        self._read(filling, runs_of(events, places[np.argsort(events[places])], self._schema))

    def _read_run(self, filling: Filling, run: Run) -> None:
        rows = [filling.row(place) for place in run.places]
        reader = self._tables.reader(run.shard)
        try:
            reader.read(run.row, rows, self._must_prove(filling))
        except ReplacedError:  # it was closed in between, for others
            reader = self._tables.reader(run.shard)
            reader.read(run.row, rows, self._must_prove(filling))
        self._put_parameters(filling, run)

    def _put_parameters(self, filling: Filling, run: Run) -> None:
        self._tables.put_parameters(run.shard, run.row, run.places, filling.batch.parameters)

    def _fetch(self, filling: Filling, runs: Sequence[Run]) -> None:
        """Read runs with the requests for all of them under way at once."""
        unknown = [shard for shard in {run.shard for run in runs} if shard not in self._tables]
        if unknown:
            with ThreadPoolExecutor(SHARDS_AT_ONCE, "strainflow-open") as pool:
                list(pool.map(self._open_early, unknown))
        fetched, alone = list[tuple[Run, ShardReader, Piece]](), list[Run]()
        for run in runs:
            try:
                reader = self._tables.reader(run.shard)
                pieces = reader.pieces(run.row, len(run.places), self._schema.event_bytes)
                fetched += [(run, reader, piece) for piece in pieces]
            except DamagedDataError:
                alone.append(run)
        contents = self._store.read_ranges(
            [(reader.path, piece.offset, piece.length) for _, reader, piece in fetched]
        )
        for (run, reader, piece), content in zip(fetched, contents, strict=True):
            part = run.part(piece.row, piece.count)
            try:
                reader.unpack(piece, content, [filling.row(place) for place in part.places])
                self._put_parameters(filling, part)
            except DamagedDataError:
                alone.append(part)
        self._read(filling, alone)  # tells what is wrong with them

    def _open_early(self, number: int) -> None:
        with suppress(DamagedDataError):  # comes again where the events are known
            self._tables.reader(number)
