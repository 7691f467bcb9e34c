"""Networks: training on a data set, and posterior samples from a trained run."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from model.checkpoint import load
    from model.config import TrainConfig
    from model.estimator import Estimator

__all__ = ["Estimator", "TrainConfig", "load"]

# Resolved when asked for: torch takes seconds to import, `--help` and a typing error need none.
_HOMES = {
    "Estimator": "model.estimator",
    "TrainConfig": "model.config",
    "load": "model.checkpoint",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'model' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
