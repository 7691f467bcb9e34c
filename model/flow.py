"""The neural spline flow over theta, given the condition c.

Source: arXiv:1906.04032 (rational-quadratic neural spline flows), as implemented by nflows.
"""

import math

import torch
from jaxtyping import Float
from nflows.nn.nets import ResidualNet
from nflows.transforms import (
    CompositeTransform,
    PiecewiseRationalQuadraticCouplingTransform,
    RandomPermutation,
    Transform,
)
from nflows.transforms.splines.rational_quadratic import DEFAULT_MIN_DERIVATIVE
from torch import Tensor, nn

from model.config import FlowConfig


class ConditionalFlow(nn.Module):
    """A density over values, given a condition: a standard normal pulled back through splines.

    Args:
        features: Number of values, at least two.
        condition: Length of the condition.
        config: Depths and widths.
    """

    def __init__(self, features: int, condition: int, config: FlowConfig) -> None:
        super().__init__()
        layers: list[Transform] = []
        for number in range(config.transforms):
            if number and number % 2 == 0:  # a pair of layers transforms every value once
                layers.append(RandomPermutation(features))
            layers.append(_coupling(features, condition, config, first=number % 2))
        self.transform = CompositeTransform(layers)
        self.features = features

    def log_prob(
        self, values: Float[Tensor, "n feature"], condition: Float[Tensor, "n condition"]
    ) -> Float[Tensor, "n"]:
        """Log density of the values."""
        base, jacobian = self.transform(values, context=condition)
        return _log_standard_normal(base) + jacobian  # type: ignore[no-any-return]

    def from_base(
        self, base: Float[Tensor, "n feature"], condition: Float[Tensor, "n condition"]
    ) -> tuple[Float[Tensor, "n feature"], Float[Tensor, "n"]]:
        """Turn draws from the standard normal into values, with the log density of each."""
        values, jacobian = self.transform.inverse(base, context=condition)
        return values, _log_standard_normal(base) - jacobian


def _coupling(features: int, condition: int, config: FlowConfig, first: int) -> Transform:
    """One coupling layer: every other value is transformed, given the others."""
    mask = torch.arange(features) % 2 == first

    def knots(features_in: int, features_out: int) -> ResidualNet:
        network = ResidualNet(
            features_in,
            features_out,
            hidden_features=config.hidden,
            context_features=condition,
            num_blocks=config.blocks,
        )
        _start_at_identity(network.final_layer, config.bins)
        return network

    return PiecewiseRationalQuadraticCouplingTransform(
        mask.long(),
        knots,
        num_bins=config.bins,
        tails="linear",
        tail_bound=config.tail_bound,
    )


@torch.no_grad()
def _start_at_identity(layer: nn.Linear, bins: int) -> None:
    """Let an untrained spline be the identity: equal bins, and slopes of one at the knots."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    slopes = layer.bias.view(-1, 3 * bins - 1)[:, 2 * bins :]
    slopes.fill_(math.log(math.expm1(1 - DEFAULT_MIN_DERIVATIVE)))


def _log_standard_normal(base: Float[Tensor, "n feature"]) -> Float[Tensor, "n"]:
    return -0.5 * (base**2).sum(-1) - 0.5 * base.shape[-1] * math.log(2 * math.pi)
