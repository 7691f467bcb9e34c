"""The loss of the validation events: each rank takes its share, all of them know the result."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, Int64

from model.failure import is_bad
from model.loss import VALIDATION, Loss
from model.ranks import Ranks
from model.transfer import DeviceBatch, DeviceBatches
from storage.arrays import Array
from storage.errors import DamagedDataError

START = {"seed": 0, "epoch": 0, "position": 0}


@dataclass(frozen=True)
class BadBatch:
    """A batch whose mean loss is no number, or too large.

    Attributes:
        number: Of the batch.
        value: Its mean loss in nats, over this rank's share of it.
        share: That share.
    """

    number: int
    value: float
    share: DeviceBatch


@dataclass(frozen=True)
class Losses:
    """What a rank found.

    Attributes:
        events: Their numbers.
        values: Their losses, in nats.
        bad: The batch at which it ended early.
    """

    events: Int64[Array, "event"]
    values: Float32[Array, "event"]
    bad: BadBatch | None = None


def validation_loss(
    batches: DeviceBatches, loss: Loss, largest: float, ranks: Ranks, data: str | Path
) -> float | BadBatch:
    """The mean loss over the events of all ranks, each time with the same noise, in nats.

    Args:
        batches: This rank's share of the events.
        loss: Of an event.
        largest: Mean loss of a batch above which there is no point in going on [nats].
        ranks: All of them are here.
        data: The data set, for messages.

    Returns:
        The mean, or the first batch that a rank ended at.

    Raises:
        DamagedDataError: All of the events are damaged.
        EndedElsewhereError: Another rank says so, or that it cannot read an event.
    """
    with ranks.together():
        found = losses_of_share(batches, loss, largest)
    if any(ranks.most([found.bad is not None])):
        bad = [place for place in ranks.gather(found.bad) if place is not None]
        return min(bad, key=lambda place: place.number)
    theirs = ranks.gather((found.events, found.values))
    return ranks.of_first(lambda: _mean(theirs, data))


@torch.no_grad()
def losses_of_share(batches: DeviceBatches, loss: Loss, largest: float = math.inf) -> Losses:
    """The loss of each of this rank's events.

    Args:
        batches: This rank's share of the events.
        loss: Of an event.
        largest: Mean loss of a batch at which to end early [nats].
    """
    batches.load_state_dict(dict(START))
    events, values = [np.empty(0, np.int64)], [np.empty(0, np.float32)]
    for number, batch in enumerate(batches):
        if not len(batch.event):
            continue
        events.append(batch.event.copy())
        values.append(loss(batch, VALIDATION, number).cpu().numpy())
        if is_bad(mean := float(values[-1].mean()), largest):
            share = DeviceBatch(batch.strain.cpu(), batch.parameters.cpu(), batch.event)
            return Losses(events[-1], values[-1], BadBatch(number, mean, share))
    return Losses(np.concatenate(events), np.concatenate(values))


def _mean(
    found: list[tuple[Int64[Array, "event"], Float32[Array, "event"]]], data: str | Path
) -> float:
    """The mean over the events of all ranks; in their order, whoever had which."""
    events, values = (np.concatenate(column) for column in zip(*found, strict=True))
    if not len(events):
        raise DamagedDataError(
            f"{data}: all events for validation are damaged; `strainflow repair` simulates "
            "them again"
        )
    return float(values[np.argsort(events)].mean(dtype=np.float64))
