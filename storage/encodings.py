"""How whitened strain becomes bytes, and what that costs in signal-to-noise ratio.

Whitened strain is in units of sigma, the standard deviation of one sample of full-band noise. An
integer encoding stores `rint(strain / scale_factor)` with one scale for the whole data set, which
every CF-aware reader undoes. The most negative integer is never written: it is the fill value, so
that data which are not there read as NaN and not as silence.

Where a largest loss is promised, each event is measured against it before it is written. Rounding
noisy strain costs an incoherent share of the SNR, which one step for all events keeps. Rounding a
signal alone costs a coherent one, which depends on how loud it is: each event is rounded to a power
of two of its own, and stored in float16, of which compression then drops the bits that are zero.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float, Num

from storage.arrays import Array
from storage.errors import InputError, PeakError

COMPRESSED = "+blosc"
LOSS_OF_NOISY, LOSS_OF_NOISE_FREE = 1e-3, 1e-4
# With a coarser step the errors of rounding noise depend on the noise: their power is no longer
# step^2 / 12, which the check of a shard's null stream counts on to 6 standard deviations. Here it
# is off by 6e-7, 0.002 of those in 2^24 samples; where 0.1 are lost by 0.0026, which is 8 of them.
LARGEST_LOSS = 0.05
# By which the power of rounding errors may exceed their mean: it scatters by sqrt(0.8 / samples),
# 0.2 % of 200,000 samples, and in 10^9 events seven times as far.
_SPREAD, _SPREAD_OF_FEW = 1.02, 7 * math.sqrt(0.8)
_USUAL_SAMPLES = 196_608  # of an event
# float16 itself costs a signal 2e-8.
_LEAST_OF_FLOAT16 = 1e-7


@dataclass(frozen=True)
class Blosc:
    """Settings of Blosc. A reader needs none of them: they stand in each frame.

    Attributes:
        cname: The codec inside.
        clevel: Its level.
        shuffle: noshuffle, shuffle (bytes) or bitshuffle.
    """

    cname: str
    clevel: int
    shuffle: str


# Measured on events of et-bbh, `notebooks/encodings.ipynb`. int8 has no structure beyond the
# frequencies of its values, which zstd's first level codes within 2 % of the entropy; bits of int16
# have to be sorted first, and the first level gives up on planes of them that the second still
# codes. Higher levels cost much and gain nothing, but for signals without noise.
_BLOSC = {
    "float32": Blosc("zstd", 1, "shuffle"),
    "float16": Blosc("zstd", 3, "shuffle"),
    "int16": Blosc("zstd", 2, "bitshuffle"),
    "int8": Blosc("zstd", 1, "noshuffle"),
}


@dataclass(frozen=True)
class Encoding:
    """One way to store strain.

    Attributes:
        type: numpy's name of the stored type.
        scale_factor: Sigma per integer step; None where the stored numbers are sigma themselves.
        compressed: Whether each event is a Blosc frame.
        max_snr_loss: The largest share of its SNR that an event may lose; None for no promise.
    """

    type: str
    scale_factor: float | None = None
    compressed: bool = False
    max_snr_loss: float | None = None

    @property
    def name(self) -> str:
        """The name on the command line and in the metadata."""
        return self.type + (COMPRESSED if self.compressed else "")

    @property
    def dtype(self) -> np.dtype[Any]:
        """The stored type, little-endian."""
        return np.dtype(self.type).newbyteorder("<")

    @property
    def blosc(self) -> Blosc | None:
        """How it is compressed."""
        return _BLOSC[self.type] if self.compressed else None

    @property
    def limit(self) -> float:
        """The largest magnitude that can be stored [sigma]."""
        if self.scale_factor is None:
            return float(np.finfo(self.dtype).max)
        return float(np.iinfo(self.dtype).max) * self.scale_factor

    @property
    def fill_value(self) -> int | str:
        """What stands, in Zarr's JSON, for data that are not there."""
        return "NaN" if self.scale_factor is None else int(np.iinfo(self.dtype).min)

    def encode(
        self, strain: Float[Array, "*shape"], event: int, noisy: bool = True
    ) -> Num[Array, "*shape"]:
        """Encode one event.

        Args:
            strain: Whitened strain [sigma].
            event: Its number, for the message if it does not fit.
            noisy: Whether it holds noise, or a signal alone.

        Raises:
            InputError: The strain is not finite, or its peak exceeds what the encoding can hold.
        """
        if self.type == "float32":
            # One pass over the numbers in place of two; a sum that overflows proves nothing.
            with np.errstate(over="ignore", invalid="ignore"):
                total = np.add.reduce(strain, axis=None, dtype=np.float32)
            if np.isfinite(total):
                return strain.astype(self.dtype, copy=False)
        peak = float(max(strain.max(), -strain.min()))
        if not peak <= self.limit:  # also where the peak is NaN
            # The step of int16 may break a promise.
            holds = self.type == "int8" and self.max_snr_loss is None
            wider = "int16" if holds and peak <= ENCODINGS["int16"].limit else "float32"
            raise PeakError(
                f"event {event}: its peak of {peak:.4g} sigma does not fit the encoding "
                f"{self.name}, which holds up to {self.limit:.4g} sigma; name the encoding {wider}"
                f"{COMPRESSED if self.compressed else ''}"
            )
        if self.scale_factor is not None:
            return np.rint(strain / self.scale_factor).astype(self.dtype)
        if self.type == "float16" and self.max_snr_loss is not None and not noisy:
            return self._coarsest(strain)
        return strain.astype(self.dtype, copy=False)

    def _coarsest(self, strain: Float[Array, "*shape"]) -> Num[Array, "*shape"]:
        """Round a signal to a power of two that keeps the promise: the largest, or nearly so."""
        assert self.max_snr_loss is not None, "nothing is promised"
        norm = np.sqrt(np.sum(np.square(strain, dtype=np.float64)))
        if norm == 0:
            return strain.astype(self.dtype)
        # Were all samples larger than the step, it would lose step^2 / 24 of their mean square.
        expected = norm * math.sqrt(24 * self.max_snr_loss / strain.size)
        step = 2.0 ** math.floor(math.log2(2 * expected))
        smallest = float(np.finfo(self.dtype).smallest_subnormal)
        while step > smallest:
            codes = (np.rint(strain / step) * step).astype(self.dtype)
            if self.snr_loss(strain, codes, noisy=False) <= self.max_snr_loss:
                return codes
            step /= 2
        return strain.astype(self.dtype)

    def decode(self, codes: Num[Array, "*shape"]) -> Float[Array, "*shape"]:
        """Turn stored numbers back into whitened strain [sigma], float32."""
        strain = codes.astype(np.float32)
        return strain if self.scale_factor is None else strain * np.float32(self.scale_factor)

    def snr_loss(
        self, strain: Float[Array, "*shape"], codes: Num[Array, "*shape"], noisy: bool
    ) -> float:
        """Measure the share of the SNR that the encoding took from one event.

        In noisy strain the rounding error acts as more noise of variance e^2, which costs a factor
        1/sqrt(1 + e^2). In a noise-free signal it is coherent: what counts is the overlap of the
        stored signal with the true one. A signal that vanishes has lost everything.
        """
        if self.type == "float32":
            return 0.0
        stored = self.decode(codes)
        if noisy:
            return float(1 - 1 / np.sqrt(1 + np.mean(np.square(stored - strain), dtype=np.float64)))
        exact, stored = strain.astype(np.float64), stored.astype(np.float64)
        # Not np.vdot: BLAS adds up in another order on another kind of CPU, and this is recorded.
        norms = np.sqrt(np.sum(exact * exact) * np.sum(stored * stored))
        if norms > 0:
            return max(0.0, float(1 - np.sum(exact * stored) / norms))
        return 1.0 if np.any(exact) else 0.0

    def certify(
        self,
        strain: Float[Array, "*shape"],
        codes: Num[Array, "*shape"],
        noisy: bool,
        event: int,
    ) -> float:
        """Measure the loss of an event, and hold it against what was promised.

        Raises:
            InputError: The event has lost more.
        """
        loss = self.snr_loss(strain, codes, noisy)
        if self.max_snr_loss is not None and loss > self.max_snr_loss:
            raise InputError(
                f"event {event}: the encoding {self.name} takes {loss:.3g} of its SNR, "
                f"{self.max_snr_loss:.3g} was promised (max_snr_loss); allow more, name no "
                "encoding (the smallest that keeps the promise is chosen), or name float32+blosc, "
                "which loses nothing"
            )
        return loss


