"""Are posteriors calibrated? Ranks of the truth, and tests of whether they are uniform.

If the posteriors are right, the truth is one more draw from each, so that its rank among the
samples is uniform: in every parameter (P-P and SBC), and in the distance from a point that knows
nothing of the truth (TARP). Here the ranks are made continuous by a random share, so that they are
uniform exactly, however few samples there are, if these are of equal weight. Among samples with
importance weights they are so only in the limit of many effective ones.

TARP is written here, not taken from `sbi`: it is twenty lines, `sbi` brings many packages, and what
it has knows neither weights nor angles. `docs/posteriors.md` says how the two were compared.

Source: arXiv:1804.06788 (SBC); arXiv:2302.03026 (TARP); arXiv:0804.1561 and arXiv:1409.7215 section
VI (P-P plots of credible levels); arXiv:1808.09011 (one p-value from dependent ones).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int64
from scipy.stats import cauchy, chisquare, kstest

from storage.arrays import Array

EVENTS_A_BIN = 10  # the chi-square distribution holds from about five on
MOST_BINS = 20
LARGEST_P_VALUE = 0.99  # so that one test that fits too well hides no other


@dataclass(frozen=True)
class Weighted:
    """Samples with weights.

    Attributes:
        samples: In the units of their parameters.
        weights: Of each sample; their sum is 1.
    """

    samples: Float[Array, "sample parameter"]
    weights: Float[Array, "sample"]

    @property
    def effective(self) -> float:
        """How many samples of equal weight say as much: 1 / sum w^2."""
        return 1.0 / float((self.weights**2).sum())


def truth_ranks(
    values: Float[Array, "sample column"],
    truth: Float[Array, "column"],
    posterior: Weighted,
    shares: Float[Array, "column"],
) -> Float[Array, "column"]:
    """Rank of the truth among samples, from 0 to 1: uniform if the samples are right.

    The truth counts as one sample more, of the weight that an effective one has; among equals it
    takes the place that its random share says. That is exact for equal weights, and close where at
    least `FEWEST_EFFECTIVE` samples are effective.

    Args:
        values: Some function of the samples, in each column.
        truth: The same function of the truth.
        posterior: The samples, for their weights.
        shares: Random numbers in [0, 1).

    Source: arXiv:1804.06788, theorem 1.
    """
    below = posterior.weights @ (values < truth)
    equal = posterior.weights @ (values == truth)
    count = posterior.effective
    ranks = (count * (below + shares * equal) + shares) / (count + 1)
    return np.asarray(np.clip(ranks, 0.0, 1.0))


def tarp_rank(
    posterior: Weighted,
    truth: Float[Array, "parameter"],
    reference: Float[Array, "parameter"],
    share: float,
    periodic: Sequence[bool] = (),
    scales: Float[Array, "parameter"] | None = None,
) -> float:
    """Share of the samples that lie nearer to a reference point than the truth does.

    Args:
        posterior: Samples in the unit cube.
        truth: In the unit cube.
        reference: A point that does not depend on the truth.
        share: A random number in [0, 1).
        periodic: Which parameters are the same at 0 and 1; none by default.
        scales: What a distance is measured in, in each parameter; may depend on the samples, but
            not on the truth. 1 by default.

    Source: arXiv:2302.03026, algorithm 2.
    """
    around = np.array(periodic or [False] * len(truth))
    units = np.ones(len(truth)) if scales is None else scales

    def distance(points: Float[Array, "... parameter"]) -> Float[Array, "..."]:
        away = np.abs(points - reference)
        away = np.where(around, np.minimum(away, 1 - away), away)
        return np.asarray(((away / units) ** 2).sum(axis=-1))

    distances = distance(posterior.samples)[:, None]
    rank = truth_ranks(distances, distance(truth)[None], posterior, np.array([share]))
    return float(rank[0])


def coverage(ranks: Float[Array, "event"], levels: Float[Array, "level"]) -> Float[Array, "level"]:
    """Expected coverage: the share of events whose rank lies below each credible level."""
    return np.searchsorted(np.sort(ranks), levels, side="right") / len(ranks)


def rank_counts(ranks: Float[Array, "event"]) -> Int64[Array, "bin"]:
    """Histogram of ranks, with bins that hold enough events for a chi-square test."""
    bins = int(np.clip(len(ranks) // EVENTS_A_BIN, 2, MOST_BINS))
    return np.histogram(ranks, bins, (0.0, 1.0))[0].astype(np.int64)


def ks_p_value(ranks: Float[Array, "event"]) -> float:
    """P-value of uniform ranks, Kolmogorov-Smirnov: sees what is shifted."""
    return float(kstest(ranks, "uniform").pvalue)


def chi_square_p_value(ranks: Float[Array, "event"]) -> float:
    """P-value of uniform ranks, of their histogram: sees what is too narrow or too wide."""
    return float(chisquare(rank_counts(ranks)).pvalue)


def combine(p_values: Sequence[float]) -> float:
    """One p-value of several, which need not be independent: the Cauchy combination.

    Fisher's method takes them for independent: of 15 strongly correlated parameters it refuses a
    good posterior with a probability of 21 % at a level of 5 %.

    Source: arXiv:1808.09011, equation 1.
    """
    capped = np.clip(p_values, 1e-15, LARGEST_P_VALUE)
    return float(cauchy.sf(np.tan((0.5 - capped) * np.pi).mean()))


@dataclass(frozen=True)
class Calibration:
    """P-values of posteriors that are right.

    Attributes:
        ks: Of the ranks in each parameter, Kolmogorov-Smirnov (the P-P test).
        chi_square: Of the histogram of ranks in each parameter (SBC).
        tarp: Of the coverage of all parameters together (TARP), both tests. A wrong correlation
            makes it too narrow from some points and too wide from others: chi-square sees that.
    """

    ks: tuple[float, ...]
    chi_square: tuple[float, ...]
    tarp: float

    @property
    def families(self) -> tuple[float, float, float]:
        """One p-value of P-P, of SBC and of TARP."""
        return combine(self.ks), combine(self.chi_square), self.tarp

    @property
    def combined(self) -> float:
        """One p-value of everything, in which each of the three has a third of the say.

        So TARP, which is one number, counts as much as the ranks, which are one a parameter.
        """
        return combine(self.families)


def calibration(
    ranks: Float[Array, "event parameter"], tarp_ranks: Float[Array, "event"]
) -> Calibration:
    """Test ranks.

    Args:
        ranks: Of the truth in each parameter.
        tarp_ranks: Of the truth's distance from the reference point.
    """
    return Calibration(
        ks=tuple(ks_p_value(column) for column in ranks.T),
        chi_square=tuple(chi_square_p_value(column) for column in ranks.T),
        tarp=combine((ks_p_value(tarp_ranks), chi_square_p_value(tarp_ranks))),
    )
