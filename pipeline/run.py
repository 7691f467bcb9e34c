"""A data set on Dask: which shards are missing, one task each, and the way back from anything.

The data set itself is the state of the run: a shard is done when its manifest is there. A task is
the name of a folder and the number of a shard; the worker reads the physics from the data set's own
metadata, so that what is simulated is what is recorded.
"""

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.cluster import connect
from pipeline.config import (
    PARAMETERS,
    DatasetConfig,
    simulation_from_dict,
    simulation_to_dict,
    without_paths,
)
from pipeline.detector import Detector
from pipeline.memory import keep_freed_memory
from pipeline.priors import describe
from pipeline.simulate import Simulator
from storage.dataset import create_dataset, read_psd, read_schema
from storage.encodings import encoding_named
from storage.errors import InputError
from storage.files import only_writer, remove_partial_files
from storage.manifest import first_problem, manifest_path, read_manifests
from storage.progress import progress_bar
from storage.schema import GROUP_METADATA, Parameter, Schema
from storage.urls import local_folder
from storage.writer import write_shard

if TYPE_CHECKING:
    from distributed import Client, Future

TASKS_PER_WORKER = 3  # in flight: enough that no worker waits, few enough for any data set


@dataclass(frozen=True)
class ShardReport:
    """What a worker says of a shard it has written.

    Attributes:
        events: How many it holds.
        rejected: Draws thrown away.
        core_seconds: CPU time it took [s].
    """

    events: int
    rejected: int
    core_seconds: float


@dataclass(frozen=True)
class RunReport:
    """What a run did.

    Attributes:
        out: The data set.
        events: In the data set.
        simulated: Events that this run simulated; the others were there.
        rejected: Draws that this run threw away.
        seconds: Wall time of the simulation, the start of the workers excluded [s].
        core_seconds: CPU time of the workers [s].
        workers: How many there were.
    """

    out: str
    events: int
    simulated: int
    rejected: int
    seconds: float
    core_seconds: float
    workers: int


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
    present = set()
    for shard, manifest in read_manifests(folder, schema).items():
        if first_problem(folder, manifest) is None:
            present.add(shard)
        else:  # while it is written again it does not count as finished
            manifest_path(folder, shard).unlink()
    missing = [shard for shard in range(schema.shards) if shard not in present]
    reports: list[ShardReport] = []
    seconds = 0.0
    if missing:
        with connect(config.cluster) as client:
            print(f"Dask dashboard: {client.dashboard_link}", file=sys.stderr)
            start = time.perf_counter()
            done = sum(len(schema.events_of(shard)) for shard in present)
            with progress_bar(schema.events, "event", done) as bar:
                for report in _map_shards(client, folder, missing, config.cluster.worker_count):
                    reports.append(report)
                    bar.update(report.events)
            seconds = time.perf_counter() - start
    return RunReport(
        out=str(folder),
        events=schema.events,
        simulated=sum(report.events for report in reports),
        rejected=sum(report.rejected for report in reports),
        seconds=seconds,
        core_seconds=sum(report.core_seconds for report in reports),
        workers=config.cluster.worker_count,
    )


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
            "versions": {
                name: version(name) for name in ("strainflow", "pycbc", "lalsuite", "numpy")
            },
        },
    )


def simulate_shard(folder: Path, shard: int) -> ShardReport:
    """Simulate and write one shard; the task of a worker."""
    keep_freed_memory()
    identity = (folder / GROUP_METADATA).read_bytes()
    simulator, schema = _simulator_of_dataset(folder, identity)
    start = time.process_time()
    events = (simulator.event(number) for number in schema.events_of(shard))
    manifest = write_shard(folder, schema, shard, events)
    return ShardReport(
        events=manifest.events,
        rejected=sum(manifest.rejected.values()),
        core_seconds=time.process_time() - start,
    )


@lru_cache(maxsize=1)
def _simulator_of_dataset(folder: Path, identity: bytes) -> tuple[Simulator, Schema]:
    """Read the physics from a data set's metadata, once a worker and content of that metadata."""
    schema = read_schema(folder)
    provenance = schema.provenance
    detectors = tuple(Detector.from_dict(document) for document in provenance["detectors"])
    config = simulation_from_dict(provenance["configuration"])
    return Simulator(config, detectors, read_psd(folder)), schema


def _map_shards(
    client: "Client", folder: Path, shards: list[int], workers: int
) -> Iterator[ShardReport]:
    """Run one task a shard, a few at a time, and yield their reports as they come."""
    from distributed import KilledWorker, as_completed

    waiting = iter(shards)

    def submit(count: int) -> list["Future"]:
        return [
            client.submit(simulate_shard, folder.absolute(), shard, pure=False)
            for shard in islice(waiting, count)
        ]

    running = as_completed(submit(TASKS_PER_WORKER * workers))
    try:
        for future in running:
            yield future.result()
            for successor in submit(1):
                running.add(successor)
    except KilledWorker:
        raise InputError(
            "cluster: the workers that took a shard died again and again, most likely for lack of "
            "memory; give fewer cluster.workers and run it again: what is finished stays"
        ) from None
    finally:
        client.cancel(list(running.futures))


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
