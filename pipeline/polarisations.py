"""Polarisations in place of strain: training projects them onto the detectors, each step anew.

A data set of polarisations is the one of strain of the same configuration, source by source, but
for the last step: h+ and hx are stored as they are before the projection, at a distance and a time
that are the same for all. The window of network SNRs has been applied to the strain that each
source has in the detectors. So sources come with the probability that the window gives them, and
whoever draws distance, direction, polarisation angle and time again, from their priors and within
the window, has events of the very distribution of the data set of strain.

The series cover all of the stretch over which waveforms are generated. Its spectrum makes it a
circle, on which a shift in time loses nothing; the segment is cut out after it, as in simulation.
"""

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import lal
import numpy as np
from jaxtyping import Float
from scipy.special import ndtr

from pipeline.config import SimulationConfig
from pipeline.detector import time_shift
from pipeline.distributions import (
    Cosine,
    DeltaFunction,
    Distribution,
    PowerLaw,
    Sine,
    TruncatedGaussian,
    Uniform,
)
from pipeline.moments import usual_time
from pipeline.noise import Whitening
from pipeline.waveform import Polarisations
from storage.arrays import Array
from storage.errors import InputError
from storage.schema import Schema

if TYPE_CHECKING:
    from pipeline.simulate import Simulator

NAMES = ("plus", "cross")
REFERENCE_DISTANCE = 1000.0  # of waveforms that serve any distance [Mpc]
# What a waveform does not hold: the same one serves any distance, direction and time.
EXTRINSIC = ("luminosity_distance", "ra", "dec", "psi", "geocent_time")
CLOSED_FORMS = (Cosine, DeltaFunction, PowerLaw, Sine, TruncatedGaussian, Uniform)
SMALLEST_SHARE = 1e-8  # of a normal distribution that is left where it is cut
# Of amplitudes of noise: 168 left the loss of SNR within what was promised, 970 was 35 times that.
LARGEST_RATIO = 200.0
_APART = 10_000.0  # of the two times between which the Earth's rate of rotation is measured [s]


def require_projectable(config: SimulationConfig) -> None:
    """Refuse a configuration whose polarisations training could not make events of.

    Raises:
        InputError: There is noise, one waveform serves several events, or a parameter that is
            drawn again has a prior whose quantiles have no closed form.
    """
    if config.stored != "polarisations":
        return
    if config.noise != "none":
        raise InputError(
            "stored: polarisations hold no noise, which training adds to what it projects; set "
            "noise: none"
        )
    if config.extrinsic_draws_per_waveform != 1:
        raise InputError(
            f"extrinsic_draws_per_waveform: got {config.extrinsic_draws_per_waveform}, but with "
            "stored: polarisations each waveform is stored once and serves any number of events in "
            "training; set it to 1"
        )
    priors = config.prior.distributions()
    for name in EXTRINSIC:
        prior = priors[name]
        if not isinstance(prior, CLOSED_FORMS) or _is_far_tail(prior):
            raise InputError(
                f"prior.{name}: {type(prior).__name__} has no closed form that training could "
                "draw from, as it does with stored: polarisations; give another one, such as a "
                "PowerLaw, or store strain"
            )


def require_most_sensitive_first(psd: Float[Array, "detector frequency"]) -> None:
    """Refuse an order of detectors in which rounding would drown signals.

    What is stored is whitened with the first detector's PSD, and so is the rounding: where another
    detector is far more sensitive, it is louder by the square root of the PSDs' ratio.

    Args:
        psd: One-sided PSD of each detector [1/Hz], on the same band.

    Raises:
        InputError: It is louder by more than `LARGEST_RATIO` somewhere.
    """
    band = (psd > 0).all(0)
    ratio = float(np.sqrt(psd[0, band] / psd[:, band]).max(initial=1.0))
    if ratio > LARGEST_RATIO:
        raise InputError(
            f"detectors: polarisations are whitened with the first one's PSD, whose noise is up to "
            f"{ratio:.0f} times that of another, so that rounding would drown its signals; name "
            "the most sensitive detector first, or store strain"
        )


def _is_far_tail(prior: Distribution) -> bool:
    """Whether a cut normal distribution is but a tail whose quantiles rounding takes."""
    if not isinstance(prior, TruncatedGaussian):
        return False
    low, high = ((end - prior.mu) / prior.sigma for end in (prior.minimum, prior.maximum))
    return not float(ndtr(high) - ndtr(low)) > SMALLEST_SHARE


@dataclass(frozen=True)
class PolarisationSeries:
    """Turns the polarisations of sources into the series that are stored.

    Attributes:
        whitening: With the first detector's PSD, over the whole stretch.
        late: Time of coalescence after the first sample [s].
    """

    whitening: Whitening
    late: float

    @classmethod
    def from_config(cls, config: SimulationConfig, psd: Float[Array, "detector frequency"]) -> Self:
        """Those of a configuration.

        Args:
            config: The physics.
            psd: One-sided PSD of each detector [1/Hz].
        """
        segment = config.segment
        start = segment.generation_start
        whole = replace(segment, start_time=start, duration=segment.generation_duration)
        whitening = Whitening(psd[[0] * len(NAMES)], whole, config.waveform.f_lower)
        return cls(whitening, usual_time(config) - start)

    def of(self, waves: Polarisations, distance: float) -> Float[Array, "polarisation time"]:
        """Whitened h+ and hx at the reference's distance and time, float32 [sigma].

        Args:
            waves: Of a source.
            distance: Of the source [Mpc].
        """
        step = 1 / self.whitening.segment.generation_duration
        factor = time_shift(self.late, waves.first_bin, len(waves.plus), step)
        factor *= distance / REFERENCE_DISTANCE
        spectra = (factor * wave for wave in (waves.plus, waves.cross))
        whitened = self.whitening.whiten_each(spectra, waves.first_bin)
        return self.whitening.to_segment(whitened, waves.first_bin)


def as_polarisations(schema: Schema, simulator: "Simulator") -> Schema:
    """What a data set of strain is when it holds polarisations.

    Args:
        schema: Of the data set of strain.
        simulator: Of its events.
    """
    return replace(
        schema,
        samples=simulator.config.segment.generation_samples,
        polarisations=NAMES,
        provenance={**schema.provenance, "projection": projection_facts(simulator.config)},
    )


def projection_facts(config: SimulationConfig) -> dict[str, Any]:
    """What is recorded for who projects; geometry, PSDs and priors stand elsewhere."""
    time, window = usual_time(config), config.network_snr
    return {
        "samples": config.segment.samples,
        "reference_distance": REFERENCE_DISTANCE,
        "reference_time": time,
        "sidereal_time": _sidereal_time(time) % (2 * math.pi),
        "sidereal_rate": (_sidereal_time(time + _APART) - _sidereal_time(time)) / _APART,
        "network_snr": [window.minimum, window.maximum if np.isfinite(window.maximum) else None],
    }


def _sidereal_time(gps: float) -> float:
    return float(lal.GreenwichMeanSiderealTime(lal.LIGOTimeGPS(gps)))
