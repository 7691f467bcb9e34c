"""The estimator: strain to a posterior over theta, in the units of the data set.

strain -> preprocess -> embedding -> condition c -> flow -> parameter map -> theta
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from model.config import TrainConfig
from model.embedding import make_embedding
from model.fastflow import FastFlow, single_threads
from model.flow import ConditionalFlow
from model.parameters import ParameterMap
from model.polarisations import samples_of_events
from model.precision import single_precision
from model.preprocess import Preprocess
from storage.errors import InputError
from storage.schema import Schema


@dataclass(frozen=True)
class DataFacts:
    """What an estimator has to know of its data.

    Attributes:
        detectors: Their names, in order.
        samples: Time samples of an event in each detector.
        sample_rate: [Hz].
        f_lower: Where the analysis band begins [Hz].
        scale_factor: Sigma per integer step of the stored strain; 1 where it is sigma itself.
        noisy: Whether the stored strain holds noise.
        start_time: Of the segment [GPS s]; None where the data set does not say.
        polarisations: Whether polarisations are stored, of which training makes the strain.
    """

    detectors: tuple[str, ...]
    samples: int
    sample_rate: float
    f_lower: float
    scale_factor: float
    noisy: bool
    start_time: float | None = None
    polarisations: bool = False

    @classmethod
    def of(cls, schema: Schema) -> "DataFacts":
        """Gather them from a data set.

        Raises:
            InputError: It does not say where the analysis band begins.
        """
        if "band" not in schema.provenance:
            raise InputError(
                "data: its zarr.json does not say where the analysis band begins (band); simulate "
                "it with this strainflow"
            )
        return cls(
            detectors=schema.detectors,
            samples=samples_of_events(schema),
            sample_rate=schema.sample_rate,
            f_lower=float(schema.provenance["band"][0]),
            scale_factor=schema.encoding.scale_factor or 1.0,
            noisy=schema.noisy,
            start_time=schema.provenance.get("start_time"),
            polarisations=bool(schema.polarisations),
        )

    def preprocess(self) -> Preprocess:
        """The preprocessing that such data need."""
        first_bin = round(self.f_lower * self.samples / self.sample_rate)
        return Preprocess(self.scale_factor, self.samples, first_bin)


class Estimator(nn.Module):
    """A posterior over theta for whitened strain.

    Args:
        config: Of the networks.
        facts: Of the data.
        theta: Between theta and the flow's space.

    Attributes:
        half_embedding: Whether the loss takes the embedding in bfloat16 (`model.speed`).
    """

    def __init__(self, config: TrainConfig, facts: DataFacts, theta: ParameterMap) -> None:
        super().__init__()
        self.facts, self.theta = facts, theta
        self.embedding = make_embedding(len(facts.detectors), facts.samples, config.embedding)
        self.flow = ConditionalFlow(
            len(theta.names), config.embedding.condition, config.flow, theta.periodic
        )
        self.half_embedding = False

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def negative_log_prob(
        self,
        strain: Float[Tensor, "event detector time"],
        theta: Float[Tensor, "event parameter"],
    ) -> Float[Tensor, "event"]:
        """The training loss of each event, in nats: -log q in the flow's space.

        Args:
            strain: Whitened strain [sigma].
            theta: The true parameters, double, in the order of `theta.names`.
        """
        values, _ = self.theta.to_flow(theta)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half_embedding):
            condition = self.embedding(strain)
        return -self.flow.log_prob(values.float(), condition.float())

    @torch.no_grad()
    @single_precision()
    def log_prob(
        self,
        theta: Float[Tensor, "event sample parameter"],
        strain: Float[Tensor, "event detector time"],
    ) -> Float[Tensor, "event sample"]:
        """Log posterior density of theta, per unit of theta; -inf outside the prior's bounds.

        Args:
            theta: In the order of `theta.names` and the data set's units, double.
            strain: Whitened strain [sigma].
        """
        theta = torch.as_tensor(theta, dtype=torch.float64, device=self.device)
        conditions = self._conditions(strain)
        values, jacobian = self.theta.to_flow(theta)
        density = FastFlow(self.flow, compiled=False).log_prob(values.float(), conditions)
        return density.double() + jacobian

    @torch.no_grad()
    @single_precision()
    def sample(
        self,
        strain: Float[Tensor, "event detector time"],
        n: int,
        seeds: Sequence[int] | None = None,
        compiled: bool | None = None,
    ) -> tuple[Float[Tensor, "event sample parameter"], Float[Tensor, "event sample"]]:
        """Draw posterior samples.

        Args:
            strain: Whitened strain [sigma].
            n: Samples an event.
            seeds: One an event, by default its row: what an event's samples are does not depend on
                the events beside it.
            compiled: Whether the flow's splines are compiled, where there is a compiler; by
                default on a GPU. Rounding differs.

        Returns:
            Theta in the order of `theta.names` and the data set's units, and its log density.
        """
        conditions = self._conditions(strain)
        base = torch.stack(
            [
                self.flow.draw_base(n, torch.Generator(self.device).manual_seed(seed))
                for _, seed in zip(conditions, seeds or range(len(conditions)), strict=True)
            ]
        )
        values, density = FastFlow(self.flow, compiled).from_base(base, conditions)
        theta, jacobian = self._to_theta(values)
        return theta, density.double() + jacobian

    def _to_theta(
        self, values: Float[Tensor, "event sample feature"]
    ) -> tuple[Float[Tensor, "event sample parameter"], Float[Tensor, "event sample"]]:
        """The flow's values in the data set's units; on a CPU a thread an event."""
        if self.device.type != "cpu":
            return self.theta.from_flow(values.double())
        with single_threads(torch.get_num_threads()) as pool:
            drawn = list(pool.map(torch.no_grad()(self._one_to_theta), values))
        theta, jacobian = zip(*drawn, strict=True)
        return torch.stack(theta), torch.stack(jacobian)

    def _one_to_theta(
        self, values: Float[Tensor, "sample feature"]
    ) -> tuple[Float[Tensor, "sample parameter"], Float[Tensor, "sample"]]:
        return self.theta.from_flow(values.double())

    def _conditions(
        self, strain: Float[Tensor, "event detector time"]
    ) -> Float[Tensor, "event condition"]:
        """The condition of each event, one by one: in a batch, rounding depends on its size."""
        strain = torch.as_tensor(strain, dtype=torch.float32, device=self.device)
        return torch.cat([self.embedding(event) for event in strain.split(1)])
