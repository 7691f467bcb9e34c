"""Measures FFTW's plans, and keeps them where `pipeline.fourier` reads them.

    python tests/bench/fourier_plans.py

Only for a new FFTW, or a new length of series: other plans round in another way, so data sets that
were begun with the old ones are not finished with the new ones.
"""

import time
from pathlib import Path

import numpy as np
import pyfftw

import pipeline.fourier

LENGTHS = [2**power for power in range(12, 20)]


def seconds(flags: tuple[str, ...], samples: int) -> float:
    """Median time of a transform."""
    spectrum = pyfftw.zeros_aligned(samples // 2 + 1, np.complex64)
    series = pyfftw.zeros_aligned(samples, np.float32)
    plan = pyfftw.FFTW(spectrum, series, direction="FFTW_BACKWARD", flags=flags)
    times = []
    for _ in range(200):
        start = time.perf_counter()
        plan.execute()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def main() -> None:
    pyfftw.forget_wisdom()
    for samples in LENGTHS:
        estimated = seconds(("FFTW_ESTIMATE", *pipeline.fourier.FLAGS), samples)
        measured = seconds(("FFTW_PATIENT", *pipeline.fourier.FLAGS), samples)
        print(
            f"{samples:7d} samples: {1e6 * estimated:7.1f} -> {1e6 * measured:7.1f} us", flush=True
        )
    _, single, _ = pyfftw.export_wisdom()
    Path(pipeline.fourier.PLANS).write_bytes(single)


if __name__ == "__main__":
    main()
