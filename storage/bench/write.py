"""How fast shards are written: every encoding, against plain writes of as many bytes.

Plain writes are of 16 MB into new files, synced at the end as each shard is: through the page cache
and, where the file system can, past it, as shards are written. The latter are the limit then.
"""

import errno
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from storage.arrays import PAGE
from storage.bench import limits
from storage.bench.measure import Contestant, Rate, alternate, machine, peak_memory, ratio
from storage.bench.sets import noise, noise_schema, noise_set, write_shards
from storage.bench.verdict import BEYOND
from storage.encodings import ENCODINGS, encoding_named
from storage.errors import InputError
from storage.schema import Schema

PAST = "past the page cache"
THROUGH = "through the page cache"
ENOUGH = 0.8  # of plain writes, from which on the disk is what holds writing back


@dataclass(frozen=True, kw_only=True)
class WriteBenchConfig:
    """What to measure.

    Args:
        encodings: Which.
        events: In each set.
        events_per_shard: In each shard.
        detectors: Detectors an event.
        samples: Time samples an event and detector.
        rounds: How often each set is written.
    """

    encodings: tuple[str, ...] = tuple(ENCODINGS)
    events: int = 1024
    events_per_shard: int = 512
    detectors: int = 3
    samples: int = 65_536
    rounds: int = 5

    def __post_init__(self) -> None:
        for name in ("events", "events_per_shard", "detectors", "samples", "rounds"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: got {getattr(self, name)}, at least 1 is needed")
        for name in self.encodings:
            encoding_named(name)


@dataclass(frozen=True)
class WriteBench:
    """The result. Rates are of strain in its stored type; those of the disk of what lies there.

    Attributes:
        folder: On the disk that was measured.
        rates: Of each encoding, and of plain writes of as many bytes.
        of_plain_writes: The bytes a second that reach the disk, over those of plain writes.
        plain_writes: Which these are: past the page cache, or through it where they cannot be.
        bytes_per_event: That lie on the disk.
        peak_memory: Of this process [bytes].
        machine: What it ran on.
        verdict: What limits writing here.
    """

    folder: str
    rates: tuple[Rate, ...]
    of_plain_writes: dict[str, float]
    plain_writes: str
    bytes_per_event: dict[str, int]
    peak_memory: int
    machine: dict[str, Any]
    verdict: tuple[str, ...]


def bench_write(config: WriteBenchConfig, folder: str | Path) -> WriteBench:
    """Measure writing into a folder; what was written is removed.

    Args:
        config: What to measure.
        folder: On the disk to be measured.

    Raises:
        InputError: There is no such folder, or an argument is impossible.
    """
    if not Path(folder).is_dir():
        raise InputError(f"{folder}: no folder there; give one on the disk that will hold the data")
    rates, shares, sizes = list[Rate](), dict[str, float](), dict[str, int]()
    root = Path(tempfile.mkdtemp(prefix="strainflow-bench-", dir=folder))
    try:
        ways = [THROUGH, *([PAST] if limits.can_write_past_cache(root) else [])]
        for name in config.encodings:
            schema = noise_schema(
                name, config.events, config.events_per_shard, config.detectors, config.samples
            )
            data = noise_set(root / f"{name}.zarr", schema)
            files = limits.strain_files(data, range(schema.shards))
            stored = sum(path.stat().st_size for path in files)
            found = alternate(
                _contestants(root, data, schema, ways),
                config.rounds,
                schema.event_bytes,
                stored / (schema.events * schema.event_bytes),
            )
            rates += found
            *_, limit, ours = found
            shares[name] = float(ratio(ours, limit))
            sizes[name] = round(stored / schema.events)
            shutil.rmtree(data)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    return WriteBench(
        folder=str(folder),
        rates=tuple(rates),
        of_plain_writes=shares,
        plain_writes=ways[-1],
        bytes_per_event=sizes,
        peak_memory=peak_memory(),
        machine=machine(Path(folder)),
        verdict=tuple(_verdict(rates, shares, ways[-1])),
    )


def summary(bench: WriteBench) -> str:
    """Put it into words."""
    lines = [f"{bench.folder}: writing, one process", *(f"  {rate}" for rate in bench.rates)]
    lines += [
        f"  {name}: {share:.2f} of plain writes {bench.plain_writes}, "
        f"{bench.bytes_per_event[name]:,} bytes an event"
        for name, share in bench.of_plain_writes.items()
    ]
    return "\n".join([*lines, *bench.verdict])


def _contestants(root: Path, data: Path, schema: Schema, ways: list[str]) -> list[Contestant]:
    """Plain writes of as many bytes in some ways, and our own; all of them of new files."""
    files, size = (
        limits.strain_files(data, range(schema.shards)),
        schema.events * schema.event_bytes,
    )
    lengths, strain = [path.stat().st_size for path in files], noise(schema)
    name = schema.encoding.name

    def write_plainly(past_cache: bool) -> int:
        written = limits.write_plainly(root, lengths, past_cache)
        if written < sum(lengths) - len(lengths) * PAGE:
            raise OSError(errno.EIO, "a write fell short", str(root))
        return size

    def write() -> int:
        write_shards(data, schema, strain)
        return size

    def remove() -> None:
        limits.remove_plain_files(root)
        for path in files:
            path.unlink(missing_ok=True)

    plain = [
        Contestant(
            f"plain, {way}, {name}",
            partial(write_plainly, way == PAST),
            before=remove,
            limit=True,
        )
        for way in ways
    ]
    return [*plain, Contestant(f"strainflow, {name}", write, {"encoding": name}, before=remove)]


def _verdict(rates: list[Rate], shares: dict[str, float], plain_writes: str) -> Iterator[str]:
    for rate in rates:
        if rate.limit:
            continue
        share = shares[rate.setting["encoding"]]
        limit = "its limit is encoding, compressing and digesting"
        if share >= ENOUGH:
            limit = "it is at the disk's limit" if share > BEYOND else "its limit is the disk"
        yield (
            f"As {rate.setting['encoding']} one process writes {rate.events_per_second:,.0f} "
            f"events/s; {limit} ({share:.2f} of plain writes {plain_writes})."
        )
