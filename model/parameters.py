"""theta and the space in which the flow works: unbounded, zero mean, unit variance.

A bounded parameter is mapped to (0, 1) and then by the normal quantile function to the real line.
So no posterior has mass outside the prior's support, and a uniform prior is a standard normal: an
untrained flow returns the prior. All in double precision: a GPS time in single is good to a minute.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor

from storage.errors import InputError
from storage.schema import Parameter

# Keeps a value that lies on its bound at a finite place, 6.2 standard deviations out.
MARGIN = 2.0**-32


@dataclass(frozen=True)
class ParameterMap:
    """The map between theta and the flow's space.

    Attributes:
        names: The inferred parameters.
        minimum: Lower bounds, -inf for none.
        maximum: Upper bounds, inf for none.
        mean: Of the unbounded values over the training events.
        std: Likewise.
    """

    names: tuple[str, ...]
    minimum: tuple[float, ...]
    maximum: tuple[float, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def fit(
        cls,
        parameters: Sequence[Parameter],
        names: Sequence[str],
        values: Float[Tensor, "event parameter"],
    ) -> Self:
        """Learn mean and variance from training events.

        Args:
            parameters: All columns of the data set.
            names: Those to infer; none for all that are free.
            values: The data set's table.

        Raises:
            InputError: A name is not known or fixed, fewer than two are left, a prior has a bound
                on one side only, or the training events all have the same value.
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
        ends = [parameters[known[name]] for name in chosen]
        for item in ends:
            if (item.minimum is None) != (item.maximum is None):
                raise InputError(
                    f"parameters: the prior of {item.name} ({item.prior}) has a bound on one side "
                    "only; give it none or two"
                )
        minimum = tuple(-math.inf if item.minimum is None else item.minimum for item in ends)
        maximum = tuple(math.inf if item.maximum is None else item.maximum for item in ends)
        unit = (0.0,) * len(chosen), (1.0,) * len(chosen)
        unscaled = cls(chosen, minimum, maximum, *unit)
        unbounded = unscaled.to_flow(values.double()[:, [known[name] for name in chosen]])[0]
        mean, std = unbounded.mean(0).tolist(), unbounded.std(0, correction=0).tolist()
        for name, spread in zip(chosen, std, strict=True):
            if not spread > 0:
                raise InputError(
                    f"parameters: {name} has one value in all {len(values)} training events; "
                    "simulate more events, or leave it out"
                )
        return cls(chosen, minimum, maximum, tuple(mean), tuple(std))

    def to_flow(
        self, theta: Float[Tensor, "*n parameter"]
    ) -> tuple[Float[Tensor, "*n parameter"], Float[Tensor, "*n"]]:
        """Map theta (double) to the flow's space.

        Returns:
            The values, and the log of the map's Jacobian determinant; -inf outside the bounds.
        """
        minimum, maximum, mean, std = self._constants(theta)
        width = maximum - minimum
        bounded = torch.isfinite(width)
        share = torch.where(bounded, (theta - minimum) / width, 0.5)
        inside = ((share >= 0) & (share <= 1)).all(-1)
        probit = torch.special.ndtri(share.clamp(MARGIN, 1 - MARGIN))
        unbounded = torch.where(bounded, probit, theta)
        slope = torch.where(bounded, -_log_normal(probit) - torch.log(width), 0.0)
        jacobian = (slope - torch.log(std)).sum(-1)
        return (unbounded - mean) / std, torch.where(inside, jacobian, -math.inf)

    def from_flow(
        self, values: Float[Tensor, "*n parameter"]
    ) -> tuple[Float[Tensor, "*n parameter"], Float[Tensor, "*n"]]:
        """Map values (double) of the flow's space to theta.

        Returns:
            Theta, and the log of the Jacobian determinant of `to_flow` there.
        """
        minimum, maximum, mean, std = self._constants(values)
        width = maximum - minimum
        bounded = torch.isfinite(width)
        unbounded = values * std + mean
        inside = torch.where(bounded, minimum + width * torch.special.ndtr(unbounded), unbounded)
        theta = inside.clamp(minimum, maximum)  # rounding can carry a share of one beyond
        slope = torch.where(bounded, -_log_normal(unbounded) - torch.log(width), 0.0)
        return theta, (slope - torch.log(std)).sum(-1)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint."""
        return {name: list(values) for name, values in vars(self).items()}

    @classmethod
    def from_dict(cls, document: dict[str, Any]) -> Self:
        """Read it back; the inverse of `to_dict`."""
        return cls(**{name: tuple(values) for name, values in document.items()})

    def _constants(self, like: Tensor) -> tuple[Tensor, ...]:
        return tuple(
            torch.tensor(values, dtype=torch.float64, device=like.device)
            for values in (self.minimum, self.maximum, self.mean, self.std)
        )


def _log_normal(value: Tensor) -> Tensor:
    """Log density of the standard normal distribution."""
    return -0.5 * value**2 - 0.5 * math.log(2 * math.pi)
