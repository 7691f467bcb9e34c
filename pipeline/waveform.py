"""Source parameters to polarisations, through LALSimulation."""

from collections.abc import Mapping
from dataclasses import dataclass

import lal
import lalsimulation
import numpy as np
from jaxtyping import Complex, Float

from pipeline.config import SegmentConfig, WaveformConfig
from pipeline.masses import component_masses
from storage.arrays import Array
from storage.errors import InputError

lal.ClobberDebugLevel(0)  # a failing waveform is counted, not printed by every worker

TAPER_END = 1.2  # in units of f_lower

# Models whose co-precessing frame holds the (2, 2) mode alone: a shift of the phase by x turns both
# polarisations by exp(2 i x), at a given geometry of the total angular momentum (1e-13 measured).
PHASE_IS_A_FACTOR = frozenset(
    {"IMRPhenomD", "IMRPhenomPv2", "IMRPhenomPv3", "IMRPhenomXAS", "IMRPhenomXP"}
)


class WaveformError(RuntimeError):
    """The waveform model does not exist for these parameters."""


@dataclass(frozen=True)
class Polarisations:
    """h+ and hx over the bins where the signal lives, for a coalescence at time zero.

    Attributes:
        plus: h+ [1/Hz].
        cross: hx [1/Hz].
        first_bin: Number of their first frequency bin.
    """

    plus: Complex[Array, "frequency"]
    cross: Complex[Array, "frequency"]
    first_bin: int


def approximant_number(name: str) -> int:
    """Look a frequency-domain waveform model up in LALSimulation.

    Raises:
        InputError: There is none of that name.
    """
    number = getattr(lalsimulation, name, None)
    if not isinstance(number, int) or _name_of_approximant(number) != name:
        raise InputError(
            f"waveform.approximant: got {name!r}, LALSimulation knows none of that name; "
            "try IMRPhenomXPHM"
        )
    if not lalsimulation.SimInspiralImplementedFDApproximants(number):
        raise InputError(
            f"waveform.approximant: {name} is a time-domain model, one in the frequency domain "
            "is needed; try IMRPhenomXPHM"
        )
    return number


def _name_of_approximant(number: int) -> str | None:
    try:
        name: str = lalsimulation.GetStringFromApproximant(number)
    except RuntimeError:  # one of LALSimulation's other constants
        return None
    return name


def lal_arguments(
    parameters: Mapping[str, float], waveform: WaveformConfig, segment: SegmentConfig
) -> tuple[object, ...]:
    """The arguments of `SimInspiralChooseFDWaveform`, in SI units and with Cartesian spins.

    Args:
        parameters: bilby's names and units.
        waveform: The waveform model.
        segment: Gives the spacing and the last of the frequency bins.
    """
    mass_1, mass_2 = (
        mass * lal.MSUN_SI
        for mass in component_masses(parameters["chirp_mass"], parameters["mass_ratio"])
    )
    angles = [parameters[name] for name in ("theta_jn", "phi_jl", "tilt_1", "tilt_2", "phi_12")]
    inclination, *spins = lalsimulation.SimInspiralTransformPrecessingNewInitialConditions(
        *angles,
        parameters["a_1"],
        parameters["a_2"],
        mass_1,
        mass_2,
        waveform.f_ref,
        parameters["phase"],
    )
    distance = parameters["luminosity_distance"] * 1e6 * lal.PC_SI
    longitude_of_nodes = eccentricity = mean_anomaly = 0.0
    return (
        *(mass_1, mass_2, *spins, distance, inclination, parameters["phase"]),
        *(longitude_of_nodes, eccentricity, mean_anomaly),
        *(1 / segment.generation_duration, waveform.f_lower, segment.sample_rate / 2),
        *(waveform.f_ref, lal.CreateDict(), approximant_number(waveform.approximant)),
    )


def polarisations(
    parameters: Mapping[str, float], waveform: WaveformConfig, segment: SegmentConfig
) -> Polarisations:
    """Generate h+ and hx with the taper that softens their start.

    Args:
        parameters: bilby's names and units.
        waveform: The waveform model.
        segment: Gives the spacing and the last of the frequency bins.

    Raises:
        WaveformError: LALSimulation refuses these parameters, or gives a signal that is not finite.
    """
    try:
        plus, cross = lalsimulation.SimInspiralChooseFDWaveform(
            *lal_arguments(parameters, waveform, segment)
        )
    except RuntimeError as error:
        raise WaveformError(str(error)) from None
    plus, cross = plus.data.data, cross.data.data
    first = round(waveform.f_lower * segment.generation_duration)
    last = len(plus) - int(np.argmax(plus.real[::-1] != 0))  # LAL fills up with zeros
    last = min(last, segment.generation_samples // 2)  # without the Nyquist bin
    plus, cross = plus[first:last].copy(), cross[first:last].copy()
    if not plus.any() or not np.isfinite(plus.sum() + cross.sum()):
        raise WaveformError("the signal is empty or not finite")
    taper = start_taper(waveform, segment)[: len(plus)]
    plus[: len(taper)] *= taper
    cross[: len(taper)] *= taper
    return Polarisations(plus, cross, first)


def start_taper(waveform: WaveformConfig, segment: SegmentConfig) -> Float[Array, "bin"]:
    """sin^2 from f_lower to 1.2 f_lower: a hard start would ring through the whole segment."""
    step = 1 / segment.generation_duration
    first, last = (round(end * waveform.f_lower / step) for end in (1, TAPER_END))
    return np.sin(np.pi / 2 * np.arange(last - first) / (last - first)) ** 2
