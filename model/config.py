"""The configuration of a training run."""

from dataclasses import dataclass, field
from typing import Literal

from storage.errors import InputError
from storage.stream_config import StreamConfig

CONFIG = "config.yaml"  # in a run's folder
MOST_BINS = 500  # nflows keeps each bin above a thousandth of the whole


@dataclass(frozen=True, kw_only=True)
class EmbeddingConfig:
    """The front end, which turns strain into the condition c.

    Args:
        kind: Which front end. folded-resnet: a ResNet over each series folded to a square image;
            resnet-1d: over the series; spectrogram: over short-time spectra of several lengths.
        patch: Of folded-resnet: rows and columns of the image that the first convolution joins.
        stride: Of resnet-1d: step of the first convolution [samples], which sees twice as much.
        windows: Of spectrogram: lengths of the spectra [samples], each a multiple of the first.
        channels: Of each stage; each but the first halves the image's sides, or takes every
            fourth of a series.
        blocks: Residual blocks a stage.
        condition: Length of c.
    """

    kind: str = "folded-resnet"
    patch: tuple[int, int] = (4, 16)
    stride: int = 16
    windows: tuple[int, ...] = (256, 1024)
    channels: tuple[int, ...] = (24, 48, 96, 192)
    blocks: int = 1
    condition: int = 128

    def __post_init__(self) -> None:
        _require_at_least_one("embedding", self, "stride", "blocks", "condition")
        if min(self.patch) < 1:
            raise InputError(f"embedding.patch: got {list(self.patch)}, at least 1 is needed")
        if not self.channels or min(self.channels) < 8 or any(n % 8 for n in self.channels):
            raise InputError(
                f"embedding.channels: got {list(self.channels)}, multiples of 8 are needed"
            )
        first = self.windows[0] if self.windows else 0
        if first < 8 or first % 4 or any(n < first or n % first for n in self.windows):
            raise InputError(
                f"embedding.windows: got {list(self.windows)}, multiples of the first are needed, "
                "and that a multiple of 4, at least 8"
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
        warmup: Share of the run over which the rate rises.
        largest_gradient: Norm to which gradients are cut.
        largest_loss: Of a batch, in nats; above it the run has diverged and ends.
    """

    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    warmup: float = 0.05
    largest_gradient: float = 5.0
    largest_loss: float = 1e4

    def __post_init__(self) -> None:
        for name in ("learning_rate", "largest_gradient", "largest_loss"):
            if not getattr(self, name) > 0:
                raise InputError(f"optimiser.{name}: got {getattr(self, name):g}, must be positive")
        if self.weight_decay < 0:
            raise InputError(
                f"optimiser.weight_decay: got {self.weight_decay:g}, must not be negative"
            )
        if not 0 <= self.warmup < 1:
            raise InputError(f"optimiser.warmup: got {self.warmup:g}, must lie in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class SpeedConfig:
    """What makes a step faster. None of it changes what is learnt by more than rounding.

    Each may be left to the device (null): then it is on where it is known to pay and to be safe.

    Args:
        precision: fp32; tf32: products of a GPU keep 10 bits, sums are single; bf16: the embedding
            keeps 7 bits in between, the flow stays as in tf32. By default tf32 on a GPU that has
            it, or else fp32.
        channels_last: Whether images lie in memory with the channels together; by default no.
        fused: Whether all weights are updated in one go; by default yes.
        compile: Whether the embedding is compiled, which takes a minute at the start and, on a CPU,
            a C++ compiler; by default no.
    """

    precision: Literal["fp32", "tf32", "bf16"] | None = None
    channels_last: bool | None = None
    fused: bool | None = None
    compile: bool | None = None


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """What is done to signals without noise before they are trained on, anew in each step.

    Args:
        time_shift: Largest shift in time, in either direction [s]; 0 for none. `geocent_time` moves
            along where it is inferred, and stays within its prior.
    """

    time_shift: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.time_shift < float("inf"):
            raise InputError(
                f"augment.time_shift: got {self.time_shift:g} s, must be 0 or a positive number"
            )


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A training run.

    Args:
        parameters: Which parameters to infer; none for all that the data set's prior leaves free.
        embedding: The front end.
        flow: The flow.
        optimiser: How the weights are learnt.
        augment: What is done to signals without noise.
        epochs: Passes over the training events.
        batch_size: Events a step, over all GPUs.
        accumulate: Parts in which each GPU takes its share of a batch, one after the other, for
            want of memory; changes nothing but rounding.
        validation: Share of the events, at the data set's beginning, that is kept for validation.
        seed: Of the weights, the order of events and the noise.
        device: auto: a GPU where there is one.
        speed: What makes a step faster.
        stream: How the data are read.
        checkpoint_minutes: How often the state is saved.
        minutes: After which a call ends, with the state saved and exit code 85: to be called again;
            by default there is no limit.
        tensorboard: Whether to write for TensorBoard, into RUN/tensorboard.
    """

    parameters: tuple[str, ...] = ()
    embedding: EmbeddingConfig = field(default_factory=EmbeddingConfig)
    flow: FlowConfig = field(default_factory=FlowConfig)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    epochs: int = 20
    batch_size: int = 256
    accumulate: int = 1
    validation: float = 0.05
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    speed: SpeedConfig = field(default_factory=SpeedConfig)
    stream: StreamConfig = field(default_factory=StreamConfig)
    checkpoint_minutes: float = 10.0
    minutes: float | None = None
    tensorboard: bool = False

    def __post_init__(self) -> None:
        _require_at_least_one("", self, "epochs", "batch_size", "accumulate")
        if self.batch_size % self.accumulate:
            raise InputError(
                f"accumulate: got {self.accumulate}, which does not divide the batch_size of "
                f"{self.batch_size}"
            )
        if not 0 < self.validation < 1:
            raise InputError(f"validation: got {self.validation:g}, must lie in (0, 1)")
        if self.minutes is not None and not self.minutes > 0:
            raise InputError(f"minutes: got {self.minutes:g}, must be positive")


def _require_at_least_one(section: str, config: object, *names: str) -> None:
    for name in names:
        if getattr(config, name) < 1:
            label = f"{section}.{name}" if section else name
            raise InputError(f"{label}: got {getattr(config, name)}, at least 1 is needed")
