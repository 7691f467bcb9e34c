"""Where on the sky a posterior points: area of its credible region, and in how many pieces.

Samples are counted in HEALPix pixels, as fine as there are samples enough for. A triangle of three
interferometers leaves up to eight pieces (arXiv:2512.20699).
"""

from dataclasses import dataclass

import numpy as np
from astropy import units
from astropy_healpix import lonlat_to_healpix, neighbours, nside_to_pixel_area
from jaxtyping import Float, Int64
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from storage.arrays import Array

CREDIBLE = 0.9
FINEST, COARSEST = 2048, 2  # pixels of 0.0008 and 860 deg^2
SAMPLES_A_PIXEL = 16.0  # on average within the region
SMALLEST_MODE = 0.01  # share of the probability below which a piece is scatter


@dataclass(frozen=True)
class Sky:
    """A posterior on the sky.

    Attributes:
        area: Of the 90 % credible region [deg^2].
        modes: Connected pieces of it that hold at least 1 % of the probability.
        resolution: Area of a pixel [deg^2].
    """

    area: float
    modes: int
    resolution: float


@dataclass(frozen=True)
class Region:
    """The 90 % credible region as pixels, the most probable first.

    Attributes:
        nside: HEALPix resolution; nested order.
        pixels: Their numbers.
        shares: Probability of each.
    """

    nside: int
    pixels: Int64[Array, "pixel"]
    shares: Float[Array, "pixel"]


def describe_sky(
    ra: Float[Array, "sample"], dec: Float[Array, "sample"], weights: Float[Array, "sample"]
) -> Sky:
    """Measure the 90 % credible region and count its pieces.

    Args:
        ra: Right ascension [rad].
        dec: Declination [rad].
        weights: Of the samples; their sum is 1.
    """
    region = credible_region(ra, dec, weights)
    pixel = float(nside_to_pixel_area(region.nside).to_value(units.deg**2))
    # The last pixel counts by the part that is needed: otherwise a region is never less than one.
    beyond = region.shares.sum() - CREDIBLE
    area = pixel * (len(region.pixels) - np.clip(beyond / region.shares[-1], 0, 1))
    return Sky(float(area), _count_modes(region), pixel)


def credible_region(
    ra: Float[Array, "sample"], dec: Float[Array, "sample"], weights: Float[Array, "sample"]
) -> Region:
    """The smallest set of pixels that holds 90 %, in the finest grid that the samples allow.

    Args:
        ra: Right ascension [rad].
        dec: Declination [rad].
        weights: Of the samples; their sum is 1.
    """
    finest = np.asarray(
        lonlat_to_healpix(ra * units.rad, dec * units.rad, FINEST, order="nested"), np.int64
    )
    effective = 1.0 / float((weights**2).sum())
    nside, pixels = FINEST, finest
    while True:
        region = _densest(nside, pixels, weights)
        if nside == COARSEST or CREDIBLE * effective >= SAMPLES_A_PIXEL * len(region.pixels):
            return region
        nside, pixels = nside // 2, pixels // 4  # of the nested order


def _densest(nside: int, pixels: Int64[Array, "sample"], weights: Float[Array, "sample"]) -> Region:
    there, which = np.unique(pixels, return_inverse=True)
    shares = np.bincount(which, weights)
    order = np.argsort(-shares, kind="stable")
    needed = int(np.searchsorted(np.cumsum(shares[order]), CREDIBLE - 1e-9)) + 1
    chosen = order[:needed]
    return Region(nside, there[chosen], shares[chosen])


def _count_modes(region: Region) -> int:
    """How many pieces hang together by pixels that touch, at least at a corner."""
    order = np.argsort(region.pixels)
    pixels, shares = region.pixels[order], region.shares[order]
    with np.errstate(invalid="ignore"):  # a pixel at a corner of HEALPix has seven, not eight
        around = np.asarray(neighbours(pixels, region.nside, order="nested"), np.int64)
    place = np.searchsorted(pixels, around).clip(max=len(pixels) - 1)
    direction, one = np.nonzero(pixels[place] == around)
    other = place[direction, one]
    links = coo_array((np.ones(len(one)), (one, other)), shape=(len(pixels), len(pixels)))
    _, piece = connected_components(links, directed=False)
    return int((np.bincount(piece, shares) >= SMALLEST_MODE).sum())
