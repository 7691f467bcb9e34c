"""The configuration of a simulation: what is simulated, and how the run is made.

`SimulationConfig` is the physics: an event is a pure function of it and of its number.
`DatasetConfig` adds how many, in which encoding and on which machines.
"""

import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from jsonargparse import ArgumentParser

from pipeline.cluster import ClusterConfig
from pipeline.priors import PriorConfig
from storage.encodings import encoding_named
from storage.errors import InputError


@dataclass(frozen=True, kw_only=True)
class SegmentConfig:
    """The stretch of data that an event is.

    Args:
        start_time: Of the segment's first sample [GPS s].
        duration: Length of the segment [s].
        sample_rate: [Hz].
        generation_duration: Length over which the waveform is generated before its last
            `duration` seconds are cut out [s]; long enough that the signal does not wrap around.
    """

    start_time: float
    duration: float = 8.0
    sample_rate: float = 8192.0
    generation_duration: float = 16.0

    def __post_init__(self) -> None:
        _require_positive(self, "duration", "sample_rate", "generation_duration")
        if self.generation_duration < self.duration:
            raise InputError(
                f"segment.generation_duration: got {self.generation_duration:g} s, must be at "
                f"least the duration of {self.duration:g} s"
            )
        for name in ("duration", "generation_duration"):
            samples = getattr(self, name) * self.sample_rate
            if samples != int(samples) or samples % 2:
                raise InputError(
                    f"segment.{name}: {getattr(self, name):g} s at {self.sample_rate:g} Hz are "
                    f"{samples:g} samples, an even whole number is needed"
                )

    @property
    def samples(self) -> int:
        """Samples of the segment."""
        return int(self.duration * self.sample_rate)

    @property
    def generation_samples(self) -> int:
        """Samples of the stretch over which the waveform is generated."""
        return int(self.generation_duration * self.sample_rate)

    @property
    def generation_start(self) -> float:
        """When the stretch over which the waveform is generated begins [GPS s]."""
        return self.start_time + self.duration - self.generation_duration


@dataclass(frozen=True, kw_only=True)
class WaveformConfig:
    """The waveform model.

    Args:
        approximant: LALSimulation's name of a frequency-domain model.
        f_lower: Where the signal and the analysis band begin [Hz].
        f_ref: Where spins and phase are defined [Hz].
    """

    approximant: str = "IMRPhenomXPHM"
    f_lower: float = 10.0
    f_ref: float = 20.0

    def __post_init__(self) -> None:
        _require_positive(self, "f_lower", "f_ref")


@dataclass(frozen=True, kw_only=True)
class PsdConfig:
    """The noise of the detectors, as a one-sided spectral density.

    Args:
        name: ET-D, or a PSD of LALSimulation by its name in PyCBC; ignored where a file is given.
        file: Text file of two columns: frequency [Hz] and density.
        quantity: What the file's second column is: asd [1/sqrt(Hz)] or psd [1/Hz].
    """

    name: str = "ET-D"
    file: str | None = None
    quantity: Literal["asd", "psd"] = "asd"


@dataclass(frozen=True, kw_only=True)
class SnrWindow:
    """Which network SNRs are accepted; other draws are drawn again.

    Args:
        minimum: Smallest optimal SNR of the network.
        maximum: Largest optimal SNR of the network.
    """

    minimum: float = 0.0
    maximum: float = math.inf

    def __post_init__(self) -> None:
        if not 0 <= self.minimum < self.maximum:
            raise InputError(
                f"network_snr: minimum {self.minimum:g} and maximum {self.maximum:g} leave no "
                "event; give 0 <= minimum < maximum"
            )


