"""A data set on Dask: which shards are missing, one task each, and the way back from anything.

The data set itself is the state of the run: a shard is done when its manifest is there. A task is
the URL of a data set and the number of a shard; the worker reads the physics from the data set's
own metadata, so that what is simulated is what is recorded.
"""

import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from pipeline.cluster import ClusterConfig, connect
from pipeline.config import (
    DatasetConfig,
    FrameNoise,
    simulation_from_dict,
    simulation_to_dict,
    without_paths,
)
from pipeline.detector import Detector
from pipeline.distributions import Distribution
from pipeline.frame_noise import frames_facts, with_whole_paths
from pipeline.memory import keep_freed_memory
from pipeline.null_stream import check_shard
from pipeline.polarisations import as_polarisations
from pipeline.prior_text import describe
from pipeline.priors import PARAMETERS
from pipeline.promise import encoding_of
from pipeline.runlog import RunLog, ShardReport
from pipeline.simulate import Simulator
from pipeline.window import map_window
from storage.dataset import create_dataset, read_psd, read_schema
from storage.errors import InputError, PeakError
from storage.local import LocalStore
from storage.manifest import (
    Manifest,
    dataset_identity,
    first_problem,
    iterate_manifests,
    manifest_path,
)
from storage.progress import progress_bar
from storage.schema import Event, Parameter, Schema
from storage.urls import Store, store_of
from storage.writer import write_shard

# What the metadata have to hold so that events can be simulated again.
RECORDED = ("configuration", "detectors", "versions")
NULL_STREAM_EVENTS = 2  # the loudest of a shard: 4 ms each

# LALSimulation holds Python's lock: a worker with several threads gains nothing by taking turns.
_one_at_a_time = threading.Lock()

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


def describe_dataset(config: DatasetConfig, simulator: Simulator) -> Schema:
    """What the data set of a configuration is."""
    segment, physics = config.segment, with_whole_paths(config.simulation)
    noise = physics.noise
    frames = {"noise_frames": frames_facts(noise)} if isinstance(noise, FrameNoise) else {}
    schema = Schema(
        events=config.events,
        events_per_shard=min(config.events_per_shard, config.events),
        detectors=tuple(detector.name for detector in simulator.detectors),
        samples=segment.samples,
        sample_rate=segment.sample_rate,
        encoding=encoding_of(config, simulator),
        noisy=config.noise != "none",
        parameters=parameter_columns(config.prior.distributions()),
        frequencies=simulator.psd.shape[1],
        frequency_step=1 / segment.generation_duration,
        provenance={
            "configuration": simulation_to_dict(without_paths(physics)),
            "seed": config.seed,
            "start_time": segment.start_time,
            "band": [config.waveform.f_lower, segment.sample_rate / 2],
            "detectors": [detector.to_dict() for detector in simulator.detectors],
            "versions": library_versions(),
            **frames,
        },
    )
    return as_polarisations(schema, simulator) if config.stored == "polarisations" else schema


def parameter_columns(priors: Mapping[str, Distribution]) -> tuple[Parameter, ...]:
    """The columns of the table of parameters.

    Args:
        priors: Of each parameter.
    """
    return tuple(
        Parameter(
            name=name,
            unit=facts.unit,
            prior=describe(priors[name]),
            minimum=_finite(priors[name].minimum),
            maximum=_finite(priors[name].maximum),
        )
        for name, facts in PARAMETERS.items()
    )


def simulate_shard(
    url: str,
    shard: int,
    approve: Callable[[Manifest], Manifest] = lambda manifest: manifest,
) -> ShardReport:
    """Simulate and write one shard; the task of a worker.

    Args:
        url: The data set.
        shard: Its number.
        approve: As for `write_shard`.
    """
    keep_freed_memory()
    identity = dataset_identity(url)
    with _one_at_a_time, reported() as report:
        simulator, schema = _simulator_of_dataset(url, identity)
        events = as_recoded(simulator.events(schema.events_of(shard)), schema)
        checks = partial(checks_of, url, shard)
        try:
            return report(write_shard(url, schema, shard, events, checks, approve))
        except PeakError as error:
            raise InputError(f"{error}, or simulate with a lower maximum of network_snr") from None


