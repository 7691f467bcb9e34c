"""How fast a data set is read: the stream against what the disk, memory and codec can give.

All contestants read the same files in the same minutes, in alternation; what counts is the ratio.
The stream is varied around what its calibration chose: threads, order, batch.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from storage.arrays import aligned_empty
from storage.bench import limits
from storage.bench.measure import Contestant, Rate, alternate, machine, peak_memory, ratio
from storage.dataset import read_schema
from storage.errors import InputError
from storage.manifest import require_complete
from storage.order import Window
from storage.schema import Schema
from storage.stream_config import StreamConfig
from storage.urls import local_folder

FLOAT32 = 4
COPIES = 4  # of two batches each, in a pass
PREFETCH = 2  # batches
BUFFERS = PREFETCH + 1  # of a batch each, which the stream has
INTO_BATCHES = "16 MB reads into memory of 3 batches"


@dataclass(frozen=True, kw_only=True)
class ReadBenchConfig:
    """What to measure.

    Args:
        batch_size: Events a batch.
        threads: Reading threads of the stream; by default a calibration decides.
        rounds: How often each contestant reads.
        gigabytes: At most so much strain is read in a pass, as it is delivered.
        cold: Whether to measure reading from the disk too, with the page cache dropped before.
        sweep: Whether threads, orders and batches are varied.
        fio: Whether to ask fio for the disk's limit, where it is installed.
    """

    batch_size: int = 256
    threads: int | None = None
    rounds: int = 5
    gigabytes: float = 4.0
    cold: bool = True
    sweep: bool = True
    fio: bool = True

    def __post_init__(self) -> None:
        for name in ("batch_size", "threads", "rounds"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name}: got {value}, at least 1 is needed")
        if not self.gigabytes > 0:
            raise InputError(f"gigabytes: got {self.gigabytes}, more than 0 is needed")


@dataclass(frozen=True)
class ReadBench:
    """The result. Rates are of strain as it is delivered, in its stored type.

    Plain reads of a compressed set are credited with what the bytes that they read become.

    Attributes:
        data: The data set.
        encoding: Of its strain.
        gigabytes: Of strain that a pass delivers.
        batch_size: Events a batch.
        threads: Of the stream, where they are not varied, warm and cold.
        warm: From the page cache, one rate a contestant.
        cold: From the disk; none where that was not asked for.
        of_limit: The stream's rate over its limit's, by cache and order.
        limits: What that limit is, by the same names.
        resident: The share of a file that was in the page cache before the warm passes, the least
            of all files.
        float32_equivalent: The warm rate, counted as if strain were float32 [GB/s].
        peak_memory: Of this process [bytes].
        machine: What it ran on.
        verdict: What limits reading here, and what this machine can feed.
    """

    data: str
    encoding: str
    gigabytes: float
    batch_size: int
    threads: dict[str, int]
    warm: tuple[Rate, ...]
    cold: tuple[Rate, ...]
    of_limit: dict[str, float]
    limits: dict[str, str]
    resident: float
    float32_equivalent: float
    peak_memory: int
    machine: dict[str, Any]
    verdict: tuple[str, ...] = ()


def bench_read(config: ReadBenchConfig, url: str | Path) -> ReadBench:
    """Measure reading a data set.

    Args:
        config: What to measure.
        url: The data set.

    Raises:
        InputError: There is no data set on a local disk, or an argument is impossible.
        DamagedDataError: It is not complete.
    """
    from storage.bench.verdict import verdict_of_reading

    folder = local_folder(url, "the measurement against the disk")
    schema = read_schema(folder)
    require_complete(folder, schema)
    ground = _Ground(config, folder, schema)
    warm, cold = ground.measure_warm(), ground.measure_cold() if config.cold else []
    of_limit, names = _held_against_limits(warm, cold)
    stream = next(rate for rate in warm if not rate.limit)
    found = ReadBench(
        data=str(folder),
        encoding=schema.encoding.name,
        gigabytes=ground.events * schema.event_bytes / 1e9,
        batch_size=config.batch_size,
        threads=ground.threads,
        warm=tuple(warm),
        cold=tuple(cold),
        of_limit=of_limit,
        limits=names,
        resident=ground.resident,
        float32_equivalent=stream.gigabytes_per_second * FLOAT32 / schema.encoding.dtype.itemsize,
        peak_memory=peak_memory(),
        machine=machine(folder),
    )
    return replace(found, verdict=tuple(verdict_of_reading(found)))


def summary(bench: ReadBench) -> str:
    """Put it into words."""
    lines = [f"{bench.data}: {bench.gigabytes:.2f} GB of strain as {bench.encoding}"]
    for title, rates in (("from the page cache", bench.warm), ("from the disk", bench.cold)):
        lines += [title, *(f"  {rate}" for rate in rates)] if rates else []
    lines += [
        f"  {name}: {share:.2f} of {bench.limits[name]}" for name, share in bench.of_limit.items()
    ]
    return "\n".join([*lines, *bench.verdict])


class _Ground:
    """A data set, and everybody who reads it."""

    def __init__(self, config: ReadBenchConfig, folder: Path, schema: Schema) -> None:
        self.config, self.folder, self.schema = config, folder, schema
        shards = max(1, int(config.gigabytes * 1e9 / schema.event_bytes / schema.events_per_shard))
        shards = min(shards, schema.shards)
        self.events = sum(len(schema.events_of(shard)) for shard in range(shards))
        self.files = limits.strain_files(folder, range(shards))
        stored = sum(path.stat().st_size for path in self.files)
        strain = self.events * schema.event_bytes
        self.stored_share = stored / strain if schema.encoding.compressed else 1.0
        self.cores = len(os.sched_getaffinity(0))
        self.threads = dict[str, int]()
        self.resident = 0.0

    def measure_warm(self) -> list[Rate]:
        """Everybody, with the files in the page cache."""
        limits.read_plainly(self.files, 1)  # fills the page cache
        batch = self.config.batch_size * self.schema.event_bytes
        copy = limits.MemoryCopy(batch, self.cores)
        contestants = [
            *(self._plain(threads) for threads in sorted({1, self.cores})),
            self._plain_into_batches(),
            Contestant(
                f"memory copied, {_threads(self.cores)}",
                lambda: sum(copy() for _ in range(COPIES)),
                limit=True,
            ),
        ]
        if self.schema.encoding.compressed:
            decode = limits.DecodeAlone(
                self.folder, self.schema, self.config.batch_size, self.cores
            )
            contestants.append(
                Contestant(
                    f"decompression alone, {_threads(self.cores)}",
                    partial(decode, self.events),
                    limit=True,
                )
            )
        self.threads["warm"] = self.config.threads or self._calibrated()
        contestants += self._streams(self.threads["warm"], self.config.sweep)
        for contestant in contestants:  # buffers, and what is opened once
            contestant.work()
        self.resident = limits.least_resident(self.files)
        return self._alternate(contestants)

    def measure_cold(self) -> list[Rate]:
        """Everybody, with the page cache dropped before."""
        drop = partial(limits.drop_from_cache, self.files)
        drop()
        threads = self.threads["cold"] = self.config.threads or self._calibrated()
        contestants = self._fios(drop) if self.config.fio and limits.has_fio() else []
        contestants.append(self._plain(threads, drop))
        contestants += self._streams(threads, False, drop)
        if not self.schema.encoding.compressed:  # which are always read through it
            setting = dict(contestants[-3].setting)
            contestants.append(self._stream(setting, drop, past_cache=True))
        return self._alternate(contestants)

    def _alternate(self, contestants: list[Contestant]) -> list[Rate]:
        return alternate(
            contestants, self.config.rounds, self.schema.event_bytes, self.stored_share
        )

    def _fios(self, before: Any) -> list[Contestant]:  # noqa: ANN401
        """The disk's limit, with some requests under way and with many: it is the better one."""
        event = round(self.schema.event_bytes * self.stored_share)
        return [
            Contestant(
                f"{name}, depth {depth}",
                partial(self._fio, block, order == "random", depth),
                {"order": order, "depth": depth},
                before=before,
                limit=True,
            )
            for name, block, order in (
                ("fio, 1 MB from front to back", 2**20, "sequential"),
                ("fio, an event from anywhere", event, "random"),
            )
            for depth in limits.FIO_DEPTHS
        ]

    def _fio(self, block: int, random: bool, depth: int) -> tuple[int, float]:
        size, seconds = limits.fio(self.files, block, random, depth)
        return round(size / self.stored_share), seconds

    def _plain(self, threads: int, before: Any = None) -> Contestant:  # noqa: ANN401
        return Contestant(
            f"plain 16 MB reads, {_threads(threads)}",
            lambda: round(limits.read_plainly(self.files, threads) / self.stored_share),
            {"threads": threads},
            before=before,
            limit=True,
        )

    def _plain_into_batches(self) -> Contestant:
        """What no loader can beat: reads of the same bytes into memory of the same size."""
        size = BUFFERS * self.config.batch_size * self.schema.event_bytes
        room = aligned_empty((max(size, self.cores * limits.PIECE),), np.dtype(np.uint8))
        room[:] = 1  # memory is slow when it is touched first
        return Contestant(
            f"{INTO_BATCHES}, {_threads(self.cores)}",
            lambda: round(limits.read_plainly(self.files, self.cores, room) / self.stored_share),
            {"threads": self.cores},
            limit=True,
        )

    def _streams(
        self,
        threads: int,
        sweep: bool,
        before: Any = None,  # noqa: ANN401
    ) -> list[Contestant]:
        """The stream as it is by default, in each order, and with other threads and batches."""
        common = {"threads": threads, "batch_size": self.config.batch_size}
        settings: list[dict[str, Any]] = [
            {**common, "order": "global"},
            {**common, "order": "windowed"},
            {**common, "order": "as stored"},
        ]
        if sweep:
            settings += [{**settings[0], "threads": n} for n in (1, 2, 4, 8) if n != threads]
            settings += [
                {**settings[0], "batch_size": n} for n in (64,) if n < self.config.batch_size
            ]
        return [self._stream(setting, before) for setting in settings]

    def _stream(
        self,
        setting: dict[str, Any],
        before: Any,  # noqa: ANN401
        past_cache: bool = False,
    ) -> Contestant:
        from storage.stream import EventStream  # brings webdataset along, and that torch

        order = setting["order"]
        stream = EventStream(
            self.folder,
            batch_size=setting["batch_size"],
            stop=self.events,
            shuffle=order != "as stored",
            config=StreamConfig(
                threads=setting["threads"],
                prefetch=PREFETCH,
                window=Window() if order == "windowed" else None,
                past_cache=past_cache,
            ),
        )
        name = f"EventStream, {order}, {_threads(setting['threads'])}"
        if setting["batch_size"] != self.config.batch_size:
            name += f", batches of {setting['batch_size']}"
        if past_cache:
            setting, name = {**setting, "past_cache": True}, f"{name}, past the page cache"
        return Contestant(name, partial(_drain, stream), setting, before=before)

    def _calibrated(self) -> int:
        from storage.stream import EventStream

        stream = EventStream(
            self.folder,
            batch_size=self.config.batch_size,
            stop=self.events,
            config=StreamConfig(past_cache=False),
        )
        next(iter(stream))
        return stream.threads


