"""How far a run is, and what follows from it: the learning rate, and the steps that are left.

All of it is a function of where the stream stands. Steps are not counted: how many an epoch has is
known only when it begins, where the data set grows.
"""

import math
from collections.abc import Mapping
from typing import Any

from model.config import OptimiserConfig


def epochs_done(state: Mapping[str, Any]) -> float:
    """Passes over the training events that are done, with the share of the one under way.

    Args:
        state: Of the stream, `EventStream.state_dict`.
    """
    share: float = state["position"] / state["events"] if state["position"] else 0.0
    return float(state["epoch"]) + share


def progress(state: Mapping[str, Any], epochs: int) -> float:
    """The share of a run that is done, 0 to 1.

    Args:
        state: Of the stream.
        epochs: Of the whole run.
    """
    return epochs_done(state) / epochs


def learning_rate(config: OptimiserConfig, progress: float) -> float:
    """The rate at some progress: a linear warm-up, then half a cosine to zero.

    Args:
        config: Of the optimiser.
        progress: In the middle of the step, where the rate never is zero.
    """
    if progress < config.warmup:
        return config.learning_rate * progress / config.warmup
    share = (progress - config.warmup) / (1 - config.warmup)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * share))


def steps_left(state: Mapping[str, Any], epochs: int, events: int, batch_size: int) -> int:
    """Steps until the end of a run, if the data set stays as it is.

    Args:
        state: Of the stream.
        epochs: Of the whole run.
        events: Training events that an epoch would have now.
        batch_size: Events a step.
    """
    if state["epoch"] >= epochs:
        return 0
    now: int = state["events"] if state["position"] else events
    later: int = (epochs - state["epoch"] - 1) * math.ceil(events / batch_size)
    position: int = state["position"]
    return later + math.ceil((now - position) / batch_size)
