"""The streaming loader: batches read straight from the shards' payloads into reused buffers.

One process, a few threads: each `preadv` (or decompression) releases the GIL and lands in the row
of the batch where the event belongs, still in its stored type. Nothing is copied afterwards. From
an object store the ranges of many events are fetched at once. The order is `storage.order`'s; the
state is three integers.

Not covered yet: a windowed order for spinning disks and object stores, a local cache.
"""

import itertools
import resource
import sys
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64, Num
from webdataset.pytorch import IterableDataset

from storage.arrays import Array
from storage.dataset import read_schema
from storage.errors import InputError
from storage.local import LocalStore
from storage.manifest import read_manifest, require_sound
from storage.order import permuted
from storage.schema import Schema, shard_files
from storage.shard import ShardReader
from storage.urls import Store, store_of

ROWS_PER_TASK = 8
ROWS_PER_REQUEST = 64  # of an object store: they are fetched at once
SHARDS_AT_ONCE = 16  # of an object store: so many are opened at once
MOST_SHARDS = 4096  # of an object store: their indices and tables take some 100 kB each
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


class EventStream(IterableDataset):
    """Iterates over one epoch (or what is left of it) of a data set in batches.

    Every event of the chosen range is delivered exactly once an epoch over all ranks; each rank
    gets the same number of batches, the last ones perhaps smaller, or empty where fewer events than
    ranks are left. `state_dict` holds (seed, epoch, position), where position counts the events
    delivered over all ranks: a run can be resumed in mid-epoch with another number of ranks, batch
    size or threads.

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
        threads: Reading threads.
        prefetch: Batches read ahead.
        allocate: Makes the strain buffers, given shape and type (for pinned memory).
        growing: Whether shards may be missing; the range is then one of the events of the shards
            that are finished when the stream is made, counted in order.

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
        threads: int = 2,
        prefetch: int = 2,
        allocate: Callable[[tuple[int, ...], np.dtype[Any]], Array] = np.empty,
        growing: bool = False,
    ) -> None:
        self._store = store_of(url)
        self.schema = read_schema(self._store)
        self._shards = np.array(require_sound(self._store, self.schema, growing))
        available = sum(len(self.schema.events_of(int(shard))) for shard in self._shards)
        self._start, self._stop = start, available if stop is None else stop
        _refuse_impossible_range(self._start, self._stop, available)
        _refuse_below(1, batch_size=batch_size, world_size=world_size, threads=threads)
        _refuse_below(0, seed=seed, prefetch=prefetch)
        if not 0 <= rank < world_size:
            raise InputError(f"rank: got {rank}, must lie in [0, {world_size}) (the world size)")
        self._batch_size, self._rank, self._world_size = batch_size, rank, world_size
        self._shuffle, self._threads, self._prefetch = shuffle, threads, prefetch
        self._allocate = allocate
        self._buffers: list[Batch] = []
        self._seed, self._epoch, self._position = seed, 0, 0

    @property
    def events(self) -> int:
        """Events an epoch, over all ranks."""
        return self._stop - self._start

    def __len__(self) -> int:
        """Return the number of batches of a whole epoch."""
        return -(-self.events // (self._batch_size * self._world_size))

    def state_dict(self) -> dict[str, int]:
        """Where the stream stands: what it delivers next is a function of this alone."""
        return {"seed": self._seed, "epoch": self._epoch, "position": self._position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue from a state; takes effect at the next `iter`.

        Raises:
            InputError: The state is not one of this range of events.
        """
        if not 0 <= state["position"] < self.events:
            raise InputError(
                f"state: got position {state['position']}, this stream has {self.events} events "
                "an epoch; give the data set and the range that the state was saved with"
            )
        self._seed, self._epoch = state["seed"], state["epoch"]
        self._position = state["position"]

    def __iter__(self) -> Iterator[Batch]:
        """Deliver the batches that are left of this epoch, then stand at the next epoch's start."""
        if _is_dataloader_worker():
            raise InputError(
                "EventStream: a DataLoader worker would deliver every event once more, in the same "
                "order each epoch; use num_workers=0 (the stream reads with threads of its own)"
            )
        # Kept for the next epoch: memory is slow when it is touched first. Taken while in use, so
        # that a second iterator makes its own.
        buffers = self._buffers or [self._new_buffer() for _ in range(self._prefetch + 1)]
        self._buffers = []
        ring = itertools.cycle(buffers)
        in_flight: deque[_Read] = deque()
        with (
            closing(_OpenShards(self._store, self.schema)) as shards,
            ThreadPoolExecutor(self._threads, "strainflow-read") as pool,
        ):
            try:
                for events, state in self._rest_of_epoch():
                    # The ring has one buffer more than there are reads in flight: this one was the
                    # consumer's, who has asked for the next batch and so is done with it.
                    in_flight.append(_start_read(next(ring), events, state, pool, shards))
                    if len(in_flight) > self._prefetch:
                        yield self._deliver(in_flight.popleft())
                while in_flight:
                    yield self._deliver(in_flight.popleft())
            finally:
                pool.shutdown(wait=True, cancel_futures=True)
                self._buffers = buffers

    def _rest_of_epoch(self) -> Iterator[tuple[Int64[Array, "event"], tuple[int, int]]]:
        """This rank's events of each batch, with the (epoch, position) that follows it."""
        epoch, position = self._epoch, self._position
        while position < self.events:
            count = min(self._batch_size * self._world_size, self.events - position)
            first, last = (
                count * rank // self._world_size for rank in (self._rank, self._rank + 1)
            )
            events = np.arange(position + first, position + last)
            if self._shuffle:
                events = permuted(events, self.events, self._seed, epoch)
            position += count
            shard, row = np.divmod(self._start + events, self.schema.events_per_shard)
            yield (
                self._shards[shard] * self.schema.events_per_shard + row,
                (epoch, position) if position < self.events else (epoch + 1, 0),
            )

    def _deliver(self, read: "_Read") -> Batch:
        for task in read.tasks:
            task.result()
        self._epoch, self._position = read.state
        return read.batch

    def _new_buffer(self) -> Batch:
        schema, size = self.schema, self._batch_size
        return Batch(
            strain=self._allocate((size, *schema.strain_shape), schema.encoding.dtype),
            parameters=np.empty((size, len(schema.parameters)), np.float64),
            event=np.empty(size, np.int64),
        )