def _threads(number: int) -> str:
    return f"{number} thread{'s' * (number > 1)}"


def _drain(batches: Iterable[Any]) -> int:
    total = 0
    for batch in batches:
        total += batch.strain.nbytes
    return total


def _held_against_limits(
    warm: list[Rate], cold: list[Rate]
) -> tuple[dict[str, float], dict[str, str]]:
    """The stream in each order over what limits it: by cache and order."""
    shares, names = dict[str, float](), dict[str, str]()
    decoding = _named("decompression", warm)
    for state, rates in (("warm", warm), ("cold", cold)):
        disk = _named("fio", rates)
        for order, rate in _default_streams(rates).items():
            kind = "random" if order == "global" else "sequential"  # or plain reads, without fio
            limit = _best(
                [fio for fio in disk if fio.setting["order"] == kind] or _named("plain", rates)
            )
            limit = min((limit, *decoding), key=lambda bound: bound.gigabytes_per_second)
            shares[f"{state}, {order}"] = float(ratio(rate, limit))
            names[f"{state}, {order}"] = limit.name
            for into in [] if decoding else _named(INTO_BATCHES, rates):
                shares[f"{state}, {order}, same memory"] = float(ratio(rate, into))
                names[f"{state}, {order}, same memory"] = into.name
    return shares, names


def _named(beginning: str, rates: list[Rate]) -> list[Rate]:
    return [rate for rate in rates if rate.limit and rate.name.startswith(beginning)]


def _default_streams(rates: list[Rate]) -> dict[str, Rate]:
    """The stream in each order, with the threads and batches that are not varied."""
    found = dict[str, Rate]()
    for rate in rates:
        if not rate.limit and "past_cache" not in rate.setting:
            found.setdefault(rate.setting["order"], rate)
    return found


def _best(rates: list[Rate]) -> Rate:
    return max(rates, key=lambda rate: rate.gigabytes_per_second)
