"""theta and the space in which the flow works, in which the prior is as simple as can be.

A parameter is mapped by the cumulative distribution of its prior to (0, 1). From there an angle
goes on to a circle, on which nothing marks the seam of its range, any other by the normal quantile
function to the real line. So no posterior has mass outside the prior's support, a posterior may lie
across the seam, and an untrained flow returns the prior. All in double precision: a GPS time in
single is good to a minute.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, Self

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from model.prior import Prior, TruncatedGaussian, Uniform, read_prior
from storage.errors import InputError
from storage.schema import Parameter

# Keeps a value that lies on its bound at a finite place, 6.2 standard deviations out.
MARGIN = 2.0**-32
# Keeps a sample off a bound where the prior's density vanishes: 1 minus this is the next number.
ROUNDING = 2.0**-53
# From a bound that is the only one, below which a logarithm would not stay finite.
SHORTEST = 1e-300
# An angle whose prior spans its period has no ends [rad]; rounded ends in a recipe are forgiven.
PERIODS = {"phase": 2 * math.pi, "ra": 2 * math.pi, "phi_12": 2 * math.pi, "phi_jl": 2 * math.pi,
           "psi": math.pi}  # fmt: skip
PERIOD_TOLERANCE = 1e-5
# From here on the events are a selection of the prior (a window of SNRs, bounds on masses), not
# just a sample of it [sampling errors].
SELECTED = 5.0


@dataclass(frozen=True)
class Coordinate:
    """One parameter's way to the flow's space and back.

    Attributes:
        name: Of the parameter.
        minimum: Lower bound, -inf for none.
        maximum: Upper bound, inf for none.
        prior: Its text where the prior's quantiles are known, or else empty.
        periodic: Whether its values lie on a circle, from -1 to 1 in the flow's space.
        mean: Subtracted from what the prior's quantiles make a standard normal, if they are known.
        std: By which it is divided.
    """

    name: str
    minimum: float
    maximum: float
    prior: str = ""
    periodic: bool = False
    mean: float = 0.0
    std: float = 1.0

    @classmethod
    def fit(cls, parameter: Parameter, values: Float64[Tensor, "event"]) -> Self:
        """Learn from the prior, and from training events what it does not say.

        Raises:
            InputError: The training events all have the same value, or some have none.
        """
        if unknown := int(values.isnan().sum()):
            raise InputError(
                f"parameters: {parameter.name} is not known of {unknown} of the {len(values)} "
                "training events, as of real ones; train on simulated events"
            )
        if not values.max() > values.min():
            raise InputError(
                f"parameters: {parameter.name} has one value in all {len(values)} training "
                "events; simulate more events, or leave it out"
            )
        minimum = -math.inf if parameter.minimum is None else parameter.minimum
        maximum = math.inf if parameter.maximum is None else parameter.maximum
        period = PERIODS.get(parameter.name, math.nan)
        periodic = abs(maximum - minimum - period) < PERIOD_TOLERANCE * period
        known = read_prior(parameter.prior, minimum, maximum)
        plain = cls(parameter.name, minimum, maximum, parameter.prior if known else "", periodic)
        if isinstance(known, TruncatedGaussian) and math.isinf(minimum) and math.isinf(maximum):
            plain = replace(plain, mean=known.mu, std=known.sigma)
        unscaled, _ = plain.to_flow(values)
        mean, std = unscaled.mean().item(), unscaled.std(correction=0).item()
        errors = max(abs(mean), abs(std**2 - 1) / math.sqrt(2)) * math.sqrt(len(values))
        if periodic or (known and errors < SELECTED):
            return plain
        return replace(plain, mean=plain.mean + plain.std * mean, std=plain.std * std)

    def to_flow(
        self, theta: Float64[Tensor, "*n"]
    ) -> tuple[Float64[Tensor, "*n"], Float64[Tensor, "*n"]]:
        """Map values of the parameter to the flow's space.

        Returns:
            The values there, and the log of the map's slope; -inf outside the bounds.
        """
        inside = (theta >= self.minimum) & (theta <= self.maximum)
        theta = theta.clamp(self.minimum, self.maximum)
        if self._distribution is None:
            value, slope = self._from_line(theta)
        else:
            share = self._distribution.cumulative(theta)
            slope = self._distribution.log_density(theta)
            if self.periodic:
                value, slope = 2 * share - 1, slope + math.log(2)
            else:
                value = torch.special.ndtri(share.clamp(MARGIN, 1 - MARGIN))
                slope = slope - _log_normal(value)
        slope = torch.where(inside, slope - math.log(self.std), -math.inf)
        return (value - self.mean) / self.std, slope

    def from_flow(
        self, value: Float64[Tensor, "*n"]
    ) -> tuple[Float64[Tensor, "*n"], Float64[Tensor, "*n"]]:
        """Map values of the flow's space to the parameter.

        Returns:
            The values of the parameter, and the log of the slope of `to_flow` there.
        """
        value = value * self.std + self.mean
        if self._distribution is None:
            theta, slope = self._to_line(value)
        else:
            share = (value + 1) / 2 if self.periodic else torch.special.ndtr(value)
            theta = self._distribution.quantile(share.clamp(ROUNDING, 1 - ROUNDING))
            theta = theta.clamp(self.minimum, self.maximum)  # rounding can carry it beyond
            slope = self._distribution.log_density(theta)
            slope = slope + math.log(2) if self.periodic else slope - _log_normal(value)
        return theta, slope - math.log(self.std)

    @cached_property
    def _distribution(self) -> Prior | None:
        """On the interval: the prior, or a uniform one for want of it; None for what is linear."""
        if math.isinf(self.minimum) and math.isinf(self.maximum):
            return None
        known = read_prior(self.prior, self.minimum, self.maximum) if self.prior else None
        if known is None and math.isfinite(self.maximum - self.minimum):
            return Uniform(self.minimum, self.maximum)
        return known

    def _from_line(
        self, theta: Float64[Tensor, "*n"]
    ) -> tuple[Float64[Tensor, "*n"], Float64[Tensor, "*n"]]:
        """The log of the distance from the only bound, with its sign; theta where there is none."""
        if math.isfinite(self.minimum):
            value = (theta - self.minimum).clamp(min=SHORTEST).log()
            return value, -value
        if math.isfinite(self.maximum):
            value = -(self.maximum - theta).clamp(min=SHORTEST).log()
            return value, value
        return theta, torch.zeros_like(theta)

    def _to_line(
        self, value: Float64[Tensor, "*n"]
    ) -> tuple[Float64[Tensor, "*n"], Float64[Tensor, "*n"]]:
        """The inverse of `_from_line`, with the slope of that."""
        finite = value.clamp(math.log(SHORTEST), -math.log(SHORTEST))
        if math.isfinite(self.minimum):
            return self.minimum + finite.exp(), -finite
        if math.isfinite(self.maximum):
            return self.maximum - (-finite).exp(), finite
        return value, torch.zeros_like(value)


@dataclass(frozen=True)
class ParameterMap:
    """The map between theta and the flow's space.

    Attributes:
        coordinates: One for each inferred parameter.
    """

    coordinates: tuple[Coordinate, ...]

    @classmethod
    def fit(
        cls,
        parameters: Sequence[Parameter],
        names: Sequence[str],
        values: Float[Tensor, "event parameter"],
    ) -> Self:
        """Learn the map from the priors, and from training events what those do not say.

        Args:
            parameters: All columns of the data set.
            names: Those to infer; none for all that are free.
            values: The data set's table.

        Raises:
            InputError: A name is not known or fixed, fewer than two are left, or the training
                events all have the same value.
        """
        known = {parameter.name: column for column, parameter in enumerate(parameters)}
        chosen = tuple(names) or tuple(item.name for item in parameters if not item.fixed)
        for name in chosen:
            if name not in known:
                raise InputError(f"parameters: got {name!r}, the data set has {', '.join(known)}")
            if parameters[known[name]].fixed:
                raise InputError(f"parameters: {name} is fixed in this data set, nothing to infer")
        if len(chosen) < 2:
            raise InputError(
                f"parameters: {', '.join(chosen) or 'none'}: the coupling flow needs at least two"
            )
        columns = [known[name] for name in chosen]
        return cls(tuple(Coordinate.fit(parameters[k], values[:, k].double()) for k in columns))

    @property
    def names(self) -> tuple[str, ...]:
        """The inferred parameters."""
        return tuple(item.name for item in self.coordinates)

    @property
    def periodic(self) -> tuple[bool, ...]:
        """Which of them lie on a circle, from -1 to 1 in the flow's space."""
        return tuple(item.periodic for item in self.coordinates)

    def to_flow(
        self, theta: Float64[Tensor, "*n parameter"]
    ) -> tuple[Float64[Tensor, "*n parameter"], Float64[Tensor, "*n"]]:
        """Map theta (double) to the flow's space.

        Returns:
            The values, and the log of the map's Jacobian determinant; -inf outside the bounds.
        """
        return self._each(Coordinate.to_flow, theta)

    def from_flow(
        self, values: Float64[Tensor, "*n parameter"]
    ) -> tuple[Float64[Tensor, "*n parameter"], Float64[Tensor, "*n"]]:
        """Map values (double) of the flow's space to theta.

        Returns:
            Theta, and the log of the Jacobian determinant of `to_flow` there.
        """
        return self._each(Coordinate.from_flow, values)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint."""
        return {"coordinates": [asdict(item) for item in self.coordinates]}

    @classmethod
    def from_dict(cls, document: dict[str, Any]) -> Self:
        """Read it back; the inverse of `to_dict`."""
        return cls(tuple(Coordinate(**item) for item in document["coordinates"]))

    def _each(
        self, way: Callable[[Coordinate, Tensor], tuple[Tensor, Tensor]], rows: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Send each column on its way; side by side the columns are a diagonal Jacobian."""
        columns = [way(*pair) for pair in zip(self.coordinates, rows.unbind(-1), strict=True)]
        mapped, slopes = zip(*columns, strict=True)
        return torch.stack(mapped, -1), torch.stack(slopes, -1).sum(-1)


def _log_normal(value: Float64[Tensor, "*n"]) -> Float64[Tensor, "*n"]:
    """Log density of the standard normal distribution."""
    return -0.5 * value**2 - 0.5 * math.log(2 * math.pi)
