"""The training loop: stream -> loss -> step, with a way back from any interruption.

Everything random is a function of (seed, step, event), and the learning rate one of where the
stream stands: a run that is interrupted and resumed ends, on the CPU, at the same weights bit for
bit; with another number of ranks (`model.ranks`), at the same but for rounding.

All ranks take the same steps. Before each they add up what they were given, or end together because
one of them was given nothing; after it they agree on whether to go on.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from model.checkpoint import Checkpoint, Tally, Which, choose_device, save
from model.clock import Clock, noticing_signals
from model.config import TrainConfig
from model.deliveries import Deliveries
from model.estimator import DataFacts, Estimator
from model.failure import Failure, is_bad, stop
from model.folder import restore_if_there, write_config
from model.history import Entry, History
from model.loss import TRAINING, VALIDATION, Loss
from model.parameters import ParameterMap
from model.polarisations import read_facts
from model.ranks import ALONE, LostRankError, Ranks
from model.record import note_call
from model.schedule import epochs_done, learning_rate, progress, steps_left
from model.speed import prepare, resolve
from model.split import Split, refuse_uneven_shares, same_data, split, training_parameters
from model.step import Step
from model.transfer import DeviceBatch
from model.validation import BadBatch, validation_loss
from model.watch import Watch, refuse_missing_tensorboard


class Trainer:
    """A run: its data, its networks, and where it stands.

    Args:
        config: The run.
        data: The data set.
        run: The run's folder; only the first rank writes there.
        ranks: The processes that take it together.

    Attributes:
        training: The training events, of which this rank takes its share.
        step: Steps done.
    """

    def __init__(
        self, config: TrainConfig, data: str | Path, run: Path, ranks: Ranks = ALONE
    ) -> None:
        self._deadline = time.monotonic() + 60 * (config.minutes or math.inf)
        self.config, self.data, self.run, self.ranks = config, data, run, ranks
        ranks.of_first(lambda: refuse_missing_tensorboard(config.tensorboard))
        ranks.of_first(lambda: refuse_uneven_shares(config, ranks))
        self.device = choose_device(config.device, ranks)
        self.data_digest = same_data(data, ranks)
        with ranks.together():
            parts = split(config, data, self.device, ranks)
        self.training, self.validation, self.schema = parts.training, parts.validation, parts.schema
        resumed = ranks.of_first(lambda: restore_if_there(config, data, run, self.data_digest))
        if resumed is None:
            self.estimator = _new_estimator(config, data, parts, ranks)
            ranks.of_first(lambda: write_config(run, config))
        else:
            self.estimator = Estimator(config, DataFacts.of(self.schema), resumed.theta)
            self.estimator.load_state_dict(resumed.network)
            self.training.load_state_dict(resumed.stream)
        state = None if resumed is None else resumed.optimiser
        self.optimiser = prepare(self.estimator, self.device, config.optimiser, config.speed, state)
        with ranks.together():
            names, facts = self.schema.parameter_names, read_facts(self.schema, data)
            self.loss = Loss.of(config, self.estimator, names, facts)
        self._step = Step(self.loss, self.optimiser, config.optimiser, config.accumulate, ranks)
        self.step = self._saved = self._began = 0 if resumed is None else resumed.step
        self._before = self._losses = Tally() if resumed is None else resumed.tally
        self._deliveries = Deliveries(self.training, self.validation, self._before, ranks)
        self._stand = self.training.state_dict()
        self._history: History | None = None
        self._progress = progress(self._stand, config.epochs)
        self.clock = Clock()

    @property
    def finished(self) -> bool:
        """Whether all epochs are done."""
        return bool(self._stand["epoch"] >= self.config.epochs)

    @property
    def left(self) -> int:
        """Steps that are left, if the data set stays as it is."""
        config, events = self.config, self.training.stream.events
        return steps_left(self._stand, config.epochs, events, config.batch_size)

    def fit(self) -> int:
        """Do the steps that are left; return the signal that ended it early, 0 for none."""
        if self.finished:
            return 0
        with noticing_signals() as noticed, self.ranks.of_first_only(self._watch) as watch:
            self.clock = Clock()
            try:
                number = self._take_all(noticed, watch)
            except LostRankError as error:
                error.moved = self._saved > self._began
                raise
            self.clock.stop()
            self.save()
            self.ranks.meet()
        return 0 if self.finished else number

    def _take_all(self, noticed: list[int], watch: Watch | None) -> int:
        """Learn from the batches that are left; return the signal that ended it early."""
        for batch, events in self.clock.timing_waits(self._batches()):
            self._take(batch, events, watch)
            late = time.monotonic() > self._deadline
            number, is_late = self.ranks.most([noticed[0] if noticed else 0, late])
            if number or is_late:
                return number
            if self.clock.since_save > 60 * self.config.checkpoint_minutes:
                self.save()
        return 0

    def learn(self, batch: DeviceBatch, events: int | None = None) -> float:
        """Do one step; return the loss in nats.

        Args:
            batch: This rank's share of it.
            events: In the whole of it, over all ranks.

        Raises:
            InputError: The loss or its gradient is no number, or the loss is too large.
        """
        config, stand = self.config.optimiser, self.training.state_dict()
        reached = progress(stand, self.config.epochs)
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(config, (self._progress + reached) / 2)
        loss, norm = self._step.gradient(batch, self.step, events or len(batch.event))
        self._stop_if_bad("loss", loss, config.largest_loss, batch)
        # It would turn all weights into NaN, and then this batch would be the last that is sound.
        self._stop_if_bad("gradient", norm, math.inf, batch)
        self.optimiser.step()
        self.step += 1
        self._reach(stand)
        return loss

    def validate(self) -> float:
        """The mean loss over the validation events, each time with the same noise, in nats.

        Raises:
            InputError: The loss is no number, or too large.
            DamagedDataError: All of the events are damaged.
        """
        self.estimator.eval()
        largest = self.config.optimiser.largest_loss
        found = validation_loss(self.validation, self.loss, largest, self.ranks, self.data)
        self.estimator.train()
        if isinstance(found, BadBatch):
            failure = Failure(
                what="validation loss",
                value=found.value,
                step=self.step,
                purpose=VALIDATION,
                number=found.number,
            )
            share, config = found.share, self.config
            return self.ranks.of_first(lambda: stop(self.run, failure, self.loss, config, share))
        return found

    def save(self, which: Which = "newest") -> None:
        """Write the newest checkpoint, or the best, if this is the first rank."""
        self._saved = self.step
        if not self.ranks.is_first:
            return
        if self._history is not None:
            self._history.sync()
        state = Checkpoint(
            config=self.config,
            facts=self.estimator.facts,
            theta=self.estimator.theta,
            data_digest=self.data_digest,
            step=self.step,
            stream=self._stand,
            network=self.estimator.state_dict(),
            optimiser=self.optimiser.state_dict(),
            tally=self.tally(),
        )
        save(self.run, state, which)
        self.clock.saved()

    def tally(self) -> Tally:
        """What the run has come to, over all its calls."""
        before, clock = self._before, self.clock
        return replace(
            self._losses,
            seconds=before.seconds + clock.seconds,
            waited=before.waited + clock.waited,
            events=before.events + clock.events,
            skipped=self._deliveries.skipped,
            audit=asdict(self._deliveries.audit),
        )

    def _watch(self) -> Watch:
        """Begin to show and to record."""
        ranks, speed = self.ranks.world_size, resolve(self.config.speed, self.device)
        note_call(self.run, self.data, self.data_digest, self.step, self.device, speed, ranks=ranks)
        self._history = History(self.run, epochs_done(self._stand))
        return Watch(self.run, self._history, self.step, self.left, self.config.tensorboard)

    def _batches(self) -> Iterator[tuple[DeviceBatch, int]]:
        """This rank's shares of the batches that are left, and the events of all shares.

        Where one cannot be read, on whichever rank, the steps before it are saved first.
        """
        batches = self.training.epochs(self.config.epochs)
        while True:
            batch, error = None, None
            try:
                batch = next(batches, None)
            except Exception as caught:
                error = caught
            try:
                events = self._deliveries.meet(batch, error)
            except LostRankError:
                self.save()
                raise
            except Exception:
                self.save()
                self.ranks.meet()
                raise
            if batch is None:
                return
            yield batch, events

    def _take(self, batch: DeviceBatch, events: int, watch: Watch | None) -> None:
        """Learn from a batch, and note what came of it."""
        loss = None
        if events:
            loss = self.learn(batch, events)
            self._losses = replace(self._losses, train_loss=loss)
        else:  # all its events are damaged and skipped
            self._reach(self.training.state_dict())
        self.clock.step_is_done(events)
        validation_loss = None
        if self._stand["position"] == 0:
            validation_loss = self.validate()
            self._deliveries.tell_damaged()
        if watch is not None:
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

    def _reach(self, stand: dict[str, Any]) -> None:
        """Note that what the stream delivered before this state is learnt from."""
        self._stand, self._progress = stand, progress(stand, self.config.epochs)

    def _entry(self, loss: float | None, validation_loss: float | None) -> Entry:
        """What the history says of a batch."""
        clock, tally = self.clock, self.tally()
        rate = clock.events_per_second
        on_gpu = self.device.type == "cuda"
        return Entry(
            step=self.step,
            epoch=epochs_done(self._stand),
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
            audit=None if validation_loss is None else self._deliveries.audit.digest,
        )

    def _stop_if_bad(self, what: str, value: float, largest: float, batch: DeviceBatch) -> None:
        """End the run where a batch must not be learnt from; all ranks know the same value."""
        if is_bad(value, largest):
            failure = Failure(
                what=what, value=value, step=self.step, purpose=TRAINING, number=self.step
            )
            stop(self.run, failure, self.loss, self.config, batch, self.ranks)


def _new_estimator(config: TrainConfig, data: str | Path, parts: Split, ranks: Ranks) -> Estimator:
    """An untrained one, the same on all ranks."""

    def fitted() -> ParameterMap:
        values = training_parameters(config, data, parts.kept)
        return ParameterMap.fit(parts.schema.parameters, config.parameters, values)

    theta = ranks.of_first(fitted)
    torch.manual_seed(config.seed)
    estimator = Estimator(config, DataFacts.of(parts.schema), theta)
    # Machines with other versions of PyTorch may draw others, and would never know.
    estimator.load_state_dict(ranks.of_first(estimator.state_dict))
    return estimator
