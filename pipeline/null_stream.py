"""The null stream: a closed triangle's channels, each shifted back by its delay, hold no signal.

The response tensors of the three interferometers add up to zero, and so do their strains once the
delays between the vertices are undone; with equal PSDs the whitened strains do too. With the
parameters known this is a test of geometry, delays, sky position and data in every event.

It cannot see response tensors that are exchanged together with nothing else, beyond what the
delays tell: their sum stays zero.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
from jaxtyping import Complex, Float
from scipy.signal.windows import tukey

from pipeline.detector import Detector, SkyPosition, time_shift
from storage.arrays import Array, as_bytes
from storage.dataset import read_psd, read_schema
from storage.encodings import Encoding
from storage.schema import Schema, shard_files
from storage.shard_reader import ShardReader
from storage.urls import Store, store_of

CLOSED = 1e-5  # of a response tensor's norm; LAL's E1, E2, E3 reach 1.4e-7
LARGEST_SHARE = 1e-4  # of the norm of a signal without noise; sound events reach 2e-5
# Share of a series without noise that rises and falls at its ends, where it is cut, before a shift:
# shifts wrap around, and with hard ends sound events reach 8e-4.
SOFT_ENDS = 0.02
AFTER_MERGER = 0.1  # the way from the geocentre and the ringdown [s]
# Of noise, in octaves and as a whole: beyond lies 1 in 10^9 of them.
LARGEST_Z = 6.0
NOT_FINITE = 1e9  # stands for what JSON cannot hold


@dataclass(frozen=True)
class NullStreamReport:
    """What the null stream says of some events.

    Attributes:
        detectors: The three that form the triangle.
        events: How many events were looked at, the loudest.
        quantity: "share", the norm of the null stream over that of the signal, or "z", by how many
            standard deviations its power in an octave, or all of it, is off that of noise.
        largest: The largest of all, to three digits.
        worst_event: The event that it was found in.
        limit: What it may be.
        passed: Whether it is.
    """

    detectors: tuple[str, ...]
    events: int
    quantity: str
    largest: float
    worst_event: int
    limit: float
    passed: bool


def closed_triangle(
    detectors: Sequence[Detector], psd: Float[Array, "detector frequency"]
) -> tuple[int, ...] | None:
    """Find three detectors that have a null stream, by their places in the network.

    Args:
        detectors: Geometry.
        psd: One-sided PSD of each detector [1/Hz].
    """
    for places in combinations(range(len(detectors)), 3):
        responses = np.array([detectors[place].response for place in places])
        size = np.linalg.norm(responses, axis=(1, 2)).min()
        closed = np.linalg.norm(responses.sum(0)) < CLOSED * size
        if closed and all(np.array_equal(psd[places[0]], psd[place]) for place in places):
            return places
    return None


def null_spectrum(
    whitened: Complex[Array, "3 frequency"],
    first_bin: int,
    frequency_step: float,
    delays: Float[Array, "3"],
) -> Complex[Array, "frequency"]:
    """Add whitened spectra up, each shifted back by its delay.

    Args:
        whitened: Before the crop.
        first_bin: Number of the first frequency bin.
        frequency_step: Spacing of the bins [Hz].
        delays: Arrival at each detector after that at the geocentre [s].
    """
    count = whitened.shape[1]
    back = [time_shift(-delay, first_bin, count, frequency_step) for delay in delays]
    total: Array = (whitened * back).sum(0)
    return total


def null_of_segment(
    strain: Float[Array, "3 time"], sample_rate: float, delays: Float[Array, "3"]
) -> Complex[Array, "frequency"]:
    """The same for stored series: the spectrum of their sum, each shifted back to the first's time.

    Args:
        strain: Whitened strain [sigma].
        sample_rate: [Hz].
        delays: Arrival at each detector after that at the geocentre [s].
    """
    spectrum = np.fft.rfft(strain.astype(np.float64))
    return null_spectrum(spectrum, 0, sample_rate / strain.shape[1], delays - delays[0])


def share_of_signal(
    strain: Float[Array, "3 time"], sample_rate: float, delays: Float[Array, "3"]
) -> float:
    """Norm of the null stream over that of the signal, for a stored signal without noise.

    Args:
        strain: Whitened strain [sigma].
        sample_rate: [Hz].
        delays: Arrival at each detector after that at the geocentre [s].
    """
    samples = strain.shape[1]
    soft = strain * tukey(samples, SOFT_ENDS)
    null = np.fft.irfft(null_of_segment(soft, sample_rate, delays), samples)
    return float(np.linalg.norm(null) / np.linalg.norm(strain.astype(np.float64)))


def noise_scores(
    null: Complex[Array, "frequency"], first_bin: int, variance: float
) -> Float[Array, "band"]:
    """By how many standard deviations the null stream's power is off that of three channels' noise.

    One score for each octave above the first 32 bins, and the last for the whole band. The squared
    magnitudes are chi-squared with two degrees of freedom a bin; their sum becomes a normal score
    by the cube root. Source: E. Wilson, M. Hilferty, Proc. Nat. Acad. Sci. 17 (1931) 684.

    Args:
        null: Of `null_of_segment`.
        first_bin: Where the analysis band begins; it ends below the Nyquist bin.
        variance: Of a channel's noise, were it to fill the whole band.
    """
    power = np.square(np.abs(null[first_bin:-1]))
    power /= 3 * variance * (len(null) - 1)  # half the samples: chi-squared with 2 degrees
    edges = [0]
    width = 32
    while edges[-1] + 2 * width < len(power):
        edges.append(edges[-1] + width)
        width *= 2
    sums = np.append(np.add.reduceat(power, edges), power.sum())
    freedom = 2 * np.append(np.diff([*edges, len(power)]), len(power))
    spread = 2 / (9 * freedom)
    scores: Array = (np.cbrt(sums / freedom) - (1 - spread)) / np.sqrt(spread)
    return scores


def check_shard(url: str | Path | Store, shard: int, events: int = 4) -> NullStreamReport | None:
    """Look at the null stream of a stored shard's loudest events.

    Args:
        url: The data set.
        shard: Number of the shard; the shard's manifest need not be there yet.
        events: How many events to look at.

    Returns:
        None where the network has no null stream, all signals end in the last 0.2 s of the
        segment, or the data set holds polarisations, or does not say where its detectors, its
        start and its band are.

    Raises:
        DamagedDataError: A file of the shard is missing or damaged.
    """
    store = store_of(url)
    schema = read_schema(store)
    if not {"detectors", "start_time", "band"} <= schema.provenance.keys():  # of another writer
        return None
    if schema.polarisations:
        return None
    detectors = [Detector.from_dict(item) for item in schema.provenance["detectors"]]
    places = closed_triangle(detectors, read_psd(store))
    if places is None:
        return None
    triangle = [detectors[place] for place in places]
    paths, numbers = shard_files(shard), schema.events_of(shard)
    parameters, snrs = (
        np.frombuffer(store.read(paths[name]), "<f8").reshape(schema.events_per_shard, -1)
        for name in ("parameters", "optimal_snr")
    )
    loudness = np.linalg.norm(snrs[: len(numbers)], axis=1)
    if not schema.noisy:  # a merger on the slope of the soft ends would leave a null stream
        duration = schema.samples / schema.sample_rate
        end = schema.provenance["start_time"] + (1 - SOFT_ENDS / 2) * duration - AFTER_MERGER
        times = parameters[: len(numbers), schema.parameter_names.index("geocent_time")]
        loudness = np.where(times < end, loudness, 0)
    loudest = np.argsort(-loudness, kind="stable")[:events]
    loudest = loudest[loudness[loudest] > 0]
    if not len(loudest):
        return None
    reader = ShardReader(store, paths["strain"], schema.events_per_shard, schema.encoding)
    codes = np.empty(schema.strain_shape, schema.encoding.dtype)
    found: list[tuple[float, int]] = []
    for row in loudest:
        reader.read(int(row), [as_bytes(codes)])
        strain = schema.encoding.decode(codes)
        source = dict(zip(schema.parameter_names, parameters[row], strict=True))
        found.append((_off(strain, places, source, triangle, schema), numbers[int(row)]))
    reader.close()
    largest, worst = max(found)
    limit = LARGEST_Z if schema.noisy else LARGEST_SHARE
    return NullStreamReport(
        detectors=tuple(detector.name for detector in triangle),
        events=len(found),
        quantity="z" if schema.noisy else "share",
        largest=float(f"{largest:.3g}"),
        worst_event=worst,
        limit=limit,
        passed=bool(largest <= limit),
    )


def delays_of(source: Mapping[str, float], detectors: Sequence[Detector]) -> Float[Array, "3"]:
    """Arrival of a source's signal at each detector after that at the geocentre [s]."""
    position = SkyPosition(*(source[name] for name in ("ra", "dec", "psi", "geocent_time")))
    return np.array([position.delay(detector) for detector in detectors])


