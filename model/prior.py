"""What the text of a prior says of its cumulative distribution, on tensors in double precision.

The text is that of the data set's schema, in bilby's notation. Distributions without a closed form
are not known here, such as those of cosmology: the table of parameters stands in for them.
"""

import ast
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float64
from torch import Tensor

SMALLEST_NORM = 1e-8  # of a cut normal distribution, below which its tail is lost to rounding


class Prior(Protocol):
    """A one-dimensional distribution with the support [minimum, maximum]."""

    @property
    def minimum(self) -> float:
        """Lower end of the support, -inf where there is none."""

    @property
    def maximum(self) -> float:
        """Upper end of the support, inf where there is none."""

    def cumulative(self, value: Float64[Tensor, "*n"]) -> Float64[Tensor, "*n"]:
        """The share of the distribution below a value of the support."""

    def quantile(self, share: Float64[Tensor, "*n"]) -> Float64[Tensor, "*n"]:
        """The inverse of `cumulative`."""

    def log_density(self, value: Float64[Tensor, "*n"]) -> Float64[Tensor, "*n"]:
        """Log of the density within the support."""


@dataclass(frozen=True)
class Uniform:
    """Constant density between two values."""

    minimum: float
    maximum: float

    def cumulative(self, value: Float64[Tensor, "*n"]) -> Float64[Tensor, "*n"]:
        """Map to [0, 1]; from the minimum on, so that GPS times keep their digits."""
        return (value - self.minimum) / (self.maximum - self.minimum)

    def quantile(self, share: Float64[Tensor, "*n"]) -> Float64[Tensor, "*n"]:
        """Map from [0, 1]."""
        return self.minimum + (self.maximum - self.minimum) * share

    def log_density(self, value: Float64[Tensor, "*n"]) -> Float64[Tensor, "*n"]:
        """Minus the log of the width."""
        return torch.full_like(value, -math.log(self.maximum - self.minimum))


@dataclass(frozen=True)
class Sine:
    """Density proportional to sin(value): a polar angle from 0 to pi [rad]."""

    minimum: float = 0.0
    maximum: float = math.pi

    def cumulative(self, value: Float64[Tensor, "*n"]) -> Float64[Tensor, "*n"]:
        """As a product of sines: the difference of two cosines has no digits near the poles."""
        rise = torch.sin((value + self.minimum) / 2) * torch.sin((value - self.minimum) / 2)
        return 2 * rise / self._norm

    def quantile(self, share: Float64[Tensor, "*n"]) -> Float64[Tensor, "*n"]:
        """From sin^2 and cos^2 of half the angle, each of which has digits near its own pole."""
        sine = math.sin(self.minimum / 2) ** 2 + share * self._norm / 2
        cosine = math.cos(self.maximum / 2) ** 2 + (1 - share) * self._norm / 2
        return 2 * torch.atan2(sine.sqrt(), cosine.sqrt())

    def log_density(self, value: Float64[Tensor, "*n"]) -> Float64[Tensor, "*n"]:
        """-inf at the poles."""
        return torch.sin(value).clamp(min=0).log() - math.log(self._norm)

    @property
    def _norm(self) -> float:
        low, high = self.minimum, self.maximum
        return 2 * math.sin((high + low) / 2) * math.sin((high - low) / 2)


@dataclass(frozen=True)
class Cosine:
    """Density proportional to cos(value): a latitude from -pi/2 to pi/2 [rad]."""

    minimum: float = -math.pi / 2
    maximum: float = math.pi / 2

    def cumulative(self, value: Float64[Tensor, "*n"]) -> Float64[Tensor, "*n"]:
        """That of the polar angle from the south."""
        return self._polar.cumulative(value + math.pi / 2)

    def quantile(self, share: Float64[Tensor, "*n"]) -> Float64[Tensor, "*n"]:
        """That of the polar angle from the south."""
        return self._polar.quantile(share) - math.pi / 2

    def log_density(self, value: Float64[Tensor, "*n"]) -> Float64[Tensor, "*n"]:
        """-inf at the poles."""
        return self._polar.log_density(value + math.pi / 2)

    @property
    def _polar(self) -> Sine:
        return Sine(self.minimum + math.pi / 2, self.maximum + math.pi / 2)


@dataclass(frozen=True)
class PowerLaw:
    """Density proportional to value^alpha."""

    alpha: float
    minimum: float
    maximum: float

    def cumulative(self, value: Float64[Tensor, "*n"]) -> Float64[Tensor, "*n"]:
        """Integral of the density."""
        if self.alpha == -1:
            return (value / self.minimum).log() / self._norm
        power = self.alpha + 1
        share: Tensor = (value**power - self.minimum**power) / (power * self._norm)
        return share

    def quantile(self, share: Float64[Tensor, "*n"]) -> Float64[Tensor, "*n"]:
        """Solve for the value."""
        if self.alpha == -1:
            return self.minimum * (share * self._norm).exp()
        power = self.alpha + 1
        return (self.minimum**power + share * power * self._norm) ** (1 / power)  # type: ignore[no-any-return]

    def log_density(self, value: Float64[Tensor, "*n"]) -> Float64[Tensor, "*n"]:
        """-inf at zero where alpha is positive."""
        # xlogy, for which 0 log 0 is 0, as where alpha is 0.
        return torch.xlogy(torch.full_like(value, self.alpha), value) - math.log(self._norm)

    @property
    def _norm(self) -> float:
        """Integral of value^alpha over the support."""
        if self.alpha == -1:
            return math.log(self.maximum / self.minimum)
        power = self.alpha + 1
        return float(self.maximum**power - self.minimum**power) / power


