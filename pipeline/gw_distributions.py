"""The distributions of `bilby.gw.prior`: masses uniform in components, cosmological distances.

Where a quantile has no closed form, the cumulative distribution is solved for it: a table gives the
start, Newton's method the rest, to rounding. astropy is imported where a distance asks for it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.interpolate import CubicSpline, PPoly
from scipy.optimize import brentq
from scipy.special import hyp2f1

from pipeline.distributions import Distribution, PowerLaw, inside, require_order
from storage.arrays import Array
from storage.errors import InputError

NODES = 1024
LARGEST_REDSHIFT = 1000.0
NEWTON_STEPS = 3  # a table of 1024 starts within 1e-4 of the width: two would do


@dataclass(frozen=True)
class _Table:
    """A normalised density, its integral, and the integral at some nodes from end to end."""

    density: Callable[[Float[Array, "n"]], Float[Array, "n"]]
    cumulative: Callable[[Float[Array, "n"]], Float[Array, "n"]]
    nodes: Float[Array, "node"]
    values: Float[Array, "node"]

    def quantile(self, uniform: Float[Array, "n"]) -> Float[Array, "n"]:
        """Solve cumulative(x) = uniform, within the cell of the table that holds it."""
        cell = np.clip(np.searchsorted(self.values, uniform) - 1, 0, len(self.nodes) - 2)
        found = np.interp(uniform, self.values, self.nodes)
        for _ in range(NEWTON_STEPS):
            slope = np.maximum(self.density(found), np.finfo(float).tiny)  # 0 at a distance of 0
            step = (self.cumulative(found) - uniform) / slope
            found = np.clip(found - step, self.nodes[cell], self.nodes[cell + 1])
        return found


@dataclass(frozen=True)
class UniformInComponentsMassRatio:
    """The mass ratio where both component masses are uniform: (1 + q)^(2/5) q^(-6/5).

    Source: bilby.gw.prior, with its integral; arXiv 2111.13619.
    """

    minimum: float
    maximum: float

    def __post_init__(self) -> None:
        require_order(self.minimum, self.maximum)
        if not 0 < self.minimum < self.maximum < np.inf:
            raise InputError(
                f"UniformInComponentsMassRatio from {self.minimum:g} to {self.maximum:g} cannot be "
                "normalised; give 0 < minimum < maximum"
            )
        _ = _ratio_table(self.minimum, self.maximum)  # ends that are too close show now

    def rescale(self, uniform: Float[Array, "n"]) -> Float[Array, "n"]:
        """Map uniform numbers to values."""
        return _ratio_table(self.minimum, self.maximum).quantile(uniform)

    def log_prob(self, value: Float[Array, "n"]) -> Float[Array, "n"]:
        """Log density."""
        with np.errstate(divide="ignore", invalid="ignore"):
            density = _ratio_table(self.minimum, self.maximum).density(value)
            return inside(self, value, np.log(density))


@dataclass(frozen=True)
class UniformComovingVolume:
    """A luminosity distance of sources that are uniform in comoving volume.

    Args:
        minimum: [Mpc].
        maximum: [Mpc].
        cosmology: A name that astropy.cosmology knows, or Planck15_LAL.
        name: Must be luminosity_distance; bilby wants to be told.
        unit: Must be Mpc.
    """

    minimum: float
    maximum: float
    cosmology: str = "Planck15"
    name: str = "luminosity_distance"
    unit: str = "Mpc"

    def __post_init__(self) -> None:
        require_order(self.minimum, self.maximum)
        if (self.name, self.unit) != ("luminosity_distance", "Mpc"):
            raise InputError(
                f"{type(self).__name__}: got {self.name} in {self.unit}, only a "
                "luminosity_distance in Mpc can be drawn from it"
            )
        _ = self._table  # an unknown cosmology shows now

    def rescale(self, uniform: Float[Array, "n"]) -> Float[Array, "n"]:
        """Map uniform numbers to values."""
        return self._table.quantile(uniform)

    def log_prob(self, value: Float[Array, "n"]) -> Float[Array, "n"]:
        """Log density."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return inside(self, value, np.log(self._table.density(value)))

    @property
    def _table(self) -> _Table:
        return _distance_table(self.minimum, self.maximum, self.cosmology, self._time_dilation)

    @property
    def _time_dilation(self) -> bool:
        return False


@dataclass(frozen=True)
class UniformSourceFrame(UniformComovingVolume):
    """The same where the sources are uniform in their own time too: a factor 1/(1 + z)."""

    @property
    def _time_dilation(self) -> bool:
        return True


