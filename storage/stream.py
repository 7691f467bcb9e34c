"""The streaming loader: batches read straight from the shards' payloads into reused buffers.

One process, a few threads: each read (or decompression) releases Python's lock and lands in the row
of the batch where the event belongs, still in its stored type. Nothing is copied afterwards. Which
events a batch has says `storage.parts`, by an order of `storage.order`; the reads are those of
`storage.reading`. What is here is the ring of buffers, and where the stream stands.
"""

import itertools
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from jaxtyping import Int64
from webdataset.pytorch import IterableDataset

from storage.arrays import Array, aligned_empty
from storage.audit import Audit
from storage.cache.store import CachedStore
from storage.calibrate import Depth, calibrate
from storage.dataset import metadata_digest, read_schema
from storage.errors import InputError
from storage.local import LocalStore
from storage.parts import Part, Parts, order_of
from storage.reading import Batch, Filling, Reading
from storage.snapshot import Snapshot
from storage.stream_config import StreamConfig
from storage.tables import ShardTables
from storage.urls import Store, store_of

__all__ = ["Batch", "EventStream", "StreamConfig"]

TOLD = 10  # damaged events that are named on the terminal; all are in `damaged`
DEFAULTS = StreamConfig()
_SAME = "give the data set, the range and the order that the state was saved with"
Allocate = Callable[[tuple[int, ...], np.dtype[Any]], Array]


