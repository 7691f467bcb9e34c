"""Noise spectra, whitening, and Gaussian noise: one definition of what one sigma is.

Whitened strain is in units of the standard deviation that one sample of noise would have if the
noise filled the whole band up to half the sample rate. A whitened signal w then has
sum(w^2) = optimal_snr^2. Noise is drawn in the analysis band alone, from f_lower to below half the
sample rate, so that its variance is the share of that band: 0.9976 from 10 Hz at 8192 Hz.
"""

import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
from jaxtyping import Complex, Float

from pipeline.config import PsdConfig, SegmentConfig, SimulationConfig
from pipeline.fourier import InverseTransform
from storage.arrays import Array
from storage.errors import InputError

ALIASES = {"ET-D": "EinsteinTelescopeP1600143"}
_PIECE = 256  # samples whose squares are added up in single precision
# Below, that PSD is extrapolated, and wrong by factors.
LOWEST_FREQUENCY = {"EinsteinTelescopeP1600143": 5.0}


def load_psds(config: SimulationConfig, names: Sequence[str]) -> Float[Array, "detector frequency"]:
    """The PSD of each detector: `psd`, or what `psd_of` says of it.

    Args:
        config: Names the PSDs.
        names: Of the detectors.

    Raises:
        InputError: A PSD cannot be used, or belongs to no detector.
    """
    strangers = [name for name in config.psd_of if name not in names]
    if strangers:
        raise InputError(
            f"psd_of: got {', '.join(strangers)}, the detectors are {', '.join(names)}"
        )
    segment, f_lower = config.segment, config.waveform.f_lower
    special = {
        name: load_psd(psd, segment, f_lower, f"psd_of.{name}")
        for name, psd in config.psd_of.items()
    }
    if len(special) < len(names):
        common = load_psd(config.psd, segment, f_lower)
    return np.array([special[name] if name in special else common for name in names])