ENCODINGS: dict[str, Encoding] = {
    encoding.name: encoding
    for compressed in (False, True)
    for encoding in (
        Encoding("float32", compressed=compressed),
        Encoding("float16", compressed=compressed),
        # +-512 sigma, far above any peak of a binary in ET; costs 1e-5 of the SNR.
        Encoding("int16", scale_factor=1 / 64, compressed=compressed),
        # +-15.9 sigma; costs 6.5e-4. Signals of `et-bbh` peak at 0.076 of their network SNR at most
        # (250 events), noise adds about 5 sigma: safe up to a network SNR of 100.
        Encoding("int8", scale_factor=1 / 8, compressed=compressed),
    )
}


_FLOAT16 = Encoding("float16", compressed=True)


def encoding_named(name: str) -> Encoding:
    """Look an encoding up by name.

    Raises:
        InputError: There is none of that name.
    """
    if name not in ENCODINGS:
        raise InputError(f"encoding: got {name!r}, known are {', '.join(ENCODINGS)}")
    return ENCODINGS[name]


def certified(encoding: Encoding, max_snr_loss: float | None) -> Encoding:
    """The same encoding, held to a promise; None for no promise.

    Raises:
        InputError: The promise is impossible.
    """
    if max_snr_loss is not None and not 0 <= max_snr_loss <= LARGEST_LOSS:
        raise InputError(
            f"max_snr_loss: got {max_snr_loss:g}, the share of the SNR that an event may lose lies "
            f"between 0 (none) and {LARGEST_LOSS:g} (beyond, the checks of shards cannot tell what "
            "is rounded from what is wrong); give one such as 1e-3"
        )
    return replace(encoding, max_snr_loss=max_snr_loss)


