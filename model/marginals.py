"""One parameter of one posterior: how wide it is, and how far from another one."""

import math
from typing import Literal

import numpy as np
from jaxtyping import Float
from scipy.ndimage import gaussian_filter1d

from storage.arrays import Array

CELLS = 1000  # of the grid on which densities are compared
LARGEST_BANDWIDTH = 0.1  # of the samples' range


def shortest_interval(
    samples: Float[Array, "sample"],
    weights: Float[Array, "sample"],
    share: float = 0.9,
    period: float = 0.0,
) -> float:
    """Length of the shortest interval that holds a share of the samples, in their unit.

    Args:
        samples: Of one parameter.
        weights: Of the samples; their sum is 1.
        share: Of the weights.
        period: After which the parameter is the same again: then the interval may reach over the
            end. 0 for none.
    """
    order = np.argsort(samples)
    values, below = samples[order], np.cumsum(weights[order])
    if period:
        values, below = np.r_[values, values + period], np.r_[below, below + below[-1]]
    before = np.r_[0.0, below[:-1]]
    last = np.searchsorted(below, before + share * (1 - 1e-9))
    reaches = last < len(values)
    return float((values[last[reaches]] - values[reaches]).min())


def jensen_shannon(
    samples: Float[Array, "sample"], weights: Float[Array, "sample"], period: float = 0.0
) -> float:
    """Jensen-Shannon divergence between samples without and with their weights [nats].

    From 0, where the weights change nothing, to log 2 = 0.69, where nothing is left of what was
    there. Both densities are smoothed by the same kernel, as wide as Silverman's rule has it for
    the effective number of the weighted samples; so equal weights give 0 exactly, and few effective
    samples, whose density is not known any better, do not give a large divergence by their
    scatter alone.

    Args:
        samples: Of one parameter.
        weights: Of the samples; their sum is 1.
        period: After which the parameter is the same again; 0 for none.

    Source: J. Lin, IEEE Trans. Inf. Theory 37 (1991) 145, equation 4.1, with natural logarithms.
    """
    if period:  # cut it where it is emptiest: opposite to the mean direction
        mean = np.angle(np.exp(2j * np.pi / period * samples).mean()) * period / (2 * np.pi)
        samples = (samples - mean + period / 2) % period
    low, high = (0.0, period) if period else (samples.min(), samples.max())
    if not samples.max() > samples.min():
        return 0.0
    cell = np.minimum(((samples - low) / (high - low) * CELLS).astype(np.int64), CELLS - 1)
    equal = np.full(len(samples), 1 / len(samples))
    before, after = (np.bincount(cell, w, minlength=CELLS) for w in (equal, weights))
    width = CELLS * _bandwidth(samples, weights) / (high - low)
    mode: Literal["wrap", "reflect"] = "wrap" if period else "reflect"
    before, after = (gaussian_filter1d(d, width, mode=mode, truncate=5) for d in (before, after))
    middle = (before + after) / 2
    return float((_divergence(before, middle) + _divergence(after, middle)) / 2)


def _bandwidth(samples: Float[Array, "sample"], weights: Float[Array, "sample"]) -> float:
    """Silverman's rule in its robust form, for the effective number of weighted samples."""
    order = np.argsort(samples)
    below = np.cumsum(weights[order])
    low, high = samples[order][np.searchsorted(below, (0.25, 0.75)).clip(max=len(samples) - 1)]
    mean = weights @ samples
    deviation = math.sqrt(max(weights @ (samples - mean) ** 2, 0.0))
    width = min(deviation, float(high - low) / 1.34) or deviation
    bandwidth = 0.9 * width * float((weights**2).sum()) ** 0.2
    return float(min(bandwidth, LARGEST_BANDWIDTH * np.ptp(samples)))


def _divergence(one: Float[Array, "cell"], other: Float[Array, "cell"]) -> float:
    """Kullback-Leibler divergence [nats]."""
    there = one > 0
    return float((one[there] * np.log(one[there] / other[there])).sum())
