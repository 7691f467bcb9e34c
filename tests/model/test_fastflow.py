"""The fast path: nflows' numbers, each event's own, with a compiler and without."""

import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nflows.transforms.splines import rational_quadratic_spline

from model import fastflow
from model import spline as splines
from model.config import FlowConfig
from model.fastflow import FastFlow
from model.flow import ConditionalFlow
from model.spline import compiled_spline, spline, unrolled_spline

CONDITION, EVENTS, SAMPLES = 3, 3, 40


@dataclass(frozen=True)
class Case:
    """A flow with weights at random, draws from its base and a condition an event."""

    flow: ConditionalFlow
    base: torch.Tensor
    conditions: torch.Tensor


@torch.no_grad()
def make_case(seed=0, periodic=(False, True, True, False), spread=0.2, samples=SAMPLES, **config):
    """As a trained flow is: far from the identity, but with slopes that single precision bears."""
    torch.manual_seed(seed)
    sizes = {"transforms": 4, "hidden": 16, "blocks": 2, "bins": 6, **config}
    flow = ConditionalFlow(len(periodic), CONDITION, FlowConfig(**sizes), periodic).eval()
    for weights in flow.parameters():
        width = weights.shape[1] if weights.dim() > 1 else 1
        weights.add_(spread / math.sqrt(width) * torch.randn_like(weights))
    generator = torch.Generator().manual_seed(seed)
    base = 1.4 * flow.draw_base(EVENTS * samples, generator)  # some beyond the splines
    base = torch.where(flow.circle, base.clamp(-1, 1), base)
    return Case(flow, base.view(EVENTS, samples, -1), torch.randn(EVENTS, CONDITION))


@torch.no_grad()
def by_nflows(case, dtype=torch.float32):
    """Inverse with density, forward and log_prob, a row a sample through nflows' modules."""
    flow = case.flow.to(dtype)
    shape = case.base.shape
    rows = case.base.flatten(0, 1).to(dtype)
    conditions = case.conditions.to(dtype).repeat_interleave(shape[1], 0)
    values, density = flow.from_base(rows, conditions)
    forward, _ = flow.transform(rows, context=conditions)
    found = values, density, forward, flow.log_prob(rows, conditions)
    case.flow.float()
    return [item.view(shape[: item.dim() + 1]) for item in found]


def fast(case, evaluate=spline):
    flow = FastFlow(case.flow, compiled=False)
    flow._spline = evaluate
    values, density = flow.from_base(case.base, case.conditions)
    forward, _ = flow._turn(case.base, case.conditions, inverse=False)
    return [values, density, forward, flow.log_prob(case.base, case.conditions)]


def distances(found, expected, circle):
    """The largest distance of each; on a circle the shorter way round."""
    apart = []
    for one, other in zip(found, expected, strict=True):
        gap = one - other
        if gap.dim() == 3:
            gap = torch.where(circle, gap - 2 * torch.round(gap / 2), gap)
        apart.append(gap.abs().max().item())
    return torch.tensor(apart)


def assert_nflows_numbers(case, found):
    """Values agree to 1e-5. So do densities, or they are no worse than nflows' own by more.

    In single precision nflows itself is off by 1e-5 and more where splines are steep.
    """
    expected, truth = by_nflows(case), by_nflows(case, torch.float64)
    circle = case.flow.circle
    apart = distances(found, expected, circle)
    allowed = distances(expected, truth, circle) + 1e-5
    assert (apart[[0, 2]] < 1e-5).all(), apart
    assert ((apart < 1e-5) | (distances(found, truth, circle) < allowed)).all(), apart


flows = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**31),
        "periodic": st.lists(st.booleans(), min_size=2, max_size=8).map(tuple),
        "spread": st.floats(0.05, 0.2),
        "transforms": st.integers(1, 5),
        "hidden": st.integers(2, 33),
        "blocks": st.integers(1, 3),
        "bins": st.integers(1, 12),
        "tail_bound": st.floats(2.0, 6.0),
    }
)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(flows)
def test_forward_inverse_and_densities_are_those_of_nflows(kwargs):
    case = make_case(**kwargs)
    assert_nflows_numbers(case, fast(case))


@settings(max_examples=15, deadline=None, derandomize=True)
@given(flows)
def test_what_is_compiled_gives_the_numbers_of_nflows(kwargs):
    """Run without the compiler; the slow test runs with it."""
    case = make_case(**kwargs)
    assert_nflows_numbers(case, fast(case, unrolled_spline))


@pytest.mark.slow
def test_the_compiled_spline_gives_the_numbers_of_nflows():
    compiled = compiled_spline("cpu", 3 * 6 + 1)
    if compiled is None:
        pytest.skip("no C++ compiler")
    for seed in range(6):
        case = make_case(seed, periodic=(seed % 2 == 0,) * (2 + seed), bins=6)
        assert_nflows_numbers(case, fast(case, compiled))


