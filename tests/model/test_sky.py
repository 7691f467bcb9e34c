"""Areas are those of closed forms, and planted modes are counted."""

import numpy as np
import pytest

from model.sky import COARSEST, CREDIBLE, credible_region, describe_sky

WHOLE = 4 * np.pi * (180 / np.pi) ** 2


def patches(centres, width, count, seed=0, shares=None):
    """Samples of round patches of a given width [rad]."""
    draw = np.random.default_rng(seed)
    chosen = draw.choice(len(centres), count, p=shares)
    ra, dec = np.array(centres)[chosen].T
    return (
        (ra + width * draw.standard_normal(count) / np.cos(dec)) % (2 * np.pi),
        dec + width * draw.standard_normal(count),
        np.full(count, 1 / count),
    )


EIGHT = [(ra, dec) for ra in (0.0, 1.5, 3.0, 4.6) for dec in (-0.6, 0.5)]


@pytest.mark.parametrize("count", [1000, 10_000])
@pytest.mark.parametrize("width", [0.003, 0.03, 0.2])
def test_the_area_of_a_round_patch_is_that_of_the_closed_form(width, count):
    sky = describe_sky(*patches([(1.0, 0.1)], width, count))
    expected = 2 * np.pi * width**2 * np.log(1 / (1 - CREDIBLE)) * (180 / np.pi) ** 2
    assert sky.area == pytest.approx(expected, rel=0.12)
    assert sky.modes == 1


@pytest.mark.parametrize("count", [2000, 10_000])
@pytest.mark.parametrize("centres", [EIGHT, EIGHT[:5], EIGHT[:1]])
def test_planted_modes_are_counted(centres, count):
    assert describe_sky(*patches(centres, 0.05, count)).modes == len(centres)


def test_a_patch_across_the_zero_of_right_ascension_or_the_pole_is_one():
    assert describe_sky(*patches([(0.0, 0.3)], 0.1, 5000)).modes == 1
    draw = np.random.default_rng(1)
    x, y = 0.1 * draw.standard_normal((2, 5000))
    ra, dec = np.arctan2(y, x) % (2 * np.pi), np.pi / 2 - np.hypot(x, y)
    assert describe_sky(ra, dec, np.full(5000, 1 / 5000)).modes == 1


def test_scatter_is_no_mode():
    shares = [0.995, *[0.005 / 7] * 7]
    assert describe_sky(*patches(EIGHT, 0.05, 10_000, shares=shares)).modes == 1


def test_weights_decide_which_modes_there_are():
    ra, dec, weights = patches(EIGHT[:2], 0.05, 5000)
    south = dec < 0
    weights = np.where(south, 1.0, 0.0)
    assert describe_sky(ra, dec, weights / weights.sum()).modes == 1


def test_a_posterior_all_over_the_sky_is_nine_tenths_of_it_in_one_piece():
    draw = np.random.default_rng(2)
    ra, dec = draw.uniform(0, 2 * np.pi, 10_000), np.arcsin(draw.uniform(-1, 1, 10_000))
    sky = describe_sky(ra, dec, np.full(10_000, 1e-4))
    assert sky.area == pytest.approx(0.9 * WHOLE, rel=0.1)
    assert sky.modes == 1


def test_one_sample_is_a_region_of_one_pixel():
    region = credible_region(np.array([1.0]), np.array([0.2]), np.array([1.0]))
    assert region.nside == COARSEST
    assert region.shares.tolist() == [1.0]
