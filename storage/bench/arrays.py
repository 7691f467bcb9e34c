"""Peers that know any event's place: HDF5, a mapped file, and the readers of Zarr.

HDF5 and the mapped file hold the events uncompressed; the readers of Zarr read our own shards. All
read one range at a time, as fancy indexing is five to ten times slower in h5py and zarr.

Two ways of reading are told apart. Map-style is what tutorials show: PyTorch's DataLoader asks for
batches, and its workers send them through shared memory. By hand is what an expert would write:
rows go straight into one buffer that is used again, so that no memory is touched for the first
time. The DataLoader is webdataset's, which hands PyTorch's on: storage does not import torch.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Num

from storage.arrays import Array
from storage.bench.conversion import converted, stored_events
from storage.schema import Schema

PROCESSES, THREADS, ALONE = (0, 1, 2, 4), (1, 2, 4), (0,)
RUN = 32  # events; zarrs reads part of a shard faster than all of it

Group = Sequence[range]  # of events that follow each other: a batch, or what is read at once
ReadRun = Callable[[range, Array], None]  # reads some events into an array


def random_groups(schema: Schema, run: int | None, batch_size: int, seed: int) -> list[Group]:
    """Divide a data set into runs of events and put them into random order.

    Args:
        schema: Of the data set.
        run: Events that are read at once; None for a shard, which is then a group by itself.
        batch_size: Events of a group.
        seed: Of the order.
    """
    length = schema.events_per_shard if run is None else min(run, batch_size)
    runs = []
    for shard in range(schema.shards):
        events = schema.events_of(shard)
        runs += [events[start : start + length] for start in range(0, len(events), length)]
    order = np.random.default_rng(seed).permutation(len(runs)).tolist()
    together = 1 if run is None else batch_size // length
    return [
        [runs[number] for number in order[start : start + together]]
        for start in range(0, len(runs), together)
    ]


class GroupReader:
    """A map-style data set for PyTorch's DataLoader; its files are opened where it reads.

    Args:
        open_file: Gives what reads a run.
        groups: Its items.
        schema: Of the data set.
    """

    def __init__(
        self, open_file: Callable[[], ReadRun], groups: Sequence[Group], schema: Schema
    ) -> None:
        self._open_file, self._groups = open_file, groups
        self._shape, self._dtype = schema.strain_shape, schema.encoding.dtype
        self._read: ReadRun | None = None

    def __len__(self) -> int:
        """Return the number of groups."""
        return len(self._groups)

    def __getitem__(self, number: int) -> Num[Array, "event detector time"]:
        """Read a group into an array of its own, as it is sent to another process."""
        if self._read is None:
            self._read = self._open_file()
        events = sum(map(len, self._groups[number]))
        strain = np.empty((events, *self._shape), self._dtype)
        for run, rows in _places(self._groups[number], strain):
            self._read(run, rows)
        return strain

    def read_by_hand(
        self, threads: int, buffers: "Buffers"
    ) -> Iterator[Num[Array, "event detector time"]]:
        """Read all groups in this process, into one buffer."""
        read = self._open_file()
        most = max(sum(map(len, group)) for group in self._groups)
        (buffer,) = buffers.take(1, (most, *self._shape), self._dtype)
        with ThreadPoolExecutor(max(1, threads)) as pool:
            for group in self._groups:
                strain = buffer[: sum(map(len, group))]
                if threads > 1:
                    list(pool.map(lambda place: read(*place), _places(group, strain)))
                else:
                    for run, rows in _places(group, strain):
                        read(run, rows)
                yield strain


class Buffers:
    """Memory of batches, kept from pass to pass: it is slow when it is touched first."""

    def __init__(self) -> None:
        self._kept: list[Array] = []

    def take(self, number: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> list[Array]:
        """The buffers of the pass before where they fit, or new ones."""
        if [(kept.shape, kept.dtype) for kept in self._kept] != [(shape, dtype)] * number:
            self._kept = [np.empty(shape, dtype) for _ in range(number)]
        return self._kept


def _places(group: Group, strain: Array) -> list[tuple[range, Array]]:
    """The rows of an array that take each run."""
    ends = np.cumsum([len(run) for run in group]).tolist()
    return [(run, strain[end - len(run) : end]) for run, end in zip(group, ends, strict=True)]


@dataclass
class _ArrayPeer:
    """What these peers share: all but the file, and how a run is read from it.

    Attributes:
        workers: Of the DataLoader where read map-style; otherwise threads, 0 for none.
        run: Events that are read at once; None for a shard.
        map_style: Whether the DataLoader reads; by hand otherwise.
    """

    name: str
    order: str = "events in random order"
    workers: tuple[int, ...] = PROCESSES
    run: int | None = 1
    map_style: bool = True
    folder: Path = field(init=False)
    schema: Schema = field(init=False)
    buffers: Buffers = field(init=False, default_factory=Buffers, repr=False)

    def prepare(self, folder: Path, schema: Schema, scratch: Path) -> int:
        """Take the data set."""
        self.folder, self.schema = folder, schema
        return 0

    def read(self, batch_size: int, workers: int, seed: int) -> Iterator[Any]:
        """Read all events once."""
        groups = random_groups(self.schema, self.run, batch_size, seed)
        reader = GroupReader(self._open, groups, self.schema)
        for strain in self._gather(reader, workers):
            for start in range(0, len(strain), batch_size):
                yield strain[start : start + batch_size]

    def _open(self) -> ReadRun:
        raise NotImplementedError

    def _gather(self, reader: GroupReader, workers: int) -> Iterator[Any]:
        if not self.map_style:
            return reader.read_by_hand(workers, self.buffers)
        from webdataset.pytorch import DataLoader

        return iter(DataLoader(reader, batch_size=None, num_workers=workers))


@dataclass
class H5py(_ArrayPeer):
    """One HDF5 file with a contiguous data set of strain and one of parameters."""

    name: str = "h5py, map-style"

    def prepare(self, folder: Path, schema: Schema, scratch: Path) -> int:
        """Write the file."""
        self.folder, self.schema = scratch / "h5py", schema
        return converted(self.folder, folder, lambda: self._convert(folder))

    def _convert(self, folder: Path) -> None:
        import h5py

        shape = (self.schema.events, *self.schema.strain_shape)
        with h5py.File(self.folder / "events.h5", "w") as file:
            strain = file.create_dataset("strain", shape, self.schema.encoding.dtype)
            table = file.create_dataset("parameters", (shape[0], len(self.schema.parameters)), "f8")
            for number, event in enumerate(stored_events(folder)):
                strain[number], table[number] = event

    def _open(self) -> ReadRun:
        import h5py

        # Without locks, so that it can be read where the file system has none.
        strain = h5py.File(self.folder / "events.h5", "r", locking=False)["strain"]
        return lambda run, rows: strain.read_direct(rows, np.s_[run.start : run.stop])


@dataclass
class Memmap(_ArrayPeer):
    """One raw file, mapped into memory."""

    name: str = "np.memmap, map-style"

    def prepare(self, folder: Path, schema: Schema, scratch: Path) -> int:
        """Write the file."""
        self.folder, self.schema = scratch / "memmap", schema
        return converted(self.folder, folder, lambda: self._convert(folder))

    def _convert(self, folder: Path) -> None:
        with (self.folder / "strain.raw").open("wb") as file:
            for strain, _ in stored_events(folder):
                file.write(strain.data)

    def _open(self) -> ReadRun:
        shape = (self.schema.events, *self.schema.strain_shape)
        strain = np.memmap(self.folder / "strain.raw", self.schema.encoding.dtype, "r", 0, shape)

        def read(run: range, rows: Array) -> None:
            rows[:] = strain[run.start : run.stop]

        return read


@dataclass
class Zarr(_ArrayPeer):
    """zarr-python on our own shards, with its codecs or others.

    Attributes:
        pipeline: What takes the place of its codecs, as in its configuration.
    """

    pipeline: str = "zarr.core.codec_pipeline.BatchedCodecPipeline"

    def _open(self) -> ReadRun:
        import zarr
        from zarr.buffer.cpu import NDBuffer

        with zarr.config.set({"codec_pipeline.path": self.pipeline}):
            strain = zarr.open_array(self.folder / "strain", mode="r")

        def read(run: range, rows: Array) -> None:
            strain.get_basic_selection(
                slice(run.start, run.stop), out=NDBuffer.from_numpy_array(rows)
            )

        return read


h5py_by_hand = partial(H5py, "h5py, by hand", workers=ALONE, map_style=False)
memmap_by_hand = partial(Memmap, "np.memmap, by hand", workers=THREADS, map_style=False)

_SHARDS = "shards in random order"
_RUNS = f"runs of {RUN} events in random order"
_zarr = partial(Zarr, workers=ALONE, map_style=False)
zarr_shards = partial(_zarr, "zarr-python, shards", _SHARDS, run=None)
zarr_runs = partial(_zarr, "zarr-python, runs", _RUNS, run=RUN)
zarr_events = partial(_zarr, "zarr-python, events")
zarr_map_style = partial(Zarr, "zarr-python, map-style")

# By hand alone: its own threads do not survive the fork by which a DataLoader starts its workers.
_zarrs = partial(Zarr, map_style=False, pipeline="zarrs.ZarrsCodecPipeline")
zarrs_shards = partial(_zarrs, "zarrs, shards", _SHARDS, workers=ALONE, run=None)
zarrs_runs = partial(_zarrs, "zarrs, runs", _RUNS, workers=THREADS, run=RUN)
zarrs_events = partial(_zarrs, "zarrs, events", workers=THREADS)


@dataclass
class Tensorstore:
    """tensorstore on our own shards: a batch is one request, and the next is under way meanwhile.

    It writes into two buffers, with as many threads of its own as there are cores.
    """

    name: str = "tensorstore"
    order: str = "events in random order"
    workers: tuple[int, ...] = ALONE
    folder: Path = field(init=False)
    schema: Schema = field(init=False)
    buffers: Buffers = field(init=False, default_factory=Buffers, repr=False)

    def prepare(self, folder: Path, schema: Schema, scratch: Path) -> int:
        """Take the data set."""
        self.folder, self.schema = folder, schema
        return 0

    def read(self, batch_size: int, workers: int, seed: int) -> Iterator[Any]:
        """Read all events once."""
        import tensorstore

        place = {"driver": "file", "path": f"{self.folder}/strain/"}
        # No cache: each event is read once in a pass, and a second pass must not find it there.
        strain = tensorstore.open(
            {"driver": "zarr3", "kvstore": place}, open=True, read=True, recheck_cached_data=False
        ).result()
        shape = (batch_size, *self.schema.strain_shape)
        buffers = self.buffers.take(2, shape, self.schema.encoding.dtype)
        targets = [tensorstore.array(buffer) for buffer in buffers]  # of the same memory
        order = np.random.default_rng(seed).permutation(self.schema.events)
        under_way = None
        for number, start in enumerate(range(0, len(order), batch_size)):
            events = np.sort(order[start : start + batch_size])
            batch = buffers[number % 2][: len(events)]
            written = targets[number % 2][: len(events)].write(strain[events])
            if under_way is not None:
                under_way[0].result()
                yield under_way[1]
            under_way = (written, batch)
        if under_way is not None:
            under_way[0].result()
            yield under_way[1]
