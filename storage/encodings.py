"""How whitened strain becomes bytes, and what that costs in signal-to-noise ratio.

Whitened strain is in units of sigma, the standard deviation of one sample of full-band noise. An
integer encoding stores `rint(strain / scale_factor)` with one scale for the whole data set, which
every CF-aware reader undoes. The most negative integer is never written: it is the fill value, so
that data which are not there read as NaN and not as silence.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Num

from storage.arrays import Array
from storage.errors import InputError


@dataclass(frozen=True)
class Encoding:
    """One way to store strain.

    Attributes:
        name: The name on the command line; also numpy's name of the stored type.
        scale_factor: Sigma per integer step; None where the stored numbers are sigma themselves.
    """

    name: str
    scale_factor: float | None = None

    @property
    def dtype(self) -> np.dtype[Any]:
        """The stored type, little-endian."""
        return np.dtype(self.name).newbyteorder("<")

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

    def encode(self, strain: Float[Array, "*shape"], event: int) -> Num[Array, "*shape"]:
        """Encode one event.

        Args:
            strain: Whitened strain [sigma].
            event: Its number, for the message if it does not fit.

        Raises:
            InputError: The strain is not finite, or its peak exceeds what the encoding can hold.
        """
        peak = float(max(strain.max(), -strain.min()))
        if not peak <= self.limit:  # also where the peak is NaN
            raise InputError(
                f"event {event}: its peak of {peak:.4g} sigma does not fit the encoding "
                f"{self.name}, which holds up to {self.limit:.4g} sigma; use "
                f"{'float32' if self.name in ('float16', 'int16') else 'int16'} or lower the "
                "maximum of network_snr"
            )
        if self.scale_factor is None:
            return strain.astype(self.dtype, copy=False)
        return np.rint(strain / self.scale_factor).astype(self.dtype)

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
        stored signal with the true one.
        """
        if self.name == "float32":
            return 0.0
        stored = self.decode(codes)
        if noisy:
            return float(1 - 1 / np.sqrt(1 + np.mean(np.square(stored - strain), dtype=np.float64)))
        exact, stored = strain.astype(np.float64), stored.astype(np.float64)
        # Not np.vdot: BLAS adds up in another order on another kind of CPU, and this is recorded.
        norms = np.sqrt(np.sum(exact * exact) * np.sum(stored * stored))
        return max(0.0, float(1 - np.sum(exact * stored) / norms)) if norms > 0 else 1.0


ENCODINGS: dict[str, Encoding] = {
    encoding.name: encoding
    for encoding in (
        Encoding("float32"),
        Encoding("float16"),
        # +-512 sigma, far above any peak of a binary in ET; costs 1e-5 of the SNR.
        Encoding("int16", scale_factor=1 / 64),
        # +-15.9 sigma; costs 6.5e-4. Signals of `et-bbh` peak at 0.076 of their network SNR at most
        # (250 events), noise adds about 5 sigma: safe up to a network SNR of 100.
        Encoding("int8", scale_factor=1 / 8),
    )
}


def encoding_named(name: str) -> Encoding:
    """Look an encoding up by name.

    Raises:
        InputError: There is none of that name.
    """
    if name not in ENCODINGS:
        raise InputError(f"encoding: got {name!r}, known are {', '.join(ENCODINGS)}")
    return ENCODINGS[name]
