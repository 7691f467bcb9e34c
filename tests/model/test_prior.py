"""The priors' cumulative distributions, against those that the events were drawn from."""

import math

import numpy as np
import pytest
import torch

from model.prior import PRIORS, read_prior
from pipeline.distributions import DISTRIBUTIONS
from pipeline.gw_distributions import GW_DISTRIBUTIONS
from pipeline.polarisations import CLOSED_FORMS
from pipeline.prior_text import describe, parse_prior

TEXTS = [
    "Uniform(25, 100)",
    "Uniform(0, 2 * pi)",
    "LogUniform(1, 50)",
    "PowerLaw(alpha=2, minimum=500, maximum=15000)",
    "PowerLaw(alpha=-1, minimum=3, maximum=4)",
    "PowerLaw(alpha=-2.5, minimum=3, maximum=40)",
    "PowerLaw(alpha=0, minimum=0, maximum=4)",
    "Sine()",
    "Sine(0.3, 0.9)",
    "Cosine()",
    "Cosine(minimum=-0.1, maximum=1.2)",
    "Gaussian(3, 2)",
    "Normal(mu=-1, sigma=0.1)",
    "TruncatedGaussian(mu=0.1, sigma=0.2, minimum=0, maximum=1)",
    "TruncatedGaussian(mu=0.1, sigma=0.2, minimum=0, maximum=inf)",
    "TruncatedNormal(mu=-1, sigma=0.5, minimum=-inf, maximum=-1.2)",
    "bilby.gw.prior.UniformInComponentsChirpMass(minimum=25, maximum=100)",
]


def read(text):
    reference = parse_prior(text)
    return read_prior(text, reference.minimum, reference.maximum), reference


@pytest.mark.parametrize("text", TEXTS)
def test_quantiles_and_densities_are_those_of_the_simulation(text):
    prior, reference = read(text)
    share = np.linspace(1e-6, 1 - 1e-6, 1001)
    values = reference.rescale(share)
    # arccos and the like in the reference lose half the digits at the ends.
    assert np.allclose(prior.quantile(torch.tensor(share)), values, rtol=1e-8, atol=1e-8)
    assert np.allclose(prior.cumulative(torch.tensor(values)), share, rtol=0, atol=1e-9)
    density = prior.log_density(torch.tensor(values)).numpy()
    assert np.allclose(density, reference.log_prob(values), rtol=0, atol=1e-6)


def test_the_comparison_catches_another_prior():
    one, other = read("Sine()")[0], read("Sine(0.0, 3.1)")[0]
    half = torch.tensor([0.5], dtype=torch.float64)
    assert not np.allclose(one.quantile(half), other.quantile(half), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("text", TEXTS)
def test_the_text_that_a_data_set_records_is_read(text):
    reference = parse_prior(text)
    found = read_prior(describe(reference), reference.minimum, reference.maximum)
    assert found == read(text)[0]


def test_every_closed_form_that_events_are_drawn_from_is_known():
    compared = {text.split("(")[0] for text in TEXTS}
    assert set(DISTRIBUTIONS) - {"DeltaFunction"} <= compared


@pytest.mark.parametrize(
    "text",
    [
        *TEXTS,
        "UniformInComponentsMassRatio(0.2, 1)",
        "UniformComovingVolume(500, 4000)",
        "UniformSourceFrame(500, 4000)",
    ],
)
def test_sets_of_polarisations_take_the_priors_that_training_draws_from_and_no_other(text):
    prior, reference = read(text)
    assert isinstance(reference, CLOSED_FORMS) == (prior is not None)


def test_every_prior_there_is_was_held_against_what_training_draws_from():
    named = {text.split("(")[0].rsplit(".", 1)[-1] for text in TEXTS}
    assert named == set(PRIORS)
    assert set(DISTRIBUTIONS | GW_DISTRIBUTIONS) - named == {
        "DeltaFunction",  # is recorded as a number
        "UniformInComponentsMassRatio",
        "UniformComovingVolume",
        "UniformSourceFrame",
    }


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0.5",
        "Uniform(",
        "Uniform(1)",
        "Uniform(0, 2)",
        "Uniform(0, __import__('os'))",
        "PowerLaw(2, 0, 1, 3)",
        "Exponential(1)",
        "TruncatedGaussian(-40, 1, 0, 1)",
        "TruncatedGaussian(0, 0, 0, 1)",
        "PowerLaw(-3, 0, 1)",
        "bilby.gw.prior.UniformSourceFrame(minimum=0, maximum=1)",
    ],
)
def test_what_is_not_known_or_has_another_support_is_left_to_the_table(text):
    assert read_prior(text, 0.0, 1.0) is None


def test_quantiles_stay_finite_next_to_the_ends():
    for text in TEXTS:
        ends = torch.tensor([2.0**-53, 1 - 2.0**-53], dtype=torch.float64)
        values = read(text)[0].quantile(ends)
        assert torch.isfinite(values).all(), text
        assert not torch.isinf(read(text)[0].log_density(values)).any(), text


def test_polar_angles_have_digits_near_both_poles():
    for text in ("Sine()", "Cosine()"):
        prior, _ = read(text)
        share = torch.tensor([1e-12, 1 - 1e-12], dtype=torch.float64)
        values = prior.quantile(share)
        assert (values[0] - prior.minimum).item() == pytest.approx(2e-6, rel=1e-4)
        assert (prior.maximum - values[1]).item() == pytest.approx(2e-6, rel=1e-4)
        assert prior.cumulative(values)[0].item() == pytest.approx(1e-12, rel=1e-3)
    assert math.pi - values[1].item() > 0
