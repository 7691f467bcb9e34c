"""Source parameters to polarisations, through LALSimulation."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import lal
import lalsimulation
import numpy as np
from jaxtyping import Complex, Float

from pipeline.config import PhenomXConfig, SegmentConfig, WaveformConfig
from pipeline.detector import time_shift
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


@lru_cache
def approximant_number(name: str) -> int:
    """Look a waveform model up in LALSimulation.

    Raises:
        InputError: There is none of that name, or it can give no polarisations.
    """
    number = getattr(lalsimulation, name, None)
    if not isinstance(number, int) or _name_of_approximant(number) != name:
        raise InputError(
            f"waveform.approximant: got {name!r}, LALSimulation knows none of that name; "
            "try IMRPhenomXPHM"
        )
    if not _in_frequency_domain(number) and not lalsimulation.SimInspiralImplementedTDApproximants(
        number
    ):
        raise InputError(
            f"waveform.approximant: {name} is a name that LALSimulation has no model for; "
            "try IMRPhenomXPHM"
        )
    return number


@lru_cache
def _in_frequency_domain(number: int) -> bool:
    return bool(lalsimulation.SimInspiralImplementedFDApproximants(number))


def _name_of_approximant(number: int) -> str | None:
    try:
        name: str = lalsimulation.GetStringFromApproximant(number)
    except RuntimeError:  # one of LALSimulation's other constants
        return None
    return name


def lal_arguments(
    parameters: Mapping[str, float], waveform: WaveformConfig, segment: SegmentConfig
) -> tuple[object, ...]:
    """The arguments of `SimInspiralChooseFDWaveform` and `SimInspiralFD`, which are the same.

    In SI units and with Cartesian spins.

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
        *(waveform.f_ref, _lal_options(waveform.phenomx)),
        approximant_number(waveform.approximant),
    )


def _lal_options(phenomx: PhenomXConfig) -> object:
    options = lal.CreateDict()
    for name, value in _given(phenomx).items():
        _INSERT_OPTION[name](options, value)
    return options


@lru_cache
def _given(phenomx: PhenomXConfig) -> dict[str, float]:
    return phenomx.given()


_INSERT_OPTION = {
    name: getattr(lalsimulation, f"SimInspiralWaveformParamsInsertPhenom{lal_name}")
    for name, lal_name in {
        "multibanding": "XHMThresholdMband",
        "precession_multibanding": "XPHMThresholdMband",
        "precession_version": "XPrecVersion",
    }.items()
}


def polarisations(
    parameters: Mapping[str, float], waveform: WaveformConfig, segment: SegmentConfig
) -> Polarisations:
    """Generate h+ and hx with the taper that softens their start.

    A model in the time domain is conditioned and transformed by LAL's `SimInspiralFD`, as in bilby:
    it begins at f_lower or below, with a taper of its own. What lies below f_lower is cut off, and
    our taper follows, as for every model.

    Args:
        parameters: bilby's names and units.
        waveform: The waveform model.
        segment: Gives the spacing and the last of the frequency bins.

    Raises:
        WaveformError: LALSimulation refuses these parameters, or gives a signal that is not finite.
    """
    in_frequency_domain = _in_frequency_domain(approximant_number(waveform.approximant))
    generate = (
        lalsimulation.SimInspiralChooseFDWaveform
        if in_frequency_domain
        else lalsimulation.SimInspiralFD
    )
    try:
        plus_series, cross_series = generate(*lal_arguments(parameters, waveform, segment))
    except RuntimeError as error:
        raise WaveformError(str(error)) from None
    plus, cross = plus_series.data.data, cross_series.data.data
    first = round(waveform.f_lower * segment.generation_duration)
    last = min(_end_of_signal(plus, first), segment.generation_samples // 2)  # without Nyquist's
    plus, cross = plus[first:last].copy(), cross[first:last].copy()
    if not plus.any() or not np.isfinite(plus.sum() + cross.sum()):
        raise WaveformError("the signal is empty or not finite")
    if not in_frequency_domain:
        # LAL's series begins at its epoch and has length 1/deltaF: coalescence to time zero.
        late = float(plus_series.epoch) + segment.generation_duration
        shift = time_shift(late, first, len(plus), 1 / segment.generation_duration)
        plus *= shift
        cross *= shift
    taper = start_taper(waveform, segment)[: len(plus)]
    plus[: len(taper)] *= taper
    cross[: len(taper)] *= taper
    return Polarisations(plus, cross, first)


def _end_of_signal(series: Complex[Array, "frequency"], first: int) -> int:
    """Number of the bin after the last that is not zero: LAL fills up with zeros.

    Zeros are taken to fill all of the rest where one bin in 64 is zero.
    """
    coarse = np.flatnonzero(series[first::_STRIDE])
    start = first + _STRIDE * int(coarse[-1]) if len(coarse) else first
    fine = np.flatnonzero(series[start : start + _STRIDE])
    return start + 1 + int(fine[-1]) if len(fine) else first


_STRIDE = 64


@lru_cache
def start_taper(waveform: WaveformConfig, segment: SegmentConfig) -> Float[Array, "bin"]:
    """sin^2 from f_lower to 1.2 f_lower: a hard start would ring through the whole segment."""
    step = 1 / segment.generation_duration
    first, last = (round(end * waveform.f_lower / step) for end in (1, TAPER_END))
    return np.sin(np.pi / 2 * np.arange(last - first) / (last - first)) ** 2
