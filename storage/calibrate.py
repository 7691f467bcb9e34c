"""How many threads read best, and how many batches ahead: measured in a fraction of a second."""

import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from storage.arrays import Array, aligned_empty
from storage.reading import Batch, Filling, Reading
from storage.schema import Schema

# Threads. Fewer than four save little where the page cache serves, and cost half of the rate where
# a disk does, of which a lucky probe may say otherwise.
CANDIDATES = (4, 8, 16)
PROBES = 3  # of each
WORTH = 1.1  # how much faster more threads have to be to be taken
PROBE_BYTES = 48 * 2**20  # read for each candidate
LEAST_BYTES = 512 * 2**20  # of a set: below it is read before anything was found out
DEFAULT_THREADS, DEFAULT_PREFETCH, MOST_PREFETCH = 4, 2, 8


@dataclass(frozen=True)
class Depth:
    """How much is under way at a time.

    Attributes:
        threads: That read.
        prefetch: Batches that are read ahead.
    """

    threads: int = DEFAULT_THREADS
    prefetch: int = DEFAULT_PREFETCH


def calibrate(
    reading: Reading,
    schema: Schema,
    some_events: Callable[[int], Int64[Array, "event"]],
    events: int,
    batch_size: int,
    threads: int | None = None,
    prefetch: int | None = None,
    most_prefetch: int = MOST_PREFETCH,
) -> Depth:
    """Read a few events with more and more threads; say on the terminal what was found.

    Args:
        reading: Of the data set.
        schema: What it is.
        some_events: Gives so many events, as they follow each other in the order.
        events: Of the range that will be read.
        batch_size: Events a batch.
        threads: Where their number is given, and only the depth is looked for.
        prefetch: Batches ahead, where their number is given.
        most_prefetch: Batches ahead for which there is memory.
    """
    most_prefetch = min(most_prefetch, MOST_PREFETCH)
    candidates = CANDIDATES if threads is None else (threads,)
    size = schema.event_bytes
    if events * size < LEAST_BYTES or not reading.is_local:
        usual = min(most_prefetch, DEFAULT_PREFETCH)
        return Depth(threads or DEFAULT_THREADS, usual if prefetch is None else prefetch)
    count = max(2 * max(candidates), min(PROBE_BYTES // size, events // 8))
    buffer = Batch(
        aligned_empty((count, *schema.strain_shape), schema.encoding.dtype),
        np.empty((count, len(schema.parameters))),
        np.empty(count, np.int64),
    )
    _read(reading, buffer, some_events(count), 1)  # touches the memory, opens what is open later
    probes, longest = {number: list[float]() for number in candidates}, 0.0
    for number in candidates * PROBES:
        seconds, slowest = _read(reading, buffer, some_events(count), number)
        probes[number].append(count * size / seconds)
        longest = max(longest, slowest)
    rates = {number: statistics.median(found) for number, found in probes.items()}
    chosen = min(n for n, rate in rates.items() if rate * WORTH >= max(rates.values()))
    batch_seconds = batch_size * size / rates[chosen]
    if prefetch is None:
        # While one read takes its longest, the batches that are ready have to last.
        prefetch = min(most_prefetch, DEFAULT_PREFETCH + int(longest / batch_seconds))
    told = ", ".join(f"{n}: {rate / 1e9:.2f}" for n, rate in rates.items())
    print(
        f"strainflow: reading with {chosen} threads, {prefetch} batches ahead, "
        f"{(prefetch + 1) * batch_size * size / 1e9:.2g} GB of buffers (calibration in GB/s by "
        f"threads: {told})",
        file=sys.stderr,
    )
    return Depth(chosen, prefetch)


def _read(
    reading: Reading, buffer: Batch, events: Int64[Array, "event"], threads: int
) -> tuple[float, float]:
    """Read some events; return the seconds of all and of the slowest task."""
    buffer.event[:] = events
    lasted = list[float]()

    def timed(task: Callable[[], None]) -> None:
        began = time.perf_counter()
        task()
        lasted.append(time.perf_counter() - began)

    tasks = list(reading.tasks(Filling(buffer), threads))
    start = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(timed, tasks))
    return time.perf_counter() - start, max(lasted)