@dataclass(frozen=True)
class _Read:
    """A batch that is being read, and where the stream stands after it."""

    batch: Batch
    tasks: list[Future[None]]
    state: tuple[int, int]


def _start_read(
    buffer: Batch,
    events: Int64[Array, "event"],
    state: tuple[int, int],
    pool: ThreadPoolExecutor,
    shards: "_OpenShards",
) -> _Read:
    count = len(events)
    batch = Batch(buffer.strain[:count], buffer.parameters[:count], buffer.event[:count])
    batch.event[:] = events
    tasks = [
        pool.submit(shards.read_rows, batch, range(row, min(row + shards.together, count)))
        for row in range(0, count, shards.together)
    ]
    return _Read(batch, tasks, state)


class _OpenShards:
    """The shards that were read last, kept open within the limit on file descriptors."""

    def __init__(self, store: Store, schema: Schema) -> None:
        self._store, self._schema = store, schema
        self._is_local = isinstance(store, LocalStore)
        self.together = ROWS_PER_TASK if self._is_local else ROWS_PER_REQUEST
        self._open: OrderedDict[int, tuple[ShardReader, Array]] = OrderedDict()
        self._lock = threading.Lock()
        self._most = _most_open_files() if self._is_local else MOST_SHARDS
        self._openers = ThreadPoolExecutor(SHARDS_AT_ONCE, "strainflow-open")

    def read_rows(self, batch: Batch, rows: range) -> None:
        """Read the events of some rows of a batch into those rows."""
        if not self._is_local:
            self._fetch_rows(batch, rows)
            return
        for row in rows:
            reader, within = self._place(batch, row)
            reader.read_into(within, batch.strain[row])

    def close(self) -> None:
        """Close all files."""
        self._openers.shutdown(cancel_futures=True)
        self._open.clear()

    def _fetch_rows(self, batch: Batch, rows: range) -> None:
        """The same, with the requests for all of them under way at once."""
        shards = {int(batch.event[row]) // self._schema.events_per_shard for row in rows}
        list(self._openers.map(self._shard, shards))
        places = [self._place(batch, row) for row in rows]
        ranges = [
            (reader.path, *reader.place(within, batch.strain[row]))
            for (reader, within), row in zip(places, rows, strict=True)
        ]
        payloads = self._store.read_ranges(ranges)
        for (reader, within), row, payload in zip(places, rows, payloads, strict=True):
            reader.unpack(within, payload, batch.strain[row])

    def _place(self, batch: Batch, row: int) -> tuple[ShardReader, int]:
        """The shard of a row's event and its row there; fills the parameters in."""
        shard, within = divmod(int(batch.event[row]), self._schema.events_per_shard)
        reader, parameters = self._shard(shard)
        batch.parameters[row] = parameters[within]
        return reader, within

    def _shard(self, shard: int) -> tuple[ShardReader, Array]:
        with self._lock:
            if shard in self._open:
                self._open.move_to_end(shard)
                return self._open[shard]
        opened = self._open_shard(shard)
        with self._lock:
            self._open[shard] = opened
            if len(self._open) > self._most:
                # Only dropped: another thread may be reading, and the last one to let go closes it.
                self._open.popitem(last=False)
        return opened

    def _open_shard(self, shard: int) -> tuple[ShardReader, Array]:
        schema, paths = self._schema, shard_files(shard)
        checksums = None
        if schema.encoding.compressed or not self._is_local:
            checksums = read_manifest(self._store, schema, shard).crc32c
        reader = ShardReader(
            self._store, paths["strain"], schema.events_per_shard, schema.encoding, checksums
        )
        table = np.frombuffer(self._store.read(paths["parameters"]), "<f8")
        return reader, table.reshape(schema.events_per_shard, -1)


def _most_open_files() -> int:
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if allowed == resource.RLIM_INFINITY:  # which is -1
        allowed = sys.maxsize
    return max(16, allowed - DESCRIPTORS_SPARED)


def _is_dataloader_worker() -> bool:
    """Whether this process is a worker of a PyTorch DataLoader; such a one has imported torch."""
    torch_data = sys.modules.get("torch.utils.data")
    return torch_data is not None and torch_data.get_worker_info() is not None


def _refuse_impossible_range(start: int, stop: int, events: int) -> None:
    if not 0 <= start < stop <= events:
        raise InputError(f"events {start}:{stop}: the data set has events 0:{events}")


def _refuse_below(least: int, **arguments: int) -> None:
    for name, value in arguments.items():
        if value < least:
            raise InputError(f"{name}: got {value}, at least {least} is needed")