@pytest.mark.parametrize("what", ["initial", "final_bias", "knots", "turns"])
def test_the_comparison_catches_a_flow_that_is_a_little_off(what):
    case = make_case()
    flow = FastFlow(case.flow)
    with torch.no_grad():
        weights = {
            "initial": flow._layers[0].initial,
            "final_bias": flow._layers[0].final_bias,
            "knots": flow._layers[0].final,
            "turns": flow._layers[0].final[-2:],
        }[what]
        weights.mul_(1.003)
    values, density = flow.from_base(case.base, case.conditions)
    found = [values, density, *by_nflows(case)[2:]]
    with pytest.raises(AssertionError):
        assert_nflows_numbers(case, found)


def test_the_flows_that_are_compared_are_not_the_identity():
    case = make_case()
    gap = distances(fast(case)[:1], [case.base], case.flow.circle)
    assert gap > 0.3


def test_single_splines_are_those_of_nflows_everywhere_between_the_bounds():
    generator = torch.Generator().manual_seed(0)
    knots = torch.randn(19, 5000, generator=generator, dtype=torch.float64)
    values = 8 * torch.rand(5000, generator=generator, dtype=torch.float64) - 4
    parts = [part.T for part in knots.split([6, 6, 7])]
    ends = {"left": -4.0, "right": 4.0, "bottom": -4.0, "top": 4.0}
    for inverse in (False, True):
        expected = rational_quadratic_spline(values, *parts, inverse=inverse, **ends)
        for evaluate in (spline, unrolled_spline):
            found = evaluate(values, knots.clone(), 4.0, inverse)
            for one, other in zip(found, expected, strict=True):
                assert torch.allclose(one, other, atol=1e-9, rtol=0)


@pytest.mark.parametrize("evaluate", [spline, unrolled_spline])
def test_beyond_the_bounds_a_spline_is_the_identity(evaluate):
    values = torch.tensor([-9.0, -4.1, 4.1, 100.0])
    found, slope = evaluate(values, torch.randn(19, 4), 4.0, True)
    assert torch.equal(found, values)
    assert torch.equal(slope, torch.zeros(4))


@pytest.mark.parametrize("evaluate", [spline, unrolled_spline])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_knot_that_is_no_number_gives_a_density_that_is_none(evaluate, bad):
    """Also if it lies in another bin, or the value beyond the splines; as in SplineCoupling."""
    for row in range(19):
        knots = torch.randn(19, 3)
        knots[row, 1:] = bad
        _, slope = evaluate(torch.tensor([0.5, 0.5, 100.0]), knots, 4.0, True)
        assert slope.isnan().tolist() == [False, True, True]


def test_a_condition_that_is_no_number_spoils_its_own_event_alone():
    case = make_case()
    case.conditions[1] = math.nan
    density = fast(case)[1]
    assert density[1].isnan().all()
    assert density[[0, 2]].isfinite().all()
    assert by_nflows(case)[1][1].isnan().all()


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_an_event_is_the_same_whatever_is_beside_it_and_however_many_threads(threads, monkeypatch):
    monkeypatch.setattr(fastflow, "TILE", 16)  # of 40 samples: 3 tiles of 14, the last filled up
    case = make_case()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        flow = FastFlow(case.flow)
        together = flow.from_base(case.base, case.conditions)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    for event in range(EVENTS):
        alone = flow.from_base(case.base[event : event + 1], case.conditions[event : event + 1])
        for one, all_of_them in zip(alone, together, strict=True):
            assert torch.equal(one[0], all_of_them[event])


def test_the_tile_changes_no_more_than_rounding(monkeypatch):
    case = make_case()
    expected = fast(case)
    for tile in (1, 7, 39):
        monkeypatch.setattr(fastflow, "TILE", tile)
        assert (distances(fast(case), expected, case.flow.circle) < 1e-5).all()


def test_passes_of_many_events_give_the_numbers_of_passes_of_one(monkeypatch):
    """Of a GPU's passes, but on a CPU; the last is filled up."""
    monkeypatch.setattr(fastflow, "TILE", 16)
    case = make_case()
    expected = fast(case)
    for width in (2, 4, 20):
        monkeypatch.setattr(fastflow, "_width", lambda *_, width=width: width)
        assert (distances(fast(case), expected, case.flow.circle) < 1e-5).all()


def test_without_a_compiler_the_samples_are_those_of_the_uncompiled_path(monkeypatch):
    monkeypatch.setenv("CXX", "/nowhere/g++")
    compiled_spline.cache_clear()
    case = make_case()
    flow = FastFlow(case.flow, compiled=True)
    compiled_spline.cache_clear()
    assert not flow.compiled
    values, density = flow.from_base(case.base, case.conditions)
    expected = fast(case)
    assert torch.equal(values, expected[0])
    assert torch.equal(density, expected[1])


def test_a_compiler_that_fails_is_warned_of_and_done_without(monkeypatch):
    def fails(*_, **__):
        def call(*_):
            raise RuntimeError("cannot find -lgomp")

        return call

    monkeypatch.setattr(splines, "_has_compiler", lambda _: True)
    monkeypatch.setattr(torch, "compile", fails)
    compiled_spline.cache_clear()
    with pytest.warns(UserWarning, match="without a compiler.*lgomp"):
        assert compiled_spline("cpu", 10) is None
    compiled_spline.cache_clear()