def load_psd(
    config: PsdConfig, segment: SegmentConfig, f_lower: float, key: str = "psd"
) -> Float[Array, "frequency"]:
    """The one-sided PSD [1/Hz] on the bins of the generated waveform, zero outside the band.

    Args:
        config: Which PSD.
        segment: Gives the bins: 0 to half the sample rate in steps of 1/generation_duration.
        f_lower: Where the analysis band begins [Hz].
        key: What messages call it.

    Raises:
        InputError: It is not known, not readable, or does not cover the band.
    """
    step = 1 / segment.generation_duration
    frequencies = np.arange(segment.generation_samples // 2 + 1) * step
    band = (frequencies >= f_lower) & (frequencies < segment.sample_rate / 2)
    psd = np.zeros(len(frequencies))
    if config.file is not None:
        psd[band] = _from_file(config, frequencies[band], key)
    else:
        psd[band] = _from_name(config.name, len(frequencies), step, f_lower, key)[band]
    if not np.all(psd[band] > 0) or not np.all(np.isfinite(psd)):
        worst = frequencies[band][~(psd[band] > 0) | ~np.isfinite(psd[band])][0]
        raise InputError(
            f"{key}: {config.file or config.name} is not positive and finite at {worst:g} Hz; it "
            f"must be from f_lower ({f_lower:g} Hz) to {segment.sample_rate / 2:g} Hz"
        )
    return psd


def _from_name(
    name: str, bins: int, step: float, f_lower: float, key: str
) -> Float[Array, "frequency"]:
    import pycbc.psd

    lal_name = ALIASES.get(name, name)
    if lal_name not in pycbc.psd.get_psd_model_list():
        known = ", ".join([*ALIASES, *sorted(pycbc.psd.get_psd_model_list())])
        raise InputError(f"{key}.name: got {name!r}, known are {known}; or give {key}.file")
    if f_lower < LOWEST_FREQUENCY.get(lal_name, 0):
        raise InputError(
            f"{key}.name: {name} is known from {LOWEST_FREQUENCY[lal_name]:g} Hz up, "
            f"waveform.f_lower is {f_lower:g} Hz; raise f_lower or give {key}.file"
        )
    psd: Array = pycbc.psd.from_string(lal_name, bins, step, f_lower).numpy()
    return psd


def _from_file(
    config: PsdConfig, frequencies: Float[Array, "bin"], key: str
) -> Float[Array, "bin"]:
    """Interpolate a two-column file, linearly in the logarithms."""
    path = Path(str(config.file))
    try:
        with warnings.catch_warnings(action="ignore"):  # numpy's, of an empty file
            table = np.loadtxt(path, ndmin=2)
    except OSError:
        raise InputError(f"{key}.file: {path} cannot be read; give a text file") from None
    except ValueError as error:
        raise InputError(f"{key}.file: {path} is no table of numbers ({error})") from None
    if table.shape[1] < 2 or len(table) < 2 or not np.all(np.diff(table[:, 0]) > 0):
        raise InputError(f"{key}.file: {path} needs two columns, the frequency rising")
    known, density = table[table[:, 0] > 0, :2].T
    if not len(known) or known[0] > frequencies[0] or known[-1] < frequencies[-1]:
        raise InputError(
            f"{key}.file: {path} covers {table[0, 0]:g} to {table[-1, 0]:g} Hz, the analysis band "
            f"is {frequencies[0]:g} to {frequencies[-1]:g} Hz; give a PSD that reaches, or change "
            "waveform.f_lower or segment.sample_rate"
        )
    # The rows that the band needs: tables often hold 0 or inf where a detector hears nothing.
    first = np.searchsorted(known, frequencies[0], "right") - 1
    rows = slice(first, np.searchsorted(known, frequencies[-1]) + 1)
    known, density = known[rows], density[rows]
    usable = (density > 0) & np.isfinite(density)
    if not np.all(usable):
        raise InputError(
            f"{key}.file: {path} holds {density[~usable][0]:g} at {known[~usable][0]:g} Hz; in the "
            "analysis band every density must be positive and finite"
        )
    power = 2 if config.quantity == "asd" else 1
    logarithm = np.interp(np.log(frequencies), np.log(known), np.log(density))
    interpolated: Array = np.exp(power * logarithm)
    return interpolated


@dataclass(frozen=True)
class Whitening:
    """Turns strain at the detectors into whitened time series.

    Attributes:
        psd: One-sided PSD of each detector [1/Hz]; zero outside the analysis band.
        segment: The stretch of data that an event is.
        f_lower: Where the analysis band begins [Hz].
    """

    psd: Float[Array, "detector frequency"]
    segment: SegmentConfig
    f_lower: float

    def __post_init__(self) -> None:
        scale = np.zeros_like(self.psd)
        band = self.psd > 0
        scale[band] = np.sqrt(2 * self.segment.sample_rate / self.psd[band])
        object.__setattr__(self, "_scale", scale)  # worked out once, for every event

    def whiten(
        self, strain: Complex[Array, "detector frequency"], first_bin: int
    ) -> Complex[Array, "detector frequency"]:
        """Whiten in the frequency domain, scaled so that `to_segment` yields sigma.

        Args:
            strain: Continuous Fourier transform of the strain [1/Hz].
            first_bin: Number of its first frequency bin.
        """
        return np.array(list(self.whiten_each(strain, first_bin)))

    def whiten_each(
        self, strain: Iterable[Complex[Array, "frequency"]], first_bin: int
    ) -> Iterator[Complex[Array, "frequency"]]:
        """Do the same for one detector after the other."""
        scales: Array = self._scale  # type: ignore[attr-defined]
        for values, scale in zip(strain, scales, strict=True):
            yield values * scale[first_bin : first_bin + len(values)]

    def to_segment(
        self, whitened: Iterable[Complex[Array, "frequency"]], first_bin: int
    ) -> Float[Array, "detector time"]:
        """Transform to the time domain and cut the last `duration` seconds out, float32 [sigma].

        Args:
            whitened: Of one detector after the other, as `whiten` gives it.
            first_bin: Number of its first frequency bin.
        """
        segment = np.empty((len(self.psd), self.segment.samples), np.float32)
        norm = 1 / self.segment.generation_samples
        for spectrum, row in zip(whitened, segment, strict=True):
            fill = partial(np.multiply, spectrum, norm, casting="same_kind")
            bins = slice(first_bin, first_bin + len(spectrum))
            self._over_generation.write(fill, bins, row)
        return segment

    def add_noise(
        self, strain: Float[Array, "detector time"], generator: np.random.Generator
    ) -> None:
        """Draw Gaussian noise over the segment and add it to whitened strain [sigma].

        Coloured and whitened again it would be the same: white in the band, so it is drawn so.
        """
        samples, bins = self.segment.samples, noise_bins(self.segment, self.f_lower)
        # Real and imaginary parts of variance samples/2 give a unit variance over the full band.
        fill = partial(_fill_normal, generator=generator, sigma=math.sqrt(samples / 2) / samples)
        for row in strain:
            self._over_segment.add(fill, bins, row)

    @cached_property
    def _over_generation(self) -> InverseTransform:
        return InverseTransform(self.segment.generation_samples)

    @cached_property
    def _over_segment(self) -> InverseTransform:
        return InverseTransform(self.segment.samples)


def noise_bins(segment: SegmentConfig, f_lower: float) -> slice:
    """The bins of a segment's transform that hold noise: from f_lower to below the Nyquist bin."""
    return slice(round(f_lower * segment.duration), segment.samples // 2)


def optimal_snr(signal: Float[Array, "detector time"]) -> Float[Array, "detector"]:
    """Norm of a whitened signal in each detector, to 1e-7."""
    pieces = signal[:, : signal.shape[1] // _PIECE * _PIECE].reshape(len(signal), -1, _PIECE)
    rest = signal[:, pieces.shape[1] * _PIECE :]
    # Short sums in single precision, which the processor does fast, then those in double. Not by
    # np.vecdot: BLAS adds up in another order on another kind of CPU, and this is recorded.
    squares = _sum_of_squares(pieces).sum(-1, dtype=np.float64) + _sum_of_squares(rest)
    snr: Array = np.sqrt(squares)
    return snr


def _sum_of_squares(values: Float[Array, "*row value"]) -> Float[Array, "*row"]:
    squares: Array = np.einsum("...i,...i->...", values, values)
    return squares


def _fill_normal(
    out: Complex[Array, "frequency"], generator: np.random.Generator, sigma: float
) -> None:
    """Fill a complex64 array with numbers whose real and imaginary parts are normal.

    A Rayleigh amplitude and a uniform phase, 32 random bits each: a third of the time of numpy's
    `standard_normal`. The amplitude ends at 6.8 sigma, beyond which lies one bin in 10^10.

    Source: G. Box, M. Muller, Ann. Math. Statist. 29 (1958) 610.
    """
    bits = generator.bit_generator.random_raw(len(out)).view(np.uint32)
    amplitude, phase = bits.astype(np.float32).reshape(2, -1)
    amplitude += np.float32(0.5)  # never the logarithm of zero
    amplitude *= np.float32(2.0**-32)
    np.log(amplitude, out=amplitude)
    amplitude *= np.float32(-2 * sigma**2)
    np.sqrt(amplitude, out=amplitude)
    phase *= np.float32(2 * np.pi * 2.0**-32)
    np.multiply(amplitude, np.cos(phase), out=out.real)
    np.multiply(amplitude, np.sin(phase), out=out.imag)
