"""What the figures mean, in words: which stage is the limit, what to change, what can be fed."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from storage.bench.read import ReadBench

ENOUGH = 0.85  # of a limit, from which on the limit is what holds reading back


def verdict_of_reading(bench: "ReadBench") -> Iterator[str]:
    """Say what limits reading, and what this machine can feed.

    Args:
        bench: What was measured.
    """
    for state, rates in (("cold", bench.cold), ("warm", bench.warm)):
        streams = [rate for rate in rates if not rate.limit]
        if not streams:
            continue
        default = streams[0]
        name = f"{state}, global, same memory"  # the nearer limit, where there is one
        name = name if name in bench.limits else f"{state}, global"
        share, limit = bench.of_limit[name], bench.limits[name]
        step = 1e3 * bench.batch_size / default.events_per_second
        place = "the disk" if state == "cold" else "the page cache"
        yield (
            f"From {place} this machine feeds {default.events_per_second:,.0f} events/s: a step "
            f"for {bench.batch_size} events may be as short as {step:.0f} ms."
        )
        yield f"  Its limit is {_limit(state, share, limit, bench)}"
        best = max(streams, key=lambda rate: rate.gigabytes_per_second)
        if best.gigabytes_per_second > 1.15 * default.gigabytes_per_second:
            faster = best.gigabytes_per_second / default.gigabytes_per_second
            yield f"  {best.name} is {faster:.1f} times faster than the default here."


def _limit(state: str, share: float, limit: str, bench: "ReadBench") -> str:
    if share < ENOUGH:
        return (
            f"the loader: {share:.2f} of {limit}. More than {bench.threads[state]} threads, or "
            "more cores for them, may help; please report it if not."
        )
    if limit.startswith("decompression"):
        return (
            f"decompression ({share:.2f} of {limit}): more cores, or an encoding without Blosc, "
            "if the disk has bytes to spare."
        )
    if state == "warm":
        return f"copying from the page cache ({share:.2f} of {limit}): fewer bytes an event help."
    if bench.encoding.startswith("float32"):
        return f"the disk ({share:.2f} of {limit}): int16+blosc has a fifth of the bytes."
    return f"the disk ({share:.2f} of {limit}): fewer bytes an event, or a faster disk."
