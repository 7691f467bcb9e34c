"""How fast a data set is read: the stream against the limit and against stock webdataset.

All contestants read the same files in the same minutes, in alternation; what counts is the ratio.

Not covered yet: a cold cache, writing, feeding a training step, other peers.
"""

import os
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from storage.blosc import decode_strain
from storage.dataset import read_schema
from storage.errors import InputError
from storage.manifest import require_complete
from storage.progress import progress_bar
from storage.schema import Schema, shard_files
from storage.urls import local_folder

PLAIN_READ = 16 * 2**20
WEBDATASET_WORKERS = (0, 1, 2)


@dataclass(frozen=True, kw_only=True)
class ReadBenchConfig:
    """What to measure.

    Args:
        batch_size: Events a batch.
        threads: Reading threads of the stream.
        rounds: How often each contestant reads the whole set.
        peers: Whether stock webdataset is measured too.
    """

    batch_size: int = 256
    threads: int = 2
    rounds: int = 5
    peers: bool = True

    def __post_init__(self) -> None:
        for name in ("batch_size", "threads", "rounds"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: got {getattr(self, name)}, at least 1 is needed")


@dataclass(frozen=True)
class Rate:
    """What one contestant reached.

    Attributes:
        name: Of the contestant.
        gigabytes_per_second: Strain delivered, the median over the rounds.
        slowest: Of the rounds [GB/s].
        fastest: Of the rounds [GB/s].
        events_per_second: The same median in events.
        cpu_seconds_per_gigabyte: CPU time of this process and its children.
    """

    name: str
    gigabytes_per_second: float
    slowest: float
    fastest: float
    events_per_second: float
    cpu_seconds_per_gigabyte: float


@dataclass(frozen=True)
class ReadBench:
    """The result: rates in GB/s of strain, from the page cache where the set fits it.

    What counts is strain as it is delivered, in its stored type; plain reads of a compressed set
    are credited with what the bytes that they read would become.

    Attributes:
        data: The data set.
        encoding: Of its strain.
        gigabytes: Of its strain.
        rates: One a contestant.
        of_plain_reads: The stream's rate over that of plain reads.
        of_webdataset: The stream's rate over webdataset's best; None where it was not measured.
    """

    data: str
    encoding: str
    gigabytes: float
    rates: tuple[Rate, ...]
    of_plain_reads: float
    of_webdataset: float | None


def bench_read(config: ReadBenchConfig, url: str | Path) -> ReadBench:
    """Measure reading a data set.

    Args:
        config: What to measure.
        url: The data set.

    Raises:
        InputError: There is no data set, or an argument is impossible.
        DamagedDataError: It is not complete.
    """
    from storage.stream import EventStream  # brings webdataset along, and that torch

    folder = local_folder(url, "the measurement against plain reads")
    schema = read_schema(folder)
    require_complete(folder, schema)
    stream = EventStream(folder, batch_size=config.batch_size, threads=config.threads)
    contestants: dict[str, Callable[[], None]] = {
        "plain 16 MB reads": lambda: _read_plainly(folder, schema),
        "EventStream, shuffled": lambda: _drain(stream),
    }
    if config.peers:
        for workers in WEBDATASET_WORKERS:
            contestants[f"webdataset, {workers} workers"] = (
                lambda workers=workers: _webdataset(config, folder, schema, workers)  # type: ignore[misc]
            )
    size = schema.events * schema.event_bytes / 1e9
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    cpu: dict[str, list[float]] = {name: [] for name in contestants}
    _read_plainly(folder, schema)  # fills the page cache
    _drain(stream)  # and the stream's buffers, as the first epoch of a training does
    with progress_bar(config.rounds * len(contestants), "pass") as bar:
        for _ in range(config.rounds):
            for name, read in contestants.items():
                wall, used = time.perf_counter(), _cpu_seconds()
                read()
                seconds[name].append(time.perf_counter() - wall)
                cpu[name].append(_cpu_seconds() - used)
                bar.update()
    rates = tuple(
        _rate(name, seconds[name], cpu[name], size, schema.events) for name in contestants
    )
    plain, ours, *peers = (rate.gigabytes_per_second for rate in rates)
    return ReadBench(
        data=str(folder),
        encoding=schema.encoding.name,
        gigabytes=size,
        rates=rates,
        of_plain_reads=ours / plain,
        of_webdataset=ours / max(peers) if peers else None,
    )


def summary(bench: ReadBench) -> str:
    """Put it into words."""
    lines = [f"{bench.data}: {bench.gigabytes:.2f} GB of strain as {bench.encoding}"]
    lines += [
        f"  {rate.name:<24} {rate.gigabytes_per_second:6.2f} GB/s  ({rate.slowest:.2f} to "
        f"{rate.fastest:.2f})  {rate.events_per_second:8.0f} events/s  "
        f"{rate.cpu_seconds_per_gigabyte:.2f} CPU-s/GB"
        for rate in bench.rates
    ]
    lines.append(f"  EventStream reaches {bench.of_plain_reads:.2f} of plain reads")
    if bench.of_webdataset is not None:
        lines[-1] += f" and {bench.of_webdataset:.1f} times webdataset at its best"
    return "\n".join(lines)


def _read_plainly(folder: Path, schema: Schema) -> None:
    buffer = memoryview(bytearray(PLAIN_READ))
    for shard in range(schema.shards):
        with (folder / shard_files(shard)["strain"]).open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def _drain(batches: Iterable[object]) -> None:
    for _ in batches:
        pass


def _webdataset(config: ReadBenchConfig, folder: Path, schema: Schema, workers: int) -> None:
    import webdataset

    files = [str(folder / shard_files(shard)["strain"]) for shard in range(schema.shards)]
    batches = (
        webdataset.WebDataset(
            files,
            shardshuffle=len(files),
            empty_check=False,
            workersplitter=webdataset.split_by_worker,
        )
        .decode()
        .map(decode_strain)
        .to_tuple("strain.npy", "json")
        .batched(config.batch_size)
    )
    _drain(webdataset.WebLoader(batches, batch_size=None, num_workers=workers))


def _rate(name: str, seconds: list[float], cpu: list[float], size: float, events: int) -> Rate:
    median = statistics.median(seconds)
    return Rate(
        name=name,
        gigabytes_per_second=size / median,
        slowest=size / max(seconds),
        fastest=size / min(seconds),
        events_per_second=events / median,
        cpu_seconds_per_gigabyte=statistics.median(cpu) / size,
    )


def _cpu_seconds() -> float:
    """CPU time of this process and of its children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
