"""The map between theta and the flow's space."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from model.parameters import Coordinate, ParameterMap
from pipeline.prior_text import parse_prior
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
PI = math.pi
# Of every kind: angles that are periodic and that are not, bounds on both sides and on one, with
# quantiles that are known and that are not.
KINDS = (
    Parameter("ra", "rad", f"Uniform(minimum=0.0, maximum={2 * PI})", 0.0, 2 * PI),
    Parameter("psi", "rad", f"Uniform(minimum=0.0, maximum={PI})", 0.0, PI),
    Parameter("phi_12", "rad", "Uniform(minimum=1.0, maximum=2.0)", 1.0, 2.0),
    Parameter("dec", "rad", "Cosine()", -PI / 2, PI / 2),
    Parameter("theta_jn", "rad", "Sine()", 0.0, PI),
    Parameter("tilt_1", "rad", "Sine(minimum=0.5, maximum=1.0)", 0.5, 1.0),
    Parameter("luminosity_distance", "Mpc", "PowerLaw(2, 500, 15000)", 500.0, 15000.0),
    Parameter("mass_ratio", "", "bilby.gw.prior.UniformSourceFrame(0.1, 1)", 0.1, 1.0),
    Parameter("a_1", "", "TruncatedGaussian(0.1, 0.2, 0.0, inf)", 0.0, None),
    Parameter("a_2", "", "Exponential(1)", 3.0, None),
    Parameter("tilt_2", "", "Unheard(1)", None, -2.0),
    Parameter("offset", "", "Gaussian(mu=5, sigma=3)", None, None),
)
KNOWN = {"ra", "psi", "phi_12", "dec", "theta_jn", "tilt_1", "luminosity_distance", "a_1"}


def table(events=500):
    draw = np.random.default_rng(1)
    columns = (
        draw.uniform(25, 100, events),
        np.full(events, 0.5),
        draw.uniform(START, START + 0.2, events),
        draw.normal(0, 3, events),
    )
    return torch.tensor(np.stack(columns, 1))


def draws(parameter, events, seed=2):
    """From its prior, or from something like it where the prior is made up."""
    draw = np.random.default_rng(seed)
    made_up = {
        "mass_ratio": lambda: draw.uniform(0.1, 1, events) ** 0.3,
        "a_2": lambda: 3 + draw.exponential(1, events),
        "tilt_2": lambda: -2 - draw.exponential(5, events),
    }
    if parameter.name in made_up:
        return torch.tensor(made_up[parameter.name]())
    return torch.tensor(parse_prior(parameter.prior).rescale(draw.uniform(size=events)))


def coordinate(parameter):
    return Coordinate.fit(parameter, draws(parameter, 2000))


every_kind = pytest.mark.parametrize("parameter", KINDS, ids=lambda kind: kind.name)


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


@every_kind
def test_draws_from_every_kind_of_prior_come_back(parameter):
    theta, way = draws(parameter, 2000, seed=3), coordinate(parameter)
    values, slope = way.to_flow(theta)
    back, again = way.from_flow(values)
    assert torch.allclose(back, theta, rtol=1e-9, atol=1e-9)
    assert torch.allclose(again, slope, atol=1e-6)


@every_kind
@given(st.floats(-4, 4))
def test_values_come_back_from_every_kind_of_parameter(parameter, value):
    way = coordinate(parameter)
    value = torch.tensor([value / 4 if way.periodic else value], dtype=torch.float64)
    assert torch.allclose(way.to_flow(way.from_flow(value)[0])[0], value, atol=1e-6)


@every_kind
def test_the_slope_is_that_of_autograd(parameter):
    theta, way = draws(parameter, 100, seed=3).requires_grad_(), coordinate(parameter)
    values, slope = way.to_flow(theta)
    (gradient,) = torch.autograd.grad(values.sum(), theta)
    assert torch.allclose(gradient.log(), slope, atol=1e-6)


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


@every_kind
@given(st.sampled_from([-1e30, -40.0, -8.3, -7.0, 7.0, 8.3, 40.0, 1e30]) | st.floats(-10, 10))
def test_no_sample_of_any_kind_lies_outside_the_prior(parameter, value):
    way = coordinate(parameter)
    theta, slope = way.from_flow(torch.tensor([value], dtype=torch.float64))
    assert torch.isfinite(theta).all()
    assert torch.isfinite(slope).all()
    assert way.minimum <= theta.item() <= way.maximum
    values, slope = way.to_flow(theta)
    assert torch.isfinite(values).all()
    assert torch.isfinite(slope).all()


@every_kind
def test_just_outside_every_kind_of_prior_the_density_is_zero(parameter):
    way = coordinate(parameter)
    for bound, beyond in ((way.minimum, -1e-6), (way.maximum, 1e-6)):
        if math.isfinite(bound):
            theta = torch.tensor([bound * (1 + 1e-12) + beyond], dtype=torch.float64)
            assert way.to_flow(theta)[1].item() == -math.inf


@every_kind
def test_the_prior_is_simple_in_the_flows_space(parameter):
    """Exactly so where its quantiles are known: whatever the events, the map is the same."""
    way, values = coordinate(parameter), draws(parameter, 50_000, seed=4)
    values = way.to_flow(values)[0].numpy()
    if parameter.name in KNOWN:
        simple = stats.uniform(-1, 2) if way.periodic else stats.norm()
        assert stats.kstest(values, simple.cdf).pvalue > 1e-3
        assert (way.mean, way.std) == (0.0, 1.0)
    elif parameter.name == "offset":
        assert (way.mean, way.std) == (5.0, 3.0)
    else:
        assert abs(values.mean()) < 0.1
        assert values.std() == pytest.approx(1, abs=0.1)


def test_angles_are_periodic_where_their_prior_spans_the_period():
    found = {parameter.name for parameter in KINDS if coordinate(parameter).periodic}
    assert found == {"ra", "psi"}


def test_both_sides_of_the_seam_are_one_point_of_the_circle():
    way = coordinate(KINDS[1])
    seam = torch.tensor([0.0, PI], dtype=torch.float64)
    values, slope = way.to_flow(seam)
    assert values.tolist() == [-1.0, 1.0]
    assert torch.isfinite(slope).all()


def test_events_that_are_a_selection_of_the_prior_are_standardised_by_their_table():
    distance = KINDS[6]
    near = draws(distance, 20_000)
    near = near[near < 6000]  # as by a window of SNRs
    way = Coordinate.fit(distance, near)
    values = way.to_flow(near)[0]
    assert values.mean().item() == pytest.approx(0, abs=1e-9)
    assert values.std(correction=0).item() == pytest.approx(1)
    assert Coordinate.fit(distance, draws(distance, 20_000)).std == 1.0


@given(
    st.floats(-1e4, 1e4),
    st.floats(1e-3, 1e4),
    st.sampled_from([-1e30, -40.0, -8.3, -7.0, 7.0, 8.3, 40.0, 1e30]) | st.floats(-10, 10),
)
def test_no_sample_lies_outside_the_bounds(minimum, width, value):
    maximum = minimum + width
    theta_map = ParameterMap(
        (Coordinate("a", minimum, maximum), Coordinate("b", 0.1, 0.3, std=1.1))
    )
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


def test_free_parameters_are_chosen_by_default_and_others_by_name(theta_map):
    assert theta_map.names == FREE
    assert ParameterMap.fit(PARAMETERS, FREE[::-1], table()).names == FREE[::-1]


def test_an_unbounded_parameter_reaches_any_value(theta_map):
    values = torch.tensor([[0.0, 0.0, 1e3]], dtype=torch.float64)
    assert theta_map.from_flow(values)[0][0, 2].item() == pytest.approx(3e3)


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


def test_training_events_that_are_all_alike_are_refused():
    with pytest.raises(InputError, match="chirp_mass has one value in all 1 training events"):
        ParameterMap.fit(PARAMETERS, (), table(1))


def test_the_map_survives_a_checkpoint(theta_map):
    assert ParameterMap.from_dict(theta_map.to_dict()) == theta_map
