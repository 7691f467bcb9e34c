"""The configuration of a simulation: what is simulated, and how the run is made.

`SimulationConfig` is the physics: an event is a pure function of it and of its number.
`DatasetConfig` adds how many, in which encoding and on which machines.
"""

import math
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentError, ArgumentParser, set_parsing_settings

from pipeline.cluster import ClusterConfig
from pipeline.priors import PriorConfig
from storage.encodings import certified, encoding_named
from storage.errors import DamagedDataError, InputError

# A recipe names values, never code: jsonargparse would import what `class_path` names.
set_parsing_settings(import_path_denylist=["*"], import_path_allowlist=["pipeline"])

LARGEST_COUNT = 10**15  # what a float holds exactly, and more than anybody simulates


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
            if not samples < 2**53 or samples != int(samples) or samples % 2:
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
class PhenomXConfig:
    """Settings of the models whose names begin with IMRPhenomX; None is the model's default.

    Args:
        multibanding: Threshold below which the modes of the co-precessing frame are interpolated
            from a coarser grid, LAL's PhenomXHMThresholdMband; 0 is none.
        precession_multibanding: The same for the Euler angles, PhenomXPHMThresholdMband.
        precession_version: Which precession angles, PhenomXPrecVersion, such as 223 or 320.
    """

    multibanding: float | None = None
    precession_multibanding: float | None = None
    precession_version: int | None = None

    def __post_init__(self) -> None:
        for name in ("multibanding", "precession_multibanding"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise InputError(
                    f"waveform.phenomx.{name}: got {value:g}, a threshold from 0 (no multibanding) "
                    "to below 1 is needed, such as 0.001"
                )

        version = self.precession_version
        if version is not None and not 0 <= version < 2**31:
            raise InputError(
                f"waveform.phenomx.precession_version: got {version}, LAL's numbers are such as "
                "223 or 320"
            )

    def given(self) -> dict[str, float]:
        """The settings that are not left to the model."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class WaveformConfig:
    """The waveform model.

    Args:
        approximant: LALSimulation's name of a model, in the frequency or the time domain.
        f_lower: Where the signal and the analysis band begin [Hz].
        f_ref: Where spins and phase are defined [Hz].
        phenomx: Settings of the IMRPhenomX models.
    """

    approximant: str = "IMRPhenomXPHM"
    f_lower: float = 10.0
    f_ref: float = 20.0
    phenomx: PhenomXConfig = field(default_factory=PhenomXConfig)

    def __post_init__(self) -> None:
        _require_positive(self, "f_lower", "f_ref")
        if self.phenomx.given() and not self.approximant.startswith("IMRPhenomX"):
            raise InputError(
                f"waveform.phenomx: {', '.join(self.phenomx.given())} given, but "
                f"{self.approximant} is no IMRPhenomX model; leave the settings out"
            )


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

    def check(self, key: str) -> None:
        """Refuse what is impossible; not in `__post_init__`, as for a detector.

        Raises:
            InputError: A value is missing.
        """
        for name in ("name", "quantity"):
            if getattr(self, name) is None:
                raise InputError(f"{key}.{name}: holds nothing; give a value, or leave the key out")


@dataclass(frozen=True, kw_only=True)
class DetectorConfig:
    """A detector that has no name in LAL, as in bilby's interferometer files.

    Args:
        name: Any that no other detector has.
        latitude: Of the vertex, North is positive [degrees].
        longitude: Of the vertex, East is positive [degrees].
        xarm_azimuth: Direction of the x arm, counter-clockwise from East [degrees].
        yarm_azimuth: Direction of the y arm, counter-clockwise from East [degrees].
        length: Of the arms [km]; recorded only, the long-wavelength response does not use it.
        elevation: Of the vertex above the ellipsoid [m].
        xarm_tilt: Rise of the x arm above the horizontal [rad].
        yarm_tilt: Rise of the y arm above the horizontal [rad].
    """

    name: str
    latitude: float
    longitude: float
    xarm_azimuth: float
    yarm_azimuth: float
    length: float
    elevation: float = 0.0
    xarm_tilt: float = 0.0
    yarm_tilt: float = 0.0

    def check(self) -> None:
        """Refuse what is impossible.

        Not in `__post_init__`: jsonargparse would turn the error into one about unions.

        Raises:
            InputError: A value is out of its range.
        """
        limits: dict[str, tuple[float, str]] = {
            "latitude": (90, "degrees"),
            "longitude": (360, "degrees"),
            "xarm_azimuth": (720, "degrees"),
            "yarm_azimuth": (720, "degrees"),
            "elevation": (1e5, "m"),
            "xarm_tilt": (1.5, "rad"),
            "yarm_tilt": (1.5, "rad"),
        }
        for name, (limit, unit) in limits.items():
            value = getattr(self, name)
            if value is None:
                raise InputError(f"detectors: {self.name}'s {name} holds nothing; give {unit}")
            if not abs(value) <= limit:
                raise InputError(
                    f"detectors: {self.name}'s {name} is {value:g} {unit}, possible is "
                    f"-{limit:g} to {limit:g} {unit}"
                )
        if not self.name or not 0 < self.length < math.inf:
            raise InputError(
                f"detectors: {self.name!r} needs a name, and a positive length [km], got "
                f"{self.length:g}"
            )
        opening = math.radians(self.xarm_azimuth - self.yarm_azimuth)
        if abs(math.sin(opening)) < 1e-6:
            raise InputError(
                f"detectors: {self.name}'s arms lie on one line, azimuths {self.xarm_azimuth:g} "
                f"and {self.yarm_azimuth:g} degrees; an interferometer needs two directions"
            )


@dataclass(frozen=True, kw_only=True)
class FrameNoise:
    """Noise out of frames, in place of Gaussian noise; `psd: {name: estimate}` is theirs too.

    Args:
        frames: GWF or HDF5 files, globs, or LAL caches (.lcf).
        channels: One for each detector, in their order.
        margin: What is read before and after a segment, half of it softened [s].
        fill: Whether Gaussian noise is drawn into what the taper of f_lower to 1.2 f_lower takes.
        psd_duration: Of the first data of which the PSD is estimated, where it is [s].
        psd_segment: Length of one periodogram of that estimate [s].
    """

    frames: tuple[str, ...]
    channels: tuple[str, ...]
    margin: float = 8.0
    fill: bool = True
    psd_duration: float = 256.0
    psd_segment: float = 4.0

    def check(self) -> None:
        """Refuse what is impossible; not in `__post_init__`, as for a detector.

        Raises:
            InputError: A value is out of its range.
        """
        if not self.frames or not self.channels:
            raise InputError("noise: name frames, and a channel for each detector")
        if not 0.1 <= self.psd_segment <= self.psd_duration / 4 < 1e6:
            raise InputError(
                f"noise.psd_segment: got {self.psd_segment:g} s of psd_duration "
                f"{self.psd_duration:g} s, 0.1 s to a quarter of it are possible"
            )


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
        detectors: Each a name that PyCBC knows, such as H1; a network, such as ET, 2L or HLV; or
            an own entry with bilby's names: name, latitude, longitude, xarm_azimuth, ...
        segment: The stretch of data that an event is.
        waveform: The waveform model.
        psd: The noise of the detectors.
        psd_of: The noise of those that have another, by name: {V1: {file: v1.txt}}.
        prior: The distribution of the sources.
        network_snr: Which network SNRs are accepted.
        noise: gaussian: stationary noise in each event; none: signals alone; or frames of
            detectors: {frames: [...], channels: [...]}.
        extrinsic_draws_per_waveform: So many events in a row share a waveform, at distances,
            directions, times (and phases, where the model has only m = 2) of their own.
        stored: strain: that of the detectors; polarisations: what training makes it from, at other
            distances, directions and times in each step.
        seed: Of everything random.
    """

    prior: PriorConfig
    segment: SegmentConfig
    detectors: tuple[str | DetectorConfig, ...] = ("E1", "E2", "E3")
    waveform: WaveformConfig = field(default_factory=WaveformConfig)
    psd: PsdConfig = field(default_factory=PsdConfig)
    psd_of: dict[str, PsdConfig] = field(default_factory=dict, hash=False)
    network_snr: SnrWindow = field(default_factory=SnrWindow)
    noise: Literal["gaussian", "none"] | FrameNoise = "gaussian"
    extrinsic_draws_per_waveform: int = 1
    stored: Literal["strain", "polarisations"] = "strain"
    seed: int = 0

    def __post_init__(self) -> None:
        _require_count(self, "extrinsic_draws_per_waveform")
        if not 0 <= self.seed < 2**128:
            raise InputError(f"seed: got {self.seed}, must not be negative, and below 2^128")
        if not self.detectors or len(set(self.detectors)) != len(self.detectors):
            names = [item if isinstance(item, str) else item.name for item in self.detectors]
            raise InputError(f"detectors: got {names}, name each detector once")
        for item in self.detectors:
            if isinstance(item, DetectorConfig):
                item.check()
        if isinstance(self.noise, FrameNoise):
            self.noise.check()
        elif self.psd.name == "estimate" and self.psd.file is None:
            raise InputError(
                "psd.name: estimate needs frames to estimate from: noise: {frames: ...}"
            )
        for name, psd in self.psd_of.items():
            psd.check(f"psd_of.{name}")
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
        encoding: How strain is stored: float32, float16, int16, or int8 (which holds 15.9 sigma),
            each also with +blosc, such as int8+blosc; where none is given, the smallest that keeps
            max_snr_loss.
        max_snr_loss: The largest share of its SNR that any event may lose by being stored; where
            neither this nor an encoding is given, 1e-3 with noise and 1e-4 without.
        events_per_shard: Events in one file.
        cluster: Where the work is done.
    """

    events: int
    encoding: str | None = None
    max_snr_loss: float | None = None
    events_per_shard: int = 512
    cluster: ClusterConfig = field(default_factory=ClusterConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        certified(encoding_named(self.encoding or "float32"), self.max_snr_loss)
        _require_count(self, "events", "events_per_shard")

    @property
    def simulation(self) -> SimulationConfig:
        """The physics alone."""
        return SimulationConfig(
            **{item.name: getattr(self, item.name) for item in fields(SimulationConfig)}
        )


def simulation_to_dict(config: SimulationConfig) -> dict[str, Any]:
    """Turn the physics into plain values, for the data set's metadata.

    What is left to a default that means "none" is left out, so that a setting that comes new does
    not make another configuration of every older one.
    """
    document = asdict(config)
    document["detectors"] = list(document["detectors"])
    if isinstance(config.noise, FrameNoise):
        names = ("frames", "channels")
        document["noise"] |= {name: list(document["noise"][name]) for name in names}
    del document["prior"]["file"]  # its entries stand in the others
    document["waveform"]["phenomx"] = config.waveform.phenomx.given()
    if config.stored == "strain":
        del document["stored"]
    for section, name in (
        (document["waveform"], "phenomx"),
        (document, "psd_of"),
        (document["prior"], "constraints"),
    ):
        if not section[name]:
            del section[name]
    if math.isinf(config.network_snr.maximum):  # JSON has no infinity; it is the default
        del document["network_snr"]["maximum"]
    return document


def simulation_from_dict(document: dict[str, Any] | None) -> SimulationConfig:
    """Read the physics back; the inverse of `simulation_to_dict`.

    Raises:
        DamagedDataError: It is no such document.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", type=SimulationConfig)
    try:
        config = parser.instantiate(parser.parse_object({"config": document})).config
    except (ArgumentError, ImportError, OverflowError, TypeError, ValueError) as error:
        if isinstance(error, ModuleNotFoundError):
            raise
        raise DamagedDataError(
            "the configuration in the data set's metadata is none of a simulation, so it was "
            f"altered ({' '.join(str(error).split())[:200]})"
        ) from None
    if not isinstance(config, SimulationConfig):
        raise DamagedDataError("the data set's metadata hold no configuration of a simulation")
    return config


def without_paths(config: SimulationConfig) -> SimulationConfig:
    """Keep only the names of PSD files: the same file elsewhere is the same configuration."""

    def strip(psd: PsdConfig) -> PsdConfig:
        return psd if psd.file is None else replace(psd, file=Path(psd.file).name)

    return replace(
        config,
        psd=strip(config.psd),
        psd_of={name: strip(psd) for name, psd in config.psd_of.items()},
    )


def _require_count(config: SimulationConfig, *names: str) -> None:
    for name in names:
        if not 1 <= getattr(config, name) <= LARGEST_COUNT:
            raise InputError(
                f"{name}: got {getattr(config, name)}, at least 1 is needed, and at most "
                f"{LARGEST_COUNT:.0e}"
            )


def _require_positive(config: SegmentConfig | WaveformConfig, *names: str) -> None:
    section = "segment" if isinstance(config, SegmentConfig) else "waveform"
    for name in names:
        if not 0 < getattr(config, name) < math.inf:
            unit = "Hz" if name.startswith(("f_", "sample")) else "s"
            raise InputError(
                f"{section}.{name}: got {getattr(config, name):g} {unit}, must be positive and "
                "finite"
            )
