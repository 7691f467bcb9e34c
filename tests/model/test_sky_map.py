"""FITS sky maps: ligo.skymap reads them back, and they hold the samples."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.figure import Figure

from model import sky_map, write_skymap
from model.sky import CREDIBLE, describe_sky
from storage.errors import InputError
from storage.posterior import Exact, Posterior


def two_patches():
    draw = np.random.default_rng(0)
    south = draw.random(600) < 0.3
    ra = np.where(south, 4.0, 1.0) + 0.05 * draw.standard_normal(600)
    dec = np.where(south, -0.5, 0.3) + 0.05 * draw.standard_normal(600)
    samples = np.stack([ra, dec, draw.normal(4000, 300, 600)], axis=1)
    names = ("ra", "dec", "luminosity_distance")
    return Posterior(3, names, samples, np.zeros(600), {}, {})


@pytest.mark.slow
def test_a_sky_map_holds_the_modes_and_distances_of_its_samples(tmp_path):
    moc = pytest.importorskip("ligo.skymap.moc")
    from ligo.skymap.io import read_sky_map

    posterior = two_patches()
    paths = []
    with warnings.catch_warnings():  # of erfa, for a date that it has no leap seconds for
        warnings.simplefilter("ignore")
        for name in ("a", "b"):
            path = tmp_path / "new" / f"{name}.multiorder.fits"
            paths.append(write_skymap(posterior, path, samples=200))
        table = read_sky_map(str(paths[0]), moc=True, distances=True)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    area = moc.uniq2pixarea(table["UNIQ"])
    share = area * table["PROBDENSITY"]
    assert share.sum() == pytest.approx(1, abs=1e-3)
    assert table.meta["distmean"] == pytest.approx(4000, rel=0.03)
    assert table.meta["objid"] == "event_000000003"
    order = np.argsort(-table["PROBDENSITY"])
    inside = np.cumsum(share[order]) < CREDIBLE
    degrees = area[order][inside].sum() * (180 / np.pi) ** 2
    weights = np.full(600, 1 / 600)
    ours = describe_sky(posterior.samples[:, 0], posterior.samples[:, 1], weights)
    assert degrees == pytest.approx(ours.area, rel=0.3)
    assert ours.modes == 2


def test_of_an_event_out_of_frames_the_map_is_that_in_the_sky(tmp_path, monkeypatch):
    moc = pytest.importorskip("ligo.skymap.moc")
    from astropy.units import rad
    from astropy_healpix import healpix_to_lonlat
    from ligo.skymap.io import read_sky_map

    monkeypatch.setattr(sky_map, "MOST_CLUSTERS", 1)
    monkeypatch.setattr(sky_map, "TRIALS", 1)
    draw = np.random.default_rng(0)
    samples = draw.normal((1.0, 0.3, 1577491218.0), (0.05, 0.05, 0.001), (60, 3))
    sky = {"time_shift": 1e7, "ra_shift": 2.0, "geocent_time": "Uniform(0, 1)"}
    names = ("ra", "dec", "geocent_time")
    posterior = Posterior(3, names, samples, np.zeros(60), {"ra": 1.0, "dec": 0.3}, {}, sky=sky)
    with warnings.catch_warnings():  # of erfa, for a date that it has no leap seconds for
        warnings.simplefilter("ignore")
        path = write_skymap(posterior, tmp_path / "a.multiorder.fits")
        table = read_sky_map(str(path), moc=True)
    order, pixel = moc.uniq2nest(table["UNIQ"][np.argmax(table["PROBDENSITY"])])
    ra, dec = healpix_to_lonlat(pixel, 2 ** int(order), order="nested")
    assert (ra.to_value(rad), dec.to_value(rad)) == pytest.approx((3.0, 0.3), abs=0.05)
    assert table.meta["gps_time"] == pytest.approx(1587491218.0, abs=0.01)

    axes = Figure().add_subplot(projection="mollweide")
    sky_map.draw_sky(axes, posterior)
    assert axes.lines[0].get_xdata() == pytest.approx(-3.0)


def test_a_posterior_without_a_place_on_the_sky_has_no_map(tmp_path):
    posterior = two_patches()
    blind = replace(posterior, names=("ra", "chirp_mass", "luminosity_distance"))
    with pytest.raises(InputError, match="ra and dec are not both inferred"):
        write_skymap(blind, tmp_path / "x.fits")
    assert not list(tmp_path.iterdir())


def test_a_folder_is_no_place_for_a_map(tmp_path):
    with pytest.raises(InputError, match=r"is a folder; give a file in it, such as"):
        write_skymap(two_patches(), tmp_path)


def test_a_posterior_that_few_samples_carry_has_no_map(tmp_path):
    posterior = two_patches()
    weights = np.zeros(600)
    weights[:3] = 200.0
    few = replace(posterior, exact=Exact(weights, weights, weights, 0.0, 0.1, 0.0))
    with pytest.raises(InputError, match="3 samples carry the weight, a sky map needs at least"):
        write_skymap(few, tmp_path / "x.fits")
    assert not list(tmp_path.iterdir())
