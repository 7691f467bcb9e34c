"""Distributions: against bilby, and as properties."""

import math

import bilby
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from pipeline.distributions import Cosine, PowerLaw, Sine, TruncatedGaussian, Uniform
from pipeline.prior_text import describe, parse_prior
from pipeline.priors import PARAMETERS

AS_IN_BILBY = [
    "Uniform(25, 100)",
    "Uniform(minimum=-3, maximum=2 * np.pi)",
    "Uniform(0, 2 * pi, boundary='periodic')",
    "Uniform(name='chirp_mass', minimum=25, maximum=100, unit='$M_{\\\\odot}$')",
    "LogUniform(minimum=1, maximum=1e4)",
    "PowerLaw(alpha=2, minimum=500, maximum=15000)",
    "PowerLaw(2, 0, 15000)",
    "PowerLaw(alpha=-1, minimum=0.1, maximum=10)",
    "PowerLaw(alpha=-2.35, minimum=5, maximum=80)",
    "Sine(name='theta_jn')",
    "Sine(minimum=0.3, maximum=1)",
    "Cosine(name='dec', boundary='reflective')",
    "Cosine(-0.5, 1.2)",
    "Gaussian(mu=1, sigma=0.2)",
    "Normal(-4, 3)",
    "TruncatedGaussian(mu=0, sigma=1, minimum=-0.5, maximum=3)",
]

# The integral of bilby's density over its support, where that is not 1.
NORMS_OF_BILBY = {
    Sine: lambda prior: (np.cos(prior.minimum) - np.cos(prior.maximum)) / 2,
    Cosine: lambda prior: (np.sin(prior.maximum) - np.sin(prior.minimum)) / 2,
}

uniform_numbers = st.floats(0, 1, exclude_max=True)


def ordered(low, high):
    """Two numbers of a range, the first clearly below the second."""
    pairs = st.tuples(st.floats(low, high), st.floats(low, high)).map(sorted)
    return pairs.filter(lambda pair: pair[1] - pair[0] > 1e-3 * max(1.0, abs(pair[1])))


distributions = st.one_of(
    ordered(-1e4, 1e4).map(lambda ends: Uniform(*ends)),
    ordered(0.0, math.pi).map(lambda ends: Sine(*ends)),
    ordered(-math.pi / 2, math.pi / 2).map(lambda ends: Cosine(*ends)),
    st.builds(
        lambda alpha, ends: PowerLaw(alpha, *ends),
        st.one_of(st.just(-1.0), st.floats(-4, 4).filter(lambda alpha: abs(alpha + 1) > 1e-2)),
        ordered(0.1, 1e4),
    ),
    st.builds(
        lambda sigma, ends: TruncatedGaussian(0.5, sigma, *ends),
        st.floats(0.3, 10),
        ordered(-2.0, 2.0),
    ),
    st.builds(
        lambda mu, sigma: TruncatedGaussian(mu, sigma, -math.inf, math.inf),
        st.floats(-10, 10),
        st.floats(0.1, 10),
    ),
)


@pytest.fixture(params=AS_IN_BILBY)
def ours_and_theirs(request):
    """One entry of a prior file, read by us and by bilby."""
    theirs = bilby.core.prior.PriorDict({"x": request.param})["x"]
    return parse_prior(request.param), theirs


def samples_p_value(distribution, reference, shift=0.0):
    """How probable our samples are under the distribution of bilby."""
    samples = distribution.rescale(np.random.default_rng(1).random(20_000)) + shift
    return stats.kstest(samples, reference.cdf).pvalue


def test_quantiles_are_bilbys(ours_and_theirs):
    ours, theirs = ours_and_theirs
    uniform = np.linspace(0, 1, 1001)[1:-1]
    np.testing.assert_allclose(ours.rescale(uniform), theirs.rescale(uniform), rtol=1e-9, atol=1e-9)


