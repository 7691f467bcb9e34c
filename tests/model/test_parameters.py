"""The map between theta and the flow's space."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.parameters import ParameterMap
from storage.errors import InputError
from storage.schema import Parameter

START = 1577491211.0
PARAMETERS = (
    Parameter("chirp_mass", "Msun", "Uniform(25, 100)", 25.0, 100.0),
    Parameter("phase", "rad", "0.5", 0.5, 0.5),
    Parameter("geocent_time", "s", f"Uniform({START}, {START + 0.2})", START, START + 0.2),
    Parameter("offset", "", "Normal(0, 3)", None, None),
)
FREE = ("chirp_mass", "geocent_time", "offset")


def table(events=500):
    draw = np.random.default_rng(1)
    columns = (
        draw.uniform(25, 100, events),
        np.full(events, 0.5),
        draw.uniform(START, START + 0.2, events),
        draw.normal(0, 3, events),
    )
    return torch.tensor(np.stack(columns, 1))


@pytest.fixture(scope="module")
def theta_map():
    return ParameterMap.fit(PARAMETERS, (), table())


shares = st.floats(1e-6, 1 - 1e-6)


@given(shares, shares, st.floats(-20, 20))
def test_theta_comes_back_from_the_flows_space(theta_map, mass, moment, offset):
    theta = torch.tensor([[25 + 75 * mass, START + 0.2 * moment, offset]], dtype=torch.float64)
    back, jacobian = theta_map.from_flow(theta_map.to_flow(theta)[0])
    assert torch.allclose(back, theta, rtol=1e-12, atol=1e-9)
    assert torch.allclose(jacobian, theta_map.to_flow(theta)[1], atol=1e-4)


@given(st.lists(st.floats(-4, 4), min_size=3, max_size=3))
def test_values_come_back_from_theta(values):
    theta_map = ParameterMap(FREE, (0, -1, -math.inf), (1, 5, math.inf), (0.1, 0, 2), (1, 0.9, 3))
    values = torch.tensor([values], dtype=torch.float64)
    back = theta_map.to_flow(theta_map.from_flow(values)[0])[0]
    assert torch.allclose(back, values, atol=1e-9)


def test_the_jacobian_is_that_of_autograd(theta_map):
    theta = table(20)[:, [0, 2, 3]]
    for row, jacobian in zip(theta, theta_map.to_flow(theta)[1], strict=True):
        matrix = torch.autograd.functional.jacobian(lambda row: theta_map.to_flow(row)[0], row)
        assert torch.linalg.slogdet(matrix).logabsdet.item() == pytest.approx(jacobian.item())


@pytest.mark.parametrize(
    "theta", [(24.999, START + 0.1, 0), (101, START + 0.1, 0), (50, START + 1, 0)]
)
def test_the_density_is_zero_outside_the_bounds(theta_map, theta):
    values, jacobian = theta_map.to_flow(torch.tensor([theta], dtype=torch.float64))
    assert jacobian.item() == -math.inf
    assert torch.isfinite(values).all()


def test_the_bounds_themselves_have_a_finite_density(theta_map):
    ends = torch.tensor([[25, START, 0], [100, START + 0.2, 0]], dtype=torch.float64)
    assert torch.isfinite(theta_map.to_flow(ends)[1]).all()


@given(
    st.floats(-1e4, 1e4),
    st.floats(1e-3, 1e4),
    st.sampled_from([-1e30, -40.0, -8.3, -7.0, 7.0, 8.3, 40.0, 1e30]) | st.floats(-10, 10),
)
def test_no_sample_lies_outside_the_bounds(minimum, width, value):
    maximum = minimum + width
    theta_map = ParameterMap(("a", "b"), (minimum, 0.1), (maximum, 0.3), (0.0, 0.0), (1.0, 1.1))
    values = torch.full((1, 2), value, dtype=torch.float64)
    theta = theta_map.from_flow(values)[0]
    assert minimum <= theta[0, 0].item() <= maximum
    assert 0.1 <= theta[0, 1].item() <= 0.3
    assert torch.isfinite(theta_map.to_flow(theta)[1]).all()


def test_gps_times_keep_a_microsecond(theta_map):
    moments = START + 0.1 + 1e-6 * torch.arange(-500, 500, dtype=torch.float64)
    theta = torch.stack([torch.full_like(moments, 50), moments, torch.zeros_like(moments)], 1)
    values = theta_map.to_flow(theta)[0].float().double()  # as the flow sees them
    back = theta_map.from_flow(values)[0][:, 1]
    assert (back - moments).abs().max().item() < 1e-6


def test_the_training_events_have_zero_mean_and_unit_variance(theta_map):
    values = theta_map.to_flow(table()[:, [0, 2, 3]])[0]
    assert torch.allclose(values.mean(0), torch.zeros(3, dtype=torch.float64), atol=1e-9)
    assert torch.allclose(values.std(0, correction=0), torch.ones(3, dtype=torch.float64))


def test_free_parameters_are_chosen_by_default_and_others_by_name(theta_map):
    assert theta_map.names == FREE
    assert ParameterMap.fit(PARAMETERS, FREE[::-1], table()).names == FREE[::-1]


def test_an_unbounded_parameter_reaches_any_value(theta_map):
    values = torch.tensor([[0.0, 0.0, 1e3]], dtype=torch.float64)
    assert theta_map.from_flow(values)[0][0, 2].item() == pytest.approx(3e3, rel=0.1)


@pytest.mark.parametrize(
    ("names", "complaint"),
    [
        (("chirp_mas", "offset"), "got 'chirp_mas', the data set has chirp_mass, phase"),
        (("chirp_mass", "phase"), "phase is fixed"),
        (("chirp_mass",), "chirp_mass: the coupling flow needs at least two"),
    ],
)
def test_names_that_cannot_be_inferred_are_refused(names, complaint):
    with pytest.raises(InputError, match=complaint):
        ParameterMap.fit(PARAMETERS, names, table())


def test_a_prior_with_one_bound_is_refused():
    half = Parameter("rate", "", "Exponential(1)", 0.0, None)
    with pytest.raises(InputError, match="rate .* one side"):
        ParameterMap.fit((PARAMETERS[0], half), (), table()[:, [0, 3]].abs())


def test_training_events_that_are_all_alike_are_refused():
    with pytest.raises(InputError, match="chirp_mass has one value in all 1 training events"):
        ParameterMap.fit(PARAMETERS, (), table(1))


def test_the_map_survives_a_checkpoint(theta_map):
    assert ParameterMap.from_dict(theta_map.to_dict()) == theta_map
