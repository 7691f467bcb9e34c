"""Other software that reads the same events in shuffled batches, to be measured beside ours.

Each peer reads strain in the type in which the data set stores it, in batches, at the best that its
documentation offers. Those that read our files do so in place, and decode compressed events
themselves; the others have the events converted to a format of their own first, uncompressed in
the stored type, as they have no codec that fits.

    peers, missing = contestants()  # all, or those named; a sentence for each that is left out
    for peer in peers:
        written = peer.prepare(folder, schema, scratch)
        for workers in peer.workers:
            whole_pass(peer, schema.events, batch_size=256, workers=workers, seed=epoch)

Let each peer have a process of its own, started with `spawn` (before its first pass a peer can be
pickled): DataLoaders fork their workers, which is not safe where threads of tensorstore or zarrs
run, and a peer's memory and imports then burden no other. The first pass of a peer fills its
buffers and is not to be counted. Workers start anew with each pass, some 0.1 s each, so that a
pass should take seconds; two batches a worker wait in shared memory (/dev/shm).
"""

import importlib
import importlib.util
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from storage.errors import InputError
from storage.schema import Schema


class Peer(Protocol):
    """Software that reads events.

    Attributes:
        name: For tables.
        order: How random its batches are, and what it reads.
        workers: The numbers of workers to try: processes of a DataLoader, or threads where this
            process reads by itself; 0 for none.
    """

    name: str
    order: str
    workers: tuple[int, ...]

    def prepare(self, folder: Path, schema: Schema, scratch: Path) -> int:
        """Take a data set, and convert its events where the peer needs another format.

        Holds a few events at a time, or one of the peer's chunks. A conversion of the same data set
        that is there already is used again, one of another is replaced.

        Args:
            folder: The data set, complete.
            schema: Of the data set.
            scratch: A folder for the peer's own files; others may use the same.

        Returns:
            Bytes of the converted events; 0 where the peer reads the data set itself.
        """
        ...

    def read(self, batch_size: int, workers: int, seed: int) -> Iterator[Any]:
        """Read all events once, in an order that the seed decides.

        Args:
            batch_size: Events a batch; batches at ends of shards or workers may be smaller.
            workers: One of `workers`.
            seed: Of the order; another one for each pass.

        Yields:
            The strain of a batch, an array or tensor (event, detector, time) of the stored type. It
            holds until the next one is taken.
        """
        ...


@dataclass(frozen=True)
class Entry:
    """Where a peer is found.

    Attributes:
        target: "module:attribute" that makes it.
        needs: Modules that it imports.
        install: What brings them.
    """

    target: str
    needs: tuple[str, ...]
    install: str = "pip install 'strainflow[bench]'"


_LOADERS, _ARRAYS = "storage.bench.loaders", "storage.bench.arrays"

PEERS: dict[str, Entry] = {
    "webdataset": Entry(f"{_LOADERS}:Webdataset", ("torch", "webdataset")),
    "litdata": Entry(f"{_LOADERS}:LitData", ("torch", "litdata")),
    "mosaicml": Entry(
        f"{_LOADERS}:MosaicML", ("torch", "streaming"), "pip install mosaicml-streaming"
    ),
    "h5py": Entry(f"{_ARRAYS}:H5py", ("torch", "h5py")),
    "h5py-by-hand": Entry(f"{_ARRAYS}:h5py_by_hand", ("h5py",)),
    "memmap": Entry(f"{_ARRAYS}:Memmap", ("torch",)),
    "memmap-by-hand": Entry(f"{_ARRAYS}:memmap_by_hand", ()),
    "zarr": Entry(f"{_ARRAYS}:zarr_map_style", ("torch", "zarr")),
    "zarr-shards": Entry(f"{_ARRAYS}:zarr_shards", ("zarr",)),
    "zarr-runs": Entry(f"{_ARRAYS}:zarr_runs", ("zarr",)),
    "zarr-events": Entry(f"{_ARRAYS}:zarr_events", ("zarr",)),
    "zarrs-shards": Entry(f"{_ARRAYS}:zarrs_shards", ("zarr", "zarrs")),
    "zarrs-runs": Entry(f"{_ARRAYS}:zarrs_runs", ("zarr", "zarrs")),
    "zarrs-events": Entry(f"{_ARRAYS}:zarrs_events", ("zarr", "zarrs")),
    "tensorstore": Entry(f"{_ARRAYS}:Tensorstore", ("tensorstore",)),
}


def contestants(names: Sequence[str] | None = None) -> tuple[list[Peer], list[str]]:
    """Make the peers that are installed.

    Args:
        names: Keys of `PEERS`; all by default.

    Returns:
        The peers, in the order asked for; and for each one that cannot run here a sentence that
        says why and how to mend it.

    Raises:
        InputError: A name is unknown.
    """
    peers: list[Peer] = []
    missing: list[str] = []
    for name in PEERS if names is None else names:
        if name not in PEERS:
            raise InputError(f"peers: got {name!r}, known are {', '.join(PEERS)}")
        entry = PEERS[name]
        absent = [module for module in entry.needs if importlib.util.find_spec(module) is None]
        if absent:
            missing.append(f"{name} is left out: {absent[0]} is not installed; {entry.install}")
            continue
        module, attribute = entry.target.split(":")
        make: Callable[[], Peer] = getattr(importlib.import_module(module), attribute)
        peers.append(make())
    return peers, missing


def whole_pass(peer: Peer, events: int, batch_size: int, workers: int, seed: int) -> None:
    """Read all events once, and see that they were all there.

    Args:
        peer: Who reads; it was prepared.
        events: Of the data set.
        batch_size: Events a batch.
        workers: Worker processes.
        seed: Of the order.

    Raises:
        RuntimeError: It delivered fewer events, or more.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "This DataLoader will create"
        )  # more than there are cores
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # MosaicML's
        delivered = sum(len(strain) for strain in peer.read(batch_size, workers, seed))
    if delivered != events:
        raise RuntimeError(
            f"{peer.name} with {workers} workers delivered {delivered} of {events} events in a "
            "pass: its rate would be of other work than ours"
        )