def default_loss(noisy: bool) -> float:
    """What is promised where neither an encoding nor a loss is asked for."""
    return LOSS_OF_NOISY if noisy else LOSS_OF_NOISE_FREE


def encoding_for(
    max_snr_loss: float,
    noisy: bool,
    largest_peak: float,
    source: Encoding | None = None,
    samples: int = _USUAL_SAMPLES,
) -> Encoding:
    """Choose the encoding that takes the fewest bytes and keeps a promise.

    Args:
        max_snr_loss: The largest share of its SNR that an event may lose.
        noisy: Whether the strain holds noise of unit variance, or signals alone.
        largest_peak: That any event may have [sigma].
        source: How the strain is stored that is to be stored again.
        samples: Of an event, in all detectors; the loss of few scatters more.

    Raises:
        InputError: The promise is impossible.
    """
    if not noisy and max_snr_loss >= _LEAST_OF_FLOAT16 and largest_peak < _FLOAT16.limit:
        return certified(_FLOAT16, max_snr_loss)
    if noisy and 0 < max_snr_loss <= LARGEST_LOSS:
        there = (source.scale_factor if source is not None else None) or 0.0
        step = _step_that_loses(max_snr_loss, samples, there)
        if source is not None and step < there:  # what has a step needs no finer one
            return certified(replace(source, compressed=True), max_snr_loss)
        for name in ("int8", "int16"):
            encoding = Encoding(name, step, compressed=True)
            if largest_peak <= encoding.limit:
                return certified(encoding, max_snr_loss)
    return certified(Encoding("float32", compressed=True), max_snr_loss)


def _step_that_loses(loss: float, samples: int, there: float = 0.0) -> float:
    """The largest step of six significant bits that costs noisy strain at most this.

    Args:
        loss: That is allowed.
        samples: Of an event.
        there: The step that the strain has already. Rounding numbers with a step costs up to
            step^2 / 6 more than rounding others: to twice the step, each second one lies halfway.
    """
    variance = math.expm1(-2 * math.log1p(-loss))  # of the error: 1 / (1 - loss)^2 - 1
    spread = max(_SPREAD, 1 + _SPREAD_OF_FEW / math.sqrt(samples))
    square = 12 * (variance / spread - there**2 / 6)
    if square <= 0:
        return 0.0
    step = math.sqrt(square)
    unit = 2.0 ** (math.floor(math.log2(step)) - 5)
    return math.floor(step / unit) * unit