@lru_cache(maxsize=64)
def _ratio_table(minimum: float, maximum: float) -> _Table:
    def integral(ratio: Float[Array, "n"]) -> Float[Array, "n"]:
        values: Array = -5 * ratio**-0.2 * hyp2f1(-0.4, -0.2, 0.8, -ratio)
        return values

    low, high = integral(np.array([minimum, maximum]))

    def density(ratio: Float[Array, "n"]) -> Float[Array, "n"]:
        values: Array = (1 + ratio) ** 0.4 * ratio**-1.2 / (high - low)
        return values

    def cumulative(ratio: Float[Array, "n"]) -> Float[Array, "n"]:
        values: Array = (integral(ratio) - low) / (high - low)
        return values

    nodes = np.geomspace(minimum, maximum, NODES)
    with np.errstate(invalid="ignore"):
        values = cumulative(nodes)
    if not np.all(np.diff(values) > 0):
        raise InputError(
            f"minimum {minimum:g} and maximum {maximum:g} are too close, or too far apart; change "
            "them, or give a number"
        )
    return _Table(density, cumulative, nodes, values)


@lru_cache(maxsize=64)
def _distance_table(minimum: float, maximum: float, cosmology: str, time_dilation: bool) -> _Table:
    """Tabulate dV/d(distance), divided by 1 + z where time is dilated.

    With D the comoving distance, d = (1 + z) D and E = H/H0 in a flat universe (all that have a
    name are), dV/dd = 4 pi D^2 (dD/dz) / (dd/dz): d^2 times a smooth function, which a cubic spline
    holds to 1e-7. Source: arXiv astro-ph/9905116, equations 15, 21 and 28.
    """
    model = _cosmology_named(cosmology)
    nearest, farthest = _redshift(model, minimum), _redshift(model, maximum)
    redshifts = np.expm1(np.linspace(np.log1p(nearest), np.log1p(farthest), NODES))
    distances = np.array(model.luminosity_distance(redshifts).value)
    distances[[0, -1]] = minimum, maximum
    if not np.all(np.diff(distances) > 0):
        raise InputError(
            f"minimum {minimum:g} and maximum {maximum:g} Mpc are too close; move them apart, or "
            "give a number"
        )
    slope = model.hubble_distance.value * model.inv_efunc(redshifts)  # dD/dz
    smooth = slope / (distances / (1 + redshifts) + (1 + redshifts) * slope)
    smooth /= (1 + redshifts) ** (3 if time_dilation else 2)
    density = _times_square(CubicSpline(distances, smooth))
    total = float(density.antiderivative()(maximum))
    density = PPoly(density.c / total, distances)
    cumulative = density.antiderivative()
    return _Table(density, cumulative, distances, cumulative(distances))


def _times_square(spline: PPoly) -> PPoly:
    """Multiply a piecewise cubic by x^2."""
    start = spline.x[:-1]
    product = np.zeros((6, len(start)))
    for shift, factor in enumerate((np.ones_like(start), 2 * start, start**2)):
        product[shift : shift + 4] += factor * spline.c
    return PPoly(product, spline.x)


def _redshift(model: Any, distance: float) -> float:  # noqa: ANN401  # astropy comes late
    """The redshift of a luminosity distance [Mpc]."""
    farthest = model.luminosity_distance(LARGEST_REDSHIFT).value
    if not 0 <= distance <= farthest:
        raise InputError(
            f"{distance:g} Mpc: give luminosity distances from 0 to {farthest:.4g} Mpc, the one "
            f"of redshift {LARGEST_REDSHIFT:g}"
        )
    found: float = brentq(
        lambda redshift: model.luminosity_distance(redshift).value - distance,
        0.0,
        LARGEST_REDSHIFT,
        xtol=1e-15,
        rtol=1e-14,
    )
    return found


def _cosmology_named(name: str) -> Any:  # noqa: ANN401  # astropy comes late
    from astropy import cosmology, units

    if name == "Planck15_LAL":  # as bilby makes it of LAL's constants
        import lal

        rate = lal.H0_SI * 1e3 * lal.PC_SI * units.km / (units.Mpc * units.s)
        return cosmology.FlatLambdaCDM(H0=rate, Om0=lal.OMEGA_M)
    if name not in cosmology.available:
        known = ", ".join((*cosmology.available, "Planck15_LAL"))
        raise InputError(f"cosmology: got {name!r}, known are {known}")
    return getattr(cosmology, name)


def _uniform_in_components_chirp_mass(minimum: float, maximum: float) -> Distribution:
    return PowerLaw(1.0, minimum, maximum)


def _uniform_in_components_mass_ratio(
    minimum: float, maximum: float, equal_mass: bool = False
) -> Distribution:
    return UniformInComponentsMassRatio(minimum, maximum)  # the density is the same for equal_mass


# bilby's name -> how it is made. The arguments' names and order are bilby's.
GW_DISTRIBUTIONS: dict[str, Callable[..., Distribution]] = {
    "UniformInComponentsChirpMass": _uniform_in_components_chirp_mass,
    "UniformInComponentsMassRatio": _uniform_in_components_mass_ratio,
    "UniformComovingVolume": UniformComovingVolume,
    "UniformSourceFrame": UniformSourceFrame,
}