@dataclass(frozen=True)
class TruncatedGaussian:
    """A normal distribution of mean mu and width sigma, cut to an interval, which may be half."""

    mu: float
    sigma: float
    minimum: float = -math.inf
    maximum: float = math.inf

    def cumulative(self, value: Float64[Tensor, "*n"]) -> Float64[Tensor, "*n"]:
        """Share of the interval."""
        low, high = self._shares_beyond
        below: Tensor = (torch.special.ndtr((value - self.mu) / self.sigma) - low) / self.norm
        above: Tensor = (torch.special.ndtr((self.mu - value) / self.sigma) - high) / self.norm
        return below if low < high else 1 - above

    def quantile(self, share: Float64[Tensor, "*n"]) -> Float64[Tensor, "*n"]:
        """Solve for the value, from the side on which less is cut off: there are more digits."""
        low, high = self._shares_beyond
        sigmas: Tensor
        if low < high:
            sigmas = torch.special.ndtri(low + share * self.norm)
        else:
            sigmas = -torch.special.ndtri(high + (1 - share) * self.norm)
        return self.mu + self.sigma * sigmas

    def log_density(self, value: Float64[Tensor, "*n"]) -> Float64[Tensor, "*n"]:
        """The normal distribution's over the share that is left."""
        norm = math.log(self.sigma * math.sqrt(2 * math.pi) * self.norm)
        return -0.5 * ((value - self.mu) / self.sigma) ** 2 - norm

    @property
    def norm(self) -> float:
        """The share of the whole normal distribution that is left."""
        low, high = self._shares_beyond
        return 1 - low - high

    @property
    def _shares_beyond(self) -> tuple[float, float]:
        """What is cut off at either end."""
        ends = [(self.minimum - self.mu) / self.sigma, (self.mu - self.maximum) / self.sigma]
        low, high = torch.special.ndtr(torch.tensor(ends, dtype=torch.float64)).tolist()
        return low, high


def _log_uniform(minimum: float, maximum: float) -> Prior:
    return PowerLaw(-1.0, minimum, maximum)


def _uniform_in_components_chirp_mass(minimum: float, maximum: float) -> Prior:
    return PowerLaw(1.0, minimum, maximum)


# bilby's name -> how it is made. The arguments' names and order are bilby's.
PRIORS: dict[str, Callable[..., Prior]] = {
    "Uniform": Uniform,
    "LogUniform": _log_uniform,
    "PowerLaw": PowerLaw,
    "Sine": Sine,
    "Cosine": Cosine,
    "Gaussian": TruncatedGaussian,
    "Normal": TruncatedGaussian,
    "TruncatedGaussian": TruncatedGaussian,
    "TruncatedNormal": TruncatedGaussian,
    "UniformInComponentsChirpMass": _uniform_in_components_chirp_mass,
}


def read_prior(text: str, minimum: float, maximum: float) -> Prior | None:
    """Read the text of a prior; None where its quantiles cannot be had.

    Args:
        text: As in a bilby prior file.
        minimum: Lower end of its support as the data set has it, -inf for none; a text that means
            another support is not understood here.
        maximum: Upper end, inf for none.
    """
    prior = parse_prior(text)
    if prior is None or (prior.minimum, prior.maximum) != (minimum, maximum):
        return None
    return prior


def parse_prior(text: str) -> Prior | None:
    """Read the text of a prior, with the support that it names itself.

    Args:
        text: As in a bilby prior file.
    """
    try:
        call = ast.parse(text, mode="eval").body
        if not isinstance(call, ast.Call):
            return None
        make = PRIORS[ast.unparse(call.func).rsplit(".", 1)[-1]]
        options = {str(item.arg): _number(item.value) for item in call.keywords}
        prior = make(*map(_number, call.args), **options)
        middle = prior.quantile(torch.tensor(0.5, dtype=torch.float64))
    except (SyntaxError, KeyError, TypeError, ValueError, ArithmeticError):
        return None
    if not middle.isfinite():
        return None
    if isinstance(prior, TruncatedGaussian) and not prior.norm > SMALLEST_NORM:
        return None
    return prior


def _number(node: ast.expr) -> float:
    """The value of a number, inf, pi, or a multiple of pi."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_number(node.operand)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult | ast.Div):
        left, right = _number(node.left), _number(node.right)
        return left * right if isinstance(node.op, ast.Mult) else left / right
    named = {"inf": math.inf, "np.inf": math.inf, "pi": math.pi, "np.pi": math.pi}
    if (name := ast.unparse(node)) in named:
        return named[name]
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return float(node.value)  # type: ignore[arg-type]  # the line above has looked
    raise ValueError(name)