class EventStream(IterableDataset):
    """Iterates over one epoch (or what is left of it) of a data set in batches.

    Every event of the chosen range is delivered exactly once an epoch over all ranks; each rank
    gets the same number of batches, the last ones perhaps smaller, or empty where fewer events than
    ranks are left. The state is where the stream stands, in a few numbers: a run can be resumed in
    mid-epoch, bit for bit, with another number of ranks, batch size, threads or place of the data.

    Composes with webdataset: `wds.DataPipeline(stream, ...)`, `wds.WebLoader(stream,
    batch_size=None)`.

    Args:
        url: The data set.
        batch_size: Events a batch and rank.
        seed: Of the order.
        rank: Number of this process.
        world_size: Number of processes.
        start: First event of the range to deliver.
        stop: End of the range, the data set's end by default.
        shuffle: Whether to permute the range; in the order of the data set otherwise.
        config: How it is read: threads, memory, what becomes of damage.
        allocate: Makes the strain buffers, given shape and type (for pinned memory).
        agree: Tells all ranks what the first one says; needed by several ranks of a growing set,
            which would not see the same shards. With it the first one alone calibrates, for all:
            ranks that read at the same time would measure each other. All of them have to begin
            to iterate then.

    Attributes:
        schema: What the data set is.
        damaged: What was skipped: why, by the number of the event.
        audit: Of the events delivered in this epoch since the stream was made or its state loaded.

    Raises:
        InputError: An argument is impossible, or there is no data set.
        DamagedDataError: The data set is not complete.
    """

    def __init__(
        self,
        url: str | Path | Store,
        *,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        start: int = 0,
        stop: int | None = None,
        shuffle: bool = True,
        config: StreamConfig = DEFAULTS,
        allocate: Allocate = aligned_empty,
        agree: Callable[[str], str] | None = None,
    ) -> None:
        self._store = store_of(url)
        if config.cache is not None:
            self._store = CachedStore(self._store, config.cache, int(config.cache_bytes))
        self.schema = read_schema(self._store)
        self._data_digest = metadata_digest(self._store)
        _refuse_below(1, batch_size=batch_size, world_size=world_size)
        _refuse_below(0, seed=seed)
        if not 0 <= rank < world_size:
            raise InputError(f"rank: got {rank}, must lie in [0, {world_size}) (the world size)")
        if config.growing and world_size > 1 and agree is None:
            raise InputError(
                "growing: several ranks may see different shards; give `agree`, which tells all "
                "of them what the first one says"
            )
        self._config, self._range, self._agree = config, (start, stop), agree
        self._batch_size, self._rank, self._world_size = batch_size, rank, world_size
        self._shuffle, self._allocate = shuffle, allocate
        self.damaged = dict[int, str]()
        self._snapshot = self._look()
        if self._goes_past_cache() and isinstance(self._store, LocalStore):
            self._store = replace(self._store, past_cache=True)
        self._refuse_too_little_memory()
        self._reading = Reading(
            self._store,
            self.schema,
            config.checksums == "first",
            config.damaged == "skip",
            self._most_shards,
        )
        self._depth: Depth | None = None
        self._buffers: list[Batch] = []
        self._left: list[tuple[ThreadPoolExecutor, list[Batch]]] = []
        self._seed, self._epoch, self._position = seed, 0, 0
        self._is_fresh = True
        self.audit = Audit()

    @property
    def events(self) -> int:
        """Events an epoch, over all ranks."""
        return self._snapshot.events

    def __len__(self) -> int:
        """Return the number of batches of a whole epoch."""
        return -(-self.events // (self._batch_size * self._world_size))

    @property
    def order(self) -> str:
        """The kind of order: what has to be the same for a state to mean the same."""
        if not self._shuffle:
            return "as stored"
        if self._config.window is None:
            return "global"
        window = self._config.window
        return f"windowed, {window.shards} shards by blocks of {window.events} events"

    @property
    def threads(self) -> int:
        """Reading threads; before the first batch those given, 0 where the calibration decides."""
        return self._depth.threads if self._depth else self._config.threads or 0

    @property
    def memory(self) -> int:
        """What buffers and tables take at most [bytes], as far as it is known before reading."""
        depth = self._depth.prefetch if self._depth else self._config.prefetch or 0
        return (depth + 1) * self._batch_bytes + self._most_shards * self._shard_bytes

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands: what it delivers next is a function of this alone."""
        self._settle()  # here it is safe to wait
        state: dict[str, Any] = {
            "seed": self._seed,
            "epoch": self._epoch,
            "position": self._position,
            "order": self.order,
            "data": self._data_digest,
        }
        if self._position:
            state["events"] = self.events
            state["start"], state["stop"] = self._snapshot.start, self._snapshot.stop
            if self._config.growing:
                state["shards"] = self._snapshot.text
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state; takes effect at the next `iter`.

        At the start of an epoch, range and order may be others: nothing of them is used up.

        Raises:
            InputError: The state is not one of this data set, range of events and order.
        """
        snapshot = self._snapshot
        if state.get("data", self._data_digest) != self._data_digest:
            raise InputError(f"state: got one of another data set (by its metadata); {_SAME}")
        if self._config.growing and state["position"]:
            if "shards" not in state:
                raise InputError(f"state: got one of a set that does not grow; {_SAME}")
            snapshot = Snapshot.parse(state["shards"], self.schema, self._range)
        _refuse_another_range(state, snapshot)
        if state["position"] and state.get("order", self.order) != self.order:
            raise InputError(
                f"state: got one of the order {state['order']!r}, this stream's is "
                f"{self.order!r}; {_SAME}"
            )
        self._snapshot = snapshot
        self._seed, self._epoch = state["seed"], state["epoch"]
        self._position = state["position"]
        self._is_fresh = True
        self.audit = Audit(self._epoch)

    def __iter__(self) -> Iterator[Batch]:
        """Deliver the batches that are left of this epoch, then stand at the next epoch's start."""
        yield from self.epochs(self._epoch + 1)

    def epochs(self, stop: int | None = None) -> Generator[Batch, None, None]:
        """Deliver what is left of this epoch and the epochs after it, without a pause in between.

        The first batches of an epoch are read while the last ones of the epoch before are used. A
        set that grows is looked at when an epoch is over, and only then its batches are read.

        Args:
            stop: The epoch before which to end; by default there is no end.
        """
        if _is_dataloader_worker():
            raise InputError(
                "EventStream: a DataLoader worker would deliver every event once more, in the same "
                "order each epoch; use num_workers=0 (the stream reads with threads of its own)"
            )
        while stop is None or self._epoch < stop:
            if self._config.growing and self._position == 0 and not self._is_fresh:
                self._snapshot = self._look()
            self._is_fresh = False
            yield from self._until(self._epoch + 1 if self._config.growing else stop)

    def _until(self, stop: int | None) -> Iterator[Batch]:
        """Deliver epochs of the snapshot that there is."""
        self._settle()
        depth = self._depth = self._depth or self._choose_depth()
        # Kept for the next call: memory is slow when it is touched first. Taken while in use, so
        # that a second iterator makes its own.
        buffers = self._buffers or [self._new_buffer() for _ in range(depth.prefetch + 1)]
        self._buffers = []
        pool = ThreadPoolExecutor(depth.threads, "strainflow-read")
        is_left = False
        try:
            yield from self._deliver_all(stop, itertools.cycle(buffers), depth, pool)
        except GeneratorExit:
            # Perhaps by the garbage collector, in the midst of anything: with locks held that
            # threads need to end. So they are not waited for, but by the next iteration.
            is_left = True
            raise
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            self._left.append((pool, buffers))
            if not is_left:
                self._settle()

    def _settle(self) -> None:
        """Wait for what iterations that were left had begun, and take back their buffers."""
        while self._left:
            pool, buffers = self._left.pop()
            pool.shutdown(wait=True)
            self._reading.release()
            self._buffers = buffers

    def _deliver_all(
        self, stop: int | None, ring: Iterator[Batch], depth: Depth, pool: ThreadPoolExecutor
    ) -> Iterator[Batch]:
        in_flight = deque[_Read]()

        def begin(batch: Batch, part: Part) -> tuple[Filling, list[Future[None]]]:
            """Find out which events a batch has, and ask for them."""
            batch.event[:] = part.events()
            filling = self._reading.filling(batch)
            tasks = self._reading.tasks(filling, depth.threads)
            return filling, [pool.submit(task) for task in tasks]

        for part in self._parts().since(self._epoch, self._position, stop):
            # The ring has one buffer more than there are reads in flight: this one was the
            # consumer's, who has asked for the next batch and so is done with it.
            buffer, count = next(ring), part.count
            batch = Batch(buffer.strain[:count], buffer.parameters[:count], buffer.event[:count])
            # Done by the threads, so that a batch that is ready is not waited for.
            in_flight.append(_Read(pool.submit(begin, batch, part), part.epoch, part.state))
            if len(in_flight) > depth.prefetch:
                yield self._deliver(in_flight.popleft())
        while in_flight:
            yield self._deliver(in_flight.popleft())

    def _parts(self) -> Parts:
        """What batches have, of the snapshot that there is."""
        order = order_of(self._snapshot, self._seed, self._shuffle, self._config.window)
        return Parts(self._snapshot, order, self._batch_size, self._rank, self._world_size)

    def _deliver(self, read: "_Read") -> Batch:
        filling, tasks = read.begun.result()
        for task in tasks:
            task.result()
        self._reading.finish(filling)
        self._epoch, self._position = read.state
        if self._position == 0:  # so that a shard that was repaired is seen in the next epoch
            self._reading.release()
        if self.audit.epoch != read.epoch:
            self.audit = Audit(read.epoch)
        batch = self._without_damaged(filling) if filling.damaged else filling.batch
        self.audit = self.audit + batch.event
        return batch

    def _without_damaged(self, filling: Filling) -> Batch:
        """What is left of a batch without the events that could not be read."""
        batch = filling.batch
        for place, error in sorted(filling.damaged.items()):
            self.damaged[int(batch.event[place])] = str(error)
            if len(self.damaged) <= TOLD:
                print(f"strainflow: skipped: {error}", file=sys.stderr)
        kept = [place for place in range(len(batch.event)) if place not in filling.damaged]
        for target, place in enumerate(kept):
            for array in (batch.strain, batch.parameters, batch.event):
                array[target] = array[place]
        count = len(kept)
        return Batch(batch.strain[:count], batch.parameters[:count], batch.event[:count])

    def _look(self) -> Snapshot:
        """See which events there are now."""
        if not self._config.growing or self._agree is None:
            return Snapshot.take(self._store, self.schema, self._range, self._config.growing)
        told = ""
        try:
            told = Snapshot.take(self._store, self.schema, self._range, growing=True).text
        finally:  # whatever happened here, the others take part
            told = self._agree(told)
        return Snapshot.parse(told, self.schema, self._range)

    def _choose_depth(self) -> Depth:
        """Decide on threads and batches ahead, by a calibration where they are not given."""
        threads, prefetch = self._config.threads, self._config.prefetch
        if threads is not None and prefetch is not None:
            return Depth(threads, prefetch)
        if self._agree is None or self._world_size == 1:
            return self._calibrated(threads, prefetch)
        told = ""
        try:
            if self._rank == 0:
                found = self._calibrated(threads, prefetch)
                told = f"{found.threads} {found.prefetch}"
        finally:  # whatever happened here, the others wait for an answer
            told = self._agree(told)
        return Depth(*map(int, told.split()))

    def _calibrated(self, threads: int | None, prefetch: int | None) -> Depth:
        """Find out what is not given."""
        parts = self._parts()
        generator = np.random.default_rng()  # what it reads should not be what was read before

        def some_events(count: int) -> Int64[Array, "event"]:
            """Events that follow each other in the order, from anywhere in it."""
            places = (generator.integers(self.events) + np.arange(count)) % self.events
            return parts.numbers(places, self._epoch)

        room = self._config.memory - self._most_shards * self._shard_bytes
        return calibrate(
            self._reading,
            self.schema,
            some_events,
            self.events,
            self._batch_size,
            threads,
            prefetch,
            max(1, int(room // self._batch_bytes) - 1),
        )

    def _goes_past_cache(self) -> bool:
        """Whether to read past the page cache."""
        if self.schema.encoding.compressed:  # which begin anywhere, as no direct read may
            return False
        if self._config.past_cache is not None:
            return self._config.past_cache
        return self.events * self.schema.event_bytes > psutil.virtual_memory().available

    @property
    def _batch_bytes(self) -> int:
        return self._batch_size * (self.schema.event_bytes + 8 * len(self.schema.parameters) + 8)

    @property
    def _shard_bytes(self) -> int:
        """What is kept of a shard: its index, checksums and parameters."""
        return ShardTables.bytes_of_shard(self.schema)

    @property
    def _most_shards(self) -> int:
        """Of how many shards that is kept: of all, where it takes little."""
        return min(self.schema.shards, max(16, int(self._config.memory / 10) // self._shard_bytes))

    def _refuse_too_little_memory(self) -> None:
        config = self._config
        batches = 2 if config.prefetch is None else config.prefetch + 1
        tables = self._most_shards * self._shard_bytes
        if config.memory < batches * self._batch_bytes + tables:
            raise InputError(
                f"memory: got {config.memory:.3g} bytes, {batches} batches of "
                f"{self._batch_bytes:,} bytes and tables of {tables:,} do not fit; raise it, or "
                "lower batch_size or prefetch"
            )

    def _new_buffer(self) -> Batch:
        schema, size = self.schema, self._batch_size
        return Batch(
            strain=self._allocate((size, *schema.strain_shape), schema.encoding.dtype),
            parameters=np.empty((size, len(schema.parameters)), np.float64),
            event=np.empty(size, np.int64),
        )


@dataclass(frozen=True)
class _Read:
    """A batch that is being read, its epoch, and where the stream stands after it."""

    begun: Future[tuple[Filling, list[Future[None]]]]
    epoch: int
    state: tuple[int, int]


def _is_dataloader_worker() -> bool:
    """Whether this process is a worker of a PyTorch DataLoader; such a one has imported torch."""
    torch_data = sys.modules.get("torch.utils.data")
    return torch_data is not None and torch_data.get_worker_info() is not None


def _refuse_another_range(state: dict[str, Any], snapshot: Snapshot) -> None:
    """Refuse a state in mid-epoch of other events; one of before says less of its range."""
    position, events = state["position"], snapshot.events
    if not 0 <= position < events or state.get("events", events) != events:
        raise InputError(
            f"state: got position {position}, this stream has {events} events an epoch; {_SAME}"
        )
    start, stop = state.get("start", snapshot.start), state.get("stop", snapshot.stop)
    if position and (start, stop) != (snapshot.start, snapshot.stop):
        raise InputError(
            f"state: got one of the events {start}:{stop}, this stream's are "
            f"{snapshot.start}:{snapshot.stop}; {_SAME}"
        )


def _refuse_below(least: int, **arguments: int) -> None:
    for name, value in arguments.items():
        if value < least:
            raise InputError(f"{name}: got {value}, at least {least} is needed")
