"""Importance weights, the evidence that follows, and whether they are to be trusted."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float
from scipy.special import logsumexp

from storage.arrays import Array
from storage.posterior import FEWEST_EFFECTIVE, IMPOSSIBLE, Exact

RESPECTABLE = 0.01  # efficiency, of a network for 15 parameters
FAILED = 0.001  # efficiency, below which the samples say nothing of the posterior
MOST_OF_ALL = 0.5  # of all weight, in one sample
RELIABLE_K = 0.7  # above, the weights' mean converges too slowly: arXiv:1507.02646
FEWEST_IN_TAIL = 5


@dataclass(frozen=True)
class Verdict:
    """Whether reweighted samples are to be trusted.

    Attributes:
        flag: ok; poor: usable with care; failed: the samples miss the posterior.
        reason: Of what is not ok, in words.
    """

    flag: Literal["ok", "poor", "failed"]
    reason: str


def weigh(
    log_likelihood: Float[Array, "sample"],
    log_prior: Float[Array, "sample"],
    log_prob: Float[Array, "sample"],
    log_noise_evidence: float,
    prior_error: float,
) -> Exact:
    """Weight samples by likelihood times prior over the density that they were drawn from.

    The evidence's error is sqrt((1 - efficiency) / (efficiency n)), relative to it, and the
    prior's added in quadrature.

    Args:
        log_likelihood: Log likelihood ratio of signal to noise; -inf where there is no signal.
        log_prior: Log prior density; -inf where there is none.
        log_prob: Log density of the estimator.
        log_noise_evidence: Log likelihood of noise alone.
        prior_error: Relative standard error of the prior's normalisation.

    Source: arXiv:2210.05686, equations 2 to 4.
    """
    log_weights = log_likelihood + log_prior - log_prob
    count, peak = len(log_weights), log_weights.max()
    if peak == -np.inf:
        weights, log_evidence, error = np.zeros(count), IMPOSSIBLE, -IMPOSSIBLE
    else:
        weights = np.exp(log_weights - peak)
        weights /= weights.mean()
        log_evidence = float(logsumexp(log_weights)) - math.log(count)
        effective = weights.sum() ** 2 / (weights**2).sum()
        monte_carlo = math.sqrt(max(0.0, 1 - effective / count) / effective)
        error = math.hypot(monte_carlo, prior_error)
    return Exact(
        log_likelihood=np.maximum(log_likelihood, IMPOSSIBLE),
        log_prior=np.maximum(log_prior, IMPOSSIBLE),
        weights=weights,
        log_evidence=log_evidence,
        log_evidence_error=error,
        log_noise_evidence=log_noise_evidence,
    )


def judge(exact: Exact) -> Verdict:
    """Say whether the weights are to be trusted."""
    if not exact.weights.any():
        return Verdict("failed", "no sample is possible under the likelihood and the prior")
    efficiency, largest = exact.efficiency, largest_share(exact.weights)
    if efficiency < FAILED:
        return Verdict("failed", f"efficiency {efficiency:.2g}, below {FAILED:g}")
    if largest > MOST_OF_ALL:
        return Verdict("failed", f"one sample holds {largest:.0%} of all weight")
    if efficiency < RESPECTABLE:
        return Verdict("poor", f"efficiency {efficiency:.2g}, below {RESPECTABLE:g}")
    if exact.effective_samples < FEWEST_EFFECTIVE:
        return Verdict(
            "poor", f"{exact.effective_samples:.0f} effective samples, below {FEWEST_EFFECTIVE}"
        )
    k = pareto_k(exact.weights)
    if k > RELIABLE_K:
        return Verdict("poor", f"the weights have a heavy tail, Pareto k {k:.2f}")
    return Verdict("ok", "")


def largest_share(weights: Float[Array, "sample"]) -> float:
    """The share of all weight that the heaviest sample holds."""
    total = float(weights.sum())
    return float(weights.max()) / total if total else 0.0


def pareto_k(weights: Float[Array, "sample"]) -> float:
    """The shape of the generalised Pareto distribution of the largest weights.

    Above 0.5 the weights' variance is infinite, above 0.7 their mean hardly converges. Zero where
    too few weights are left for a tail.

    Source: arXiv:1507.02646; the estimator is that of J. Zhang, M. Stephens, Technometrics 51
    (2009) 316.
    """
    count = len(weights)
    tail = math.ceil(min(count / 5, 3 * math.sqrt(count)))
    ordered = np.sort(weights)
    excess = ordered[count - tail :] - ordered[count - tail - 1] if tail < count else ordered[:0]
    excess = excess[excess > 0]
    number = len(excess)
    if number < FEWEST_IN_TAIL:
        return 0.0
    # A profile likelihood over a grid of slopes b, averaged.
    grid = 30 + int(math.sqrt(number))
    quartile = excess[int(number / 4 + 0.5) - 1]
    slopes = (1 - np.sqrt(grid / (np.arange(grid) + 0.5))) / (3 * quartile) + 1 / excess[-1]
    shapes = np.log1p(-slopes[:, None] * excess).mean(1)
    profile = number * (np.log(-slopes / shapes) - shapes - 1)
    shares = np.exp(profile - logsumexp(profile))
    slope = float((slopes * shares).sum())
    shape = float(np.log1p(-slope * excess).mean())
    return (number * shape + 10 * 0.5) / (number + 10)  # a weak prior around 0.5
