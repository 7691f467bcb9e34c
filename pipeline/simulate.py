"""One event, from its number to its whitened strain: a pure function of configuration and number.

prior -> waveform -> detectors -> whitening (-> noise). Everything random about event i comes from
one Philox generator with the key (seed, i), so that events can be made anywhere, in any order.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from jaxtyping import Complex, Float

from pipeline.config import PARAMETERS, SimulationConfig
from pipeline.detector import Detector, SkyPosition, detector_named, project
from pipeline.noise import Whitening, load_psd
from pipeline.priors import Distribution
from pipeline.waveform import WaveformError, approximant_number, polarisations
from storage.arrays import Array
from storage.errors import InputError
from storage.schema import Event

# A recipe that accepts one draw in a hundred still finishes a million events: all of so many are
# rejected with a probability of 1e-9.
MOST_DRAWS = 2000


@dataclass(frozen=True)
class Simulator:
    """All that does not change from event to event.

    Attributes:
        config: The physics.
        detectors: Geometry, in the order of the strain's first axis.
        psd: One-sided PSD of each detector [1/Hz], on the bins of the generated waveform.
    """

    config: SimulationConfig
    detectors: tuple[Detector, ...]
    psd: Float[Array, "detector frequency"]

    @classmethod
    def from_config(cls, config: SimulationConfig) -> "Simulator":
        """Look up what the configuration names.

        Raises:
            InputError: A detector, PSD or waveform model is not known or does not fit.
        """
        approximant_number(config.waveform.approximant)
        detectors = tuple(detector_named(name) for name in config.detectors)
        psd = load_psd(config.psd, config.segment, config.waveform.f_lower)
        return cls(config, detectors, np.tile(psd, (len(detectors), 1)))

    @cached_property
    def whitening(self) -> Whitening:
        """The whitening of this configuration."""
        return Whitening(self.psd, self.config.segment, self.config.waveform.f_lower)

    def event(self, number: int) -> Event:
        """Simulate one event.

        Raises:
            InputError: No draw out of `MOST_DRAWS` was accepted.
        """
        generator = np.random.Generator(
            np.random.Philox(np.random.SeedSequence(self.config.seed, spawn_key=(number,)))
        )
        rejected = Counter[str]()
        for _ in range(MOST_DRAWS):
            parameters = self.draw_parameters(generator)
            try:
                signal = self.signal(parameters)
            except WaveformError:
                rejected["waveform_failed"] += 1
                continue
            snr = optimal_snr(signal)
            reason = self._refusal(float(np.linalg.norm(snr)))
            if reason is None:
                break
            rejected[reason] += 1
        else:
            counts = ", ".join(f"{reason} {count}" for reason, count in rejected.items())
            raise InputError(
                f"event {number}: none of {MOST_DRAWS} draws from the prior was accepted "
                f"({counts}); widen network_snr or change prior.luminosity_distance"
            )
        if self.config.noise == "gaussian":
            signal += self.whitening.draw_noise(generator)
        return Event(number, signal, np.array(list(parameters.values())), snr, rejected)

    def draw_parameters(self, generator: np.random.Generator) -> dict[str, float]:
        """Draw source parameters from the prior, by bilby's names.

        A fixed parameter uses up a random number too: fixing one leaves the others as they were.
        """
        uniform = generator.random(len(PARAMETERS))
        return {
            name: float(prior.rescale(number))
            for (name, prior), number in zip(self._priors.items(), uniform, strict=True)
        }

    def strain(
        self, parameters: Mapping[str, float]
    ) -> tuple[Complex[Array, "detector frequency"], int]:
        """Strain at each detector [1/Hz] before whitening, and the number of its first bin."""
        segment = self.config.segment
        waves = polarisations(parameters, self.config.waveform, segment)
        source = SkyPosition(*(parameters[name] for name in ("ra", "dec", "psi", "geocent_time")))
        strain = project(
            waves.plus,
            waves.cross,
            waves.first_bin,
            1 / segment.generation_duration,
            source,
            self.detectors,
            segment.generation_start,
        )
        return strain, waves.first_bin

    def signal(self, parameters: Mapping[str, float]) -> Float[Array, "detector time"]:
        """The whitened signal in the segment, without noise, float32 [sigma]."""
        strain, first_bin = self.strain(parameters)
        return self.whitening.to_segment(self.whitening.whiten(strain, first_bin), first_bin)

    @cached_property
    def _priors(self) -> dict[str, Distribution]:
        return self.config.prior.distributions()

    def _refusal(self, network_snr: float) -> str | None:
        window = self.config.network_snr
        if network_snr < window.minimum:
            return "snr_below_minimum"
        return "snr_above_maximum" if network_snr > window.maximum else None


def optimal_snr(signal: Float[Array, "detector time"]) -> Float[Array, "detector"]:
    """Norm of a whitened signal in each detector, in double precision to 1e-8."""
    pieces = signal[:, : signal.shape[1] // _PIECE * _PIECE].reshape(len(signal), -1, _PIECE)
    rest = signal[:, pieces.shape[1] * _PIECE :]
    # Short sums in single precision, which the processor does fast, then those in double.
    squares = np.vecdot(pieces, pieces).sum(-1, dtype=np.float64) + np.vecdot(rest, rest)
    snr: Array = np.sqrt(squares)
    return snr


_PIECE = 256


@lru_cache(maxsize=4)
def simulator_of(config: SimulationConfig) -> Simulator:
    """The simulator of a configuration, made once."""
    return Simulator.from_config(config)


def simulate_event(config: SimulationConfig, event: int) -> Event:
    """Simulate one event: a pure function of configuration and number.

    Args:
        config: The physics; a `DatasetConfig` serves too.
        event: Number of the event.

    Raises:
        InputError: The configuration names something unknown, or accepts almost no draws.
    """
    return simulator_of(config).event(event)
