"""Whether signals fit into the stretch over which they are generated, and what is left if not.

A spectrum in steps of 1/T stands for a series that repeats after T: what of a signal is longer
appears at the other end.
"""

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import lal
import lalsimulation
import numpy as np

from pipeline.config import SimulationConfig
from pipeline.masses import component_masses
from pipeline.waveform import WaveformError
from storage.errors import InputError

if TYPE_CHECKING:
    from pipeline.simulate import Simulator

LONGER = 4  # times as long is the stretch that a signal is compared with


@dataclass(frozen=True)
class Wraparound:
    """How much a signal in its segment differs from the one generated over a longer stretch.

    Norm of the difference over the norm of the signal, all detectors together.

    Attributes:
        draws: How many signals were compared.
        median: Half of them differ by less.
        percent_95: 95 % of them differ by less.
        largest: None differs by more.
    """

    draws: int
    median: float
    percent_95: float
    largest: float


def measure_wraparound(simulator: "Simulator", draws: int, seed: int = 0) -> Wraparound:
    """Generate signals over `generation_duration` and over 4 times as long, and compare them.

    Args:
        simulator: Of a configuration; its PSD files must still be there.
        draws: Number of draws from the prior; those without a waveform are drawn again.
        seed: Of the draws.

    Raises:
        InputError: The prior has no signals.
    """
    segment = simulator.config.segment
    longer = simulator.over(
        replace(segment, generation_duration=LONGER * segment.generation_duration)
    )
    generator = np.random.default_rng(seed)
    shares: list[float] = []
    for _ in range(100 * draws):
        source = simulator.draw_parameters(generator)
        if not simulator.config.prior.allows(source):
            continue
        try:
            ours, reference = simulator.signal(source), longer.signal(source)
        except WaveformError:
            continue
        shares.append(float(np.linalg.norm(ours - reference) / np.linalg.norm(reference)))
        if len(shares) == draws:
            break
    if not shares:
        raise InputError("waveform: no draw from the prior has a signal; change prior")
    median, percent_95, largest = (float(x) for x in np.quantile(shares, (0.5, 0.95, 1)))
    return Wraparound(len(shares), median, percent_95, largest)


def require_room(config: SimulationConfig) -> None:
    """Refuse a configuration whose longest signal does not fit.

    Raises:
        InputError: The mode (2, 2) of the prior's longest signal, and the rest of the segment after
            its merger, are longer than `segment.generation_duration`.
    """
    needed, available = longest_stretch(config), config.segment.generation_duration
    if needed > available:
        mass = config.prior.distributions()["chirp_mass"].minimum
        raise InputError(
            f"segment.generation_duration: got {available:g} s, but a signal of {mass:g} Msun from "
            f"{config.waveform.f_lower:g} Hz to the end of the segment takes {needed:.1f} s and "
            f"would wrap around; set it to {2 ** math.ceil(math.log2(needed))}, or raise "
            "prior.chirp_mass or waveform.f_lower"
        )


def longest_stretch(config: SimulationConfig) -> float:
    """From where the prior's longest signal passes f_lower to the end of the segment [s].

    The longest has the smallest chirp mass, the earliest merger, spins along the orbit, and one of
    the two ends of the mass ratios. By the duration of IMRPhenomXAS, arXiv:2001.11412.
    """
    priors = config.prior.distributions()
    spins = []
    for magnitude, tilt in (("a_1", "tilt_1"), ("a_2", "tilt_2")):
        cosine = math.cos(priors[tilt].minimum)
        ends = (priors[magnitude].minimum, priors[magnitude].maximum)
        spins.append(max(end * cosine for end in ends))
    inspiral = max(
        _duration(priors["chirp_mass"].minimum, ratio, spins, config.waveform.f_lower)
        for ratio in (priors["mass_ratio"].minimum, priors["mass_ratio"].maximum)
    )
    segment = config.segment
    merger = priors["geocent_time"].minimum - lal.REARTH_SI / lal.C_SI
    return inspiral + float(segment.start_time + segment.duration - merger)


def _duration(chirp_mass: float, mass_ratio: float, spins: list[float], f_lower: float) -> float:
    masses = (mass * lal.MSUN_SI for mass in component_masses(chirp_mass, mass_ratio))
    try:
        return float(lalsimulation.SimIMRPhenomXASDuration(*masses, *spins, f_lower))
    except RuntimeError:  # so heavy that it merges below f_lower, or outside the model's range
        return 0.0
