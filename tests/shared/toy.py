"""Toy events whose strain depends on two parameters, and a network that learns them in seconds."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from model.config import EmbeddingConfig, FlowConfig, OptimiserConfig, TrainConfig
from storage.dataset import create_dataset
from storage.encodings import ENCODINGS
from storage.schema import Event, Parameter, Schema
from storage.writer import write_shard

START = 1126259642.3
TOY = Schema(
    events=240,
    events_per_shard=100,
    detectors=("E1", "E2"),
    samples=1024,
    sample_rate=1024.0,
    encoding=ENCODINGS["float32"],
    noisy=True,
    parameters=(
        Parameter("chirp_mass", "Msun", "Uniform(25, 100)", 25.0, 100.0),
        Parameter("phase", "rad", "0.5", 0.5, 0.5),
        Parameter("geocent_time", "s", f"Uniform({START}, {START + 0.2})", START, START + 0.2),
    ),
    frequencies=513,
    frequency_step=1.0,
    provenance={"band": [16.0, 512.0], "seed": 1},
)
SMALL_NETWORK = TrainConfig(
    embedding=EmbeddingConfig(patch=(4, 8), channels=(8, 16), condition=16),
    flow=FlowConfig(transforms=4, hidden=16, blocks=1, bins=4),
    optimiser=OptimiserConfig(learning_rate=5e-3),
    epochs=5,
    batch_size=20,
    validation=0.1,
    device="cpu",
)


def draw_event(schema: Schema, number: int) -> Event:
    """A burst: chirp_mass is its frequency, geocent_time its place; a function of the number."""
    draw = np.random.default_rng((number, schema.provenance["seed"]))
    mass, moment = draw.uniform(25, 100), draw.uniform(START, START + 0.2)
    time = np.arange(schema.samples) / schema.sample_rate - 0.1 - 4 * (moment - START)
    burst = np.sin(2 * np.pi * (20 + mass) * time) * np.exp(-((time / 0.03) ** 2))
    strain = np.outer(np.linspace(4, 3, len(schema.detectors)), burst)
    snr = np.linalg.norm(strain, axis=1)
    if schema.noisy:
        strain = strain + draw.standard_normal(strain.shape)
    return Event(number, strain.astype(np.float32), np.array([mass, 0.5, moment]), snr, {})


def write_shards(folder: Path, schema: Schema, shards: Iterable[int]) -> None:
    """Write some shards of a toy data set, which is created where it is missing."""
    create_dataset(folder, schema, np.ones((len(schema.detectors), schema.frequencies)))
    for shard in shards:
        events = (draw_event(schema, number) for number in schema.events_of(shard))
        write_shard(folder, schema, shard, events)
