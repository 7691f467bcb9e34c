"""The training loop: stream -> loss -> step, with a way back from any interruption.

Everything random is a function of (seed, step), and the learning rate one of where the stream
stands: a run that is interrupted and resumed ends, on the CPU, at the same weights bit for bit.

Not covered yet: several GPUs.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import torch

from model.checkpoint import Checkpoint, Tally, Which, choose_device, save
from model.clock import Clock, noticing_signals
from model.config import TrainConfig
from model.estimator import DataFacts, Estimator
from model.failure import Failure, is_bad, stop
from model.folder import restore_if_there, write_config
from model.history import Entry, History
from model.loss import TRAINING, VALIDATION, Loss
from model.parameters import ParameterMap
from model.record import note_call
from model.schedule import epochs_done, learning_rate, progress, steps_left
from model.speed import prepare
from model.split import Split, split, training_parameters
from model.transfer import DeviceBatch
from model.watch import Watch, refuse_missing_tensorboard
from storage.audit import Audit
from storage.dataset import dataset_digest
from storage.errors import DamagedDataError


class Trainer:
    """A run: its data, its networks, and where it stands.

    Args:
        config: The run.
        data: The data set.
        run: The run's folder.

    Attributes:
        training: The training events.
        step: Steps done.
    """

    def __init__(self, config: TrainConfig, data: str | Path, run: Path) -> None:
        self._deadline = time.monotonic() + 60 * (config.minutes or math.inf)
        refuse_missing_tensorboard(config.tensorboard)
        self.config, self.data, self.run = config, data, run
        self.device = choose_device(config.device)
        self.data_digest = dataset_digest(data)
        parts = split(config, data, self.device)
        self.training, self.validation, self.schema = parts.training, parts.validation, parts.schema
        resumed = restore_if_there(config, data, run, self.data_digest)
        if resumed is None:
            self.estimator = _new_estimator(config, data, parts)
            write_config(run, config)
        else:
            self.estimator = Estimator(config, DataFacts.of(self.schema), resumed.theta)
            self.estimator.load_state_dict(resumed.network)
            self.training.load_state_dict(resumed.stream)
        state = None if resumed is None else resumed.optimiser
        self.optimiser = prepare(self.estimator, self.device, config.optimiser, config.speed, state)
        self.loss = Loss(self.estimator, self.schema.parameter_names, config.seed)
        self.step = 0 if resumed is None else resumed.step
        self._before = self._losses = Tally() if resumed is None else resumed.tally
        self._history: History | None = None
        self._progress = self._progress_now()
        self.clock = Clock()

    @property
    def finished(self) -> bool:
        """Whether all epochs are done."""
        return bool(self.training.state_dict()["epoch"] >= self.config.epochs)

    @property
    def left(self) -> int:
        """Steps that are left, if the data set stays as it is."""
        stream, config = self.training.stream, self.config
        state = self.training.state_dict()
        return steps_left(state, config.epochs, stream.events, config.batch_size)

    def fit(self) -> int:
        """Do the steps that are left; return the signal that ended it early, 0 for none."""
        if self.finished:
            return 0
        note_call(self.run, self.data, self.data_digest, self.step, str(self.device))
        self._history = History(self.run, epochs_done(self.training.state_dict()))
        watch = Watch(self.run, self._history, self.step, self.left, self.config.tensorboard)
        with noticing_signals() as noticed, watch:
            self.clock = Clock()
            for batch in self.clock.timing_waits(self._batches()):
                self._take(batch, watch)
                if noticed or time.monotonic() > self._deadline:
                    break
                if self.clock.since_save > 60 * self.config.checkpoint_minutes:
                    self.save()
            self.clock.stop()
            self.save()
        return noticed[0] if noticed and not self.finished else 0

    def learn(self, batch: DeviceBatch) -> float:
        """Do one step; return the loss in nats.

        Raises:
            InputError: The loss or its gradient is no number, or the loss is too large.
        """
        config, reached = self.config.optimiser, self._progress_now()
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(config, (self._progress + reached) / 2)
        mean = self.loss(batch, TRAINING, self.step).mean()
        loss = mean.item()
        self._stop_if_bad("loss", loss, config.largest_loss, batch, TRAINING, self.step)
        self.optimiser.zero_grad(set_to_none=True)
        mean.backward()
        weights = self.estimator.parameters()
        norm = torch.nn.utils.clip_grad_norm_(weights, config.largest_gradient).item()
        # It would turn all weights into NaN, and then this batch would be the last that is sound.
        self._stop_if_bad("gradient", norm, math.inf, batch, TRAINING, self.step)
        self.optimiser.step()
        self.step += 1
        self._progress = reached
        return loss

    @torch.no_grad()
    def validate(self) -> float:
        """The mean loss over the validation events, each time with the same noise, in nats.

        Raises:
            InputError: The loss is no number, or too large.
            DamagedDataError: All of the events are damaged.
        """
        self.estimator.eval()
        self.validation.load_state_dict({"seed": 0, "epoch": 0, "position": 0})
        losses = []
        for number, batch in enumerate(self.validation):
            if len(batch.event):
                losses.append(self.loss(batch, VALIDATION, number))
                mean, largest = losses[-1].mean().item(), self.config.optimiser.largest_loss
                self._stop_if_bad("validation loss", mean, largest, batch, VALIDATION, number)
        self.estimator.train()
        if not losses:
            raise DamagedDataError(
                f"{self.data}: all events for validation are damaged; `strainflow repair` "
                "simulates them again"
            )
        return torch.cat(losses).mean().item()

    def save(self, which: Which = "newest") -> None:
        """Write the newest checkpoint, or the best."""
        if self._history is not None:
            self._history.sync()
        state = Checkpoint(
            config=self.config,
            facts=self.estimator.facts,
            theta=self.estimator.theta,
            data_digest=self.data_digest,
            step=self.step,
            stream=self.training.state_dict(),
            network=self.estimator.state_dict(),
            optimiser=self.optimiser.state_dict(),
            tally=self.tally(),
        )
        save(self.run, state, which)
        self.clock.saved()

    def tally(self) -> Tally:
        """What the run has come to, over all its calls."""
        before, clock = self._before, self.clock
        damaged = self.training.stream.damaged.keys() | self.validation.stream.damaged.keys()
        return replace(
            self._losses,
            seconds=before.seconds + clock.seconds,
            waited=before.waited + clock.waited,
            events=before.events + clock.events,
            skipped=tuple(sorted(damaged.union(before.skipped))),
            audit=asdict(self._audit()),
        )

    def _batches(self) -> Iterator[DeviceBatch]:
        """Those that are left; where one cannot be read, the steps before it are saved first."""
        try:
            yield from self.training.epochs(self.config.epochs)
        except (DamagedDataError, OSError):
            self.save()
            raise

    def _take(self, batch: DeviceBatch, watch: Watch) -> None:
        """Learn from a batch, and note what came of it."""
        loss = None
        if len(batch.event):
            loss = self.learn(batch)
            self._losses = replace(self._losses, train_loss=loss)
        else:  # all its events are damaged and skipped
            self._progress = self._progress_now()
        self.clock.step_is_done(len(batch.event))
        is_end_of_epoch = self.training.state_dict()["position"] == 0
        validation_loss = self.validate() if is_end_of_epoch else None
        watch.add(self._entry(loss, validation_loss), self.left)
        if validation_loss is not None:
            self._losses = replace(self._losses, validation_loss=validation_loss)
            if validation_loss < self._losses.best_validation_loss:
                self._losses = replace(
                    self._losses, best_validation_loss=validation_loss, best_step=self.step
                )
                # The best first: a checkpoint that knows of it must not be without it.
                self.save("best")
                self.save()

    def _entry(self, loss: float | None, validation_loss: float | None) -> Entry:
        """What the history says of a batch."""
        clock, tally = self.clock, self.tally()
        rate = clock.events_per_second
        on_gpu = self.device.type == "cuda"
        return Entry(
            step=self.step,
            epoch=epochs_done(self.training.state_dict()),
            train_loss=loss,
            validation_loss=validation_loss,
            learning_rate=self.optimiser.param_groups[0]["lr"],
            events_per_second=rate,
            batches_per_second=clock.batches_per_second,
            gigabytes_per_second=rate * self.schema.event_bytes / 1e9,
            data_wait=clock.data_wait_of_step,
            gpu_memory=torch.cuda.max_memory_allocated(self.device) if on_gpu else None,
            seconds=tally.seconds,
            skipped=len(tally.skipped),
            audit=None if validation_loss is None else self._audit().digest,
        )

    def _audit(self) -> Audit:
        """Of the epoch under way, with what earlier calls took of it."""
        before, now = self._before.audit, self.training.audit
        return now + Audit(**before) if before and before["epoch"] == now.epoch else now

    def _progress_now(self) -> float:
        """The share of the run that is done, with the batch under way."""
        return progress(self.training.state_dict(), self.config.epochs)

    def _stop_if_bad(
        self, what: str, value: float, largest: float, batch: DeviceBatch, purpose: int, number: int
    ) -> None:
        if is_bad(value, largest):
            failure = Failure(
                what=what, value=value, step=self.step, purpose=purpose, number=number
            )
            stop(self.run, failure, self.loss, self.config, batch)


def _new_estimator(config: TrainConfig, data: str | Path, parts: Split) -> Estimator:
    values = training_parameters(config, data, parts.kept)
    theta = ParameterMap.fit(parts.schema.parameters, config.parameters, values)
    torch.manual_seed(config.seed)
    return Estimator(config, DataFacts.of(parts.schema), theta)
