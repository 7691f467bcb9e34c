"""The distributions of bilby.gw: against bilby, and against astropy and numerical integrals."""

import subprocess
import sys

import astropy.cosmology
import bilby
import numpy as np
import pytest
from astropy import units
from scipy import integrate, stats

from pipeline.gw_distributions import (
    UniformComovingVolume,
    UniformInComponentsMassRatio,
    UniformSourceFrame,
)
from pipeline.prior_text import parse_prior

DISTANCES = [
    (kind, minimum, maximum, cosmology)
    for kind in (UniformComovingVolume, UniformSourceFrame)
    for minimum, maximum, cosmology in (
        (10.0, 100.0, "Planck15"),
        (100.0, 5000.0, "Planck15"),
        (500.0, 15000.0, "Planck18"),
        (1.0, 2e5, "WMAP9"),
    )
]
UNIFORM = np.linspace(0, 1, 1001)


@pytest.fixture(params=DISTANCES, ids=lambda item: f"{item[0].__name__}-{item[1:]}")
def distance(request):
    kind, *arguments = request.param
    return kind(*arguments)


def astropys_density(prior, values):
    """dV/dz (1 + z)^-n / (dd/dz), normalised by quadrature over the redshift."""
    model = getattr(astropy.cosmology, prior.cosmology)
    power = 1 if isinstance(prior, UniformSourceFrame) else 0

    def redshift(distance):
        return astropy.cosmology.z_at_value(
            model.luminosity_distance, distance * units.Mpc, ztol=1e-13, maxfun=2000
        ).value

    def rate(z):
        return model.differential_comoving_volume(z).value / (1 + z) ** power

    z = np.array([redshift(value) for value in values])
    step = 1e-4 * z
    slope = (
        8 * (model.luminosity_distance(z + step) - model.luminosity_distance(z - step)).value
        - (model.luminosity_distance(z + 2 * step) - model.luminosity_distance(z - 2 * step)).value
    ) / (12 * step)
    ends = redshift(prior.minimum), redshift(prior.maximum)
    return rate(z) / slope / integrate.quad(rate, *ends, epsabs=0, epsrel=1e-10, limit=200)[0]


def test_the_density_of_a_distance_is_astropys(distance):
    """Measured: 3e-8 at worst, from 1 Mpc to 200 Gpc."""
    inside = np.geomspace(distance.minimum * 1.001, distance.maximum * 0.999, 40)
    density = np.exp(distance.log_prob(inside))
    np.testing.assert_allclose(density, astropys_density(distance, inside), rtol=1e-6)


def test_the_comparison_of_densities_sees_another_cosmology():
    inside = np.geomspace(110, 4900, 5)
    theirs = astropys_density(UniformSourceFrame(100.0, 5000.0, "Planck18"), inside)
    ours = np.exp(UniformSourceFrame(100.0, 5000.0, "Planck15").log_prob(inside))
    assert np.abs(ours / theirs - 1).max() > 1e-4


def test_the_quantiles_of_a_distance_solve_its_integral(distance):
    values = distance.rescale(UNIFORM)
    assert values[[0, -1]] == pytest.approx([distance.minimum, distance.maximum], rel=1e-12)
    assert np.all(np.diff(values) > 0)
    steps = [
        integrate.quad(lambda x: np.exp(distance.log_prob(x)), low, high, epsrel=1e-10)[0]
        for low, high in zip(values[:-1:50], values[50::50], strict=True)
    ]
    np.testing.assert_allclose(steps, 0.05, rtol=1e-8)


@pytest.mark.parametrize("kind", [UniformComovingVolume, UniformSourceFrame])
@pytest.mark.parametrize("cosmology", ["Planck15", "WMAP7", "Planck15_LAL"])
def test_distances_are_bilbys_as_far_as_bilby_interpolates(kind, cosmology):
    """bilby joins 1000 points by straight lines. Measured: densities 7e-5, quantiles 1.1e-4."""
    ours = kind(100.0, 5000.0, cosmology)
    theirs = getattr(bilby.gw.prior, kind.__name__)(
        100, 5000, cosmology=cosmology, name="luminosity_distance"
    )
    values = ours.rescale(UNIFORM[1:-1])
    np.testing.assert_allclose(np.exp(ours.log_prob(values)), theirs.prob(values), rtol=3e-4)
    np.testing.assert_allclose(values, theirs.rescale(UNIFORM[1:-1]), rtol=3e-4)
    samples = ours.rescale(np.random.default_rng(2).random(20_000))
    assert stats.kstest(samples, theirs.cdf).pvalue > 1e-3
    shifted = samples + 0.05 * np.subtract(*np.quantile(samples, [0.75, 0.25]))
    assert stats.kstest(shifted, theirs.cdf).pvalue < 1e-3


@pytest.mark.parametrize("ends", [(0.125, 1.0), (0.01, 0.9), (0.5, 0.501)])
def test_mass_ratios_are_bilbys(ends):
    """bilby interpolates its quantiles: measured 1.3e-10 for (0.125, 1), 4e-6 for (0.01, 0.9)."""
    ours = UniformInComponentsMassRatio(*ends)
    theirs = bilby.gw.prior.UniformInComponentsMassRatio(*ends)
    values = ours.rescale(UNIFORM)
    np.testing.assert_allclose(theirs.cdf(values), UNIFORM, atol=1e-11)
    np.testing.assert_allclose(values, theirs.rescale(UNIFORM), rtol=2e-5)
    np.testing.assert_allclose(ours.log_prob(values[1:-1]), theirs.ln_prob(values[1:-1]), rtol=1e-9)
    samples = ours.rescale(np.random.default_rng(3).random(20_000))
    assert stats.kstest(samples, theirs.cdf).pvalue > 1e-3


def test_both_mass_priors_together_are_uniform_in_the_component_masses():
    """Inside a triangle that the bounds on chirp mass and mass ratio contain."""
    uniform = np.random.default_rng(5).random((2, 400_000))
    chirp_mass = parse_prior("UniformInComponentsChirpMass(5, 100)").rescale(uniform[0])
    ratio = parse_prior("UniformInComponentsMassRatio(0.1, 1)").rescale(uniform[1])
    mass_1 = chirp_mass * (1 + ratio) ** 0.2 / ratio**0.6
    mass_2 = mass_1 * ratio
    inside = (mass_1 < 60) & (mass_2 > 20)
    assert inside.sum() > 5000
    larger, smaller = (mass_1[inside] - 20) / 40, (mass_2[inside] - 20) / 40
    assert stats.kstest(larger, lambda x: x**2).pvalue > 1e-3  # the triangle m2 < m1
    assert stats.kstest(smaller, lambda x: 1 - (1 - x) ** 2).pvalue > 1e-3


@pytest.mark.parametrize(
    "prior",
    [UniformInComponentsMassRatio(0.125, 1.0), UniformSourceFrame(0.0, 5000.0)],
)
def test_the_support_ends_where_it_should(prior):
    outside = np.array([prior.minimum - 0.1, prior.maximum + 0.1, prior.maximum * 3])
    assert np.all(prior.log_prob(outside) == -np.inf)
    assert prior.rescale(np.array([0.0, 1.0])) == pytest.approx([prior.minimum, prior.maximum])
    one_by_one = [float(prior.rescale(number)) for number in UNIFORM[::100]]
    np.testing.assert_allclose(one_by_one, prior.rescale(UNIFORM[::100]), rtol=1e-13)


def test_astropy_is_imported_only_where_a_distance_asks_for_it():
    check = "import sys, pipeline.config; sys.exit('astropy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
