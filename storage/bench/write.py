"""How fast shards are written: every encoding, against plain writes of as many bytes.

Plain writes are of 16 MB, synced at the end as each shard is. Where compression is slower than the
disk, that is the limit: it is measured alone, from memory to memory.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from storage.bench.limits import PIECE
from storage.bench.measure import Contestant, Rate, alternate, machine, peak_memory, ratio
from storage.bench.sets import noise, noise_schema, noise_set, write_shards
from storage.encodings import ENCODINGS, encoding_named
from storage.errors import InputError
from storage.schema import Schema, shard_files


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
        bytes_per_event: That lie on the disk.
        peak_memory: Of this process [bytes].
        machine: What it ran on.
        verdict: What limits writing here.
    """

    folder: str
    rates: tuple[Rate, ...]
    of_plain_writes: dict[str, float]
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
        for name in config.encodings:
            schema = noise_schema(
                name, config.events, config.events_per_shard, config.detectors, config.samples
            )
            data, strain = noise_set(root / f"{name}.zarr", schema), noise(schema)
            stored = sum(_length(data, shard) for shard in range(schema.shards))
            share = stored / (schema.events * schema.event_bytes)
            found = alternate(
                [
                    Contestant(
                        f"plain writes of the bytes of {name}",
                        partial(write_plainly, root, data, schema),
                        limit=True,
                    ),
                    Contestant(
                        f"strainflow, {name}",
                        partial(_write, data, schema, strain),
                        {"encoding": name},
                    ),
                ],
                config.rounds,
                schema.event_bytes,
                share,
            )
            rates += found
            shares[name] = float(ratio(found[1], found[0]))
            sizes[name] = round(stored / schema.events)
            shutil.rmtree(data)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    return WriteBench(
        folder=str(folder),
        rates=tuple(rates),
        of_plain_writes=shares,
        bytes_per_event=sizes,
        peak_memory=peak_memory(),
        machine=machine(Path(folder)),
        verdict=tuple(_verdict(rates, shares)),
    )


def summary(bench: WriteBench) -> str:
    """Put it into words."""
    lines = [f"{bench.folder}: writing, one process", *(f"  {rate}" for rate in bench.rates)]
    lines += [
        f"  {name}: {share:.2f} of plain writes, {bench.bytes_per_event[name]:,} bytes an event"
        for name, share in bench.of_plain_writes.items()
    ]
    return "\n".join([*lines, *bench.verdict])


def _verdict(rates: list[Rate], shares: dict[str, float]) -> Iterator[str]:
    for rate in rates:
        if rate.limit:
            continue
        share = shares[rate.setting["encoding"]]
        limit = "the disk" if share >= 0.8 else "encoding, compressing and digesting"
        yield (
            f"As {rate.setting['encoding']} one process writes {rate.events_per_second:,.0f} "
            f"events/s; its limit is {limit} ({share:.2f} of plain writes)."
        )


def _write(folder: Path, schema: Schema, strain: list[Any]) -> int:
    write_shards(folder, schema, strain)
    return schema.events * schema.event_bytes


def _length(folder: Path, shard: int) -> int:
    return (folder / shard_files(shard)["strain"]).stat().st_size


def write_plainly(root: Path, folder: Path, schema: Schema) -> int:
    """Write as many bytes as the shards have; return the bytes of strain that they stand for."""
    data = memoryview(np.random.default_rng(1).bytes(PIECE))
    for shard in range(schema.shards):
        length = _length(folder, shard)
        with (root / f"plain-{shard}").open("wb", buffering=0) as file:
            for start in range(0, length, PIECE):
                file.write(data[: min(PIECE, length - start)])
            os.fsync(file.fileno())
    return schema.events * schema.event_bytes
