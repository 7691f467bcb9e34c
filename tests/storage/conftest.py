"""Small data sets of random numbers, and full-size ones of every encoding."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from storage.dataset import create_dataset
from storage.encodings import ENCODINGS
from storage.schema import Event, Parameter, Schema
from storage.writer import write_shard

SMALL = Schema(
    events=7,
    events_per_shard=3,
    detectors=("E1", "E2", "E3"),
    samples=50,
    sample_rate=64.0,
    encoding=ENCODINGS["float32"],
    noisy=True,
    parameters=(
        Parameter("chirp_mass", "Msun", "Uniform(25, 100)", 25.0, 100.0),
        Parameter("psi", "rad", "Uniform(0, 3.14)", 0.0, 3.14),
        Parameter("phase", "rad", "0.5", 0.5, 0.5),
    ),
    frequencies=9,
    frequency_step=1.28,
    provenance={"configuration": {"waveform": {"f_lower": 5.0}}, "seed": 11},
)


@dataclass(frozen=True)
class Written:
    """A data set on disk, and what was written to it."""

    folder: Path
    schema: Schema
    psd: np.ndarray
    events: list[Event]

    @property
    def strain(self) -> np.ndarray:
        return np.stack([event.strain for event in self.events])

    @property
    def codes(self) -> np.ndarray:
        encode = self.schema.encoding.encode
        return np.stack(
            [encode(event.strain, event.number, self.schema.noisy) for event in self.events]
        )

    @property
    def parameters(self) -> np.ndarray:
        return np.stack([event.parameters for event in self.events])

    @property
    def optimal_snr(self) -> np.ndarray:
        return np.stack([event.optimal_snr for event in self.events])


def make_event(schema: Schema, number: int) -> Event:
    """An event of unit variance; a pure function of its number."""
    draw = np.random.Generator(np.random.Philox(key=number))
    return Event(
        number=number,
        strain=draw.standard_normal(schema.strain_shape),
        parameters=draw.uniform(25, 100, len(schema.parameters)),
        optimal_snr=draw.uniform(5, 50, len(schema.detectors)),
        rejected={"snr below 8": 2} if number % 3 == 0 else {},
    )


def prepare(folder: Path, schema: Schema) -> Written:
    """Create a data set without any shard yet."""
    psd = np.random.default_rng(5).uniform(
        1e-49, 1e-48, (len(schema.detectors), schema.frequencies)
    )
    create_dataset(folder, schema, psd)
    return Written(folder, schema, psd, [make_event(schema, i) for i in range(schema.events)])


def fill(data: Written, shards: list[int] | None = None) -> Written:
    """Write some or all shards."""
    for shard in range(data.schema.shards) if shards is None else shards:
        events = (data.events[number] for number in data.schema.events_of(shard))
        write_shard(data.folder, data.schema, shard, events)
    return data


@pytest.fixture(scope="session")
def small() -> Schema:
    """The schema that tests vary."""
    return SMALL


@pytest.fixture
def empty(tmp_path: Path) -> Written:
    """A small data set that was created but not filled."""
    return prepare(tmp_path / "events.zarr", SMALL)


@pytest.fixture
def filled(empty: Written) -> Written:
    """A small complete data set that a test may damage."""
    return fill(empty)


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Written]:
    """Write a complete data set: the small one with some facts changed."""

    def build(**changes: object) -> Written:
        schema = replace(SMALL, **changes)
        return fill(prepare(tmp_path_factory.mktemp("data") / "events.zarr", schema))

    return build


@pytest.fixture(scope="session")
def finish() -> Callable[..., Written]:
    """Write some or all shards of a data set that was prepared."""
    return fill


@pytest.fixture(scope="session")
def start() -> Callable[[Path, Schema], Written]:
    """Create a data set without any shard yet."""
    return prepare


@pytest.fixture(scope="session")
def full_size(build: Callable[..., Written]) -> Iterator[Callable[[str], Written]]:
    """Data sets of five events of 3 x 65,536 samples in three shards, the last one partial."""

    @cache
    def full_size(encoding: str) -> Written:
        return build(
            events=5,
            events_per_shard=2,
            samples=65_536,
            sample_rate=8192.0,
            encoding=ENCODINGS[encoding],
        )

    yield full_size
    full_size.cache_clear()


@pytest.fixture(params=list(ENCODINGS))
def encoding(request: pytest.FixtureRequest) -> str:
    """Each encoding's name in turn."""
    return request.param
