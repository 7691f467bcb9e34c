"""Rational-quadratic splines evaluated side by side, in few passes over memory.

The numbers are those of `nflows.transforms.splines.rational_quadratic`. Nflows lays the knots of a
spline one after another; here the splines lie one after another and a knot is a row, so that every
pass is over long contiguous rows. Nothing waits for the device.

Source: arXiv:1906.04032, equations 4 to 8.
"""

import os
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec

import torch
from jaxtyping import Float
from nflows.transforms.splines.rational_quadratic import (
    DEFAULT_MIN_BIN_WIDTH,
    DEFAULT_MIN_DERIVATIVE,
)
from torch import Tensor
from torch.nn.functional import softplus

# Values and knots, where the splines end, whether to invert: values and log of the slope.
Spline = Callable[[Tensor, Tensor, float, bool], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class _Bin:
    """The bin in which each value lies.

    Attributes:
        x: Where it begins and ends.
        y: To what those places go.
        slope: There, before softplus.
    """

    x: tuple[Float[Tensor, "n"], Float[Tensor, "n"]]
    y: tuple[Float[Tensor, "n"], Float[Tensor, "n"]]
    slope: tuple[Float[Tensor, "n"], Float[Tensor, "n"]]


def spline(
    values: Float[Tensor, "n"], knots: Float[Tensor, "knot n"], bound: float, inverse: bool
) -> tuple[Float[Tensor, "n"], Float[Tensor, "n"]]:
    """Evaluate a spline for each value; beyond the bounds it is the identity.

    Args:
        values: Where.
        knots: Widths and heights of the bins and one slope more, as a network gives them: before
            softmax and softplus.
        bound: The splines reach from minus this to this.
        inverse: Whether to find where a spline has the value.

    Returns:
        The values, and the log of the slope of what was done; NaN where a knot is not finite.
    """
    inside = values.abs() <= bound
    within = torch.where(inside, values, 0.0)
    out, slope = _rational(within, _gather_bin(within, knots, bound, inverse), inverse)
    return _join(inside, (out, slope), values, knots)


def unrolled_spline(
    values: Float[Tensor, "n"], knots: Float[Tensor, "knot n"], bound: float | Tensor, inverse: bool
) -> tuple[Float[Tensor, "n"], Float[Tensor, "n"]]:
    """Do what `spline` does, for a compiler: one pass, in which no knot goes back to memory."""
    inside = values.abs() <= bound
    within = torch.where(inside, values, 0.0)
    out, slope = _rational(within, _select_bin(within, knots, bound, inverse), inverse)
    return _join(inside, (out, slope), values, knots)


@cache
def compiled_spline(device: str, knots: int) -> Spline | None:
    """Compile the spline for a kind of device and a number of knots, once a process.

    Args:
        device: Its type.
        knots: Numbers a spline.

    Returns:
        None where it cannot be done; a compiler that is there and fails is warned of.
    """
    if not _has_compiler(device):
        return None
    compiled = torch.compile(
        unrolled_spline, dynamic=True, options={"cpp.threads": 1} if device == "cpu" else {}
    )

    def evaluate(
        values: Tensor, knots: Tensor, bound: float, inverse: bool
    ) -> tuple[Tensor, Tensor]:
        # As a tensor: PyTorch 2.13 went on with the first bound where it was a number.
        return compiled(values, knots, values.new_full((), bound), inverse)

    try:
        with torch.no_grad():  # as all calls to come: one with gradients would be compiled anew
            _try(evaluate, device, knots)
    except (RuntimeError, OSError, ImportError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        warnings.warn(
            f"splines are evaluated without a compiler, for it failed: {reason}", stacklevel=2
        )
        return None
    return evaluate


def _try(evaluate: Spline, device: str, knots: int) -> None:
    """Refuse a compiler's work that is not what it was made from.

    Raises:
        RuntimeError: It is not.
    """
    generator = torch.Generator().manual_seed(0)
    drawn = torch.rand(knots, 64, generator=generator).to(device)
    for bound in (1.0, 3.0):
        values = bound * (2 * torch.rand(64, generator=generator).to(device) - 1)
        pairs = zip(
            evaluate(values, drawn, bound, True), spline(values, drawn, bound, True), strict=True
        )
        if not all(torch.allclose(*pair, atol=1e-4) for pair in pairs):
            raise RuntimeError("it gave other numbers")


def _has_compiler(device: str) -> bool:
    if device == "cpu":
        return shutil.which(os.environ.get("CXX", "g++")) is not None
    return find_spec("triton") is not None


def _gather_bin(
    values: Float[Tensor, "n"], knots: Float[Tensor, "knot n"], bound: float, inverse: bool
) -> _Bin:
    bins, n = len(knots) // 3, len(values)
    shares = torch.softmax(knots[: 2 * bins].view(2, bins, n), 1)
    lengths = shares.mul_(1 - DEFAULT_MIN_BIN_WIDTH * bins).add_(DEFAULT_MIN_BIN_WIDTH)
    edges = knots.new_empty(2, bins + 1, n)
    edges[:, 0] = 0.0
    for number in range(bins - 1):  # a cumsum along rows would not be vectorised
        torch.add(edges[:, number], lengths[:, number], out=edges[:, number + 1])
    edges[:, :-1].mul_(2 * bound).sub_(bound)
    edges[:, -1] = bound
    place = (values >= edges[int(inverse), 1:-1]).sum(0)
    both = torch.stack([place, place + 1])
    x, y, slope = (rows.gather(0, both) for rows in (*edges, knots[2 * bins :]))
    return _Bin((x[0], x[1]), (y[0], y[1]), (slope[0], slope[1]))


def _select_bin(
    values: Float[Tensor, "n"], knots: Float[Tensor, "knot n"], bound: float | Tensor, inverse: bool
) -> _Bin:
    bins = len(knots) // 3
    rows = knots.unbind(0)
    edges = [_edges(rows[:bins], bound), _edges(rows[bins : 2 * bins], bound)]
    slopes = rows[2 * bins :]
    last = torch.zeros_like(values) + bound
    ends = [[*inner, last] for inner in edges]
    low = [-last, -last, slopes[0]]
    high = [ends[0][0], ends[1][0], slopes[1]]
    for number in range(bins - 1):
        beyond = values >= edges[int(inverse)][number]
        here = (edges[0][number], edges[1][number], slopes[number + 1])
        after = (ends[0][number + 1], ends[1][number + 1], slopes[number + 2])
        low = [torch.where(beyond, *pair) for pair in zip(here, low, strict=True)]
        high = [torch.where(beyond, *pair) for pair in zip(after, high, strict=True)]
    return _Bin(*zip(low, high, strict=True))


def _edges(rows: tuple[Tensor, ...], bound: float | Tensor) -> list[Tensor]:
    """The inner edges of bins."""
    largest = rows[0]
    for row in rows[1:]:
        largest = torch.maximum(largest, row)
    weights = [(row - largest).exp() for row in rows]
    total = sum(weights[1:], weights[0])
    free = 1 - DEFAULT_MIN_BIN_WIDTH * len(rows)
    edges, reached = [], torch.zeros_like(total)
    for weight in weights[:-1]:
        reached = reached + (DEFAULT_MIN_BIN_WIDTH + free * (weight / total))
        edges.append(2 * bound * reached - bound)
    return edges


def _rational(
    values: Float[Tensor, "n"], place: _Bin, inverse: bool
) -> tuple[Float[Tensor, "n"], Float[Tensor, "n"]]:
    """The quotient of two quadratics within a bin, or its inverse, with the log of the slope."""
    (x, x_end), (y, y_end) = place.x, place.y
    first, second = (DEFAULT_MIN_DERIVATIVE + softplus(slope) for slope in place.slope)
    width, height = x_end - x, y_end - y
    mean = height / width
    bend = first + second - 2 * mean
    if inverse:
        rise = values - y
        lift = rise * bend
        a, b, c = lift + height * (mean - first), height * first - lift, -mean * rise
        root = (b * b - 4 * a * c).clamp(min=0).sqrt()  # below 0 by rounding alone
        share = 2 * c / (-b - root)
    else:
        share = (values - x) / width
    rest = 1 - share
    mixed = share * rest
    below = mean + bend * mixed
    if inverse:
        out = share * width + x
    else:
        out = y + height * (mean * share * share + first * mixed) / below
    above = mean * mean * (second * share * share + 2 * mean * mixed + first * rest * rest)
    slope = above.log() - 2 * below.log()
    return out, -slope if inverse else slope


def _join(
    inside: Tensor, found: tuple[Tensor, Tensor], values: Tensor, knots: Tensor
) -> tuple[Tensor, Tensor]:
    """The spline inside, the identity outside; no number where a knot is none."""
    out, slope = found
    finite = 0 * knots.sum(0)  # 0 or NaN
    return torch.where(inside, out, values), torch.where(inside, slope, 0.0) + finite
