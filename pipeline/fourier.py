"""Inverse Fourier transforms of real series, single precision, through FFTW."""

import threading
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyfftw
from jaxtyping import Complex, Float

from storage.arrays import Array

# FFTW's plans for the usual lengths, measured once by tests/bench/fourier_plans.py: half the time of
# those that FFTW estimates. Measured anew they would differ from run to run, and with them the last
# bits of the series.
PLANS = Path(__file__).parent / "fourier-plans.txt"
FLAGS = ("FFTW_DESTROY_INPUT",)


class InverseTransform:
    """Inverse real FFTs of series of one length, one after the other in the same buffers.

    One series at a time stays in the processor's cache. Single precision: its error is 1e-7 of the
    series, about the rounding of float32, in which strain is stored at best, at half the time.

    Args:
        samples: Length of a series.
    """

    def __init__(self, samples: int) -> None:
        self._samples = samples
        self._spectrum = pyfftw.empty_aligned(samples // 2 + 1, np.complex64)
        self._series = pyfftw.empty_aligned(samples, np.float32)
        self._plan = _plan(self._spectrum, self._series)
        self._lock = threading.Lock()

    def __call__(
        self,
        spectra: Iterable[Complex[Array, "frequency"]],
        first_bin: int,
        out: Float[Array, "row time"],
    ) -> Float[Array, "row time"]:
        """Transform spectra, and keep the last samples of each series.

        Args:
            spectra: Bins of discrete Fourier transforms; those outside are zero. Made one by one.
            first_bin: Number of the first of them.
            out: Takes the series; of each its last samples, as many as fit.
        """
        start = self._samples - out.shape[1]
        with self._lock:
            for spectrum, row in zip(spectra, out, strict=True):
                last_bin = first_bin + len(spectrum)
                self._spectrum[:first_bin] = 0
                self._spectrum[last_bin:] = 0
                bins = self._spectrum[first_bin:last_bin]
                np.multiply(spectrum, 1 / self._samples, out=bins, casting="same_kind")
                self._plan.execute()
                row[:] = self._series[start:]
        return out


def _plan(spectrum: Complex[Array, "frequency"], series: Float[Array, "time"]) -> pyfftw.FFTW:
    """The plan that was measured for this length, or FFTW's estimate where none was."""
    _import_plans()
    try:
        flags = ("FFTW_PATIENT", "FFTW_WISDOM_ONLY", *FLAGS)
        return pyfftw.FFTW(spectrum, series, direction="FFTW_BACKWARD", flags=flags)
    except RuntimeError:
        flags = ("FFTW_ESTIMATE", *FLAGS)
        return pyfftw.FFTW(spectrum, series, direction="FFTW_BACKWARD", flags=flags)


@lru_cache(maxsize=1)
def _import_plans() -> None:
    pyfftw.import_wisdom((b"", PLANS.read_bytes(), b""))
