"""What all measurements share: passes in alternation, rates with their spread, the machine.

A virtual disk swings by a factor of three within minutes, so that a rate by itself says little.
Contestants take turns, round by round, and what counts is their ratio in the same round.
"""

import os
import platform
import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from storage.progress import progress_bar

LIBRARIES = ("strainflow", "numpy", "numcodecs", "zarr", "webdataset", "torch", "crc32c", "blake3")


@dataclass(frozen=True)
class Contestant:
    """Something that is measured.

    Attributes:
        name: For tables.
        work: Does it once; returns the bytes of strain that it delivered; with them the seconds, if
            it has a clock of its own, and CPU time, if it is another process's.
        setting: What distinguishes it: encoding, threads, order, cache, ...
        before: What has to be done each time before, and is not measured.
        limit: Whether it is a limit against which others are held.
    """

    name: str
    work: Callable[[], int | tuple[int, float] | tuple[int, float, float]]
    setting: Mapping[str, Any] = field(default_factory=dict)
    before: Callable[[], object] | None = None
    limit: bool = False


@dataclass(frozen=True)
class Rate:
    """What one contestant reached.

    Attributes:
        name: Of the contestant.
        setting: What distinguishes it.
        limit: Whether it is a limit.
        gigabytes_per_second: Strain delivered, in its stored type: the median over the rounds.
        slowest: Of the rounds [GB/s].
        fastest: Of the rounds [GB/s].
        disk_gigabytes_per_second: What had to be read for it, compressed where it is.
        events_per_second: The same median in events.
        cpu_seconds_per_gigabyte: CPU time of this process and its children, of strain delivered.
        rates: Of each round [GB/s].
    """

    name: str
    setting: Mapping[str, Any]
    limit: bool
    gigabytes_per_second: float
    slowest: float
    fastest: float
    disk_gigabytes_per_second: float
    events_per_second: float
    cpu_seconds_per_gigabyte: float
    rates: tuple[float, ...]

    def __str__(self) -> str:
        return (
            f"{self.name:<44} {self.gigabytes_per_second:6.2f} GB/s ({self.slowest:.2f} to "
            f"{self.fastest:.2f}) {self.events_per_second:8.0f} events/s "
            f"{self.cpu_seconds_per_gigabyte:6.2f} CPU-s/GB"
        )


def alternate(
    contestants: Sequence[Contestant], rounds: int, event_bytes: int, stored_share: float = 1.0
) -> list[Rate]:
    """Measure some contestants in turn.

    Args:
        contestants: Who.
        rounds: How often each.
        event_bytes: Bytes of an event's strain, before compression.
        stored_share: Bytes that lie on the disk over those of strain.
    """
    passes: list[list[_Pass]] = [[] for _ in contestants]
    with progress_bar(rounds * len(contestants), "pass") as bar:
        for _ in range(rounds):
            for contestant, done in zip(contestants, passes, strict=True):
                bar.set_postfix_str(contestant.name, refresh=False)
                done.append(_pass(contestant))
                bar.update()
    return [
        _rate(contestant, done, event_bytes, stored_share)
        for contestant, done in zip(contestants, passes, strict=True)
    ]


@dataclass(frozen=True)
class _Pass:
    """One pass of a contestant: bytes of strain, seconds, seconds of CPU time."""

    bytes: int
    seconds: float
    cpu: float


def _pass(contestant: Contestant) -> _Pass:
    if contestant.before is not None:
        contestant.before()
    wall, used = time.perf_counter(), cpu_seconds()
    done = contestant.work()
    lasted, used = time.perf_counter() - wall, cpu_seconds() - used
    if not isinstance(done, tuple):
        return _Pass(done, lasted, used)
    return _Pass(*done) if len(done) == 3 else _Pass(*done, used)


def _rate(
    contestant: Contestant, done: Sequence[_Pass], event_bytes: int, stored_share: float
) -> Rate:
    rates = [item.bytes / item.seconds / 1e9 for item in done]
    median = statistics.median(rates)
    return Rate(
        name=contestant.name,
        setting=contestant.setting,
        limit=contestant.limit,
        gigabytes_per_second=median,
        slowest=min(rates),
        fastest=max(rates),
        disk_gigabytes_per_second=median * stored_share,
        events_per_second=1e9 * median / event_bytes,
        cpu_seconds_per_gigabyte=statistics.median(1e9 * item.cpu / item.bytes for item in done),
        rates=tuple(rates),
    )


def ratio(of: Rate, to: Rate) -> float:
    """The rate of one over that of another: the median of the ratios of each round."""
    return statistics.median(mine / theirs for mine, theirs in zip(of.rates, to.rates, strict=True))


def milliseconds(seconds: float) -> str:
    """A time in ms, with two digits at least: steps of small batches are shorter than 1 ms."""
    time_ms = 1e3 * seconds
    return f"{time_ms:.0f} ms" if time_ms >= 10 else f"{time_ms:.2g} ms"


def cpu_seconds() -> float:
    """CPU time of this process and of its children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def peak_memory() -> int:
    """The most memory that this process has had [bytes]."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def machine(folder: Path) -> dict[str, Any]:
    """What the figures were measured on.

    Args:
        folder: On the disk that was measured.
    """
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    place = max(
        (part for part in psutil.disk_partitions(all=True) if _holds(part.mountpoint, folder)),
        key=lambda part: len(part.mountpoint),
        default=None,
    )
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "file_system": None if place is None else place.fstype,
        "versions": versions,
    }


def _holds(mountpoint: str, folder: Path) -> bool:
    return folder.resolve().is_relative_to(mountpoint)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