def _off(
    strain: Float[Array, "detector time"],
    places: Sequence[int],
    source: Mapping[str, float],
    triangle: Sequence[Detector],
    schema: Schema,
) -> float:
    """The quantity that `NullStreamReport` reports, of one event."""
    delays = delays_of(source, triangle)
    encodings, three = [*schema.encodings_before, schema.encoding], strain[list(places)]
    if schema.noisy:
        first_bin = round(schema.provenance["band"][0] * schema.samples / schema.sample_rate)
        null = null_of_segment(three, schema.sample_rate, delays)
        # Rounding adds white noise of step^2/12; nothing where numbers have such a step already.
        rounding = [(encoding.scale_factor or 0.0) ** 2 / 12 for encoding in encodings]
        too_much = noise_scores(null, first_bin, 1 + sum(rounding))
        too_little = -noise_scores(null, first_bin, 1 + max(rounding))
        off = float(np.maximum(too_much, too_little).max())
    else:
        share = share_of_signal(three, schema.sample_rate, delays)
        norms = float(np.linalg.norm(strain)), float(np.linalg.norm(three))
        most = sum(_rounding(three.size, norms, encoding) for encoding in encodings)
        off = max(share - most, 0.0)
    return off if np.isfinite(off) else NOT_FINITE


def _rounding(size: int, norms: tuple[float, float], encoding: Encoding) -> float:
    """The most that an encoding's rounding adds to the null stream, in units of the norm.

    Args:
        size: Samples of the three series.
        norms: Of all detectors' series, and of those three.
        encoding: What rounded them.
    """
    of_all, of_three = norms
    if encoding.scale_factor is not None:
        return 1.1 * math.sqrt(size * encoding.scale_factor**2 / 12) / of_three
    # Relative to each sample: measured 0.23 of epsilon.
    relative = float(np.finfo(encoding.dtype).eps) / 4
    if encoding.type == "float16" and encoding.max_snr_loss is not None:
        # The norm of an error that costs so much; measured 1.01 of it, for losses up to 1e-2.
        allowed = 1.1 * math.sqrt(2 * encoding.max_snr_loss) * of_all / of_three
        return max(relative, allowed)
    return relative
