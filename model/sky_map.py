"""Sky maps: drawn beside a corner plot, or as a FITS file for the tools of the field.

The drawing shows HEALPix pixels; the file is what ligo.skymap makes of the samples.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from astropy import units
from astropy_healpix import lonlat_to_healpix
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap

from model.event_check import weighted_samples
from model.plots import BLUE, ORANGE
from model.sky import credible_region
from storage.arrays import Array
from storage.errors import InputError
from storage.posterior import Posterior

SKY_COLOURS = LinearSegmentedColormap.from_list("sky", ("#dce8f5", BLUE, "#0b2747"))
# Of the density estimate: a triangle has eight modes. ligo.skymap's own 40 and 5 take minutes.
MOST_CLUSTERS, TRIALS = 12, 2
FEWEST = 50  # samples of which a density can be estimated


def draw_sky(axes: Axes, posterior: Posterior) -> None:
    """Draw the 90 % credible region and the truth.

    Args:
        axes: In Mollweide's projection.
        posterior: That infers ra and dec.
    """
    posterior = posterior.in_the_sky()
    ra, dec, weights = _on_the_sky(posterior)
    region = credible_region(ra, dec, weights)
    order = np.argsort(region.pixels)
    pixels, shares = region.pixels[order], region.shares[order]
    longitude, latitude = np.linspace(-np.pi, np.pi, 721), np.linspace(-np.pi / 2, np.pi / 2, 361)
    east, north = np.meshgrid(
        (longitude[1:] + longitude[:-1]) / 2, (latitude[1:] + latitude[:-1]) / 2
    )
    # Right ascension grows to the left, as seen from within.
    there = lonlat_to_healpix(-east * units.rad, north * units.rad, region.nside, order="nested")
    place = np.searchsorted(pixels, there).clip(max=len(pixels) - 1)
    density = np.where(pixels[place] == there, shares[place], np.nan)
    axes.pcolormesh(longitude, latitude, density, cmap=SKY_COLOURS, rasterized=True)
    if {"ra", "dec"} <= set(posterior.truth):
        true_ra = (posterior.truth["ra"] + np.pi) % (2 * np.pi) - np.pi
        axes.plot(-true_ra, posterior.truth["dec"], "*", ms=13, color=ORANGE, mec="white", mew=0.8)
    hours = np.arange(-8, 9, 4)
    axes.set_xticks(hours * np.pi / 12, [f"{-hour % 24:.0f}h" for hour in hours], fontsize=9)
    axes.set_yticks(np.radians((-60, -30, 0, 30, 60)), [f"{d:+d}°" for d in (-60, -30, 0, 30, 60)],
                    fontsize=9)  # fmt: skip
    axes.grid(alpha=0.4, linewidth=0.6)
    axes.set_title("sky: 90 % credible region", fontsize=12, pad=14)


def write_skymap(posterior: Posterior, path: str | Path, samples: int = 1000) -> Path:
    """Write a multi-order FITS sky map, as ligo.skymap makes it of posterior samples.

    With distances where the posterior infers them. `ligo-skymap-plot`, `ligo-skymap-stats`, Aladin
    and the brokers of alerts read it. The same posterior gives the same map. An event that was
    cut out of frames is where it is in the sky.

    Args:
        posterior: That infers ra and dec.
        path: Of the file, such as event.multiorder.fits or .fits.gz.
        samples: How many to take of equal weight; the time goes with their square.

    Raises:
        InputError: ligo.skymap is not installed, the sky position is not inferred, too few
            samples are left, or the path is a folder.

    Source: arXiv:1603.07333 (distances on the sky), equations 1 to 3.
    """
    if not {"ra", "dec"} <= set(posterior.names):
        raise InputError(f"{posterior.label}: ra and dec are not both inferred; no sky map of it")
    if find_spec("ligo") is None or find_spec("ligo.skymap") is None:
        raise InputError("ligo.skymap is not installed; pip install 'strainflow[skymap]' has it")
    from ligo.skymap.io import write_sky_map

    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path}: is a folder; give a file in it, such as event.multiorder.fits")
    posterior = posterior.in_the_sky()
    draw = np.random.default_rng(posterior.event)
    rows = posterior.equally_weighted()
    if (distinct := len(np.unique(rows))) < FEWEST:
        raise InputError(
            f"{posterior.label}: {distinct} samples carry the weight, a sky map needs at least "
            f"{FEWEST}; sample more, or see why the efficiency is so low"
        )
    path.parent.mkdir(parents=True, exist_ok=True)  # before it is computed, which takes a minute
    if len(rows) > samples:
        rows = draw.choice(rows, samples, replace=False)
    names = [name for name in ("ra", "dec", "luminosity_distance") if name in posterior.names]
    points = posterior.samples[rows][:, [posterior.names.index(name) for name in names]]
    before = np.random.get_state()  # noqa: NPY002  # ligo.skymap draws from numpy's global generator
    np.random.seed(posterior.event % 2**32)  # noqa: NPY002
    try:
        table = _clustered(points).as_healpix(top_nside=16)
    finally:
        np.random.set_state(before)  # noqa: NPY002
    table.meta.update(objid=posterior.label, creator="strainflow")
    if len(names) == 3:
        table.meta.update(distmean=points[:, 2].mean(), diststd=points[:, 2].std())
    if "geocent_time" in posterior.names:
        time = posterior.samples[rows, posterior.names.index("geocent_time")]
        table.meta["gps_time"] = float(time.mean())
    write_sky_map(str(path), table, nest=True)
    return path


def _clustered(points: Float[Array, "sample coordinate"]) -> Any:  # noqa: ANN401  # ligo.skymap's
    from ligo.skymap.kde import Clustered2DSkyKDE, Clustered2Plus1DSkyKDE

    kind = Clustered2DSkyKDE if points.shape[1] == 2 else Clustered2Plus1DSkyKDE
    return kind(points, max_k=MOST_CLUSTERS, trials=TRIALS)


def _on_the_sky(
    posterior: Posterior,
) -> tuple[Float[Array, "sample"], Float[Array, "sample"], Float[Array, "sample"]]:
    weighted = weighted_samples(posterior)
    ra, dec = (weighted.samples[:, posterior.names.index(name)] for name in ("ra", "dec"))
    return ra, dec, weighted.weights
