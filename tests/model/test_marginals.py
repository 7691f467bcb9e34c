"""Widths and divergences are those of closed forms."""

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm

from model.marginals import jensen_shannon, shortest_interval


def even(count):
    return np.full(count, 1 / count)


def test_the_shortest_interval_of_normal_samples_is_the_central_one():
    samples = np.random.default_rng(0).normal(5, 2, 20_000)
    assert shortest_interval(samples, even(20_000)) == pytest.approx(2 * 1.645 * 2, rel=0.02)


def test_the_shortest_interval_of_an_exponential_begins_at_zero():
    samples = np.random.default_rng(0).exponential(size=20_000)
    assert shortest_interval(samples, even(20_000)) == pytest.approx(np.log(10), rel=0.03)


def test_an_angle_that_is_cut_by_its_zero_is_as_wide_as_one_that_is_not():
    samples = np.random.default_rng(0).normal(0, 0.1, 5000)
    whole = shortest_interval(samples + 3, even(5000), period=2 * np.pi)
    cut = shortest_interval(samples % (2 * np.pi), even(5000), period=2 * np.pi)
    assert cut == pytest.approx(whole, rel=1e-6)
    assert shortest_interval(samples % (2 * np.pi), even(5000)) > 6


def test_the_interval_follows_the_weights():
    samples = np.random.default_rng(0).normal(0, 2, 50_000)
    weights = norm.pdf(samples) / norm.pdf(samples, 0, 2)
    assert shortest_interval(samples, weights / weights.sum()) == pytest.approx(3.29, rel=0.03)


@pytest.mark.parametrize("shift", [0.1, 0.5, 1.0])
def test_the_divergence_of_two_normal_distributions_is_that_of_the_integral(shift):
    samples = np.random.default_rng(1).standard_normal(100_000)
    weights = np.exp(shift * samples)  # turn N(0, 1) into N(shift, 1)

    def integrand(x):
        p, q = norm.pdf(x), norm.pdf(x, shift)
        return (p * np.log(2 * p / (p + q)) + q * np.log(2 * q / (p + q))) / 2

    expected = quad(integrand, -8, 9)[0]
    assert jensen_shannon(samples, weights / weights.sum()) == pytest.approx(expected, rel=0.06)


@pytest.mark.parametrize("period", [0.0, 2 * np.pi])
def test_equal_weights_change_nothing(period):
    samples = np.random.default_rng(1).uniform(0, 6, 1000)
    assert jensen_shannon(samples, even(1000), period) == pytest.approx(0, abs=1e-12)


def test_weights_that_leave_another_mode_diverge_by_a_known_amount():
    """Half the probability in each mode before, all in one after: 0.216 nats."""
    samples = np.r_[np.linspace(0, 1, 5000), np.linspace(9, 10, 5000)]
    weights = np.r_[np.zeros(5000), even(5000)]
    # Of p = (1/2, 1/2) and q = (0, 1), whose middle is (1/4, 3/4).
    expected = (0.5 * np.log(2) + 0.5 * np.log(2 / 3) + np.log(4 / 3)) / 2
    assert jensen_shannon(samples, weights) == pytest.approx(expected, rel=0.01)


def test_a_divergence_does_not_depend_on_where_an_angle_has_its_zero():
    draw = np.random.default_rng(3)
    angle = draw.normal(0, 0.3, 5000)
    weights = np.exp(2 * angle)
    weights /= weights.sum()
    period = 2 * np.pi
    here = jensen_shannon((angle + 3) % period, weights, period)
    cut = jensen_shannon(angle % period, weights, period)
    assert cut == pytest.approx(here, rel=0.3)
    assert here > 0.02


def test_samples_that_are_one_point_diverge_by_nothing():
    assert jensen_shannon(np.ones(5), np.array([1, 0, 0, 0, 0.0])) == 0
