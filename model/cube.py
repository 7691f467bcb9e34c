"""The prior's unit cube, in which every parameter is uniform from 0 to 1 before the data."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from scipy.stats import norm

from model.prior import Prior, parse_prior
from storage.arrays import Array

# Angles that come back to where they were [rad].
PERIODS = {
    "ra": 2 * math.pi,
    "psi": math.pi,
    "phi_12": 2 * math.pi,
    "phi_jl": 2 * math.pi,
    "phase": 2 * math.pi,
}


@dataclass(frozen=True)
class PriorCube:
    """The way to the unit cube and whether its ends meet.

    Attributes:
        priors: Of each parameter; None where its text is not understood.
        periods: After which each parameter is the same again; 0 where it never is.
    """

    priors: tuple[Prior | None, ...]
    periods: tuple[float, ...]

    @classmethod
    def from_texts(cls, names: Sequence[str], texts: Mapping[str, str]) -> "PriorCube":
        """Read the priors of some parameters.

        Args:
            names: bilby's.
            texts: Of the priors, as in a bilby prior file.
        """
        priors = tuple(parse_prior(texts.get(name, "")) for name in names)
        periods = tuple(_period(name, prior) for name, prior in zip(names, priors, strict=True))
        return cls(priors, periods)

    @property
    def periodic(self) -> tuple[bool, ...]:
        """Which parameters are the same at 0 and 1."""
        return tuple(period > 0 for period in self.periods)

    def shares(
        self, values: Float[Array, "point parameter"], samples: Float[Array, "sample parameter"]
    ) -> Float[Array, "point parameter"]:
        """Map to the cube.

        A prior that is not understood is replaced by the normal distribution of the samples' mean
        and width: a map may depend on the data, as long as it does not on the truth.

        Args:
            values: To be mapped.
            samples: Of the posterior.
        """
        columns = []
        for column, prior in enumerate(self.priors):
            if prior is None:
                middle, width = samples[:, column].mean(), samples[:, column].std() or 1.0
                share = norm.cdf((values[:, column] - middle) / width)
            else:
                inside = np.clip(values[:, column], prior.minimum, prior.maximum)
                share = prior.cumulative(torch.from_numpy(inside)).numpy()
            columns.append(np.clip(share, 0.0, 1.0))
        return np.stack(columns, axis=1)

    def prior_widths(self, share: float) -> tuple[float | None, ...]:
        """Length of the central interval that holds a share of the prior; None if not known."""
        ends = torch.tensor([0.5 - share / 2, 0.5 + share / 2], dtype=torch.float64)
        return tuple(
            None if prior is None else float(prior.quantile(ends).diff()) for prior in self.priors
        )


def _period(name: str, prior: Prior | None) -> float:
    """The period of an angle whose prior reaches all around; 0 otherwise."""
    period = PERIODS.get(name, 0.0)
    whole = prior is not None and math.isclose(prior.maximum - prior.minimum, period, rel_tol=1e-6)
    return period if whole else 0.0
