"""Inverse Fourier transforms of real series, single precision, through FFTW."""

import threading

import numpy as np
import pyfftw
from jaxtyping import Complex, Float

from storage.arrays import Array


class InverseTransform:
    """Inverse real FFTs of several series of one length, with buffers that are reused.

    Single precision: its error is 1e-7 of the series, about the rounding of float32, in which
    strain is stored at best, at half the time of double.
    """

    def __init__(self, rows: int, samples: int) -> None:
        self._spectrum = pyfftw.empty_aligned((rows, samples // 2 + 1), np.complex64)
        self._series = pyfftw.empty_aligned((rows, samples), np.float32)
        # FFTW's estimate of the best plan: a measured one, a third faster, would differ from run to
        # run, and the last bits of the result with it.
        self._plan = pyfftw.FFTW(
            self._spectrum,
            self._series,
            direction="FFTW_BACKWARD",
            flags=("FFTW_ESTIMATE", "FFTW_DESTROY_INPUT"),
        )
        self._scale = 1 / samples
        self._lock = threading.Lock()

    def __call__(
        self, spectrum: Complex[Array, "row frequency"], first_bin: int, start: int = 0
    ) -> Float[Array, "row time"]:
        """Transform, and return the samples from `start` on.

        Args:
            spectrum: Bins of a discrete Fourier transform; those outside are zero.
            first_bin: Number of the first of them.
            start: First sample to return.
        """
        last_bin = first_bin + spectrum.shape[1]
        with self._lock:
            self._spectrum[:, :first_bin] = 0
            self._spectrum[:, last_bin:] = 0
            bins = self._spectrum[:, first_bin:last_bin]
            np.multiply(spectrum, self._scale, out=bins, casting="same_kind")
            self._plan.execute()
            series: Array = self._series[:, start:].copy()
        return series
