"""What the figures mean, in words: which stage is the limit, what to change, what can be fed."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from storage.bench.measure import Rate, milliseconds

if TYPE_CHECKING:
    from storage.bench.read import ReadBench

ENOUGH = 0.85  # of a limit, from which on the limit is what holds reading back
USUAL = 0.7  # of a limit: less than what docs/measured.md has of warm and of compressed sets
BEYOND = 1.05  # of a limit: more than the scatter of passes
RESIDENT = 0.99  # of each file, from which on passes over them are warm
_WINDOW = ["--stream.window.shards 16", "--stream.window.events 16"]  # of `storage.order.Window`


def verdict_of_reading(bench: "ReadBench") -> Iterator[str]:
    """Say what limits reading, and what this machine can feed.

    Args:
        bench: What was measured.
    """
    yield from doubt_of_warmth(bench.resident)
    for state, rates in (("cold", bench.cold), ("warm", bench.warm)):
        streams = [rate for rate in rates if not rate.limit]
        if not streams:
            continue
        default = streams[0]
        name = f"{state}, global, same memory"  # the nearer limit, where there is one
        name = name if name in bench.limits else f"{state}, global"
        share, limit = bench.of_limit[name], bench.limits[name]
        place = "the disk" if state == "cold" else "the page cache"
        step = milliseconds(bench.batch_size / default.events_per_second)
        yield (
            f"From {place} this machine feeds {default.events_per_second:,.0f} events/s: a step "
            f"for {bench.batch_size} events may be as short as {step}."
        )
        yield f"  {_limit(state, share, limit, bench)}"
        same = [
            rate for rate in streams if rate.setting.get("batch_size") in (None, bench.batch_size)
        ]
        best = max(same, key=lambda rate: rate.gigabytes_per_second)  # others learn something else
        if best.gigabytes_per_second > 1.15 * default.gigabytes_per_second:
            faster = best.gigabytes_per_second / default.gigabytes_per_second
            yield f"  {best.name} is {faster:.1f} times as fast as that: {_way_to(best, default)}."


def doubt_of_warmth(resident: float) -> Iterator[str]:
    """Say so if files were not in the page cache before passes that count as warm.

    Args:
        resident: The share that was there of the file of which it was least.
    """
    if resident < RESIDENT:
        yield (
            f"NOT WARM: {100 * (1 - resident):.0f} % of a file was not in the page cache before "
            "the warm passes, which read the disk too; free memory, or measure a smaller set."
        )


class _Stage(NamedTuple):
    """What reading waits for: its name, that of its limit, and what to do about it."""

    name: str
    limit: str
    advice: str


def _limit(state: str, share: float, limit: str, bench: "ReadBench") -> str:
    stage = _stage(state, limit, bench.encoding)
    if share > BEYOND:
        return f"It is at {stage.limit} ({share:.2f} of {limit}): {stage.advice}."
    if share >= ENOUGH:
        return f"Its limit is {stage.name} ({share:.2f} of {limit}): {stage.advice}."
    more = f"more than {bench.threads[state]} threads, or more cores for them, may help"
    compressed = limit.startswith("decompression")
    if share < USUAL:
        usual = " (reading the frames and their checksums leave 0.7 to 0.8)" if compressed else ""
        return (
            f"Its limit is the loader: {share:.2f} of {limit}{usual}; {more}; please report it if "
            "not."
        )
    if compressed:
        return (
            f"Most of it is decompression ({share:.2f} of {limit}), the rest is reading the frames "
            f"and their checksums: {stage.advice}."
        )
    usual = ", which is usual" if state == "warm" else ""
    return f"Its limit is the loader: {share:.2f} of {limit}{usual}; {more}."


def _stage(state: str, limit: str, encoding: str) -> _Stage:
    if limit.startswith("decompression"):
        advice = "more cores, or an encoding without Blosc, if the disk has bytes to spare"
        return _Stage("decompression", "the limit of decompression", advice)
    if state == "warm":
        advice = "fewer bytes an event help"
        return _Stage("copying from the page cache", "the page cache's limit", advice)
    advice = "fewer bytes an event, or a faster disk"
    if encoding.startswith("float32"):
        advice = "int16+blosc has a fifth of the bytes"
    return _Stage("the disk", "the disk's limit", advice)


def _way_to(rate: Rate, default: Rate) -> str:
    """How to have a stream read as that one did, by the flags of `strainflow train`."""
    here, there = rate.setting, default.setting
    flags = [
        f"--{flag} {here[name]}"
        for name, flag in (("threads", "stream.threads"),)
        if here.get(name) != there.get(name)
    ]
    flags += _WINDOW if here["order"] == "windowed" else []
    flags += ["--stream.past_cache true"] if here.get("past_cache") else []
    ways = [f"`train {' '.join(flags)}`"] if flags else []
    if here["order"] == "as stored":  # nobody trains so, and training has no flag for it
        ways.append("`EventStream(shuffle=False)`, for what needs no random order")
    return " and ".join(ways)
