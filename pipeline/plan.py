"""What a configuration will cost, from a short run of the real thing on this machine."""

import math
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from pipeline.cluster import ClusterConfig, connect
from pipeline.config import DatasetConfig
from pipeline.description import describe_dataset
from pipeline.runlog import ShardReport
from pipeline.shard_task import simulate_shard
from pipeline.simulate import Simulator
from pipeline.window import map_window
from pipeline.wraparound import LONGER, Wraparound, measure_wraparound
from storage.dataset import create_dataset
from storage.errors import InputError
from storage.manifest import manifest_path
from storage.progress import progress_bar
from storage.schema import shard_files
from storage.urls import Store
from storage.writer import dataset_size

# Of the calibration: as many as in a second, so that the slowest waveform is measured too.
MOST_EVENTS_PER_SHARD = 64
SHARD_SECONDS = 1.0
WRAPAROUND_DRAWS = 16
MOST_EVENTS = 10**8  # the calibration never gets there


@dataclass(frozen=True)
class Calibration:
    """What was measured.

    Attributes:
        events: Simulated and written, those that warmed the workers up not counted.
        seconds: Wall time of these [s].
        core_seconds: CPU time of these [s].
        draws: Draws that these took.
        payload: Mean bytes of an event's strain in a shard, with what surrounds it.
        start: Until every worker had done its first shard [s].
        workers: On this machine.
    """

    events: int
    seconds: float
    core_seconds: float
    draws: int
    payload: float
    start: float
    workers: int


@dataclass(frozen=True)
class Plan:
    """What a configuration will cost.

    Attributes:
        events: Number of events.
        shards: Number of shards.
        core_seconds_per_event: CPU time of an event [s].
        core_hours: CPU time of all [h].
        workers: How many there will be.
        hours: Wall time [h].
        bytes: Of the data set.
        files: Of the data set.
        bytes_per_event: Of an event's strain.
        accepted: Share of the draws from the prior that become events.
        train_events_per_second: The rate of training that is planned for.
        epoch_hours: Time of an epoch at that rate [h].
        read_bytes_per_second: What the disk has to deliver at that rate.
        wraparound: What is wrong with signals because they are generated over a finite stretch.
        calibration: What this rests on.
    """

    events: int
    shards: int
    core_seconds_per_event: float
    core_hours: float
    workers: int
    hours: float
    bytes: int
    files: int
    bytes_per_event: int
    accepted: float
    train_events_per_second: float
    epoch_hours: float
    read_bytes_per_second: float
    wraparound: Wraparound
    calibration: Calibration


def make_plan(
    config: DatasetConfig, seconds: float, train_events_per_second: float, scratch: str | None
) -> Plan:
    """Predict the cost of a configuration.

    Args:
        config: What would be simulated, and where.
        seconds: For how long this machine is calibrated [s].
        train_events_per_second: The rate of training to plan for.
        scratch: Folder for the calibration's events, which are removed at once; the system's folder
            for temporary files where none is given.

    Raises:
        InputError: The configuration is impossible.
    """
    for name, value in (("seconds", seconds), ("train_events_per_second", train_events_per_second)):
        if not 0 < value < math.inf:
            raise InputError(f"{name}: got {value:g}, must be positive")
    if scratch is not None and not Path(scratch).is_dir():
        raise InputError(f"scratch: {scratch} is no folder; give one that exists")
    simulator = Simulator.from_config(config.simulation)
    schema = describe_dataset(config, simulator)
    measured = calibrate(config, simulator, seconds, scratch)
    cost = measured.core_seconds / measured.events
    workers = config.cluster.worker_count or measured.workers
    # Cores of other machines are taken to be as fast as these, when as many of them are busy.
    rate = measured.events / measured.seconds * workers / measured.workers
    payload = round(measured.payload) if schema.encoding.compressed else schema.event_bytes
    total, files = dataset_size(schema, measured.payload if schema.encoding.compressed else None)
    return Plan(
        events=schema.events,
        shards=schema.shards,
        core_seconds_per_event=cost,
        core_hours=cost * schema.events / 3600,
        workers=workers,
        hours=(measured.start + schema.events / rate) / 3600,
        bytes=total,
        files=files,
        bytes_per_event=payload,
        accepted=measured.events / measured.draws,
        train_events_per_second=train_events_per_second,
        epoch_hours=schema.events / train_events_per_second / 3600,
        read_bytes_per_second=payload * train_events_per_second,
        wraparound=measure_wraparound(simulator, WRAPAROUND_DRAWS),
        calibration=measured,
    )


