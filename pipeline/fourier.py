"""Inverse Fourier transforms of real series, single precision, through FFTW."""

import threading
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import pyfftw
from jaxtyping import Complex, Float

from storage.arrays import Array

# FFTW's plans for the usual lengths, measured once by tests/bench/fourier_plans.py: half the time
# of those that FFTW estimates. Measured anew they would differ from run to run, and with them the
# last bits of the series.
PLANS = Path(__file__).parent / "fourier-plans.txt"
FLAGS = ("FFTW_DESTROY_INPUT",)

Fill = Callable[[Complex[Array, "frequency"]], object]


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

    def write(self, fill: Fill, bins: slice, out: Float[Array, "time"]) -> None:
        """Transform a spectrum, and write the last samples of the series.

        Args:
            fill: Writes the spectrum's bins, a discrete Fourier transform over its length, into the
                array that it is given.
            bins: Which these are; the others are zero.
            out: Takes the last samples, as many as fit.
        """
        with self._lock:
            out[:] = self._transform(fill, bins)[-len(out) :]

    def add(self, fill: Fill, bins: slice, out: Float[Array, "time"]) -> None:
        """Transform a spectrum as `write` does, and add the series to what is there."""
        with self._lock:
            out += self._transform(fill, bins)[-len(out) :]

    def _transform(self, fill: Fill, bins: slice) -> Float[Array, "time"]:
        self._spectrum[: bins.start] = 0
        self._spectrum[bins.stop :] = 0
        fill(self._spectrum[bins])
        self._plan.execute()
        series: Array = self._series
        return series


def _plan(spectrum: Complex[Array, "frequency"], series: Float[Array, "time"]) -> pyfftw.FFTW:
    """The plan that was measured for this length, or FFTW's estimate where none was."""
    _import_plans()
    make = partial(pyfftw.FFTW, spectrum, series, direction="FFTW_BACKWARD")
    try:
        return make(flags=("FFTW_PATIENT", "FFTW_WISDOM_ONLY", *FLAGS))
    except RuntimeError:
        return make(flags=("FFTW_ESTIMATE", *FLAGS))


@lru_cache(maxsize=1)
def _import_plans() -> None:
    pyfftw.import_wisdom((b"", PLANS.read_bytes(), b""))
