"""Data sets of noise, to be measured where there is no data set yet."""

import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from storage.arrays import Array
from storage.dataset import create_dataset
from storage.encodings import Encoding, default_loss, encoding_for, encoding_named
from storage.errors import InputError
from storage.schema import Event, Parameter, Schema
from storage.writer import write_shard

DIFFERENT = 16  # events that are made; all others are like them
LOUDEST = 5.0  # sigma, within what int8 holds
FEWEST_MADE = 512  # events, below which a measurement says little
USUAL_PEAK = 100.0  # sigma, that a set of binaries has to be able to hold
PARAMETERS = tuple(Parameter(f"theta_{n}", "", "Uniform(0, 1)", 0.0, 1.0) for n in range(15))


def usual_encoding() -> Encoding:
    """How a simulation of noisy events stores them, if it is not told."""
    return encoding_for(default_loss(noisy=True), True, USUAL_PEAK)


def noise_schema(
    encoding: str | Encoding,
    events: int,
    events_per_shard: int = 256,
    detectors: int = 3,
    samples: int = 65_536,
) -> Schema:
    """What a data set of noise is.

    Args:
        encoding: Of its strain, or its name.
        events: How many.
        events_per_shard: In each shard.
        detectors: In each event.
        samples: Time samples of each detector.

    Raises:
        InputError: There is no such encoding.
    """
    return Schema(
        events=events,
        events_per_shard=min(events, events_per_shard),
        detectors=tuple(f"D{number}" for number in range(detectors)),
        samples=samples,
        sample_rate=8192.0,
        encoding=encoding_named(encoding) if isinstance(encoding, str) else encoding,
        noisy=True,
        parameters=PARAMETERS,
        frequencies=2,
        frequency_step=1.0,
    )


def noise(schema: Schema) -> list[Float32[Array, "detector time"]]:
    """Some events of whitened noise [sigma]."""
    draw = np.random.default_rng(0)
    return [
        draw.standard_normal(schema.strain_shape, np.float32).clip(-LOUDEST, LOUDEST)
        for _ in range(DIFFERENT)
    ]


def write_shards(
    folder: Path, schema: Schema, strain: list[Float32[Array, "detector time"]]
) -> None:
    """Write all shards of a data set that was created, anew where they are there."""
    theta, snrs = np.full(len(schema.parameters), 0.5), np.ones(len(schema.detectors))

    def events(shard: int) -> Iterator[Event]:
        for number in schema.events_of(shard):
            yield Event(number, strain[number % DIFFERENT], theta, snrs, {})

    for shard in range(schema.shards):
        write_shard(folder, schema, shard, events(shard))


def noise_set(folder: Path, schema: Schema) -> Path:
    """Write a data set of noise; return its folder."""
    create_dataset(folder, schema, np.ones((len(schema.detectors), schema.frequencies)))
    write_shards(folder, schema, noise(schema))
    return folder


@contextmanager
def there_or_made(data: str, gigabytes: float, encoding: str) -> Iterator[str]:
    """A data set that is there; or one of noise, made for a measurement and removed after it.

    Args:
        data: Where it is, or is to be made.
        gigabytes: Of strain, as it is delivered, to be made; 0 where it is there.
        encoding: Of that, by default what a simulation of noisy events takes.

    Raises:
        InputError: Something is where it is to be made, or there is no such encoding.
    """
    if not gigabytes:
        if encoding:
            raise InputError("encoding: is that of a set to be made; give --make GIGABYTES with it")
        yield data
        return
    folder = Path(data)
    if not 0 < gigabytes < math.inf or "://" in data:
        raise InputError(
            f"make: got {gigabytes:g} GB at {data}; give a positive number, and a folder to create "
            "on the disk that is to be measured"
        )
    if folder.exists():
        raise InputError(f"{data}: is there already; --make wants the name of a folder to create")
    kind = encoding or usual_encoding()
    size = noise_schema(kind, 1).event_bytes
    schema = noise_schema(kind, max(FEWEST_MADE, int(gigabytes * 1e9 / size)))
    try:
        yield str(noise_set(folder, schema))
    finally:
        if folder.exists():
            shutil.rmtree(folder)
