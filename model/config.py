"""The configuration of a training run."""

from dataclasses import dataclass, field
from typing import Literal

from storage.errors import InputError

MOST_BINS = 500  # nflows keeps each bin above a thousandth of the whole


@dataclass(frozen=True, kw_only=True)
class EmbeddingConfig:
    """The front end, which turns strain into the condition c.

    Args:
        kind: Which front end; folded-resnet: a ResNet over each series folded to a square image.
        patch: Rows and columns of the image that the first convolution joins.
        channels: Of each stage; each but the first halves the image's sides.
        blocks: Residual blocks a stage.
        condition: Length of c.
    """

    kind: str = "folded-resnet"
    patch: tuple[int, int] = (4, 16)
    channels: tuple[int, ...] = (24, 48, 96, 192)
    blocks: int = 1
    condition: int = 128

    def __post_init__(self) -> None:
        _require_at_least_one("embedding", self, "blocks", "condition")
        if min(self.patch) < 1:
            raise InputError(f"embedding.patch: got {list(self.patch)}, at least 1 is needed")
        if not self.channels or min(self.channels) < 8 or any(n % 8 for n in self.channels):
            raise InputError(
                f"embedding.channels: got {list(self.channels)}, multiples of 8 are needed"
            )


@dataclass(frozen=True, kw_only=True)
class FlowConfig:
    """The neural spline flow over theta, given c.

    Args:
        transforms: Coupling layers.
        hidden: Width of the networks that give the splines' knots.
        blocks: Residual blocks of those networks.
        bins: Bins of a spline.
        tail_bound: Where the splines end and the identity begins, in standard deviations.
    """

    transforms: int = 8
    hidden: int = 128
    blocks: int = 2
    bins: int = 8
    tail_bound: float = 5.0

    def __post_init__(self) -> None:
        _require_at_least_one("flow", self, "transforms", "hidden", "blocks", "bins", "tail_bound")
        if self.bins > MOST_BINS:
            raise InputError(f"flow.bins: got {self.bins}, at most {MOST_BINS} are possible")


@dataclass(frozen=True, kw_only=True)
class OptimiserConfig:
    """How the weights are learnt: AdamW, a warm-up, then a cosine to zero.

    Args:
        learning_rate: At its peak.
        weight_decay: Of AdamW.
        warmup: Share of all steps over which the rate rises.
        largest_gradient: Norm to which gradients are cut.
    """

    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    warmup: float = 0.05
    largest_gradient: float = 5.0

    def __post_init__(self) -> None:
        if not self.learning_rate > 0 or not self.largest_gradient > 0:
            raise InputError("optimiser: learning_rate and largest_gradient must be positive")
        if self.weight_decay < 0:
            raise InputError(
                f"optimiser.weight_decay: got {self.weight_decay:g}, must not be negative"
            )
        if not 0 <= self.warmup < 1:
            raise InputError(f"optimiser.warmup: got {self.warmup:g}, must lie in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A training run.

    Args:
        parameters: Which parameters to infer; none for all that the data set's prior leaves free.
        embedding: The front end.
        flow: The flow.
        optimiser: How the weights are learnt.
        epochs: Passes over the training events.
        batch_size: Events a step.
        validation: Share of the events, at the data set's end, that is kept for validation.
        seed: Of the weights, the order of events and the noise.
        device: auto: a GPU where there is one.
        threads: Threads that read the data.
        checkpoint_minutes: How often the state is saved.
    """

    parameters: tuple[str, ...] = ()
    embedding: EmbeddingConfig = field(default_factory=EmbeddingConfig)
    flow: FlowConfig = field(default_factory=FlowConfig)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    epochs: int = 20
    batch_size: int = 256
    validation: float = 0.05
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = 2
    checkpoint_minutes: float = 10.0

    def __post_init__(self) -> None:
        _require_at_least_one("", self, "epochs", "batch_size", "threads")
        if not 0 < self.validation < 1:
            raise InputError(f"validation: got {self.validation:g}, must lie in (0, 1)")


def _require_at_least_one(section: str, config: object, *names: str) -> None:
    for name in names:
        if getattr(config, name) < 1:
            label = f"{section}.{name}" if section else name
            raise InputError(f"{label}: got {getattr(config, name)}, at least 1 is needed")
