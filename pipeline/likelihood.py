"""The exact likelihood of an event: the simulator's own definition of signal, segment and noise.

What is stored is d = s + n. The signal s is generated over a longer stretch, whitened, and cropped
(`Simulator.signal`); it is not periodic over the segment. The noise n is drawn over the segment
itself (`Whitening.add_noise`): in its discrete Fourier transform, each bin from f_lower to below
half the sample rate is independent, and there is nothing in the others. So the covariance of n is a
projector, of the rank of those bins, and the density of d in them is exactly that of independent
normal numbers.

The crop leaves some 1e-6 of a signal's power in the bins outside. The simulator adds no noise to
them, which no detector does: they are left out, as one leaves out what lies below f_lower in real
data. What remains is a function of d, so that the posterior is exactly calibrated; that it is not
sharper than d allows is on purpose.

Rounding to the data set's steps adds noise that is white and as good as normal in each bin: its
variance, step^2 / 12, is added to the noise's. That of floating-point encodings, 1e-8 of the
noise's and less, is neglected.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
import scipy.fft
from jaxtyping import Float

from pipeline.config import SimulationConfig
from pipeline.noise import noise_bins
from pipeline.polarisations import EXTRINSIC, REFERENCE_DISTANCE
from pipeline.simulate import Simulator
from pipeline.waveform import PHASE_IS_A_FACTOR, Polarisations, WaveformError
from storage.arrays import Array
from storage.schema import Schema


@dataclass(frozen=True)
class SegmentNoise:
    """The noise of a segment.

    Attributes:
        samples: Length of the segment.
        bins: Of its transform, those that hold noise.
        variance: Of a sample, were the noise to fill the whole band [sigma^2].
    """

    samples: int
    bins: slice
    variance: float = 1.0

    @classmethod
    def of(cls, config: SimulationConfig, schema: Schema | None = None) -> Self:
        """The noise of a configuration's events, with the rounding where a data set holds them."""
        steps = []
        if schema is not None:
            encodings = (*schema.encodings_before, schema.encoding)
            steps = [encoding.scale_factor or 0.0 for encoding in encodings]
        bins = noise_bins(config.segment, config.waveform.f_lower)
        return cls(config.segment.samples, bins, 1 + sum(step**2 for step in steps) / 12)

    def coordinates(self, strain: Float[Array, "detector time"]) -> Float[Array, "coordinate"]:
        """Project strain on the noise's bins, in coordinates in which noise is unit normal.

        Real and imaginary part of each bin, one detector after the other. A transform of float32 is
        one in single precision: its error, the same wherever these coordinates are used, acts as a
        signal that differs by 1e-7.

        Args:
            strain: Whitened strain [sigma].
        """
        spectrum = scipy.fft.rfft(strain, axis=1)[:, self.bins]
        scaled = spectrum.astype(np.complex128) * np.sqrt(2 / (self.samples * self.variance))
        coordinates: Array = scaled.reshape(-1).view(np.float64)
        return coordinates


@dataclass(frozen=True)
class Likelihood:
    """The likelihood of one event's strain.

    log p(d | h) = <d, h> - <h, h> / 2 + log p(d | 0), with the scalar product over the noise's
    bins. Source: arXiv:1809.02293, appendix on Gaussian noise.

    Attributes:
        noise: Of the segment.
        data: The event's strain, in the noise's coordinates.
    """

    noise: SegmentNoise
    data: Float[Array, "coordinate"]

    @classmethod
    def of(cls, noise: SegmentNoise, strain: Float[Array, "detector time"]) -> Self:
        """The likelihood of whitened strain [sigma]."""
        return cls(noise, noise.coordinates(strain.astype(np.float64)))

    @cached_property
    def log_noise_evidence(self) -> float:
        """Log likelihood of noise alone, without the constant of its normalisation."""
        return -dot(self.data, self.data) / 2

    def log_ratio(self, signal: Float[Array, "detector time"]) -> float:
        """Log likelihood of a whitened signal minus that of noise alone."""
        template = self.noise.coordinates(signal)
        return dot(self.data, template) - dot(template, template) / 2


def dot(first: Float[Array, "n"], second: Float[Array, "n"]) -> float:
    """Scalar product in double precision, adding up in the same order with any number of threads.

    Which BLAS does not.
    """
    return float(np.einsum("i,i->", first, second, dtype=np.float64))


class Waves:
    """The polarisations of sources, one after the other.

    A source that differs from the one before only in what its waveform does not hold gets that
    waveform again.

    Args:
        simulator: Of the data set.
    """

    def __init__(self, simulator: Simulator) -> None:
        self._simulator = simulator
        self.phase_is_a_factor = simulator.config.waveform.approximant in PHASE_IS_A_FACTOR
        outside = (*EXTRINSIC, "phase") if self.phase_is_a_factor else EXTRINSIC
        self._outside = frozenset(outside)
        self._last: tuple[tuple[float, ...], Polarisations | WaveformError] | None = None

    def of(self, parameters: Mapping[str, float]) -> Polarisations:
        """The polarisations of a source, the same whatever came before.

        Raises:
            WaveformError: The model does not exist for it.
        """
        key = tuple(value for name, value in parameters.items() if name not in self._outside)
        if self._last is None or self._last[0] != key:
            self._last = key, self._make(parameters)
        waves = self._last[1]
        if isinstance(waves, WaveformError):
            raise waves
        factor = complex(REFERENCE_DISTANCE / parameters["luminosity_distance"])
        if self.phase_is_a_factor:
            factor *= np.exp(2j * parameters["phase"])
        return times(waves, factor)

    def _make(self, parameters: Mapping[str, float]) -> Polarisations | WaveformError:
        canonical = {**parameters, "luminosity_distance": REFERENCE_DISTANCE}
        if self.phase_is_a_factor:
            canonical["phase"] = 0.0
        try:
            return self._simulator.waves(canonical)
        except WaveformError as error:
            return error


def times(waves: Polarisations, factor: complex) -> Polarisations:
    """Polarisations times a number."""
    return Polarisations(waves.plus * factor, waves.cross * factor, waves.first_bin)
