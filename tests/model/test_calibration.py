"""Ranks are uniform where samples are right, and tests see where they are not."""

import numpy as np
import pytest
from scipy.stats import chisquare, kstest, norm

from model.calibration import (
    Weighted,
    calibration,
    chi_square_p_value,
    combine,
    coverage,
    ks_p_value,
    rank_counts,
    tarp_rank,
    truth_ranks,
)
from model.cube import PriorCube
from storage.posterior import FEWEST_EFFECTIVE


def equal(samples):
    return Weighted(samples, np.full(len(samples), 1 / len(samples)))


def normal_events(events, samples, parameters, seed, width=1.0):
    """Truths, and samples of the same distribution but for their width, each event's own."""
    draw = np.random.default_rng(seed)
    for _ in range(events):
        truth = draw.standard_normal(parameters)
        yield truth, equal(width * draw.standard_normal((samples, parameters))), draw


def ranks_of(events):
    return np.array(
        [
            truth_ranks(posterior.samples, truth, posterior, draw.random(len(truth)))
            for truth, posterior, draw in events
        ]
    )


@pytest.mark.parametrize("samples", [1, 3, 100])
def test_ranks_are_uniform_however_few_samples_there_are(samples):
    ranks = ranks_of(normal_events(2000, samples, 2, seed=1))
    assert ((ranks >= 0) & (ranks <= 1)).all()
    for column in ranks.T:
        assert kstest(column, "uniform").pvalue > 0.01


def test_ranks_of_samples_that_are_too_narrow_are_not():
    ranks = ranks_of(normal_events(2000, 100, 1, seed=1, width=0.8))
    assert kstest(ranks[:, 0], "uniform").pvalue < 1e-4


def test_ranks_among_samples_that_equal_the_truth_are_uniform():
    draw = np.random.default_rng(3)
    posterior, shares = equal(np.zeros((50, 1))), draw.random(2000)
    ranks = [
        truth_ranks(posterior.samples, np.zeros(1), posterior, shares[i : i + 1])[0]
        for i in range(2000)
    ]
    assert kstest(ranks, "uniform").pvalue > 0.01


def test_ranks_among_weighted_samples_are_uniform_only_with_their_weights():
    """Samples of a distribution that is wider by half and shifted, weighted to the right one."""
    draw = np.random.default_rng(2)
    with_weights, without = [], []
    for _ in range(1500):
        truth = draw.standard_normal(1)
        samples = 0.4 + 1.5 * draw.standard_normal((400, 1))
        weights = (norm.pdf(samples) / norm.pdf(samples, 0.4, 1.5))[:, 0]
        share = draw.random(1)
        weighted = Weighted(samples, weights / weights.sum())
        with_weights.append(truth_ranks(samples, truth, weighted, share)[0])
        without.append(truth_ranks(samples, truth, equal(samples), share)[0])
    assert kstest(with_weights, "uniform").pvalue > 0.01
    assert kstest(without, "uniform").pvalue < 1e-10


def test_ranks_of_right_weights_are_not_uniform_where_few_samples_are_effective():
    """So such events are not judged. Samples are shifted by 1.2 and weighted back."""
    draw = np.random.default_rng(1)
    ranks, effective = [], []
    for _ in range(1000):
        samples = 1.2 + draw.standard_normal((12, 1))
        weights = (norm.pdf(samples) / norm.pdf(samples, 1.2))[:, 0]
        weighted = Weighted(samples, weights / weights.sum())
        ranks.append(truth_ranks(samples, draw.standard_normal(1), weighted, draw.random(1))[0])
        effective.append(weighted.effective)
    assert np.median(effective) < 10 < FEWEST_EFFECTIVE
    assert kstest(ranks, "uniform").pvalue < 1e-4


def test_effective_samples_are_those_of_kish():
    assert Weighted(np.zeros((4, 1)), np.array([0.5, 0.5, 0, 0])).effective == 2


@pytest.mark.parametrize("width", [1.0, 0.7])
def test_coverage_from_a_distant_point_is_that_of_the_closed_form(width):
    """Seen from far away, the distance is the parameter: P(rank < a) = Phi(width Phi^-1(a))."""
    ranks = [
        tarp_rank(posterior, truth, np.array([-1e6]), draw.random())
        for truth, posterior, draw in normal_events(4000, 500, 1, seed=5, width=width)
    ]
    levels = np.linspace(0.05, 0.95, 19)
    expected = norm.cdf(width * norm.ppf(levels))
    error = np.sqrt(expected * (1 - expected) / 4000)
    assert (np.abs(coverage(np.array(ranks), levels) - expected) / error).max() < 4
    if width != 1:
        assert (np.abs(levels - expected) / error).max() > 10


def test_the_rank_of_a_distance_is_that_of_a_plain_loop():
    draw = np.random.default_rng(4)
    samples, truth, reference = draw.random((60, 3)), draw.random(3), draw.random(3)
    scales, nearer, own = (0.5, 2.0, 1.0), 0, None
    for point in [truth, *samples]:
        total = 0.0
        for name in range(3):
            away = abs(point[name] - reference[name])
            if name == 1:
                away = min(away, 1 - away)
            total += (away / scales[name]) ** 2
        own = total if own is None else own
        nearer += total < own
    rank = tarp_rank(equal(samples), truth, reference, 0.5, (False, True, False), np.array(scales))
    assert rank == pytest.approx((nearer + 0.5) / 61)


