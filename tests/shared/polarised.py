"""Small data sets of polarisations, and of the strain of the same sources, of three detectors."""

from pathlib import Path
from typing import Any

import torch

from model.polarisations import PolarisationFacts
from model.projection import Sources
from pipeline.config import DatasetConfig
from pipeline.description import describe_dataset
from pipeline.shard_task import simulate_shard
from pipeline.simulate import Simulator
from storage.dataset import create_dataset
from strainflow import read_config

# Heavy binaries in Hanford, Livingston and Virgo, which has another PSD: 1 s at 1024 Hz.
SHORT = (
    "--noise=none",
    "--encoding=float32",
    "--events_per_shard=16",
    "--segment.start_time=1577491217.2",
    "--segment.duration=1",
    "--segment.sample_rate=1024",
    "--segment.generation_duration=4",
    "--waveform.approximant=IMRPhenomXP",
    "--prior.chirp_mass=Uniform(45, 60)",
    "--prior.mass_ratio=Uniform(0.5, 1)",
    "--prior.luminosity_distance=PowerLaw(alpha=2, minimum=500, maximum=4000)",
    "--prior.geocent_time=Uniform(1577491217.95, 1577491218.05)",
)
POLARISATIONS = "--stored=polarisations"


def short(*flags: str, events: int = 32) -> DatasetConfig:
    """The configuration of such a data set, of strain unless flags say otherwise."""
    recipe = "pipeline/recipes/hlv-bbh.yaml"
    return read_config(DatasetConfig, recipe, *SHORT, f"--events={events}", *flags)


def write_set(folder: Path, config: DatasetConfig) -> Path:
    """Write a data set in this process."""
    simulator = Simulator.from_config(config.simulation)
    schema = describe_dataset(config, simulator)
    create_dataset(folder, schema, simulator.psd)
    for shard in range(schema.shards):
        simulate_shard(str(folder), shard)
    return folder


def facts_of(config: DatasetConfig, simulator: Simulator) -> PolarisationFacts:
    """What has to be known of a configuration of polarisations."""
    return PolarisationFacts.of(describe_dataset(config, simulator), simulator.psd, "events.zarr")


def sources_of(*drawn: dict[str, float]) -> Sources:
    """What waveforms do not hold of some draws."""
    columns: list[Any] = [[draw[name] for draw in drawn] for name in Sources._fields]
    return Sources(*(torch.tensor(column, dtype=torch.float64) for column in columns))
