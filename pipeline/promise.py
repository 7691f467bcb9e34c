"""Which encoding keeps a promise about the SNR for the events of a recipe."""

from collections import Counter

import numpy as np

from pipeline.config import DatasetConfig
from pipeline.simulate import Simulator
from pipeline.waveform import WaveformError
from storage.encodings import (
    Encoding,
    certified,
    default_loss,
    encoding_for,
    encoding_named,
)

DRAWS = 16
# Peaks of signals that these draws did not see, in units of the largest that they did.
MARGIN = 2.0
# Without an upper end of the SNR window: the loudest event, in units of the loudest draw.
FAR_LOUDER = 10.0
LARGEST_OF_NOISE = 7.0  # of 2 x 10^11 samples [sigma]


def encoding_of(config: DatasetConfig, simulator: Simulator) -> Encoding:
    """The encoding that a configuration asks for, or the smallest that keeps its promise.

    Args:
        config: What is to be stored.
        simulator: Of its events.

    Raises:
        InputError: The encoding is not known, or the promise impossible.
    """
    if config.encoding is not None:
        return certified(encoding_named(config.encoding), config.max_snr_loss)
    noisy = config.noise != "none"
    loss = default_loss(noisy) if config.max_snr_loss is None else config.max_snr_loss
    samples = len(simulator.detectors) * config.segment.samples  # of noisy strain, which needs it
    return encoding_for(loss, noisy, largest_peak(simulator), samples=samples)


def largest_peak(simulator: Simulator) -> float:
    """Predict the largest magnitude of a sample in any event of a recipe [sigma]."""
    generator = np.random.default_rng(0)
    snrs, peaks = [], []
    for _ in range(DRAWS):
        parameters = simulator.draw_allowed(0, generator, Counter())
        try:
            waves = simulator.waves(parameters)
        except WaveformError:
            continue
        if simulator.config.stored == "strain":
            signal = simulator.signal_of(waves, parameters)
        else:
            signal = simulator.series.of(waves, parameters["luminosity_distance"])
        snrs.append(float(np.sqrt(np.sum(np.square(signal, dtype=np.float64)))))
        peaks.append(float(np.abs(signal).max()))
    ratios = [peak / snr for peak, snr in zip(peaks, snrs, strict=True) if snr > 0]
    loudest = FAR_LOUDER * max(snrs, default=0.0)
    if simulator.config.stored == "strain":
        loudest = min(simulator.config.network_snr.maximum, loudest)
    noise = LARGEST_OF_NOISE if simulator.config.noise != "none" else 0.0
    return MARGIN * max(ratios, default=1.0) * loudest + noise
