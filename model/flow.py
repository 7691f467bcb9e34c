"""The neural spline flow over theta, given the condition c.

Source: arXiv:1906.04032 (rational-quadratic neural spline flows), as implemented by nflows; on a
circle arXiv:2002.02428, section 2.1.2 (circular splines, turned by a shift).
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from nflows.nn.nets import ResidualNet
from nflows.transforms import CompositeTransform, PiecewiseRationalQuadraticCouplingTransform
from nflows.transforms.splines import rational_quadratic_spline
from nflows.transforms.splines.rational_quadratic import DEFAULT_MIN_DERIVATIVE
from torch import Tensor, nn

from model.config import FlowConfig

# What nflows turns into a slope of one.
UNIT_SLOPE = math.log(math.expm1(1 - DEFAULT_MIN_DERIVATIVE))


class ConditionalFlow(nn.Module):
    """A density over values, given a condition: a simple one pulled back through splines.

    The simple density is a standard normal, for values on a circle the uniform one.

    Args:
        features: Number of values, at least two.
        condition: Length of the condition.
        config: Depths and widths.
        periodic: Which values lie on a circle, from -1 to 1; none by default.
    """

    circle: Tensor

    def __init__(
        self, features: int, condition: int, config: FlowConfig, periodic: Sequence[bool] = ()
    ) -> None:
        super().__init__()
        circle = torch.tensor(tuple(periodic) or (False,) * features)
        self.transform = CompositeTransform(
            [
                SplineCoupling(_mask(features, number), circle, condition, config)
                for number in range(config.transforms)
            ]
        )
        self.features = features
        self.register_buffer("circle", circle, persistent=False)

    def log_prob(
        self, values: Float[Tensor, "n feature"], condition: Float[Tensor, "n condition"]
    ) -> Float[Tensor, "n"]:
        """Log density of the values."""
        base, jacobian = self.transform(values, context=condition)
        return self.log_base(base) + jacobian  # type: ignore[no-any-return]

    def from_base(
        self, base: Float[Tensor, "n feature"], condition: Float[Tensor, "n condition"]
    ) -> tuple[Float[Tensor, "n feature"], Float[Tensor, "n"]]:
        """Turn draws from the simple density into values, with the log density of each."""
        values, jacobian = self.transform.inverse(base, context=condition)
        return values, self.log_base(base) - jacobian

    def draw_base(self, n: int, generator: torch.Generator) -> Float[Tensor, "n feature"]:
        """Draw from the simple density, on the generator's device."""
        normal = torch.randn((n, self.features), generator=generator, device=generator.device)
        return torch.where(self.circle, torch.erf(normal / math.sqrt(2)), normal)

    def log_base(self, base: Float[Tensor, "*n feature"]) -> Float[Tensor, "*n"]:
        """Log of the simple density."""
        normal = -0.5 * base**2 - 0.5 * math.log(2 * math.pi)
        return torch.where(self.circle, -math.log(2), normal).sum(-1)


