"""The loss of a batch as it is stored: preprocess, project, shift, noise, embedding, flow.

The noise of an event is a function of (seed, purpose, number of the batch, event), so it is the
same whichever rank takes the event, and in whichever part of the batch. What a network draws by
itself, as for dropout, is a function of (seed, purpose, number, first event of the part).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt64
from torch import Tensor

from model.augment import TimeShift
from model.config import TrainConfig
from model.estimator import Estimator
from model.extrinsic import Extrinsic
from model.polarisations import PolarisationFacts
from model.preprocess import Preprocess
from model.transfer import DeviceBatch
from storage.arrays import Array
from storage.order import mix64

TRAINING, VALIDATION = 0, 1  # what a stream of random numbers is for
# Besides the strain's noise, by other numbers: what a network draws, as for dropout; shifts; what
# polarisations are projected with.
NOISE_OF_NETWORK, SHIFT, SOURCE = 1, 2, 3


@dataclass(frozen=True)
class Loss:
    """The loss of each event of a batch.

    Attributes:
        estimator: What is trained, on its device.
        columns: Names of the parameters in a batch.
        seed: Of the run.
        shift: Of signals in time, in training; None for none.
        extrinsic: What makes events of polarisations; None where strain is stored.
    """

    estimator: Estimator
    columns: Sequence[str]
    seed: int
    shift: TimeShift | None = None
    extrinsic: Extrinsic | None = None

    @classmethod
    def of(
        cls,
        config: TrainConfig,
        estimator: Estimator,
        columns: Sequence[str],
        polarisations: PolarisationFacts | None = None,
    ) -> "Loss":
        """That of a configuration.

        Args:
            config: Of the run.
            estimator: What is trained, on its device.
            columns: Names of the parameters in a batch.
            polarisations: That are stored; None where strain is.

        Raises:
            InputError: It asks for what the data are not fit for.
        """
        shift = TimeShift.of(config.augment, estimator.facts, estimator.theta)
        extrinsic = None
        if polarisations is not None:
            extrinsic = Extrinsic.of(polarisations, estimator.device)
        return cls(estimator, columns, config.seed, shift, extrinsic)

    def __call__(self, batch: DeviceBatch, purpose: int, number: int) -> Float[Tensor, "event"]:
        """The loss of each event, in nats.

        Args:
            batch: As it is stored, on the device.
            purpose: TRAINING or VALIDATION.
            number: Of the batch.
        """
        strain, parameters = self.preprocess(batch.strain), batch.parameters
        if self.extrinsic is not None:
            seeds = None  # validation has the sources that the data set holds
            if purpose == TRAINING:
                seeds = _seeds(_seed(self.seed, purpose, number, SOURCE), batch.event)
            strain, parameters = self.extrinsic(strain, parameters, seeds)
        theta = parameters.index_select(1, self._places)
        if self.shift is not None and purpose == TRAINING:
            seeds = _seeds(_seed(self.seed, purpose, number, SHIFT), batch.event)
            strain, theta = self.shift(strain, theta, seeds)
        if not self.estimator.facts.noisy:
            seeds = _seeds(_seed(self.seed, purpose, number), batch.event) >> np.uint64(1)
            strain = self.preprocess.noise(strain.shape[1], seeds.tolist(), strain.device).add_(
                strain
            )
        # So that no state of PyTorch's own generator has to be saved.
        key = (self.seed, purpose, number, NOISE_OF_NETWORK, *batch.event[:1].tolist())
        _seed_pytorch(self.estimator.device, _seed(*key))
        return self.estimator.negative_log_prob(strain, theta)

    @cached_property
    def preprocess(self) -> Preprocess:
        """Stored strain to whitened strain with noise."""
        return self.estimator.facts.preprocess()

    @cached_property
    def _places(self) -> Int64[Tensor, "parameter"]:
        """Where the parameters that are inferred stand in a batch."""
        places = [list(self.columns).index(name) for name in self.estimator.theta.names]
        return torch.tensor(places, device=self.estimator.device)


def _seed(*key: int) -> int:
    """A seed that is a function of its key."""
    sequence = np.random.SeedSequence(key[0], spawn_key=key[1:])
    return int(sequence.generate_state(1, np.uint64)[0]) % 2**63


def _seeds(seed: int, events: Int64[Array, "event"]) -> UInt64[Array, "event"]:
    """A seed for each event, a function of its number."""
    return mix64(mix64(events.astype(np.uint64)) + np.uint64(seed))


def _seed_pytorch(device: torch.device, seed: int) -> None:
    """Seed what a network draws from; `torch.manual_seed` asks all back ends, for 0.2 ms a step."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
