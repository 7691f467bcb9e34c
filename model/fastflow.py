"""A trained flow evaluated fast: the numbers of `model.flow`, which nflows defines, up to rounding.

What depends on the condition alone is computed once an event and layer; samples are turned in
tiles that stay in a core's cache, a thread a tile, or on a GPU many events in one pass.
Rows of memory are features and samples lie along them, so a spline's knots are rows too
(`model.spline`). Gradients are not covered: training goes through nflows' own modules.
"""

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from model.flow import UNIT_SLOPE, ConditionalFlow, SplineCoupling
from model.spline import Spline, compiled_spline, spline

TILE = 2048  # samples of one event at most that go through all layers together
GPU_ROWS = 2**16  # samples in one pass of a GPU, of as many events as it takes


class FastFlow:
    """A flow's density and its inverse for many samples of many events, without gradients.

    What comes out for an event does not depend on the events beside it.

    Args:
        flow: Its weights must not change from now on.
        compiled: Whether the splines are compiled, where there is a compiler; by default on a GPU.
    """

    def __init__(self, flow: ConditionalFlow, compiled: bool | None = None) -> None:
        self._flow = flow
        self._device = flow.circle.device
        on_gpu = self._device.type == "cuda"
        wanted = on_gpu if compiled is None else compiled
        with torch.no_grad():
            self._layers = [_Layer.of(layer) for layer in flow.transform._transforms]
        found = compiled_spline(self._device.type, self._layers[0].knots) if wanted else None
        self.compiled = found is not None
        self._spline = found or spline

    def log_prob(
        self,
        values: Float[Tensor, "event sample feature"],
        conditions: Float[Tensor, "event condition"],
    ) -> Float[Tensor, "event sample"]:
        """Log density of the values, given each event's condition."""
        base, jacobian = self._turn(values, conditions, inverse=False)
        return self._flow.log_base(base) + jacobian

    def from_base(
        self,
        base: Float[Tensor, "event sample feature"],
        conditions: Float[Tensor, "event condition"],
    ) -> tuple[Float[Tensor, "event sample feature"], Float[Tensor, "event sample"]]:
        """Turn draws from the simple density into values, with the log density of each."""
        values, jacobian = self._turn(base, conditions, inverse=True)
        return values, self._flow.log_base(base) + jacobian

    @torch.no_grad()
    def _turn(
        self,
        inputs: Float[Tensor, "event sample feature"],
        conditions: Float[Tensor, "event condition"],
        *,
        inverse: bool,
    ) -> tuple[Float[Tensor, "event sample feature"], Float[Tensor, "event sample"]]:
        """Send all tiles through all layers; with the log of the forward map's determinant."""
        events, samples, features = inputs.shape
        rows, tiles = _tiling(samples)
        cut = inputs.new_zeros(events, tiles * rows, features)
        cut[:, :samples] = inputs
        jobs = cut.view(events * tiles, rows, features)
        outputs, jacobian = torch.empty_like(jobs), inputs.new_empty(events * tiles, rows)
        given = self._project(conditions)
        layers = self._layers[::-1] if inverse else self._layers

        def run(numbers: Int[Tensor, "job"]) -> None:
            state = jobs[numbers].permute(2, 0, 1).contiguous()
            total = torch.zeros_like(state[0])
            for layer in layers:
                here = given[layer].of(numbers // tiles)
                total += layer.turn(state, here, self._spline, inverse)
            outputs[numbers] = state.permute(1, 2, 0)
            jacobian[numbers] = total

        self._run_each(run, _passes(events * tiles, rows, self._device))
        turned = outputs.view(events, tiles * rows, features)[:, :samples]
        return turned, jacobian.view(events, tiles * rows)[:, :samples]

    def _project(self, conditions: Float[Tensor, "event condition"]) -> dict["_Layer", "_Given"]:
        """What each layer makes of the conditions; one by one, for a batch rounds by its size."""
        single = conditions.split(1)
        return {
            layer: _Given.join([layer.project(condition) for condition in single])
            for layer in self._layers
        }

    def _run_each(self, run: Callable[[Tensor], None], passes: list[Int[Tensor, "job"]]) -> None:
        """Run all passes, a thread each on a CPU."""
        threads = torch.get_num_threads()
        if self._device.type != "cpu" or threads == 1:
            for jobs in passes:
                run(jobs)
            return
        with single_threads(threads) as pool:
            for _ in pool.map(torch.no_grad()(run), passes):
                pass


@contextmanager
def single_threads(count: int) -> Iterator[ThreadPoolExecutor]:
    """Give a pool of threads that do not share their operations out to further threads."""
    try:
        with ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            try:
                yield pool
            except BaseException:  # interrupted: what has not begun never does
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    finally:
        torch.set_num_threads(count)  # it is also what threads to come begin with


def _tiling(samples: int) -> tuple[int, int]:
    """Rows of a tile, and tiles an event: equal ones, which depend on nothing else."""
    tiles = max(1, math.ceil(samples / TILE))
    return math.ceil(samples / tiles), tiles


def _width(rows: int, device: torch.device) -> int:
    """How many tiles go through together: on a CPU one, for the cache; on a GPU many events'."""
    return 1 if device.type == "cpu" else max(1, GPU_ROWS // max(1, rows))


def _passes(jobs: int, rows: int, device: torch.device) -> list[Int[Tensor, "job"]]:
    """Which tiles go together: always as many, for rounding on a GPU depends on their number."""
    width = _width(rows, device)
    filled = torch.arange(math.ceil(jobs / width) * width, device=device).clamp(max=jobs - 1)
    return list(filled.split(width))


@dataclass(frozen=True)
class _Given:
    """What a layer's network makes of conditions.

    Attributes:
        initial: Added to what the first layer makes of the values.
        gates: By which each block multiplies what it adds.
    """

    initial: Float[Tensor, "hidden event"]
    gates: tuple[Float[Tensor, "hidden event"], ...]

    @classmethod
    def join(cls, single: "list[_Given]") -> "_Given":
        gates = zip(*(one.gates for one in single), strict=True)
        return cls(
            torch.cat([one.initial for one in single], 1),
            tuple(torch.cat(columns, 1) for columns in gates),
        )

    def of(self, events: Int[Tensor, "job"]) -> "_Given":
        """Those of some events, to be broadcast over samples."""
        return _Given(
            self.initial[:, events, None], tuple(gate[:, events, None] for gate in self.gates)
        )


@dataclass(frozen=True)
class _Block:
    """A residual block of nflows' network: x + gate * (second @ relu(first @ relu(x)))."""

    first: Float[Tensor, "hidden hidden"]
    first_bias: Float[Tensor, "hidden 1"]
    second: Float[Tensor, "hidden hidden"]
    second_bias: Float[Tensor, "hidden 1"]
    gate: torch.nn.Linear

    @classmethod
    def of(cls, block: torch.nn.Module) -> "_Block":
        first, second = block.linear_layers  # type: ignore[misc]
        return cls(
            first.weight.detach(), first.bias.detach()[:, None],
            second.weight.detach(), second.bias.detach()[:, None],
            block.context_layer,  # type: ignore[arg-type]
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Layer:
    """A coupling layer, its indices and weights in the order in which they are used.

    Attributes:
        lines: Values that enter the network as they are.
        angles: Those that enter as sine and cosine.
        turned: Values that are transformed, those on circles last.
        turns: How many lie on circles.
        knots: Numbers a spline.
        bound: Where splines end.
        initial: Weights of the first layer, of the values alone.
        of_condition: And of the condition, with the bias.
        blocks: The residual blocks.
        final: Weights of the last layer: a row a knot and spline, knot by knot, then cosines and
            sines of the turns.
        final_bias: Of the last layer.
    """

    lines: Int[Tensor, "line"]
    angles: Int[Tensor, "angle"]
    turned: Int[Tensor, "spline"]
    turns: int
    knots: int
    bound: float
    initial: Float[Tensor, "hidden input"]
    of_condition: tuple[Float[Tensor, "hidden condition"], Float[Tensor, "hidden"]]
    blocks: tuple[_Block, ...]
    final: Float[Tensor, "output hidden"]
    final_bias: Float[Tensor, "output 1"]

    @classmethod
    def of(cls, layer: SplineCoupling) -> "_Layer":
        """Copy a layer's weights."""
        net = layer.transform_net
        weights = net.initial_layer.weight.detach()
        inputs = len(net.on_line) + 2 * len(net.on_circle)
        order = torch.argsort(layer.turning.long(), stable=True)
        columns = torch.cat([net.final_layer.weight, net.final_layer.bias[:, None]], 1).detach()
        final = _by_knot(columns.view(len(order), layer.outputs, -1)[order], layer)
        return cls(
            lines=layer.identity_features[net.on_line],
            angles=layer.identity_features[net.on_circle],
            turned=layer.transform_features[order],
            turns=int(layer.turning.sum()),
            knots=3 * layer.num_bins + 1,
            bound=float(layer.tail_bound),
            initial=weights[:, :inputs].contiguous(),
            of_condition=(weights[:, inputs:].contiguous(), net.initial_layer.bias.detach()),
            blocks=tuple(_Block.of(block) for block in net.blocks),
            final=final[:, :-1].contiguous(),
            final_bias=final[:, -1:].contiguous(),
        )

    def project(self, condition: Float[Tensor, "1 condition"]) -> _Given:
        """What the network makes of one event's condition."""
        weights, bias = self.of_condition
        initial = torch.addmm(bias[:, None], weights, condition.T)
        return _Given(initial, tuple(block.gate(condition).sigmoid().T for block in self.blocks))

    def turn(
        self,
        state: Float[Tensor, "feature job sample"],
        given: _Given,
        evaluate: Spline,
        inverse: bool,
    ) -> Float[Tensor, "job sample"]:
        """Transform the layer's values in place; return the log of what was done to volumes.

        For an inverse, that of the forward map.
        """
        outputs = self._network(state, given)
        values, lines = state[self.turned], len(self.turned) - self.turns
        on_circles = values[lines:]
        if self.turns:
            angles = outputs[self.knots * len(self.turned) :].view(2, *on_circles.shape)
            turns = torch.atan2(angles[1], angles[0]) / math.pi
            if inverse:
                on_circles.copy_(_on_circle(on_circles - turns))
            on_circles.mul_(self.bound)
        knots = outputs[: self.knots * len(self.turned)].view(self.knots, values.numel())
        flat, slopes = evaluate(values.view(-1), knots, self.bound, inverse)
        values = flat.view_as(values)
        if self.turns:
            on_circles = values[lines:].div_(self.bound)
            if not inverse:
                on_circles.copy_(_on_circle(on_circles + turns))
        state[self.turned] = values
        total = slopes.view_as(values).sum(0)
        return -total if inverse else total

    def _network(
        self, state: Float[Tensor, "feature job sample"], given: _Given
    ) -> Float[Tensor, "output row"]:
        """What nflows' residual network gives, in as few passes over memory as can be."""
        angles = math.pi * state[self.angles]
        inputs = torch.cat([state[self.lines], angles.sin(), angles.cos()]).flatten(1)
        shape = (len(self.initial), *state.shape[1:])
        hidden = self.initial @ inputs
        hidden.view(shape).add_(given.initial)
        one, other = torch.empty_like(hidden), torch.empty_like(hidden)
        for block, gate in zip(self.blocks, given.gates, strict=True):
            torch.clamp(hidden, min=0, out=one)
            torch.mm(block.first, one, out=other)
            other.add_(block.first_bias).relu_()
            torch.mm(block.second, other, out=one)
            one.add_(block.second_bias)
            hidden.view(shape).addcmul_(one.view(shape), gate)
        return (self.final @ hidden).add_(self.final_bias)


def _by_knot(
    rows: Float[Tensor, "spline output column"], layer: SplineCoupling
) -> Float[Tensor, "row column"]:
    """Order a last layer's rows knot by knot; all splines get the slopes at their ends."""
    bins, width = layer.num_bins, layer.transform_net.hidden_features
    turns = int(layer.turning.sum())
    sizes, slopes = rows[:, : 2 * bins] / math.sqrt(width), rows[:, 2 * bins : 3 * bins - 1]
    ends = torch.zeros_like(rows[:, :1])
    ends[..., -1] = UNIT_SLOPE
    circles = rows[len(rows) - turns :]
    if turns:
        ends[len(rows) - turns :] = circles[:, -3:-2]
    knots = torch.cat([sizes, ends, slopes, ends], 1).transpose(0, 1).flatten(0, 1)
    return torch.cat([knots, circles[:, -2], circles[:, -1]]) if turns else knots


def _on_circle(values: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    return values - 2 * torch.round(values / 2)