class SplineCoupling(PiecewiseRationalQuadraticCouplingTransform):
    """A coupling layer of nflows whose splines close on themselves where values lie on a circle.

    On a circle the spline has the same slope at both ends, so that the seam is a point like any
    other, and is followed by a rotation, without which the seam would stay where it is.

    Args:
        mask: Which values are transformed, given the others.
        circle: Which values lie on a circle, from -1 to 1.
        condition: Length of the condition.
        config: Depths and widths.
    """

    def __init__(
        self,
        mask: Bool[Tensor, "feature"],
        circle: Bool[Tensor, "feature"],
        condition: int,
        config: FlowConfig,
    ) -> None:
        turning = circle[mask]
        self.any_turning = bool(turning.any())

        def knots(features_in: int, features_out: int) -> nn.Module:
            return _Knots(circle[~mask], features_out, condition, config)

        super().__init__(
            mask.long(), knots, num_bins=config.bins, tails="linear", tail_bound=config.tail_bound
        )
        self.register_buffer("turning", turning, persistent=False)
        _start_at_identity(self.transform_net.final_layer, config.bins, self.outputs)

    @property
    def outputs(self) -> int:
        """Numbers a spline: widths, heights and slopes; on a circle a slope and a turn more."""
        bins: int = self.num_bins
        return 3 * bins + (2 if self.any_turning else -1)

    def _transform_dim_multiplier(self) -> int:
        return self.outputs

    def _piecewise_cdf(
        self,
        inputs: Float[Tensor, "n feature"],
        transform_params: Float[Tensor, "n feature output"],
        inverse: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Evaluate all splines at once, those of circles stretched to the others' interval."""
        bins, bound = self.num_bins, self.tail_bound
        # nflows looks for a bin, and finds none among knots that are no numbers.
        finite = torch.isfinite(transform_params).all(-1)
        transform_params = torch.nan_to_num(transform_params)
        knots = transform_params[..., : 2 * bins] / math.sqrt(self.transform_net.hidden_features)
        slopes = transform_params[..., 2 * bins : 3 * bins - 1]
        ends = torch.full_like(transform_params[..., :1], UNIT_SLOPE)
        turns, stretch = inputs.new_zeros(()), inputs.new_ones(())
        if self.any_turning:
            ends = torch.where(self.turning[:, None], transform_params[..., -3:-2], ends)
            # An angle of two numbers: a single one could not go round with what it depends on,
            # as the polarisation angle does with the phase.
            angle = torch.atan2(transform_params[..., -1], transform_params[..., -2])
            turns = torch.where(self.turning, angle / math.pi, 0.0)
            stretch = torch.where(self.turning, torch.full_like(inputs[:1], bound), 1.0)
        values = self._on_circle(inputs - turns) if inverse else inputs
        stretched = values * stretch
        inside = stretched.abs() <= bound  # always, on circles; a line goes on with slope 1
        outputs, jacobian = rational_quadratic_spline(
            torch.where(inside, stretched, 0.0),
            knots[..., :bins],
            knots[..., bins:],
            torch.cat([ends, slopes, ends], -1),
            inverse=inverse,
            left=-bound,
            right=bound,
            bottom=-bound,
            top=bound,
        )
        outputs = torch.where(inside, outputs, stretched) / stretch
        if not inverse:
            outputs = self._on_circle(outputs + turns)
        jacobian = torch.where(inside, jacobian, 0.0)
        return outputs, torch.where(finite, jacobian, math.nan)

    def _on_circle(self, values: Float[Tensor, "n feature"]) -> Float[Tensor, "n feature"]:
        """Bring values on a circle back to -1 to 1."""
        if not self.any_turning:
            return values
        return torch.where(self.turning, values - 2 * torch.round(values / 2), values)


class _Knots(ResidualNet):
    """The network that gives the splines; an angle enters it as sine and cosine, without a seam."""

    def __init__(
        self, circle: Bool[Tensor, "feature"], outputs: int, condition: int, config: FlowConfig
    ) -> None:
        super().__init__(
            len(circle) + int(circle.sum()),
            outputs,
            hidden_features=config.hidden,
            context_features=condition,
            num_blocks=config.blocks,
        )
        self.register_buffer("on_circle", circle.nonzero().squeeze(1), persistent=False)
        self.register_buffer("on_line", (~circle).nonzero().squeeze(1), persistent=False)

    def forward(
        self, inputs: Float[Tensor, "n feature"], context: Float[Tensor, "n condition"]
    ) -> Float[Tensor, "n output"]:
        """Give the splines of each row."""
        if len(self.on_circle):
            angle = math.pi * inputs[:, self.on_circle]
            inputs = torch.cat([inputs[:, self.on_line], angle.sin(), angle.cos()], 1)
        return super().forward(inputs, context=context)  # type: ignore[no-any-return]


def _mask(features: int, number: int) -> Tensor:
    """Which values a layer transforms: those with a bit of their number set, or with it unset.

    A pair of layers transforms every value once. The bits take turns, so that every two values
    are separated once in as many pairs as there are bits. Source: arXiv:2001.05486.
    """
    bits = (features - 1).bit_length()
    numbers = torch.arange(features)
    return (numbers >> (number // 2 % bits)) % 2 == number % 2


@torch.no_grad()
def _start_at_identity(layer: nn.Linear, bins: int, outputs: int) -> None:
    """Let an untrained spline be the identity: equal bins, slopes of one at the knots, no turn."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    slopes = layer.bias.view(-1, outputs)[:, 2 * bins :]
    slopes.fill_(UNIT_SLOPE)
    if outputs == 3 * bins + 2:
        slopes[:, -2:] = torch.tensor([1.0, 0.0])
