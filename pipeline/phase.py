"""The phase, where an estimator leaves it out: integrated over exactly, and drawn afterwards.

In the frame that precesses with the orbit, a mode of order m turns by exp(i m phase): polarisations
are a sum of few harmonics of the phase, and the log likelihood is a trigonometric polynomial. Its
coefficients come from scalar products of the harmonics' signals, cropped and whitened as any other.
On a grid finer than the posterior's width the integral converges exponentially: what is left is
rounding.

Where the phase is a factor and nothing is cropped, the integral is a Bessel function; the crop
makes the norm of a signal depend on the phase a little, so that the sum is taken there as well.

Source: arXiv:2210.05686, synthetic phase; arXiv:1809.02293, appendix on explicit marginalisation,
for the Bessel function.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import scipy.fft
from jaxtyping import Float

from pipeline.config import SnrWindow
from pipeline.likelihood import Likelihood, Waves, dot, times
from pipeline.simulate import Simulator
from pipeline.waveform import Polarisations
from storage.arrays import Array

# So many phases tell as many orders: 0 to 4, -2 to 6, -6 to 10. Models in the frequency domain
# reach 4 or 5; those in the time domain have negative orders too (measured: -5 to 5).
PHASES = (5, 9, 17)
# The most by which the harmonics' sum may miss a signal [sigma], before more phases are taken.
TOLERANCE = 0.01
NEGLIGIBLE = 1e-4  # norm of a harmonic that is left out [sigma], but for the spectrum of the noise
POINTS_PER_WIDTH = 8  # of the grid, in the narrowest posterior
FEWEST_POINTS = 256


@dataclass(frozen=True)
class Harmonics:
    """Polarisations as a function of the phase: the sum of exp(i m phase) times those of order m.

    Attributes:
        waves: By order.
        error: Norm of what a signal at another phase differs by, relative to the signal.
    """

    waves: Mapping[int, Polarisations]
    error: float


@dataclass(frozen=True)
class PhaseCurve:
    """Log likelihood ratio and network SNR as functions of the phase.

    With c = (cos m phase, sin m phase) over all orders: log ratio = c.linear - c.gram.c / 2.

    Attributes:
        orders: The orders m.
        linear: Scalar products of data and harmonics.
        gram: Of harmonics with each other.
        power: The same over all frequencies, as the SNR is recorded.
    """

    orders: tuple[int, ...]
    linear: Float[Array, "term"]
    gram: Float[Array, "term term"]
    power: Float[Array, "term term"]

    def log_ratio(self, phase: Float[Array, "n"]) -> Float[Array, "n"]:
        """Log likelihood ratio."""
        terms = self._terms(phase)
        values: Array = terms @ self.linear - np.einsum("ni,ij,nj->n", terms, self.gram, terms) / 2
        return values

    def network_snr(self, phase: Float[Array, "n"]) -> Float[Array, "n"]:
        """Optimal SNR of the network."""
        terms = self._terms(phase)
        power = np.einsum("ni,ij,nj->n", terms, self.power, terms)
        snr: Array = np.sqrt(np.maximum(power, 0))
        return snr

    def points(self) -> int:
        """How many points of a grid resolve the narrowest posterior that these numbers allow."""
        speed = 0.0
        for row, order in enumerate(self.orders):
            both = [2 * row, 2 * row + 1]
            speed += (
                abs(order) * max(self.gram[both, both].max(), abs(self.linear[both]).max()) ** 0.5
            )
        wanted = POINTS_PER_WIDTH * 2 * np.pi * speed
        return max(FEWEST_POINTS, 1 << math.ceil(wanted).bit_length())

    def _terms(self, phase: Float[Array, "n"]) -> Float[Array, "n term"]:
        turns = np.outer(phase, self.orders)
        return np.stack([np.cos(turns), np.sin(turns)], -1).reshape(len(phase), -1)


@dataclass(frozen=True)
class PhaseDraw:
    """What the phase's conditional posterior gives.

    Attributes:
        log_marginal: Log likelihood ratio, averaged over the phase.
        phase: Drawn from the posterior at the other parameters [rad].
        log_likelihood: Log likelihood ratio at the drawn phase.
        log_density: Log of the posterior's density there.
    """

    log_marginal: float
    phase: float
    log_likelihood: float
    log_density: float


def harmonics_of(waves: Waves, parameters: Mapping[str, float], snr: float) -> Harmonics:
    """Take polarisations apart into harmonics of the phase.

    Args:
        waves: Makes them.
        parameters: Of the source; its phase counts for nothing.
        snr: About the SNR that the signal or the data have, for which the error must be small.

    Raises:
        WaveformError: The model does not exist for it.
    """
    at = _at_phase(waves, parameters)
    if waves.phase_is_a_factor:
        return Harmonics({2: at(0.0)}, 0.0)
    for count in PHASES:
        found = _harmonics(at, count, NEGLIGIBLE / max(snr, 1.0))
        if found.error * snr < TOLERANCE:
            break
    return found


def _at_phase(waves: Waves, parameters: Mapping[str, float]) -> Callable[[float], Polarisations]:
    return lambda phase: waves.of({**parameters, "phase": phase})


def _harmonics(at: Callable[[float], Polarisations], count: int, least: float) -> Harmonics:
    """From so many phases, and the error at another one; without orders of less than a share."""
    made = [at(2 * np.pi * number / count) for number in range(count)]
    length = max(len(item.plus) for item in made)
    first_bin = made[0].first_bin
    both = np.array([_stacked(item, length) for item in made])
    lowest = -(count - PHASES[0]) // 2
    numbers = range(lowest, lowest + count)
    orders = np.roll(scipy.fft.fft(both, axis=0), -lowest, axis=0) / count
    other = np.pi / count
    expected = _stacked(at(other), length)
    turns = np.exp(1j * other * np.array(numbers))
    norm = float(np.linalg.norm(expected))
    missed = float(np.linalg.norm(np.tensordot(turns, orders, 1) - expected))
    waves = {
        order: Polarisations(both[0], both[1], first_bin)
        for order, both in zip(numbers, orders, strict=True)
        if np.linalg.norm(both) > least * norm
    }
    return Harmonics(waves, missed / norm)


def _stacked(waves: Polarisations, length: int) -> Array:
    """Plus and cross, filled up with zeros; the end of a waveform may depend on the phase."""
    stacked = np.zeros((2, length), np.complex128)
    for row, values in zip(stacked, (waves.plus, waves.cross), strict=True):
        row[: len(values)] = values[:length]
    return stacked


def curve_of(
    simulator: Simulator,
    likelihood: Likelihood,
    harmonics: Harmonics,
    parameters: Mapping[str, float],
) -> PhaseCurve:
    """The signals of a source's harmonics, and their scalar products.

    Args:
        simulator: Makes signals of them.
        likelihood: Of the event.
        harmonics: Of the source.
        parameters: Where the source stands.
    """
    orders, signals = [], []
    for order, waves in harmonics.waves.items():
        orders.append(order)
        signals += [simulator.signal_of(times(waves, turn), parameters) for turn in (1, 1j)]
    templates = [likelihood.noise.coordinates(item) for item in signals]
    return PhaseCurve(
        orders=tuple(orders),
        linear=np.array([dot(likelihood.data, item) for item in templates]),
        gram=_gram(templates),
        power=_gram([item.reshape(-1) for item in signals]),
    )


def _gram(vectors: list[Array]) -> Float[Array, "term term"]:
    gram = np.empty((len(vectors), len(vectors)))
    for row, first in enumerate(vectors):
        for column in range(row + 1):
            gram[row, column] = gram[column, row] = dot(first, vectors[column])
    return gram


def draw_phase(curve: PhaseCurve, window: SnrWindow, uniform: float) -> PhaseDraw | None:
    """Integrate over the phase, whose prior is uniform, and draw it from its posterior.

    Args:
        curve: The log likelihood.
        window: Which network SNRs there are.
        uniform: A random number from 0 to 1.

    Returns:
        None where the window lets no phase through.
    """
    points = curve.points()
    values = _on_grid(curve.log_ratio, curve.orders, points)
    if window != SnrWindow():
        snr = np.sqrt(np.maximum(_on_grid(_squared(curve), curve.orders, points), 0))
        values = np.where((snr >= window.minimum) & (snr <= window.maximum), values, -np.inf)
    peak = values.max()
    if peak == -np.inf:
        return None
    weights = np.exp(values - peak)
    sums = np.cumsum(weights)
    log_marginal = float(peak + np.log(sums[-1] / points))
    mark = uniform * sums[-1]
    row = min(int(np.searchsorted(sums, mark, "right")), points - 1)
    # Anywhere in the cell around the point: a broadening by 1/1500 of the width.
    within = (mark - (sums[row] - weights[row])) / weights[row] - 0.5
    phase = float(2 * np.pi * (row + within) / points % (2 * np.pi))
    (log_likelihood,) = curve.log_ratio(np.array([phase]))
    log_density = float(log_likelihood - log_marginal - np.log(2 * np.pi))
    return PhaseDraw(log_marginal, phase, float(log_likelihood), log_density)


def _squared(curve: PhaseCurve) -> Callable[[Array], Array]:
    return lambda phase: curve.network_snr(phase) ** 2


def _on_grid(
    function: Callable[[Array], Array], orders: tuple[int, ...], points: int
) -> Float[Array, "point"]:
    """A trigonometric polynomial of twice the highest order on a fine grid, from a coarse one."""
    coarse = 1 << (4 * max(map(abs, orders)) + 1).bit_length()
    coefficients = scipy.fft.rfft(function(2 * np.pi * np.arange(coarse) / coarse))
    values: Array = scipy.fft.irfft(coefficients, points) * (points / coarse)
    return values
