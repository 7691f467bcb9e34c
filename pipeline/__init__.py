"""Physics and Dask: from a prior to whitened strain, and to a data set of it."""

from pipeline.config import DatasetConfig, SimulationConfig
from pipeline.simulate import simulate_event

__all__ = ["DatasetConfig", "SimulationConfig", "simulate_event"]
