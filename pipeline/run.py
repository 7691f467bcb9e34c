"""A data set on Dask: which shards are missing, one task each, and the way back from anything.

The data set itself is the state of the run: a shard is done when its manifest is there. A task is
the URL of a data set and the number of a shard; the worker reads the physics from the data set's
own metadata, so that what is simulated is what is recorded.
"""

import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from pipeline.cluster import ClusterConfig, connect
from pipeline.config import DatasetConfig
from pipeline.description import describe_dataset
from pipeline.frame_noise import with_whole_paths
from pipeline.runlog import RunLog, ShardReport
from pipeline.shard_task import simulate_shard
from pipeline.simulate import Simulator
from pipeline.window import map_window
from storage.dataset import create_dataset
from storage.errors import InputError
from storage.local import LocalStore
from storage.manifest import first_problem, iterate_manifests, manifest_path
from storage.progress import progress_bar
from storage.schema import Schema
from storage.urls import Store, store_of

Result = TypeVar("Result")


@dataclass
class RunReport:
    """What a run did.

    Attributes:
        out: The data set.
        events: In the data set.
        simulated: Events that this run simulated; the others were there.
        rejected: Draws that this run threw away.
        bytes: That this run wrote.
        seconds: Wall time from when the workers were there, or asked for, to the last shard [s].
        core_seconds: CPU time of the workers [s].
        workers: How many processes took part, those included that replaced others.
        failed_checks: Shards that do not pass a check, of those that this run simulated.
    """

    out: str
    events: int
    simulated: int = 0
    rejected: int = 0
    bytes: int = 0
    seconds: float = 0.0
    core_seconds: float = 0.0
    workers: int = 0
    failed_checks: int = 0

    def add(self, shard: ShardReport) -> None:
        """Count a shard in."""
        self.simulated += shard.events
        self.rejected += sum(shard.rejected.values())
        self.bytes += shard.bytes
        self.core_seconds += shard.core_seconds
        self.failed_checks += bool(shard.failed_checks)

    def rates(self) -> str:
        """Cost and volume so far, for the progress bar."""
        cost = self.core_seconds / self.simulated
        return f"{cost:.4f} core-s/event, {self.bytes / 1e9:.2f} GB"


def simulate_dataset(config: DatasetConfig, out: str | Path | Store) -> RunReport:
    """Simulate a data set, or what is missing of it.

    Args:
        config: What to simulate, and where.
        out: The data set: a folder, or a URL of fsspec's.

    Raises:
        InputError: The configuration is impossible, or the place holds something else.
        KeyboardInterrupt: After everything was stopped; finished shards stay.
    """
    simulator = Simulator.from_config(with_whole_paths(config.simulation))
    store = store_of(out)
    refuse_a_file(store)
    with store.only_writer():
        schema = describe_dataset(config, simulator)
        create_dataset(store, schema, simulator.psd)
        return complete(store, schema, config.cluster, simulate_shard)


def refuse_a_file(store: Store) -> None:
    """Refuse a file in place of a folder.

    Raises:
        InputError: There is one.
    """
    if isinstance(store, LocalStore) and store.folder.is_file():
        raise InputError(f"{store.url}: is a file; give the name of a folder to create")


def complete(
    store: Store,
    schema: Schema,
    cluster: ClusterConfig,
    task: Callable[[str, int], ShardReport],
) -> RunReport:
    """Have the shards written that are missing or damaged, by whoever holds the place.

    Args:
        store: The data set.
        schema: What it is.
        cluster: Where the work is done.
        task: Writes a shard, given the data set's URL and the shard's number.
    """
    store.remove_partial_files()
    present = _sound_shards(store, schema)
    report = RunReport(store.url, schema.events)
    if len(present) < schema.shards:
        missing = (shard for shard in range(schema.shards) if shard not in present)
        done = sum(len(schema.events_of(shard)) for shard in present)
        log = RunLog(store.beside)
        workers = set()
        with (
            progress_bar(schema.events, "event", done) as bar,
            nothing_left_half_written(store, cluster),
            closing(on_workers(cluster, store, partial(task, store.address), missing)) as reports,
        ):
            for seconds, shard in reports:
                report.add(shard)
                report.seconds = seconds
                log.add(shard)
                workers.add((shard.host, shard.process))
                bar.set_postfix_str(report.rates(), refresh=False)
                bar.update(shard.events)
        report.workers = len(workers)
        # Left by workers that were killed, or given up by the scheduler.
        store.remove_partial_files()
    return report


@contextmanager
def nothing_left_half_written(store: Store, cluster: ClusterConfig) -> Iterator[None]:
    """Remove what workers on this machine were writing to its disk when all was ended.

    Those of a batch system, or of a scheduler that others started, may be at work still: the next
    run removes what they leave, as it does in an object store.

    Args:
        store: The data set, held by this process.
        cluster: Where the workers were; they have been stopped when the context ends.
    """
    try:
        yield
    except BaseException:
        if cluster.kind == "local" and isinstance(store, LocalStore):
            with suppress(OSError):  # of a disk that may be what failed
                store.remove_partial_files()
        raise


def on_workers(
    cluster: ClusterConfig, store: Store, task: Callable[[int], Result], shards: Iterable[int]
) -> Generator[tuple[float, Result], None, None]:
    """Do a task for each of some shards, on Dask; gives the time since the start [s], and results.

    Args:
        cluster: Where.
        store: The data set; jobs leave what they print beside it.
        task: Of one shard.
        shards: Their numbers.
    """
    with connect(cluster, store.beside) as connected:
        print(f"Dask dashboard: {connected.client.dashboard_link}", file=sys.stderr)
        start = time.perf_counter()
        for result in map_window(connected, task, shards, cluster.patience):
            yield time.perf_counter() - start, result


def _sound_shards(store: Store, schema: Schema) -> set[int]:
    """The shards that are there; what is damaged no longer counts as finished."""
    present = set()
    length_of = store.lengths()
    for manifest in iterate_manifests(store, schema):
        if first_problem(store, manifest, length_of) is None:
            present.add(manifest.shard)
        else:
            store.remove(manifest_path(manifest.shard))
    return present
