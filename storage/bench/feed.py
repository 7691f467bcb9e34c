"""Whether an accelerator is kept busy: a training step of known length, fed by the stream.

The idea is MLPerf Storage's: the step is replaced by a wait of the length that it has on the
accelerator, or is the real one, and what counts is the accelerator's utilisation, the share of the
time in which it computes. The first batch, for which everybody waits, is not counted; nor, from a
cold disk, that of each pass, before which the page cache is dropped: nothing is read ahead there.
"""

import statistics
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from storage.bench import limits
from storage.bench.feed_step import Clock, FedStep, FeedRound, Wait, take
from storage.bench.measure import Rate, cpu_seconds, machine, milliseconds, peak_memory, ratio
from storage.dataset import read_schema
from storage.errors import InputError
from storage.local import LocalStore
from storage.order import Window
from storage.stream_config import StreamConfig
from storage.urls import local_folder, store_of

BUSY = 0.95  # utilisation from which on an accelerator counts as busy
FEWEST_BATCHES = 20
SEARCH_STEPS = 7  # of the search for the shortest step that is fed


@dataclass(frozen=True, kw_only=True)
class FeedBenchConfig:
    """What to measure.

    Args:
        step: Length of a training step on the accelerator [s].
        batch_size: Events a batch.
        batches: That are fed, after the first; the set is gone through as often as needed.
        threads: Reading threads; by default those of the run that is fed, or a calibration decides.
        prefetch: Batches read ahead; by default the same.
        windowed: Whether in windows of shards, as for object stores; otherwise as the run that is
            fed has it, or in global order.
        cold: Whether the page cache is dropped before each epoch, outside the clock.
        search: Whether to look for the shortest step that is fed.
        rounds: How often, each with another order.
    """

    step: float = 0.05
    batch_size: int = 256
    batches: int = 64
    threads: int | None = None
    prefetch: int | None = None
    windowed: bool = False
    cold: bool = False
    search: bool = True
    rounds: int = 5

    def __post_init__(self) -> None:
        if not self.step > 0:
            raise InputError(f"step: got {self.step} s, more than 0 is needed")
        for name in ("batch_size", "rounds"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: got {getattr(self, name)}, at least 1 is needed")
        if self.batches < FEWEST_BATCHES:
            raise InputError(
                f"batches: got {self.batches}, at least {FEWEST_BATCHES} are needed for a figure"
            )


@dataclass(frozen=True)
class FeedBench:
    """The result.

    Attributes:
        data: The data set.
        encoding: Of its strain.
        cache: `warm` or `cold`.
        step: Length of a step [s], as it was.
        batch_size: Events a batch.
        threads: Reading threads.
        utilisation: Of the accelerator, the median over the rounds.
        lowest: Of the rounds.
        events_per_second: That were fed.
        gigabytes_per_second: Of strain that were fed.
        first_batch: Seconds until the first batch of a pass, the median.
        wait_p50: Seconds that half of the batches were not waited for longer than.
        wait_p99: The same for 99 of 100.
        cpu_seconds_per_gigabyte: CPU time, that of a real step included.
        shortest_step: The shortest step that is still fed [s]; None where it was not looked for.
        to_device: Rates of a batch on its way to a GPU, and of one large page-locked buffer, which
            is the link's; none where nothing is copied.
        of_link: The former over the latter; None where nothing is copied.
        peak_memory: Of this process [bytes].
        machine: What it ran on.
        verdict: Whether the accelerator is kept busy, and what it takes.
    """

    data: str
    encoding: str
    cache: str
    step: float
    batch_size: int
    threads: int
    utilisation: float
    lowest: float
    events_per_second: float
    gigabytes_per_second: float
    first_batch: float
    wait_p50: float
    wait_p99: float
    cpu_seconds_per_gigabyte: float
    shortest_step: float | None
    to_device: tuple[Rate, ...]
    of_link: float | None
    peak_memory: int
    machine: dict[str, Any]
    verdict: tuple[str, ...]


def bench_feed(config: FeedBenchConfig, url: str | Path, real: FedStep | None = None) -> FeedBench:
    """Feed a training step.

    Args:
        config: What to measure.
        url: The data set.
        real: The real step; by default one that waits.

    Raises:
        InputError: There is no data set, or an argument is impossible.
        DamagedDataError: It is not complete.
    """
    store = store_of(url)
    schema = read_schema(store)
    fed_step = real or FedStep(step=Wait(config.step))
    feeder = _Feeder(config, url, fed_step)
    to_device = fed_step.to_device() if fed_step.to_device else ()
    used = cpu_seconds()
    rounds = [feeder.feed(fed_step.step, seed) for seed in range(config.rounds)]
    used = cpu_seconds() - used
    firsts = [seconds for item in rounds for seconds in item.first_batches]
    fed = (len(firsts) + config.rounds * config.batches) * feeder.batch_bytes
    utilisation = statistics.median(item.utilisation for item in rounds)
    waits = np.concatenate([item.waits for item in rounds])
    length = statistics.median(item.step for item in rounds)
    rate = config.batch_size / length * utilisation
    shortest = feeder.shortest_step() if config.search and real is None else None
    return FeedBench(
        data=store.url,
        encoding=schema.encoding.name,
        cache="cold" if config.cold else "warm",
        step=length,
        batch_size=config.batch_size,
        threads=feeder.threads,
        utilisation=utilisation,
        lowest=min(item.utilisation for item in rounds),
        events_per_second=rate,
        gigabytes_per_second=rate * schema.event_bytes / 1e9,
        first_batch=statistics.median(firsts),
        wait_p50=float(np.percentile(waits, 50)),
        wait_p99=float(np.percentile(waits, 99)),
        cpu_seconds_per_gigabyte=used / (fed / 1e9),
        shortest_step=shortest,
        to_device=to_device,
        of_link=ratio(*to_device) if to_device else None,
        peak_memory=peak_memory(),
        machine=machine(Path(store.address) if isinstance(store, LocalStore) else Path()),
        verdict=tuple(_verdict(config, utilisation, length, shortest)),
    )


def summary(bench: FeedBench) -> str:
    """Put it into words."""
    return "\n".join(
        [
            f"{bench.data}: {bench.encoding}, {bench.cache}, {bench.threads} threads, batches of "
            f"{bench.batch_size}",
            f"  steps of {milliseconds(bench.step)}: utilisation {100 * bench.utilisation:.1f} % "
            f"(lowest of the rounds {100 * bench.lowest:.1f} %)",
            f"  {bench.events_per_second:,.0f} events/s, {bench.gigabytes_per_second:.2f} GB/s, "
            f"{bench.cpu_seconds_per_gigabyte:.2f} CPU-s/GB, {bench.peak_memory / 1e9:.2f} GB of "
            "memory",
            f"  first batch after {bench.first_batch:.2f} s; a batch is waited for "
            f"{1e3 * bench.wait_p50:.2f} ms (half of them), {1e3 * bench.wait_p99:.2f} ms (99 %)",
            *_note_of_cold(bench),
            *(f"  {rate}" for rate in bench.to_device),
            *_share_of_link(bench),
            *bench.verdict,
        ]
    )


def _note_of_cold(bench: FeedBench) -> Iterator[str]:
    if bench.cache == "cold":
        yield (
            "  cold: the files leave the page cache before each pass, outside the clock, and the "
            "first batch of each pass is not counted in the utilisation"
        )


def _share_of_link(bench: FeedBench) -> Iterator[str]:
    if bench.of_link is not None:
        yield f"  a batch is copied to the GPU at {bench.of_link:.2f} of the link's rate"


class _Feeder:
    """Feeds steps from one data set, epoch after epoch."""

    def __init__(self, config: FeedBenchConfig, url: str | Path, fed_step: FedStep) -> None:
        from storage.stream import EventStream  # brings webdataset along, and that torch

        self._config, self._url = config, url
        self._stream = EventStream(
            url,
            batch_size=config.batch_size,
            config=_as_asked(fed_step.stream, config),
            allocate=fed_step.allocate,
        )
        schema = self._stream.schema
        if self._stream.events < config.batch_size:
            raise InputError(
                f"batch_size: got {config.batch_size}, the data set has {self._stream.events} "
                "events; lower it, so that batches are whole"
            )
        self.batch_bytes = config.batch_size * schema.event_bytes
        if config.cold:
            folder = local_folder(url, "feeding from a cold disk")
            if self._stream.events < 2 * config.batch_size:  # each pass's first does not count
                raise InputError(
                    f"batch_size: got {config.batch_size}, from a cold disk two batches are needed "
                    f"in a pass, of {self._stream.events} events; lower it"
                )
            self._files = limits.strain_files(folder, range(schema.shards))
        elif isinstance(store := store_of(url), LocalStore):
            self._fill_page_cache(limits.strain_files(store.folder, range(schema.shards)))
        self._batches = fed_step.deliver(self._stream)
        self.feed(take, 0, 3)  # calibration, buffers, what is opened once

    @staticmethod
    def _fill_page_cache(files: Sequence[Path]) -> None:
        """Read what fits into memory: shards that were just written went past it."""
        if sum(path.stat().st_size for path in files) < psutil.virtual_memory().available:
            limits.read_plainly(files, 1)

    @property
    def threads(self) -> int:
        """Reading threads."""
        return self._stream.threads

    def feed(
        self, step: Callable[[Any], object], seed: int, batches: int | None = None
    ) -> FeedRound:
        """Feed one round of steps."""
        self._batches.load_state_dict({"seed": seed, "epoch": 0, "position": 0})
        clock, wanted = Clock(), batches or self._config.batches
        for one_pass in self._passes():
            with closing(one_pass):
                whole = (item for item in one_pass if len(item.event) == self._config.batch_size)
                clock.time(step, whole, wanted)
            if len(clock.waits) == wanted:
                break
        return clock.round()

    def shortest_step(self) -> float:
        """Look for the shortest step with which the accelerator is busy [s]."""
        longest, shortest = self._config.step, 0.0
        while (found := self.feed(Wait(longest), 0, FEWEST_BATCHES)).utilisation < BUSY:
            shortest, longest = longest, 2 * (longest + float(np.mean(found.waits)))
        for number in range(SEARCH_STEPS):
            middle = (shortest + longest) / 2
            if self.feed(Wait(middle), number, FEWEST_BATCHES).utilisation < BUSY:
                shortest = middle
            else:
                longest = middle
        return longest

    def _passes(self) -> Iterator[Generator[Any, None, None]]:
        """Batches from epoch to epoch; from a cold disk those of one epoch at a time."""
        if not self._config.cold:
            yield self._batches.epochs()
            return
        while True:
            limits.drop_from_cache(self._files)
            yield self._batches.epochs(self._batches.state_dict()["epoch"] + 1)


def _as_asked(stream: StreamConfig, config: FeedBenchConfig) -> StreamConfig:
    """How a data set is streamed, but for what the measurement was told."""
    return replace(
        stream,
        threads=stream.threads if config.threads is None else config.threads,
        prefetch=stream.prefetch if config.prefetch is None else config.prefetch,
        window=stream.window or (Window() if config.windowed else None),
    )


def _verdict(
    config: FeedBenchConfig, utilisation: float, step: float, shortest: float | None
) -> Iterator[str]:
    busy = utilisation >= BUSY
    yield (
        f"An accelerator with steps of {milliseconds(step)} for {config.batch_size} events is "
        f"{'kept busy' if busy else 'STARVED'} ({100 * utilisation:.1f} %, {100 * BUSY:.0f} % "
        "count as busy)."
    )
    if shortest is not None:
        yield (
            f"The shortest step that is fed is {milliseconds(shortest)}, "
            f"{config.batch_size / shortest:,.0f} events/s: a faster accelerator starves."
        )
    if not busy:
        yield (
            "`strainflow bench read` says whether the disk, decompression or copying is the limit; "
            "fewer bytes an event, more threads or a faster disk help."
        )