def calibrate(
    config: DatasetConfig, simulator: Simulator, seconds: float, scratch: str | None
) -> Calibration:
    """Simulate and write events on local workers for so many seconds, and remove them again."""
    here = ClusterConfig(workers=config.cluster.workers if config.cluster.kind == "local" else 0)
    small = replace(
        config,
        events=MOST_EVENTS,
        events_per_shard=min(_events_in(SHARD_SECONDS, simulator), config.events_per_shard),
        cluster=here,
    )
    schema = describe_dataset(small, simulator)
    with tempfile.TemporaryDirectory(prefix="strainflow-plan-", dir=scratch) as temporary:
        store = create_dataset(Path(temporary) / "events.zarr", schema, simulator.psd)
        task = partial(simulate_shard, store.address)
        with (
            connect(here, Path(temporary)) as cluster,
            closing(map_window(cluster, task, range(schema.shards), here.patience)) as reports,
        ):
            return _measure(reports, store, here.worker_count, seconds)


def _measure(
    reports: Iterator[ShardReport], store: Store, workers: int, seconds: float
) -> Calibration:
    """Count what is done between the first shard of the last worker and the end of the time."""
    warm = set[int]()
    events = draws = 0
    core_seconds = start = passed = 0.0
    strain = 0
    begin = time.perf_counter()
    with progress_bar(math.ceil(seconds), "s") as bar:
        for report in reports:
            written = _take_shard_away(store, report.shard)
            passed = time.perf_counter() - begin
            bar.update(min(int(passed), math.ceil(seconds)) - bar.n)
            if len(warm) < workers:
                warm.add(report.process)
                start = passed
                continue
            events += report.events
            draws += report.events + sum(report.rejected.values())
            core_seconds += report.core_seconds
            strain += written
            if passed > seconds:
                break
    return Calibration(
        events, passed - start, core_seconds, draws, strain / max(events, 1), start, workers
    )


def _events_in(seconds: float, simulator: Simulator) -> int:
    simulator.event(0)  # imports and tables
    start = time.perf_counter()
    simulator.event(0)
    passed = time.perf_counter() - start
    return max(1, min(MOST_EVENTS_PER_SHARD, int(seconds / passed)))


def _take_shard_away(store: Store, shard: int) -> int:
    """Remove a shard; return how many bytes its strain took."""
    paths = shard_files(shard)
    strain = store.length(paths["strain"]) or 0
    for path in (*paths.values(), manifest_path(shard)):
        store.remove(path)
    return strain


def summary(plan: Plan) -> str:
    """Put it into words."""
    measured = plan.calibration
    return "\n".join(
        [
            f"{plan.events:,} events in {plan.shards:,} shards",
            f"  cost      {plan.core_seconds_per_event:.4f} core-seconds an event, "
            f"{_number(plan.core_hours)} core-hours in all",
            f"  time      {_duration(plan.hours)} with {plan.workers} workers",
            f"  disk      {plan.bytes / 1e9:,.3f} GB in {plan.files:,} files, "
            f"{plan.bytes_per_event:,} bytes an event",
            f"  draws     {100 * plan.accepted:.1f} % of those from the prior become events",
            f"  training  at {plan.train_events_per_second:g} events/s an epoch takes "
            f"{_duration(plan.epoch_hours)} and reads {plan.read_bytes_per_second / 1e9:.3f} GB/s",
            f"  signals   differ from those generated over {LONGER} times as long by "
            f"{100 * plan.wraparound.median:.2g} % of their norm (median), "
            f"{100 * plan.wraparound.largest:.2g} % (largest of {plan.wraparound.draws})",
            f"  measured  {measured.events:,} events in {measured.seconds:.0f} s by "
            f"{measured.workers} workers on this machine",
        ]
    )


def _number(value: float) -> str:
    return f"{value:,.1f}" if value >= 10 else f"{value:.3g}"


def _duration(hours: float) -> str:
    if hours >= 48:
        return f"{hours / 24:.1f} days"
    return f"{hours:.1f} hours" if hours >= 1 else f"{60 * hours:.1f} minutes"
