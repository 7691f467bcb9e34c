"""The flow: a normalised density, the same as nflows' own."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nflows.distributions import StandardNormal
from nflows.flows import Flow

from model.config import FlowConfig
from model.flow import ConditionalFlow

CONDITION = 3


def make_flow(features, seed=0, spread=0.5, **config):
    """A flow whose splines are bent at random; the identity if spread is 0."""
    torch.manual_seed(seed)
    config = FlowConfig(**{"transforms": 4, "hidden": 16, "blocks": 1, "bins": 5, **config})
    flow = ConditionalFlow(features, CONDITION, config)
    with torch.no_grad():
        for name, weights in flow.named_parameters():
            if "final_layer" in name:
                weights.add_(spread * torch.randn_like(weights))
    return flow.eval()


def draw(flow, n=200, seed=1):
    generator = torch.Generator().manual_seed(seed)
    dtype = next(flow.parameters()).dtype
    condition = torch.randn(n, CONDITION, generator=generator, dtype=dtype)
    return torch.randn(n, flow.features, generator=generator, dtype=dtype), condition


def inversion_error(flow, other):
    """How far the second flow is from undoing what the first one does."""
    base, condition = draw(flow)
    with torch.no_grad():
        values, log_prob = flow.from_base(base, condition)
        back, _ = other.transform(values, context=condition)
        density = other.log_prob(values, condition)
    return max((back - base).abs().max().item(), (density - log_prob).abs().max().item())


@pytest.mark.parametrize("features", [2, 3, 5])
def test_an_untrained_flow_is_the_identity(features):
    flow = make_flow(features, spread=0, transforms=2)
    values, condition = draw(flow)
    normal = -0.5 * (values**2).sum(1) - features / 2 * math.log(2 * math.pi)
    assert torch.allclose(flow.log_prob(values, condition), normal, atol=1e-4)
    assert torch.allclose(flow.from_base(values, condition)[0], values, atol=1e-4)


def test_a_bent_flow_is_not_the_identity():
    flow = make_flow(2)
    values, condition = draw(flow)
    assert not torch.allclose(flow.from_base(values, condition)[0], values, atol=0.1)


@pytest.mark.parametrize("seed", range(5))
def test_log_prob_is_that_of_nflows(seed):
    flow = make_flow(4, seed)
    reference = Flow(flow.transform, StandardNormal([4]))
    values, condition = draw(flow)
    expected = reference.log_prob(values, context=condition)
    assert torch.allclose(flow.log_prob(values, condition), expected, atol=1e-5, rtol=0)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 6), st.floats(0, 0.8), st.integers(1, 6))
def test_values_and_densities_are_consistent_both_ways(seed, features, spread, transforms):
    """In double precision: a steep spline loses any number of single precision's digits."""
    flow = make_flow(features, seed, spread, transforms=transforms).double()
    assert inversion_error(flow, flow) < 1e-6


def test_the_consistency_test_catches_another_flow():
    assert inversion_error(make_flow(3, 0), make_flow(3, 1)) > 0.1


def test_the_density_integrates_to_one():
    flow = make_flow(2)
    assert integral(flow) == pytest.approx(1, abs=2e-3)


def test_the_integral_catches_a_density_that_is_not_normalised():
    flow = make_flow(2)
    assert integral(flow, shift=0.01) == pytest.approx(math.exp(0.01), abs=2e-3)
    assert abs(integral(flow, shift=0.01) - 1) > 5e-3


def integral(flow, shift=0.0, half=8.0, cells=400):
    edges = torch.linspace(-half, half, cells + 1)
    middle = (edges[1:] + edges[:-1]) / 2
    values = torch.cartesian_prod(middle, middle)
    with torch.no_grad():
        log_prob = flow.log_prob(values, torch.ones(1, CONDITION).expand(len(values), -1))
    return ((log_prob + shift).exp().sum() * (2 * half / cells) ** 2).item()


@pytest.mark.parametrize("features", [2, 3])
def test_every_value_is_transformed_whatever_the_seed(features):
    for seed in range(40):
        flow = make_flow(features, seed, transforms=2)
        values, condition = draw(flow, n=20)
        with torch.no_grad():
            base, _ = flow.transform(values, context=condition)
        untouched = [a for a in base.T if any(torch.equal(a, b) for b in values.T)]
        assert not untouched, f"seed {seed}"


def test_the_density_depends_on_the_condition():
    flow = make_flow(2)
    values, condition = draw(flow)
    assert not torch.allclose(flow.log_prob(values, condition), flow.log_prob(values, -condition))