def test_log_densities_are_bilbys(ours_and_theirs):
    ours, theirs = ours_and_theirs
    values = ours.rescale(np.linspace(0, 1, 1001)[1:-1])
    # bilby does not normalise a Sine or Cosine over a part of its range; ours is normalised.
    missing = np.log(NORMS_OF_BILBY.get(type(ours), lambda theirs: 1.0)(theirs))
    np.testing.assert_allclose(ours.log_prob(values) + missing, theirs.ln_prob(values), atol=1e-9)


def test_samples_are_bilbys(ours_and_theirs):
    assert samples_p_value(*ours_and_theirs) > 1e-3


def test_the_test_of_samples_sees_a_shift_of_a_twentieth_of_the_width(ours_and_theirs):
    ours, theirs = ours_and_theirs
    width = np.ptp(ours.rescale(np.array([0.25, 0.75])))
    assert samples_p_value(ours, theirs, shift=width / 20) < 1e-3


def test_the_support_is_bilbys(ours_and_theirs):
    ours, theirs = ours_and_theirs
    assert ours.minimum == pytest.approx(theirs.minimum)
    assert ours.maximum == pytest.approx(theirs.maximum)
    outside = [end + step for end, step in ((ours.minimum, -1), (ours.maximum, 1))]
    finite = np.array([value for value in outside if math.isfinite(value)])
    assert np.all(ours.log_prob(finite) == -np.inf)


def test_every_prior_of_the_recipe_is_bilbys(et_bbh):
    config = et_bbh()
    uniform = np.linspace(0, 1, 101)[1:-1]
    for name, ours in config.prior.distributions().items():
        text = str(getattr(config.prior, name)).replace("()", f"(name='{name}')")  # bilby needs one
        theirs = bilby.core.prior.PriorDict({name: text})[name]
        np.testing.assert_allclose(
            ours.rescale(uniform), theirs.rescale(uniform), rtol=1e-9, atol=1e-9
        )
    assert list(config.prior.distributions()) == list(PARAMETERS)


@given(distributions, st.tuples(uniform_numbers, uniform_numbers).map(sorted))
def test_rescale_rises_and_stays_inside_the_support(distribution, pair):
    low, high = (float(distribution.rescale(np.float64(number))) for number in pair)
    assert distribution.minimum <= low <= high <= distribution.maximum


@given(distributions, st.floats(0.01, 0.99))
def test_the_density_is_the_inverse_slope_of_rescale(distribution, uniform):
    step = 1e-6
    low, middle, high = distribution.rescale(np.array([uniform - step, uniform, uniform + step]))
    slope = (high - low) / (2 * step)
    assume(slope > 1e-6 * max(1.0, abs(middle)))  # else the difference of doubles is nothing
    density = np.exp(distribution.log_prob(np.array([middle])))[0]
    assert density * slope == pytest.approx(1, rel=1e-3)


@given(distributions)
def test_what_describe_writes_parse_prior_reads(distribution):
    assert parse_prior(describe(distribution)) == distribution


@given(distributions)
def test_what_describe_writes_bilby_reads(distribution):
    if isinstance(distribution, TruncatedGaussian):
        # Farther out bilby subtracts numbers near one: 3e-6 off at 7 sigma, where ours is exact.
        nearest = np.clip(distribution.mu, distribution.minimum, distribution.maximum)
        assume(abs(nearest - distribution.mu) < 5 * distribution.sigma)
    theirs = bilby.core.prior.PriorDict({"x": describe(distribution)})["x"]
    assert distribution.rescale(np.float64(0.3)) == pytest.approx(
        theirs.rescale(0.3), rel=1e-6, abs=1e-6
    )


def test_far_from_the_mean_a_truncated_gaussian_keeps_its_digits():
    """By mpmath with 50 digits; bilby gives -1.8005453."""
    far = TruncatedGaussian(mu=0.5, sigma=0.3125, minimum=-2.0, maximum=-1.75)
    assert far.rescale(np.float64(0.3)) == pytest.approx(-1.8005482691427541533, rel=1e-13)
