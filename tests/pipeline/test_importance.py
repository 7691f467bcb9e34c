"""Weights, evidence and verdicts, of densities that are known."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import norm, t

from pipeline.importance import judge, pareto_k, weigh
from storage.posterior import IMPOSSIBLE


def weighed(proposal, count, seed, log_constant=3.0):
    """A unit normal posterior with an evidence of exp(3), from samples of a proposal."""
    samples = proposal.rvs(size=count, random_state=seed)
    ratio = log_constant + norm.logpdf(samples)
    return samples, weigh(ratio, np.zeros(count), proposal.logpdf(samples), -7.0, 0.0)


def test_the_evidence_is_right_within_its_error():
    found = [weighed(norm(0.5, 1.5), 500, seed)[1] for seed in range(200)]
    off = [(item.log_evidence - 3.0) / item.log_evidence_error for item in found]
    assert abs(np.mean(off)) < 0.25
    assert 0.85 < np.std(off) < 1.15


def test_weights_have_mean_one_and_turn_the_proposal_into_the_posterior():
    samples, exact = weighed(norm(0.5, 1.5), 20_000, 0)
    assert exact.weights.mean() == pytest.approx(1)
    assert np.average(samples, weights=exact.weights) == pytest.approx(0, abs=0.03)
    assert np.average(samples**2, weights=exact.weights) == pytest.approx(1, abs=0.03)
    expected = (exact.weights.sum() ** 2 / (exact.weights**2).sum()) / 20_000
    assert exact.efficiency == pytest.approx(expected)
    assert judge(exact).flag == "ok"


def test_the_posterior_itself_has_an_efficiency_of_one_and_no_error():
    _, exact = weighed(norm(), 100, 0)
    assert exact.efficiency == pytest.approx(1)
    assert exact.log_evidence == pytest.approx(3.0)
    assert exact.log_evidence_error < 1e-7
    assert judge(exact).flag == "ok"


@pytest.mark.parametrize("k", [0.2, 0.5, 0.9])
def test_the_tails_shape_is_that_of_a_pareto_distribution(k):
    found = [pareto_k(np.random.default_rng(seed).random(20_000) ** -k) for seed in range(20)]
    assert np.mean(found) == pytest.approx(k, abs=0.05)


def test_weights_with_a_heavy_tail_are_poor():
    assert judge(weighed(t(3), 10_000, 0)[1]).flag == "ok"
    log_weights = -0.8 * np.log(np.random.default_rng(0).random(10_000))
    exact = weigh(log_weights, np.zeros(10_000), np.zeros(10_000), 0.0, 0.0)
    assert exact.efficiency > 0.02
    assert judge(exact).flag == "poor"
    assert "tail" in judge(exact).reason


def test_few_effective_samples_are_poor_however_good_the_efficiency():
    few = np.where(np.arange(200) < 20, 0.0, -np.inf)
    verdict = judge(weigh(few, np.zeros(200), np.zeros(200), 0.0, 0.0))
    assert (verdict.flag, verdict.reason) == ("poor", "20 effective samples, below 30")


def test_huge_weights_do_not_overflow():
    exact = replace(weighed(t(3), 100, 0)[1], weights=np.array([1e300, 1e300, 0.0]))
    assert exact.effective_samples == 2


def test_a_proposal_beside_the_posterior_has_failed():
    verdict = judge(weighed(norm(9, 1), 10_000, 0)[1])
    assert verdict.flag == "failed"
    assert "efficiency" in verdict.reason


def test_one_sample_that_holds_most_of_the_weight_has_failed():
    exact = weigh(np.r_[np.zeros(50), 6.0], np.zeros(51), np.zeros(51), 0.0, 0.0)
    assert exact.efficiency > 0.01
    assert "one sample holds" in judge(exact).reason
    assert judge(exact).flag == "failed"


def test_impossible_samples_weigh_nothing_and_stay_finite():
    nothing = np.full(4, -np.inf)
    ratio = np.array([1.0, -np.inf, 1.0, 1.0])
    prior = np.array([0.0, 0.0, -np.inf, 0.0])
    exact = weigh(ratio, prior, np.zeros(4), -5.0, 0.0)
    assert exact.weights == pytest.approx([2, 0, 0, 2])
    assert exact.log_evidence == pytest.approx(1 + np.log(0.5))
    assert exact.log_likelihood[1] == exact.log_prior[2] == IMPOSSIBLE
    none = weigh(nothing, prior, np.zeros(4), -5.0, 0.0)
    assert none.efficiency == none.effective_samples == 0
    assert none.log_evidence == IMPOSSIBLE
    assert np.isfinite(none.log_evidence_error)
    assert judge(none).flag == "failed"


def test_the_priors_uncertainty_enters_the_evidences_error():
    exact = weigh(np.zeros(10), np.zeros(10), np.zeros(10), 0.0, prior_error=0.1)
    assert exact.log_evidence_error == pytest.approx(0.1)
