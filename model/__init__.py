"""Networks: training on a data set, and posterior samples from a trained run."""

import os
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from model.checkpoint import load
    from model.config import TrainConfig
    from model.estimator import Estimator
    from model.plots import plot_corner
    from model.sky_map import write_skymap

__all__ = ["Estimator", "TrainConfig", "load", "plot_corner", "write_skymap"]

# Read when torch is loaded. Its threads spin while they wait for one another; where anything else
# runs on a core that they count on, a training step then takes five times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# Resolved when asked for: torch takes seconds to import, `--help` and a typing error need none.
_HOMES = {
    "Estimator": "model.estimator",
    "TrainConfig": "model.config",
    "load": "model.checkpoint",
    "plot_corner": "model.plots",
    "write_skymap": "model.sky_map",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'model' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