@dataclass(frozen=True, kw_only=True)
class SimulationConfig:
    """The physics of a data set.

    Args:
        detectors: Names as PyCBC knows them; E1, E2, E3 are the Einstein Telescope.
        segment: The stretch of data that an event is.
        waveform: The waveform model.
        psd: The noise of the detectors.
        prior: The distribution of the sources.
        network_snr: Which network SNRs are accepted.
        noise: gaussian: stationary noise in each event; none: signals alone.
        extrinsic_draws_per_waveform: So many events in a row share a waveform, at distances,
            directions, times (and phases, where the model has only m = 2) of their own.
        seed: Of everything random.
    """

    prior: PriorConfig
    segment: SegmentConfig
    detectors: tuple[str, ...] = ("E1", "E2", "E3")
    waveform: WaveformConfig = field(default_factory=WaveformConfig)
    psd: PsdConfig = field(default_factory=PsdConfig)
    network_snr: SnrWindow = field(default_factory=SnrWindow)
    noise: Literal["gaussian", "none"] = "gaussian"
    extrinsic_draws_per_waveform: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.extrinsic_draws_per_waveform < 1:
            raise InputError(
                f"extrinsic_draws_per_waveform: got {self.extrinsic_draws_per_waveform}, at least "
                "1 is needed"
            )
        if self.seed < 0:
            raise InputError(f"seed: got {self.seed}, must not be negative")
        if not self.detectors or len(set(self.detectors)) != len(self.detectors):
            raise InputError(f"detectors: got {list(self.detectors)}, name each detector once")
        nyquist = self.segment.sample_rate / 2
        if self.waveform.f_lower >= nyquist:
            raise InputError(
                f"waveform.f_lower: got {self.waveform.f_lower:g} Hz, must lie below half the "
                f"sample rate, {nyquist:g} Hz"
            )
        time = self.prior.distributions()["geocent_time"]
        start, stop = self.segment.start_time, self.segment.start_time + self.segment.duration
        if not start < time.minimum <= time.maximum < stop:
            raise InputError(
                f"prior.geocent_time: {time.minimum:.15g} to {time.maximum:.15g} s does not lie "
                f"within the segment, {start:.15g} to {stop:.15g} s; change it or "
                "segment.start_time"
            )


@dataclass(frozen=True, kw_only=True)
class DatasetConfig(SimulationConfig):
    """A data set: the physics, and how it is made.

    Args:
        events: Number of events.
        encoding: How strain is stored: float32, float16, int16, or int8, which holds 15.9 sigma:
            set network_snr.maximum to 100 or less.
        events_per_shard: Events in one file.
        cluster: Where the work is done.
    """

    events: int
    encoding: str = "float32"
    events_per_shard: int = 512
    cluster: ClusterConfig = field(default_factory=ClusterConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        encoding_named(self.encoding)
        for name in ("events", "events_per_shard"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: got {getattr(self, name)}, at least 1 is needed")

    @property
    def simulation(self) -> SimulationConfig:
        """The physics alone."""
        return SimulationConfig(
            **{item.name: getattr(self, item.name) for item in fields(SimulationConfig)}
        )


def simulation_to_dict(config: SimulationConfig) -> dict[str, Any]:
    """Turn the physics into plain values, for the data set's metadata."""
    document = asdict(config)
    document["detectors"] = list(config.detectors)
    del document["prior"]["file"]  # its entries stand in the others
    if not config.prior.constraints:
        del document["prior"]["constraints"]
    if math.isinf(config.network_snr.maximum):  # JSON has no infinity; it is the default
        del document["network_snr"]["maximum"]
    return document


def simulation_from_dict(document: dict[str, Any]) -> SimulationConfig:
    """Read the physics back; the inverse of `simulation_to_dict`."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", type=SimulationConfig)
    return parser.instantiate(parser.parse_object({"config": document})).config  # type: ignore[no-any-return]  # jsonargparse's namespace is untyped


def _require_positive(config: SegmentConfig | WaveformConfig, *names: str) -> None:
    section = "segment" if isinstance(config, SegmentConfig) else "waveform"
    for name in names:
        if not getattr(config, name) > 0:
            unit = "Hz" if name.startswith(("f_", "sample")) else "s"
            raise InputError(
                f"{section}.{name}: got {getattr(config, name):g} {unit}, must be positive"
            )
