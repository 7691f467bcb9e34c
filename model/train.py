"""The training loop: stream -> preprocess -> loss -> step, with a way back from any interruption.

Everything random is a function of (seed, step): a run that is interrupted and resumed ends, on the
CPU, at the same weights bit for bit.

Not covered yet: several GPUs, mixed precision.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from model import checkpoint as run_folder
from model.checkpoint import Checkpoint, History, choose_device
from model.clock import Clock, noticing_signals
from model.config import OptimiserConfig, TrainConfig
from model.estimator import DataFacts, Estimator
from model.parameters import ParameterMap
from model.plots import plot_loss
from storage.arrays import Array
from storage.dataset import dataset_digest, read_parameters, read_schema
from storage.errors import InputError
from storage.progress import progress_bar
from storage.stream import Batch, EventStream

if TYPE_CHECKING:
    from storage.progress import Bar

HISTORY_ENTRIES = 400  # of a whole run
TRAINING, VALIDATION = 0, 1  # what a stream of random numbers is for


@dataclass(frozen=True)
class TrainReport:
    """What a call of `train` did.

    Attributes:
        run: The run's folder.
        finished: Whether all steps are done.
        signal: The signal that ended it early, 0 for none.
        steps: Steps done in all.
        total_steps: Steps of the whole run.
        events: Training events that this call took, counted each time.
        seconds: Wall time of the steps of this call [s].
        data_wait: Share of that time spent waiting for data.
        validation_loss: The last, in nats; None before the end of the first epoch.
        embedding_parameters: Weights in the embedding.
        device: Where it ran.
        picture: The loss curve.
    """

    run: str
    finished: bool
    signal: int
    steps: int
    total_steps: int
    events: int
    seconds: float
    data_wait: float
    validation_loss: float | None
    embedding_parameters: int
    device: str
    picture: str


def train(config: TrainConfig, data: str | Path, out: str | Path) -> TrainReport:
    """Train on a data set, or go on where a run stopped.

    SIGTERM and Ctrl-C end it after the step under way, with the state saved.

    Args:
        config: The run.
        data: The data set.
        out: The run's folder.

    Raises:
        InputError: The configuration does not fit the data, or the folder holds another run.
        DamagedDataError: The data set or the checkpoint is damaged.
    """
    trainer = Trainer(config, data, Path(out))
    ended_by = trainer.fit()
    clock = trainer.clock
    return TrainReport(
        run=str(out),
        finished=trainer.finished,
        signal=ended_by,
        steps=trainer.step,
        total_steps=trainer.total,
        events=clock.events,
        seconds=clock.seconds,
        data_wait=clock.data_wait,
        validation_loss=None if math.isnan(trainer.validation_loss) else trainer.validation_loss,
        embedding_parameters=sum(w.numel() for w in trainer.estimator.embedding.parameters()),
        device=str(trainer.device),
        picture=str(plot_loss(trainer.history.rows, Path(out) / "loss.png")),
    )


class Trainer:
    """A run: its data, its networks, and where it stands.

    Args:
        config: The run.
        data: The data set.
        run: The run's folder.
    """

    def __init__(self, config: TrainConfig, data: str | Path, run: Path) -> None:
        self.config, self.run = config, run
        self.device = choose_device(config.device)
        self.data_digest = dataset_digest(data)
        self.training, self.validation = _split(config, data, self.device)
        resumed = run_folder.restore_if_there(config, data, run, self.data_digest)
        if resumed is None:
            self.estimator = _new_estimator(config, data, self.training)
            run_folder.write_config(run, config)
        else:
            facts = DataFacts.of(self.training.schema)
            self.estimator = Estimator(config, facts, resumed.theta)
            self.estimator.load_state_dict(resumed.network)
            self.training.load_state_dict(resumed.stream)
        self.estimator.to(self.device).train()
        self.optimiser = torch.optim.AdamW(
            self.estimator.parameters(), weight_decay=config.optimiser.weight_decay
        )
        if resumed is not None:
            self.optimiser.load_state_dict(resumed.optimiser)
        self.step = 0 if resumed is None else resumed.step
        self.total = config.epochs * len(self.training)
        self.history = History(run, self.step)
        self.validation_loss = self.history.last("validation_loss")
        self.clock = Clock()
        self._preprocess = self.estimator.facts.preprocess()
        names = self.training.schema.parameter_names
        self._columns = [names.index(name) for name in self.estimator.theta.names]

    @property
    def finished(self) -> bool:
        """Whether all steps are done."""
        return self.step >= self.total

    def fit(self) -> int:
        """Do the steps that are left; return the signal that ended it early, 0 for none."""
        if self.finished:
            return 0
        with noticing_signals() as noticed, progress_bar(self.total, "batch", self.step) as bar:
            self.clock = Clock()
            while not self.finished and not noticed:
                for batch in self.clock.timing_waits(self.training):
                    loss = self.learn(batch)
                    self._record(loss, bar)
                    if noticed:
                        break
                    if self.clock.since_save > 60 * self.config.checkpoint_minutes:
                        self.save()
            self.clock.stop()
            self.save()
        return noticed[0] if noticed and not self.finished else 0

    def learn(self, batch: Batch) -> float:
        """Do one step; return the loss in nats."""
        config = self.config.optimiser
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(config, self.step, self.total)
        loss = self.loss(batch, TRAINING, self.step).mean()
        self._refuse_not_finite(loss.item())
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.estimator.parameters(), config.largest_gradient)
        self.optimiser.step()
        self.step += 1
        self.clock.events += len(batch.event)
        return loss.item()

    def loss(self, batch: Batch, purpose: int, number: int) -> Float[Tensor, "event"]:
        """The loss of each event of a batch, in nats.

        Args:
            batch: As the stream delivers it.
            purpose: TRAINING or VALIDATION.
            number: Of the batch; with the purpose and the seed it decides the noise.
        """
        stored = torch.from_numpy(batch.strain).to(self.device)
        generator = None
        if not self.estimator.facts.noisy:
            generator = _generator(self.device, self.config.seed, purpose, number)
        theta = torch.from_numpy(batch.parameters[:, self._columns]).to(self.device)
        return self.estimator.negative_log_prob(self._preprocess(stored, generator), theta)

    @torch.no_grad()
    def validate(self) -> float:
        """The mean loss over the validation events, each time with the same noise."""
        self.estimator.eval()
        self.validation.load_state_dict({"seed": 0, "epoch": 0, "position": 0})
        losses = [
            self.loss(batch, VALIDATION, number) for number, batch in enumerate(self.validation)
        ]
        self.estimator.train()
        return torch.cat(losses).mean().item()

    def save(self) -> None:
        """Write the checkpoint."""
        state = Checkpoint(
            config=self.config,
            facts=self.estimator.facts,
            theta=self.estimator.theta,
            data_digest=self.data_digest,
            step=self.step,
            stream=self.training.state_dict(),
            network=self.estimator.state_dict(),
            optimiser=self.optimiser.state_dict(),
        )
        run_folder.save(self.run, state)
        self.clock.saved()

    def _refuse_not_finite(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise InputError(
                f"{self.run}: the loss became {loss} at step {self.step}; lower "
                "optimiser.learning_rate and train again into another --out"
            )

    def _record(self, loss: float, bar: "Bar") -> None:
        """Note the loss, every so often; at the end of an epoch with that of validation."""
        end_of_epoch = self.step % len(self.training) == 0
        if end_of_epoch:
            self.validation_loss = self.validate()
            self._refuse_not_finite(self.validation_loss)
        if end_of_epoch or self.step % max(1, self.total // HISTORY_ENTRIES) == 0:
            self.history.add(
                step=self.step,
                epoch=self.step / len(self.training),
                train_loss=loss,
                validation_loss=self.validation_loss if end_of_epoch else "",
                learning_rate=self.optimiser.param_groups[0]["lr"],
                events_per_second=self.clock.rate,
                data_wait=self.clock.data_wait,
            )
        losses = f"loss {loss:.3f}, validation {self.validation_loss:.3f}"
        bar.set_postfix_str(f"{self.clock.rate:.0f} events/s, {losses}", refresh=False)
        bar.update()


def learning_rate(config: OptimiserConfig, step: int, total: int) -> float:
    """The rate of a step: a linear warm-up, then half a cosine to zero."""
    warmup = max(1, round(config.warmup * total))
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def _split(
    config: TrainConfig, data: str | Path, device: torch.device
) -> tuple[EventStream, EventStream]:
    """The training and the validation part of a data set."""

    def pinned(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        kind = torch.from_numpy(np.empty(0, dtype)).dtype
        array: Array = torch.empty(shape, dtype=kind, pin_memory=True).numpy()
        return array

    whole = read_schema(data).events
    kept = round(config.validation * whole)
    if not 0 < kept < whole:
        raise InputError(
            f"validation: {config.validation:g} of {whole} events are {kept} for validation and "
            f"{whole - kept} for training; neither may be none"
        )

    def part(start: int, stop: int, shuffle: bool) -> EventStream:
        return EventStream(
            data,
            batch_size=min(config.batch_size, stop - start),
            seed=config.seed,
            start=start,
            stop=stop,
            shuffle=shuffle,
            threads=config.threads,
            allocate=pinned if device.type == "cuda" else np.empty,
        )

    return part(0, whole - kept, shuffle=True), part(whole - kept, whole, shuffle=False)


def _new_estimator(config: TrainConfig, data: str | Path, training: EventStream) -> Estimator:
    values = torch.from_numpy(read_parameters(data)[: training.events])
    theta = ParameterMap.fit(training.schema.parameters, config.parameters, values)
    torch.manual_seed(config.seed)
    return Estimator(config, DataFacts.of(training.schema), theta)


def _generator(device: torch.device, *key: int) -> torch.Generator:
    """A generator of random numbers that is a function of its key."""
    sequence = np.random.SeedSequence(key[0], spawn_key=key[1:])
    seed = int(sequence.generate_state(1, np.uint64)[0])
    return torch.Generator(device).manual_seed(seed % 2**63)
