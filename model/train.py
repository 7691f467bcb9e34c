"""Train a network on a data set: one call, and what it did."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from model.checkpoint import choose_device, known
from model.config import TrainConfig
from model.folder import PICTURE, only_training
from model.history import iterate_history
from model.plots import plot_loss
from model.ranks import Ranks, from_environment, joined
from model.trainer import Trainer


@dataclass(frozen=True)
class TrainReport:
    """What a call of `train` did.

    Attributes:
        run: The run's folder.
        finished: Whether all epochs are done.
        signal: The signal that ended it early, 0 for none.
        time_is_up: Whether `minutes` ended it early.
        steps: Steps done in all.
        total_steps: Steps of the whole run, as far as it is known.
        events: Training events that this call took, counted each time.
        skipped: Damaged events of the run that were left out, each counted once.
        seconds: Wall time of the steps of this call [s].
        data_wait: Share of that time spent waiting for data.
        validation_loss: The last, in nats; None before the end of the first epoch.
        best_validation_loss: The lowest; sampling uses the weights that it belongs to.
        embedding_parameters: Weights in the embedding.
        device: Where it ran.
        picture: The loss curve.
    """

    run: str
    finished: bool
    signal: int
    time_is_up: bool
    steps: int
    total_steps: int
    events: int
    skipped: int
    seconds: float
    data_wait: float
    validation_loss: float | None
    best_validation_loss: float | None
    embedding_parameters: int
    device: str
    picture: str


@contextmanager
def joined_ranks(config: TrainConfig) -> Iterator[Ranks]:
    """Join the processes that torchrun or a job script has started to take a run together.

    Args:
        config: The run.

    Raises:
        InputError: The environment does not say enough, or there is no such device.
    """
    ranks = from_environment(os.environ)
    with joined(ranks, choose_device(config.device, ranks)):
        yield ranks


def train(
    config: TrainConfig, data: str | Path, out: str | Path, ranks: Ranks | None = None
) -> TrainReport:
    """Train on a data set, or go on where a run stopped.

    SIGTERM, Ctrl-C and the end of `minutes` end it after the step under way, with the state saved.

    Args:
        config: The run.
        data: The data set.
        out: The run's folder, of which the first rank alone knows.
        ranks: The processes that take it together; by default those that the environment names.

    Raises:
        InputError: The configuration does not fit the data, the folder holds another run or
            another process trains into it, or the loss diverged.
        DamagedDataError: The data set or the checkpoint is damaged.
        EndedElsewhereError: One of these happened to another rank.
        LostRankError: Another rank died.
    """
    if ranks is None:
        with joined_ranks(config) as ranks:
            return train(config, data, out, ranks)
    with ranks.of_first_only(lambda: only_training(Path(out))):
        trainer = Trainer(config, data, Path(out), ranks)
        signal = trainer.fit()
        return _report(trainer, signal)


def _report(trainer: Trainer, signal: int) -> TrainReport:
    """Gather what a call did; the first rank draws the loss curve."""
    run = trainer.run
    if trainer.ranks.is_first:
        plot_loss(iterate_history(run), run / PICTURE)
    clock, tally = trainer.clock, trainer.tally()
    return TrainReport(
        run=str(run),
        finished=trainer.finished,
        signal=signal,
        time_is_up=not signal and not trainer.finished,
        steps=trainer.step,
        total_steps=trainer.step + trainer.left,
        events=clock.events,
        skipped=len(tally.skipped),
        seconds=clock.seconds,
        data_wait=clock.data_wait,
        validation_loss=known(tally.validation_loss),
        best_validation_loss=known(tally.best_validation_loss),
        embedding_parameters=sum(w.numel() for w in trainer.estimator.embedding.parameters()),
        device=str(trainer.device),
        picture=str(run / PICTURE),
    )
