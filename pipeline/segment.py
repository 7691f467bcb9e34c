"""From frames to a whitened segment that is what a simulated event is.

A simulated signal rises by a taper from f_lower to 1.2 f_lower, is whitened in the frequency domain
and cut out; simulated noise is white from f_lower to half the sample rate. Data come with both in
one. So a stretch longer than the segment is softened at its ends, transformed, cut to the band,
tapered and whitened like a signal, and cut out; and noise is drawn into what the taper takes of the
data's own, (1 - taper^2) of its power within f_lower to 1.2 f_lower. The signal then is the
simulator's and the noise is as white as the simulator's: what a network was trained on.

The cut at half the segment's sample rate, in the frequency domain, is also the anti-alias filter of
the change to that rate.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Complex, Float
from scipy.signal import spectrogram
from scipy.signal.windows import tukey

from pipeline.config import SimulationConfig
from pipeline.frame_file import Span
from pipeline.frames import Frames, Stretch, common, merged, without
from pipeline.waveform import start_taper
from storage.arrays import Array
from storage.errors import InputError

FEWEST_PERIODOGRAMS = 8  # of which a median is taken


@dataclass(frozen=True)
class PsdEstimate:
    """A PSD that was estimated, and of how much.

    Attributes:
        psd: One-sided [1/Hz], on the bins of the generated waveform.
        periodograms: That were taken.
        seconds: Of the data that they lie in.
        wanted: Periodograms that data without gaps would have given.
    """

    psd: Float[Array, "frequency"]
    periodograms: int
    seconds: float
    wanted: int


@dataclass(frozen=True)
class Cutter:
    """Cuts whitened segments out of stretches of frames.

    Attributes:
        config: The physics of the simulated events that they are to be like.
        psd: One-sided PSD of each detector [1/Hz], on the bins of the generated waveform.
        margin: What is read before and after the segment, half of it softened [s].
        fill: Whether noise is drawn into what the taper takes.
    """

    config: SimulationConfig
    psd: Float[Array, "detector frequency"]
    margin: float
    fill: bool = True

    def __post_init__(self) -> None:
        segment = self.config.segment
        samples = self.margin * segment.sample_rate
        if not 1 <= self.margin < 1e6 or samples != int(samples):
            raise InputError(
                f"margin: got {self.margin:g} s, at least 1 s is needed for the whitening to "
                f"settle, and a whole number of samples at {segment.sample_rate:g} Hz"
            )
        object.__setattr__(self, "_scale", self._scale_of_bins())  # once, for every event

    def span(self, start: float) -> Span:
        """What has to be read for a segment that begins at a time [GPS s]."""
        return Span(start - self.margin, start + self.config.segment.duration + self.margin)

    def segment(
        self, stretches: Sequence[Stretch], start: float, generator: np.random.Generator
    ) -> Float[Array, "detector time"]:
        """The whitened segment, float32 [sigma].

        Args:
            stretches: Of `span(start)`, one a detector.
            start: Of the segment's first sample [GPS s]; it may lie between two samples.
            generator: Of the noise that is drawn into what the taper takes.

        Raises:
            InputError: The frames' sample rate is too low, or does not fit the stretch.
        """
        segment = self.config.segment
        strain = np.empty((len(stretches), segment.samples), np.float32)
        first = round(self.margin * segment.sample_rate)
        scales: Array = self._scale  # type: ignore[attr-defined]
        for stretch, scale, row in zip(stretches, scales, strain, strict=True):
            spectrum = self._spectrum(stretch, start - self.margin) * scale
            spectrum += self._filling(generator)
            row[:] = np.fft.irfft(spectrum, self._samples)[first : first + len(row)]
        return strain

    @property
    def _duration(self) -> float:
        """Of a stretch [s]."""
        return self.config.segment.duration + 2 * self.margin

    @property
    def _samples(self) -> int:
        """Of a stretch at the segment's sample rate."""
        return round(self._duration * self.config.segment.sample_rate)

    @property
    def _band(self) -> slice:
        """The bins of the analysis band."""
        first = math.ceil(self.config.waveform.f_lower * self._duration - 1e-9)
        return slice(first, self._samples // 2)

    def _spectrum(self, stretch: Stretch, start: float) -> Complex[Array, "frequency"]:
        """Continuous Fourier transform of a stretch up to half the segment's rate [1/Hz].

        Args:
            stretch: Samples.
            start: The time that counts as zero, within the first sample [GPS s].
        """
        rate, wanted = stretch.sample_rate, self.config.segment.sample_rate
        if rate < wanted * (1 - 1e-9):
            raise InputError(
                f"frames: are sampled at {rate:g} Hz and hold nothing above {rate / 2:g} Hz, the "
                f"segment needs {wanted:g} Hz; give frames of that rate or a higher one"
            )
        if abs(len(stretch.values) - rate * self._duration) > 1e-6:
            raise InputError(
                f"margin: {self._duration:g} s at the frames' {rate:g} Hz are no whole number of "
                "samples; give another margin"
            )
        # Without its mean, which is all that a window spreads into the band.
        soft = (stretch.values - stretch.values.mean()) * tukey(
            len(stretch.values), self.margin / self._duration
        )
        spectrum = np.fft.rfft(soft)[: self._samples // 2 + 1] / rate
        late = start - stretch.start
        turns = np.arange(len(spectrum)) * (late / self._duration)
        shifted: Array = spectrum * np.exp(2j * np.pi * turns)
        return shifted

    def _scale_of_bins(self) -> Float[Array, "detector frequency"]:
        """What a spectrum is multiplied by: taper and whitening, nothing outside the band."""
        frequencies = np.arange(self._samples // 2 + 1)[self._band] / self._duration
        generated = np.arange(self.psd.shape[1]) / self.config.segment.generation_duration
        scale = np.zeros((len(self.psd), self._samples // 2 + 1))
        for row, psd in zip(scale, self.psd, strict=True):
            known = psd > 0
            density = np.exp(np.interp(frequencies, generated[known], np.log(psd[known])))
            row[self._band] = self._taper * np.sqrt(2 * self.config.segment.sample_rate / density)
        return scale

    @property
    def _taper(self) -> Float[Array, "bin"]:
        """Of a signal's start, over the band."""
        whole = replace(self.config.segment, generation_duration=self._duration)
        rise = start_taper(self.config.waveform, whole)
        taper = np.ones(self._band.stop - self._band.start)
        taper[: len(rise)] = rise[: len(taper)]
        return taper

    def _filling(self, generator: np.random.Generator) -> Complex[Array, "frequency"]:
        """Spectrum of noise that the taper's band lacks."""
        spectrum = np.zeros(self._samples // 2 + 1, complex)
        if self.fill:
            lack = np.sqrt(1 - self._taper**2)
            count = np.count_nonzero(lack)
            normal = generator.standard_normal((2, count)) * math.sqrt(self._samples / 2)
            first = self._band.start
            spectrum[first : first + count] = lack[:count] * (normal[0] + 1j * normal[1])
        return spectrum


def estimate_psd(
    frames: Frames,
    channel: str,
    stretches: Sequence[Span],
    config: SimulationConfig,
    duration: float,
    length: float,
) -> PsdEstimate:
    """The PSD of the data around some stretches, which are left out.

    Args:
        frames: The files.
        channel: Its name.
        stretches: Their surroundings are taken together.
        config: Gives the band, and the bins of the generated waveform.
        duration: Of the data before and after each stretch, together [s].
        length: Of a periodogram [s].

    Raises:
        InputError: The files hold too little around the stretches.
    """
    taken = merged(stretches)
    around = merged([Span(span.start - duration / 2, span.stop + duration / 2) for span in taken])
    there = merged(frames.pieces(channel))
    asked = without(around, taken)
    spans = common([asked, there])
    found = median_psd(frames, channel, spans, config, length)
    lacking = _room(asked, length) - _room(spans, length)
    return replace(found, wanted=found.periodograms + lacking)


def _room(spans: Sequence[Span], length: float) -> int:
    """For how many periodograms that overlap by half some spans have room."""
    return sum(
        max(0, math.floor(2 * (span.stop - span.start) / length + 1e-6) - 1) for span in spans
    )


def median_psd(
    frames: Frames,
    channel: str,
    spans: Sequence[Span],
    config: SimulationConfig,
    length: float,
) -> PsdEstimate:
    """The median of periodograms that overlap by half, softened by Hann's window.

    Source: arXiv:gr-qc/0509116, appendix B.

    Args:
        frames: The files, which cover the spans.
        channel: Its name.
        spans: The data to take.
        config: Gives the band, and the bins of the generated waveform.
        length: Of a periodogram [s].

    Raises:
        InputError: The spans hold too little.
    """
    from pycbc.psd.estimate import median_bias

    spectra: list[Array] = []
    frequencies = np.zeros(0)
    long_enough = [span for span in spans if span.stop - span.start >= length]
    for span in long_enough:
        stretch, _ = frames.read(channel, span)
        samples = round(length * stretch.sample_rate)
        frequencies, _, power = spectrogram(
            stretch.values,
            stretch.sample_rate,
            window="hann",
            nperseg=samples,
            noverlap=samples // 2,
            detrend="constant",
        )
        spectra.append(power)
    count = sum(power.shape[1] for power in spectra)
    if count < FEWEST_PERIODOGRAMS:
        raise InputError(
            f"psd: the files hold {count} periodograms of {length:g} s of {channel} to be taken, "
            f"at least {FEWEST_PERIODOGRAMS} are needed for an estimate; give files that reach "
            "further, a longer psd_duration, or a psd by name or file"
        )
    median = np.median(np.concatenate(spectra, axis=1), axis=1) / median_bias(count)
    psd = _on_bins(frequencies, median, config, channel)
    seconds = sum(span.stop - span.start for span in long_enough)
    return PsdEstimate(psd, count, seconds, count)


def _on_bins(
    frequencies: Float[Array, "bin"],
    psd: Float[Array, "bin"],
    config: SimulationConfig,
    channel: str,
) -> Float[Array, "frequency"]:
    """Interpolate an estimate, linearly in its logarithm; zero outside the analysis band."""
    segment = config.segment
    bins = np.arange(segment.generation_samples // 2 + 1) / segment.generation_duration
    band = (bins >= config.waveform.f_lower) & (bins < segment.sample_rate / 2)
    inside = psd[(frequencies >= bins[band][0]) & (frequencies <= bins[band][-1])]
    if not len(inside) or not np.all(inside > 0):
        raise InputError(
            f"psd: {channel} holds nothing at some frequency of the analysis band around the "
            "segments, so its noise cannot be estimated; give a psd by name or file"
        )
    estimate = np.zeros(len(bins))
    with np.errstate(divide="ignore"):
        logarithm = np.log(psd)
    estimate[band] = np.exp(np.interp(bins[band], frequencies, logarithm))
    return estimate
