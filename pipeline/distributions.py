"""The distributions of `bilby.core.prior`, by bilby's names; `gw_distributions` has more.

Each maps uniform numbers to values (`rescale`) and gives its log density, so that one uniform
number a parameter is all the randomness a draw takes.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float
from scipy.special import ndtr, ndtri

from storage.arrays import Array
from storage.errors import InputError


@runtime_checkable
class Distribution(Protocol):
    """A one-dimensional prior with support [minimum, maximum]."""

    @property
    def minimum(self) -> float:
        """Lower end of the support."""

    @property
    def maximum(self) -> float:
        """Upper end of the support."""

    def rescale(self, uniform: Float[Array, "n"]) -> Float[Array, "n"]:
        """Map uniform numbers in [0, 1) to values: the inverse of the cumulative distribution."""

    def log_prob(self, value: Float[Array, "n"]) -> Float[Array, "n"]:
        """Log of the density, -inf outside the support."""


@dataclass(frozen=True)
class DeltaFunction:
    """A fixed value; written as a bare number."""

    peak: float

    @property
    def minimum(self) -> float:
        """The value."""
        return self.peak

    @property
    def maximum(self) -> float:
        """The value."""
        return self.peak

    def rescale(self, uniform: Float[Array, "n"]) -> Float[Array, "n"]:
        """Return the value."""
        return np.full_like(uniform, self.peak)

    def log_prob(self, value: Float[Array, "n"]) -> Float[Array, "n"]:
        """Zero at the value (the parameter is no longer random), -inf elsewhere."""
        return np.where(value == self.peak, 0.0, -np.inf)


@dataclass(frozen=True)
class PowerLaw:
    """Density proportional to value^alpha."""

    alpha: float
    minimum: float
    maximum: float

    def __post_init__(self) -> None:
        require_order(self.minimum, self.maximum)
        try:
            norm = math.nan if self.minimum < 0 else self._norm
        except ArithmeticError:
            norm = math.nan
        if not 0 < norm < math.inf:
            raise InputError(
                f"a power law of alpha {self.alpha:g} from {self.minimum:g} to {self.maximum:g} "
                "cannot be normalised; change minimum or maximum"
            )

    def rescale(self, uniform: Float[Array, "n"]) -> Float[Array, "n"]:
        """Map uniform numbers to values."""
        if self.alpha == -1:
            values = self.minimum * np.exp(uniform * math.log(self.maximum / self.minimum))
            return _clip(values, self.minimum, self.maximum)
        power = self.alpha + 1
        low, high = float(self.minimum**power), float(self.maximum**power)
        return _clip((low + uniform * (high - low)) ** (1 / power), self.minimum, self.maximum)

    def log_prob(self, value: Float[Array, "n"]) -> Float[Array, "n"]:
        """Log density."""
        with np.errstate(divide="ignore"):
            density = self.alpha * np.log(np.abs(value)) - math.log(self._norm)
        return inside(self, value, density)

    @property
    def _norm(self) -> float:
        """Integral of value^alpha over the support."""
        if self.alpha == -1:
            return math.log(self.maximum / self.minimum)
        power = self.alpha + 1
        return float(self.maximum**power - self.minimum**power) / power


@dataclass(frozen=True)
class Uniform:
    """Constant density between two values."""

    minimum: float
    maximum: float

    def __post_init__(self) -> None:
        require_order(self.minimum, self.maximum)
        if math.isinf(self.maximum - self.minimum):
            raise InputError(
                f"Uniform from {self.minimum:g} to {self.maximum:g} cannot be normalised; give "
                "finite ends"
            )

    def rescale(self, uniform: Float[Array, "n"]) -> Float[Array, "n"]:
        """Map uniform numbers to values."""
        return self.minimum + uniform * (self.maximum - self.minimum)

    def log_prob(self, value: Float[Array, "n"]) -> Float[Array, "n"]:
        """Log density."""
        density = np.full_like(value, -math.log(self.maximum - self.minimum))
        return inside(self, value, density)


@dataclass(frozen=True)
class Sine:
    """Density proportional to sin(value): a polar angle from 0 to pi."""

    minimum: float = 0.0
    maximum: float = math.pi

    def __post_init__(self) -> None:
        require_order(self.minimum, self.maximum)
        if self.minimum < 0.0 or self.maximum > math.pi:
            raise InputError(
                f"Sine from {self.minimum:g} to {self.maximum:g} has a negative density; stay "
                "within 0 to pi"
            )

    def rescale(self, uniform: Float[Array, "n"]) -> Float[Array, "n"]:
        """Map uniform numbers to values."""
        low, high = math.cos(self.minimum), math.cos(self.maximum)
        values = np.arccos(_clip(low + uniform * (high - low), -1, 1))
        return _clip(values, self.minimum, self.maximum)

    def log_prob(self, value: Float[Array, "n"]) -> Float[Array, "n"]:
        """Log density."""
        norm = math.cos(self.minimum) - math.cos(self.maximum)
        with np.errstate(divide="ignore", invalid="ignore"):
            return inside(self, value, np.log(np.sin(value) / norm))


@dataclass(frozen=True)
class Cosine:
    """Density proportional to cos(value): a latitude from -pi/2 to pi/2."""

    minimum: float = -math.pi / 2
    maximum: float = math.pi / 2

    def __post_init__(self) -> None:
        require_order(self.minimum, self.maximum)
        if self.minimum < -math.pi / 2 or self.maximum > math.pi / 2:
            raise InputError(
                f"Cosine from {self.minimum:g} to {self.maximum:g} has a negative density; stay "
                "within -pi/2 to pi/2"
            )

    def rescale(self, uniform: Float[Array, "n"]) -> Float[Array, "n"]:
        """Map uniform numbers to values."""
        low, high = math.sin(self.minimum), math.sin(self.maximum)
        values = np.arcsin(_clip(low + uniform * (high - low), -1, 1))
        return _clip(values, self.minimum, self.maximum)

    def log_prob(self, value: Float[Array, "n"]) -> Float[Array, "n"]:
        """Log density."""
        norm = math.sin(self.maximum) - math.sin(self.minimum)
        with np.errstate(divide="ignore", invalid="ignore"):
            return inside(self, value, np.log(np.cos(value) / norm))


@dataclass(frozen=True)
class TruncatedGaussian:
    """A normal distribution of mean mu and width sigma, cut to an interval."""

    mu: float
    sigma: float
    minimum: float
    maximum: float

    def __post_init__(self) -> None:
        require_order(self.minimum, self.maximum)
        if not 0 < self.sigma < math.inf:
            raise InputError(f"sigma: got {self.sigma:g}, must be positive and finite")
        if not math.isfinite(self.mu):
            raise InputError(f"mu: got {self.mu:g}, must be finite")
        low, high = self._cumulative
        if not low < high:
            raise InputError(
                f"TruncatedGaussian of mu {self.mu:g} and sigma {self.sigma:g} has nothing between "
                f"{self.minimum:g} and {self.maximum:g}; move the interval or widen sigma"
            )

    def rescale(self, uniform: Float[Array, "n"]) -> Float[Array, "n"]:
        """Map uniform numbers to values."""
        low, high = self._cumulative
        smallest = np.finfo(float).tiny  # keeps an exact zero from becoming -infinity
        values = self.mu + self.sigma * ndtri(np.maximum(low + uniform * (high - low), smallest))
        return _clip(values, self.minimum, self.maximum)

    def log_prob(self, value: Float[Array, "n"]) -> Float[Array, "n"]:
        """Log density."""
        low, high = self._cumulative
        norm = math.log(self.sigma * math.sqrt(2 * math.pi) * (high - low))
        return inside(self, value, -0.5 * ((value - self.mu) / self.sigma) ** 2 - norm)

    @property
    def _cumulative(self) -> tuple[float, float]:
        low, high = ndtr((np.array([self.minimum, self.maximum]) - self.mu) / self.sigma)
        return float(low), float(high)


def _log_uniform(minimum: float, maximum: float) -> Distribution:
    return PowerLaw(-1.0, minimum, maximum)


def _gaussian(mu: float, sigma: float) -> Distribution:
    return TruncatedGaussian(mu, sigma, -math.inf, math.inf)


# bilby's name -> how it is made. The arguments' names and order are bilby's.
DISTRIBUTIONS: dict[str, Callable[..., Distribution]] = {
    "Uniform": Uniform,
    "LogUniform": _log_uniform,
    "PowerLaw": PowerLaw,
    "Sine": Sine,
    "Cosine": Cosine,
    "Gaussian": _gaussian,
    "Normal": _gaussian,
    "TruncatedGaussian": TruncatedGaussian,
    "TruncatedNormal": TruncatedGaussian,
    "DeltaFunction": DeltaFunction,
}


def require_order(minimum: float, maximum: float) -> None:
    """Refuse a support that is empty.

    Raises:
        InputError: The minimum is not below the maximum.
    """
    if not minimum < maximum:
        raise InputError(f"minimum {minimum:g} is not below maximum {maximum:g}")


def inside(
    distribution: Distribution, value: Float[Array, "n"], density: Float[Array, "n"]
) -> Float[Array, "n"]:
    """The log density inside the support, -inf outside."""
    within = (value >= distribution.minimum) & (value <= distribution.maximum)
    return np.where(within, density, -np.inf)


def _clip(value: Float[Array, "n"], minimum: float, maximum: float) -> Float[Array, "n"]:
    # For a single number four times as fast as np.clip.
    clipped: Array = np.minimum(np.maximum(value, minimum), maximum)
    return clipped
