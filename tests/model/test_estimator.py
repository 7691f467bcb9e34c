"""Strain to a posterior in theta's units."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from model.checkpoint import load
from model.estimator import DataFacts, Estimator
from model.parameters import ParameterMap
from model.precision import is_tf32, set_tf32
from storage.dataset import open_dataset, read_parameters
from storage.errors import InputError

START = 1126259642.3
VOLUME = 75 * 0.2  # of the prior of chirp_mass and geocent_time


@pytest.fixture(scope="module")
def estimator(trained):
    return load(trained[0], "cpu")


@pytest.fixture(scope="module")
def strain(toy_data):
    return torch.from_numpy(open_dataset(toy_data())["strain"][:6].values)


def integral(log_prob, cells=400):
    """Of a density over the prior's rectangle, by the midpoint rule."""
    middle = (torch.arange(cells, dtype=torch.float64) + 0.5) / cells
    grid = torch.cartesian_prod(25 + 75 * middle, START + 0.2 * middle)
    return (log_prob(grid[None]).exp().sum() * VOLUME / cells**2).item()


def test_the_density_integrates_to_one_over_theta(estimator, strain):
    for event in range(2):
        total = integral(lambda theta, e=event: estimator.log_prob(theta, strain[e : e + 1]))
        assert total == pytest.approx(1, abs=0.01)


def test_the_integral_catches_a_density_in_other_units(estimator, strain):
    def without_jacobian(theta):
        jacobian = estimator.theta.to_flow(theta)[1]
        return estimator.log_prob(theta, strain[:1]) - jacobian

    assert abs(integral(without_jacobian, 200) - 1) > 0.1


def test_the_density_of_samples_is_that_of_log_prob(estimator, strain):
    theta, density = estimator.sample(strain, 500)
    assert theta.shape == (6, 500, 2)
    again = estimator.log_prob(theta, strain)
    assert (again - density).abs().max().item() < 0.01
    swapped = estimator.log_prob(theta, strain.flip(0))
    assert (swapped - density).abs().max().item() > 0.1, "the comparison cannot fail"


def test_samples_and_densities_are_in_single_precision_whatever_the_process_had(estimator, strain):
    before, found = is_tf32(), []
    hook = estimator.embedding.register_forward_pre_hook(lambda *_: found.append(is_tf32()))
    try:
        set_tf32(True)
        theta, _ = estimator.sample(strain[:1], 5)
        estimator.log_prob(theta, strain[:1])
        assert is_tf32() == (True, True), "it is left as it was"
    finally:
        hook.remove()
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
    assert found == [(False, False)] * 2


def test_the_density_is_zero_outside_the_prior(estimator, strain):
    theta = [[20.0, START + 0.1], [50.0, START - 1], [50.0, START + 0.1]]
    density = estimator.log_prob(torch.tensor([theta], dtype=torch.float64), strain[:1])
    assert density[0, :2].tolist() == [-np.inf, -np.inf]
    assert torch.isfinite(density[0, 2])


def test_an_events_samples_do_not_depend_on_the_events_beside_it(estimator, strain):
    together, density = estimator.sample(strain, 50, seeds=range(6))
    for event in range(6):
        alone = estimator.sample(strain[event : event + 1], 50, seeds=[event])
        assert torch.equal(alone[0][0], together[event])
        assert torch.equal(alone[1][0], density[event])
    assert not torch.equal(together[0], together[1])


def test_samples_are_a_function_of_the_seed(estimator, strain):
    one, other = (estimator.sample(strain[:1], 50, seeds=[seed])[0] for seed in (1, 2))
    assert torch.equal(one, estimator.sample(strain[:1], 50, seeds=[1])[0])
    assert not torch.equal(one, other)


def test_strain_as_numpy_gives_it_to_us_in_double_is_taken(estimator, strain):
    theta, _ = estimator.sample(strain[:1].double().numpy(), 50)
    assert torch.equal(theta, estimator.sample(strain[:1], 50)[0])


def test_an_untrained_estimator_returns_the_prior(schema, config, toy_data, strain):
    values = torch.from_numpy(read_parameters(toy_data()))
    theta_map = ParameterMap.fit(schema.parameters, (), values)
    torch.manual_seed(0)
    untrained = Estimator(config, DataFacts.of(schema), theta_map)
    middle = [[40.0, START + 0.05], [60.0, START + 0.1], [80.0, START + 0.15]]
    theta = torch.tensor([middle], dtype=torch.float64).expand(6, -1, -1)
    density = untrained.log_prob(theta, strain)
    assert torch.allclose(density, torch.tensor(-np.log(VOLUME)), atol=1e-3)
    samples, _ = untrained.sample(strain[:1], 20_000)
    shares = (samples[0] - torch.tensor([25, START], dtype=torch.float64)) / torch.tensor([75, 0.2])
    quartiles = shares.quantile(torch.tensor([0.25, 0.5, 0.75]).double(), 0)
    assert torch.allclose(quartiles[:, 0], torch.tensor([0.25, 0.5, 0.75]).double(), atol=0.02)
    assert torch.allclose(quartiles[:, 1], torch.tensor([0.25, 0.5, 0.75]).double(), atol=0.02)


def test_data_that_do_not_name_their_band_are_refused(schema):
    with pytest.raises(InputError, match="band"):
        DataFacts.of(replace(schema, provenance={}))