def simulator_of_dataset(url: str) -> tuple[Simulator, Schema]:
    """The simulator of a data set's events, and what the data set is.

    Whatever versions the libraries here have: good for predictions, while the bits of the data
    set's own events come only from those that it records.

    Raises:
        InputError: The data set does not say how it was simulated.
    """
    schema = read_schema(url)
    _require_provenance(schema, url)
    detectors = tuple(map(Detector.from_dict, schema.provenance["detectors"]))
    config = simulation_from_dict(schema.provenance["configuration"])
    return Simulator(config, detectors, read_psd(url)), schema


def as_recoded(events: Iterable[Event], schema: Schema) -> Iterator[Event]:
    """Events as those data sets held them from which this one was recoded, the first one first."""
    earlier = schema.encodings_before
    for event in events:
        strain = event.strain
        for encoding in earlier:
            strain = encoding.decode(encoding.encode(strain, event.number, schema.noisy))
        yield replace(event, strain=strain)


@contextmanager
def reported() -> Iterator[Callable[[Manifest], ShardReport]]:
    """Time what a worker does for a shard; gives what turns its manifest into the report."""
    start, cpu_start = time.perf_counter(), time.process_time()
    yield lambda manifest: ShardReport(
        shard=manifest.shard,
        events=manifest.events,
        bytes=manifest.bytes,
        rejected=manifest.rejected,
        failed_checks=tuple(name for name, found in manifest.checks.items() if not found["passed"]),
        core_seconds=time.process_time() - cpu_start,
        seconds=time.perf_counter() - start,
        worker=_worker_name(),
        host=socket.gethostname(),
        process=os.getpid(),
    )


def checks_of(url: str, shard: int) -> dict[str, dict[str, Any]]:
    """What physics can say against a shard's files; recorded in its manifest.

    Nothing of noise out of frames, which need not be what their PSD says.
    """
    if {"frames", "noise_frames"} & read_schema(url).provenance.keys():
        return {}
    report = check_shard(url, shard, NULL_STREAM_EVENTS)
    return {} if report is None else {"null_stream": asdict(report)}


def _worker_name() -> str:
    from distributed import get_worker

    try:
        return str(get_worker().name)
    except ValueError:  # not called by Dask
        return ""


@lru_cache(maxsize=1)
def _simulator_of_dataset(url: str, identity: str) -> tuple[Simulator, Schema]:
    """The same for who writes events, once a worker and content of the metadata.

    Raises:
        InputError: A library here has another version than the data set says.
    """
    schema = read_schema(url)
    _require_provenance(schema, url)
    _require_same_libraries(schema.provenance["versions"], url)
    return simulator_of_dataset(url)


def _require_provenance(schema: Schema, url: str) -> None:
    """Refuse a data set of another writer, who need not say how it was made.

    Raises:
        InputError: It does not say how it was simulated.
    """
    for name in RECORDED:
        if name not in schema.provenance:
            raise InputError(
                f"{url}: its metadata do not say how it was simulated (no {name!r}), so no "
                "event of it can be simulated again; to recode it, name an --encoding"
            )


def library_versions() -> dict[str, str]:
    """Of all that the bits of an event come from."""
    names = ("strainflow", "pycbc", "lalsuite", "numpy", "pyfftw", "scipy", "astropy", "numcodecs")
    return {name: version(name) for name in names}


def _require_same_libraries(recorded: Mapping[str, str], url: str) -> None:
    """Refuse to write events that other libraries may round in another way.

    Raises:
        InputError: A library here has another version than the data set says.
    """
    for name, here in library_versions().items():
        if recorded.get(name) != here:
            raise InputError(
                f"{url}: is made with {name} {recorded.get(name)}, the worker on "
                f"{socket.gethostname()} has {here}; install the same versions there"
            )


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
