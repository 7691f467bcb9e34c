"""A data set on Dask: which shards are missing, one task each, and the way back from anything.

The data set itself is the state of the run: a shard is done when its manifest is there. A task is
the name of a folder and the number of a shard; the worker reads the physics from the data set's own
metadata, so that what is simulated is what is recorded.
"""

import os
import socket
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.cluster import connect
from pipeline.config import (
    DatasetConfig,
    simulation_from_dict,
    simulation_to_dict,
    without_paths,
)
from pipeline.detector import Detector
from pipeline.memory import keep_freed_memory
from pipeline.null_stream import check_shard
from pipeline.prior_text import describe
from pipeline.priors import PARAMETERS
from pipeline.runlog import RunLog, ShardReport
from pipeline.simulate import Simulator
from pipeline.window import map_window
from storage.dataset import create_dataset, read_psd, read_schema
from storage.encodings import encoding_named
from storage.errors import InputError
from storage.files import only_writer, remove_partial_files
from storage.manifest import first_problem, iterate_manifests, manifest_path
from storage.progress import progress_bar
from storage.schema import GROUP_METADATA, Parameter, Schema
from storage.urls import local_folder
from storage.writer import write_shard

NULL_STREAM_EVENTS = 2  # the loudest of a shard: 4 ms each

# LALSimulation holds Python's lock: a worker with several threads gains nothing by taking turns.
_one_at_a_time = threading.Lock()


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


def simulate_dataset(config: DatasetConfig, out: str | Path) -> RunReport:
    """Simulate a data set, or what is missing of it.

    Args:
        config: What to simulate, and where.
        out: The data set's folder.

    Raises:
        InputError: The configuration is impossible, or the folder holds something else.
        KeyboardInterrupt: After everything was stopped; finished shards stay.
    """
    simulator = Simulator.from_config(config.simulation)
    folder = local_folder(out)
    if folder.is_file():
        raise InputError(f"{folder}: is a file; give the name of a folder to create")
    with only_writer(folder):
        return _complete(config, simulator, folder)


def _complete(config: DatasetConfig, simulator: Simulator, folder: Path) -> RunReport:
    """Simulate the shards that are missing or damaged."""
    schema = describe_dataset(config, simulator)
    create_dataset(folder, schema, simulator.psd)
    remove_partial_files(folder)
    present = _sound_shards(folder, schema)
    report = RunReport(str(folder), schema.events)
    if len(present) < schema.shards:
        missing = (shard for shard in range(schema.shards) if shard not in present)
        done = sum(len(schema.events_of(shard)) for shard in present)
        log = RunLog.of(folder)
        with connect(config.cluster, log.folder) as cluster:
            print(f"Dask dashboard: {cluster.client.dashboard_link}", file=sys.stderr)
            task = partial(simulate_shard, folder.absolute())
            workers = set()
            start = time.perf_counter()
            with progress_bar(schema.events, "event", done) as bar:
                for shard in map_window(cluster, task, missing, config.cluster.patience):
                    report.add(shard)
                    report.seconds = time.perf_counter() - start
                    log.add(shard)
                    workers.add((shard.host, shard.process))
                    bar.set_postfix_str(report.rates(), refresh=False)
                    bar.update(shard.events)
            report.workers = len(workers)
        # Left by workers that were killed, or given up by the scheduler.
        remove_partial_files(folder)
    return report


def _sound_shards(folder: Path, schema: Schema) -> set[int]:
    """The shards that are there; what is damaged no longer counts as finished."""
    present = set()
    for manifest in iterate_manifests(folder, schema):
        if first_problem(folder, manifest) is None:
            present.add(manifest.shard)
        else:
            manifest_path(folder, manifest.shard).unlink()
    return present


def describe_dataset(config: DatasetConfig, simulator: Simulator) -> Schema:
    """What the data set of a configuration is."""
    segment = config.segment
    priors = config.prior.distributions()
    return Schema(
        events=config.events,
        events_per_shard=min(config.events_per_shard, config.events),
        detectors=tuple(detector.name for detector in simulator.detectors),
        samples=segment.samples,
        sample_rate=segment.sample_rate,
        encoding=encoding_named(config.encoding),
        noisy=config.noise != "none",
        parameters=tuple(
            Parameter(
                name=name,
                unit=facts.unit,
                prior=describe(priors[name]),
                minimum=_finite(priors[name].minimum),
                maximum=_finite(priors[name].maximum),
            )
            for name, facts in PARAMETERS.items()
        ),
        frequencies=simulator.psd.shape[1],
        frequency_step=1 / segment.generation_duration,
        provenance={
            "configuration": simulation_to_dict(without_paths(config.simulation)),
            "seed": config.seed,
            "start_time": segment.start_time,
            "band": [config.waveform.f_lower, segment.sample_rate / 2],
            "detectors": [detector.to_dict() for detector in simulator.detectors],
            "versions": _library_versions(),
        },
    )


def simulate_shard(folder: Path, shard: int) -> ShardReport:
    """Simulate and write one shard; the task of a worker."""
    keep_freed_memory()
    identity = (folder / GROUP_METADATA).read_bytes()
    with _one_at_a_time:
        simulator, schema = _simulator_of_dataset(folder, identity)
        start, cpu_start = time.perf_counter(), time.process_time()
        events = simulator.events(schema.events_of(shard))
        manifest = write_shard(folder, schema, shard, events, partial(_checks, folder, shard))
        cpu_end, end = time.process_time(), time.perf_counter()
    return ShardReport(
        shard=shard,
        events=manifest.events,
        bytes=sum(facts["bytes"] for facts in manifest.files.values()),
        rejected=manifest.rejected,
        failed_checks=tuple(name for name, found in manifest.checks.items() if not found["passed"]),
        core_seconds=cpu_end - cpu_start,
        seconds=end - start,
        worker=_worker_name(),
        host=socket.gethostname(),
        process=os.getpid(),
    )


def _checks(folder: Path, shard: int) -> dict[str, dict[str, Any]]:
    """What physics can say against a shard's files; recorded in its manifest."""
    report = check_shard(folder, shard, NULL_STREAM_EVENTS)
    return {} if report is None else {"null_stream": asdict(report)}


def _worker_name() -> str:
    from distributed import get_worker

    try:
        return str(get_worker().name)
    except ValueError:  # not called by Dask
        return ""


@lru_cache(maxsize=1)
def _simulator_of_dataset(folder: Path, identity: bytes) -> tuple[Simulator, Schema]:
    """Read the physics from a data set's metadata, once a worker and content of that metadata."""
    schema = read_schema(folder)
    _require_same_libraries(schema.provenance["versions"], folder)
    provenance = schema.provenance
    detectors = tuple(Detector.from_dict(document) for document in provenance["detectors"])
    config = simulation_from_dict(provenance["configuration"])
    return Simulator(config, detectors, read_psd(folder)), schema


def _library_versions() -> dict[str, str]:
    """Of all that the bits of an event come from."""
    names = ("strainflow", "pycbc", "lalsuite", "numpy", "pyfftw", "scipy", "astropy")
    return {name: version(name) for name in names}


def _require_same_libraries(recorded: Mapping[str, str], folder: Path) -> None:
    """Refuse to write events that other libraries may round in another way.

    Raises:
        InputError: A library here has another version than the data set says.
    """
    for name, here in _library_versions().items():
        if recorded.get(name) != here:
            raise InputError(
                f"{folder}: is made with {name} {recorded.get(name)}, the worker on "
                f"{socket.gethostname()} has {here}; install the same versions there"
            )


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