def test_tarp_sees_a_wrong_correlation_that_no_marginal_shows():
    """The truth's parameters are correlated by 0.95, those of the samples are not."""
    draw = np.random.default_rng(6)
    mixing = np.linalg.cholesky([[1, 0.95], [0.95, 1]])
    ranks, tarp = [], []
    for _ in range(1000):
        truth, posterior = mixing @ draw.standard_normal(2), equal(draw.standard_normal((300, 2)))
        ranks.append(truth_ranks(posterior.samples, truth, posterior, draw.random(2)))
        inside = equal(norm.cdf(posterior.samples))
        tarp.append(tarp_rank(inside, norm.cdf(truth), draw.random(2), draw.random()))
    found = calibration(np.array(ranks), np.array(tarp))
    assert min(*found.ks, *found.chi_square) > 0.01
    assert found.tarp < 1e-4
    assert found.combined < 1e-3
    assert calibration(np.array(ranks), draw.random(1000)).combined > 0.05


def test_a_histogram_of_ranks_holds_all_events_in_bins_of_ten_or_more():
    ranks = np.random.default_rng(0).random(137)
    assert rank_counts(ranks).sum() == 137
    assert len(rank_counts(ranks)) == 13
    assert len(rank_counts(ranks[:20])) == 2
    assert len(rank_counts(np.ones(5000))) == 20
    assert rank_counts(np.ones(5000))[-1] == 5000


@pytest.mark.parametrize("p_value", [ks_p_value, chi_square_p_value])
def test_p_values_of_uniform_ranks_are_uniform(p_value):
    draw = np.random.default_rng(8)
    found = [p_value(draw.random(200)) for _ in range(500)]
    counts = np.histogram(found, 5, (0, 1))[0]
    assert chisquare(counts).pvalue > 0.001


def false_alarms(events, samples, parameters, sets, correlation, level=0.05):
    """How often perfect posteriors are refused: everything is drawn, nothing assumed uniform."""
    draw = np.random.default_rng(events)
    covariance = np.full((parameters, parameters), correlation) + (1 - correlation) * np.eye(
        parameters
    )
    mixing = np.linalg.cholesky(covariance).T
    cube = PriorCube.from_texts(
        [str(i) for i in range(parameters)], {str(i): "Normal(0, 1)" for i in range(parameters)}
    )
    refused = 0
    for _ in range(sets):
        ranks, tarp = np.empty((events, parameters)), np.empty(events)
        drawn = draw.standard_normal((events * (samples + 1), parameters)) @ mixing
        shares = cube.shares(drawn, drawn)
        for event in range(events):
            rows = slice(event * (samples + 1), (event + 1) * (samples + 1))
            (truth, *_), posterior = drawn[rows], equal(drawn[rows][1:])
            ranks[event] = truth_ranks(posterior.samples, truth, posterior, draw.random(parameters))
            inside, reference = shares[rows], draw.random(parameters)
            tarp[event] = tarp_rank(equal(inside[1:]), inside[0], reference, draw.random())
        refused += calibration(ranks, tarp).combined < level
    return refused / sets


def test_perfect_posteriors_are_refused_about_as_often_as_the_level_says():
    found = false_alarms(events=30, samples=20, parameters=4, sets=200, correlation=0.0)
    assert found == pytest.approx(0.05, abs=0.045)


@pytest.mark.slow
@pytest.mark.parametrize("correlation", [0.0, 0.9])
def test_perfect_posteriors_of_fifteen_parameters_are_refused_as_often_as_the_level_says(
    correlation,
):
    found = false_alarms(events=200, samples=100, parameters=15, sets=600, correlation=correlation)
    assert found == pytest.approx(0.05, abs=0.025)


def test_combined_p_values_are_small_as_often_as_they_say():
    draw = np.random.default_rng(1)
    uniform = draw.uniform(size=(4000, 15))
    wrong = np.mean([combine(row) < 0.05 for row in uniform])
    assert wrong == pytest.approx(0.05, abs=0.012)
    alike = np.repeat(uniform[:, :1], 15, axis=1)  # where Fisher's method refuses a third
    assert np.mean([combine(row) < 0.05 for row in alike]) < 0.062


def test_one_impossible_parameter_is_not_hidden_by_others_that_fit_too_well():
    assert combine([1e-4, *[0.99999] * 14]) < 0.05
    assert combine([0.0, 0.5]) < 1e-10


def test_the_cube_makes_the_prior_uniform_and_closes_angles():
    names = ("ra", "dec", "psi", "luminosity_distance", "odd")
    priors = {
        "ra": "Uniform(0, 6.283185307179586)",
        "dec": "Cosine(minimum=-1.5707963267948966, maximum=1.5707963267948966)",
        "psi": "Uniform(0, 1)",
        "luminosity_distance": "PowerLaw(alpha=2, minimum=500, maximum=15000)",
        "odd": "NoSuchPrior(3)",
    }
    cube = PriorCube.from_texts(names, priors)
    assert cube.periodic == (True, False, False, False, False)  # psi does not reach all around
    draw = np.random.default_rng(0)
    values = np.stack(
        [
            draw.uniform(0, 2 * np.pi, 2000),
            np.arcsin(draw.uniform(-1, 1, 2000)),
            draw.uniform(0, 1, 2000),
            (500**3 + draw.random(2000) * (15000**3 - 500**3)) ** (1 / 3),
            draw.normal(7, 3, 2000),
        ],
        axis=1,
    )
    shares = cube.shares(values, values)
    for column in shares.T:
        assert kstest(column, "uniform").pvalue > 0.01
    assert cube.prior_widths(0.9)[0] == pytest.approx(0.9 * 2 * np.pi)
    assert cube.prior_widths(0.9)[4] is None
    assert cube.shares(np.full((1, 5), -1e9), values)[0].tolist() == pytest.approx([0] * 5)
