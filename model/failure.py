"""A loss or a gradient that is no number, or far too large: what is kept of it, to be looked at.

    RUN/failed-000123.pt     the batch, the weights that it met, and the key of its noise

`reproduce(path)` gives the loss of each of its events again.
"""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from model.checkpoint import choose_device, from_plain, read_archive, to_plain
from model.config import TrainConfig
from model.estimator import Estimator
from model.folder import FAILURES
from model.loss import Loss
from model.polarisations import PolarisationFacts
from model.ranks import ALONE, WRONG_CALL, EndedElsewhereError, Ranks
from model.transfer import DeviceBatch
from storage.errors import InputError
from storage.files import write_atomically


@dataclass(frozen=True, kw_only=True)
class Failure:
    """What went wrong.

    Attributes:
        what: `loss`, `gradient` or `validation loss`.
        value: What it became, in nats or as a norm.
        step: Steps done before it.
        purpose: Of the batch: TRAINING or VALIDATION.
        number: Of the batch; decides its noise.
    """

    what: str
    value: float
    step: int
    purpose: int
    number: int


def stop(
    run: Path,
    failure: Failure,
    loss: Loss,
    config: TrainConfig,
    batch: DeviceBatch,
    ranks: Ranks = ALONE,
) -> NoReturn:
    """Save a batch that must not be learnt from, and end the run.

    Args:
        run: The run's folder.
        failure: What went wrong.
        loss: With the weights that the batch met.
        config: Of the run.
        batch: The batch, or this rank's share of it.
        ranks: Who have the other shares, and are here too.

    Raises:
        InputError: Always: what happened, and where the batch is.
        EndedElsewhereError: In its place, on all ranks but the first.
    """
    shares = ranks.gather_on_first(
        DeviceBatch(batch.strain.cpu(), batch.parameters.cpu(), batch.event)
    )
    error = _save(run, failure, loss, config, shares) if ranks.is_first else None
    ranks.add_up([], error)
    raise EndedElsewhereError(WRONG_CALL)


def _save(
    run: Path, failure: Failure, loss: Loss, config: TrainConfig, shares: list[DeviceBatch]
) -> InputError:
    """Write what `stop` says; return what there is to say."""
    estimator = loss.estimator
    events = np.concatenate([share.event for share in shares])
    content = {
        **vars(failure),
        "events": torch.from_numpy(events),
        "strain": torch.cat([share.strain for share in shares]),
        "parameters": torch.cat([share.parameters for share in shares]),
        "columns": list(loss.columns),
        "polarisations": loss.extrinsic and loss.extrinsic.facts.to_plain(),
        "seed": loss.seed,
        "device": estimator.device.type,
        "network": {name: value.cpu() for name, value in estimator.state_dict().items()},
        **to_plain(config, estimator.facts, estimator.theta),
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    path = run / FAILURES.replace("*", f"{failure.step:06d}")
    write_atomically(path, buffer.getvalue())
    return InputError(
        f"{run}: the {failure.what} became {failure.value:.4g} after step {failure.step}, its "
        f"batch of {len(events)} events is in {path}; lower optimiser.learning_rate and train "
        "again into another --out"
    )


def reproduce(path: str | Path) -> Float[Tensor, "event"]:
    """The loss of each event of a batch that ended a run, in nats.

    On the kind of device where it happened: the noise of another one would be another.

    Args:
        path: The file that the run named.

    Raises:
        InputError: There is no such file, or the device is not here.
        DamagedDataError: It cannot be read.
    """
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file; a run that ends with a failure names it")
    content = read_archive(Path(path), "cpu")
    device = choose_device(content["device"])
    config, facts, theta = from_plain(content)
    estimator = Estimator(config, facts, theta)
    estimator.load_state_dict(content["network"])
    batch = DeviceBatch(
        content["strain"].to(device), content["parameters"].to(device), content["events"].numpy()
    )
    stored = content.get("polarisations")
    polarisations = stored and PolarisationFacts.from_plain(stored)
    loss = Loss.of(config, estimator.to(device).train(), content["columns"], polarisations)
    with torch.no_grad():
        return loss(batch, content["purpose"], content["number"])


def is_bad(value: float, largest: float) -> bool:
    """Whether a loss or a norm is no number, or larger than what may be."""
    return not np.isfinite(value) or value > largest
