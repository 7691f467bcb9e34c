"""Shifts in time on the device: those of the simulator, and no prior that changes."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from model.augment import TimeShift, reflected, shifted
from model.config import AugmentConfig
from model.failure import reproduce
from model.history import read_history
from model.train import train
from model.trainer import Trainer
from pipeline.config import DatasetConfig
from pipeline.simulate import Simulator
from storage.errors import InputError
from strainflow import read_config

SHIFTS = (-0.01, -0.0031, 1e-4, 0.01)  # [s]
IMPROBABLE = 1e-3
WRAP_AROUND = 4e-3  # share of the SNR; 3e-3 at most were found


@pytest.fixture(scope="module")
def simulator():
    return Simulator.from_config(
        read_config(DatasetConfig, "pipeline/recipes/et-demo.yaml", "--events=4").simulation
    )


def error_of_shift(simulator, mass, seconds, sign=1):
    """The SNR of what a shift leaves of the simulator's signal at the other time, and its own."""
    parameters = simulator.draw_parameters(np.random.default_rng(1))
    parameters |= {"chirp_mass": mass, "mass_ratio": 0.8, "geocent_time": 1577491218.0}
    later = {**parameters, "geocent_time": parameters["geocent_time"] + seconds}
    exact = later["geocent_time"] - parameters["geocent_time"]
    first, second = (torch.from_numpy(simulator.signal(p))[None] for p in (parameters, later))
    moved = shifted(first, torch.tensor([sign * exact]), simulator.config.segment.sample_rate)
    return ((moved - second).norm() / second.norm()).item()


@pytest.mark.parametrize("mass", [30.0, 90.0])
@pytest.mark.parametrize("seconds", SHIFTS)
def test_a_shifted_signal_is_the_simulators_at_the_shifted_time(simulator, mass, seconds):
    assert error_of_shift(simulator, mass, seconds) < WRAP_AROUND


def test_the_comparison_with_the_simulator_catches_a_wrong_sign_and_half_a_sample(simulator):
    assert error_of_shift(simulator, 30.0, 0.01, sign=-1) > 0.5
    assert error_of_shift(simulator, 30.0, 0.01, sign=1 + 0.5 / 82) > 5 * WRAP_AROUND


def test_a_shift_by_whole_samples_rolls_the_series():
    strain = torch.randn(2, 3, 256)
    spectrum = torch.fft.rfft(strain)
    spectrum[..., -1] = 0  # of the Nyquist bin a series holds half
    strain = torch.fft.irfft(spectrum)
    moved = shifted(strain, torch.tensor([3 / 64, -5 / 64], dtype=torch.float64), 64.0)
    assert torch.allclose(moved[0], strain[0].roll(3, -1), atol=1e-5)
    assert torch.allclose(moved[1], strain[1].roll(-5, -1), atol=1e-5)


def test_a_uniform_prior_of_the_time_stays_uniform():
    times = torch.from_numpy(np.random.default_rng(2).uniform(5, 6, 20_000))
    shift = TimeShift(0.4, 64.0, 0, 5.0, 6.0)
    seeds = np.random.default_rng(3).integers(2**64, size=len(times), dtype=np.uint64)
    theta = shift(torch.zeros(len(times), 1, 4), times[:, None], seeds)[1][:, 0].numpy()
    assert stats.kstest(theta - 5, "uniform").pvalue > IMPROBABLE
    moves = theta - times.numpy()
    assert 0.39 < np.abs(moves).max() <= 0.4
    clamped = (times.numpy() + moves).clip(5.1, 5.9)
    assert stats.kstest(clamped - 5, "uniform").pvalue < IMPROBABLE, "it could not fail"


def test_times_outside_the_prior_are_mirrored():
    times = torch.tensor([4.75, 5.5, 6.25], dtype=torch.float64)
    assert reflected(times, 5.0, 6.0).tolist() == [5.25, 5.5, 5.75]


@pytest.fixture(scope="module")
def shifting(config):
    return replace(config, epochs=1, augment=AugmentConfig(time_shift=0.02))


def test_each_step_shifts_otherwise_and_validation_not_at_all(shifting, toy_data, tmp_path):
    trainer = Trainer(shifting, toy_data(noisy=False), tmp_path / "run")
    plain = Trainer(
        replace(shifting, augment=AugmentConfig()), toy_data(noisy=False), tmp_path / "o"
    )
    batch = next(iter(trainer.training))
    losses = [trainer.loss(batch, 0, step) for step in (3, 3, 4)]
    assert torch.equal(losses[0], losses[1])
    assert not torch.equal(losses[0], losses[2])
    assert not torch.equal(losses[0], plain.loss(batch, 0, 3))
    assert torch.equal(trainer.loss(batch, 1, 3), plain.loss(batch, 1, 3))


def test_ranks_shift_the_same_events_by_the_same(shifting, toy_data, start_ranks, tmp_path):
    data = toy_data(noisy=False)
    train(shifting, data, tmp_path / "alone")
    assert start_ranks(2, shifting, data, tmp_path / "run").codes == [0, 0]
    curves = [
        np.array([float(row["train_loss"]) for row in read_history(tmp_path / run)])
        for run in ("alone", "run")
    ]
    assert np.allclose(*curves, atol=5e-6)


def test_a_failed_batch_is_reproduced_with_its_shifts(shifting, toy_data, tmp_path):
    strict = replace(shifting, optimiser=replace(shifting.optimiser, largest_loss=0.1))
    with pytest.raises(InputError) as error:
        train(strict, toy_data(noisy=False), tmp_path / "run")
    loss = reproduce(tmp_path / "run" / "failed-000000.pt").mean()
    assert f"the loss became {loss:.4g} after step 0" in str(error.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [({"noisy": True}, "the stored strain holds noise"), ({}, "the prior of geocent_time is")],
)
def test_what_is_not_fit_to_be_shifted_is_refused(change, says, config, toy_data, tmp_path):
    data = toy_data(**{"noisy": False, **change})
    wide = replace(config, augment=AugmentConfig(time_shift=0.3))
    with pytest.raises(InputError, match=says):
        Trainer(wide, data, tmp_path / "run")


@pytest.mark.parametrize("seconds", [-0.1, math.nan, math.inf])
def test_an_impossible_shift_is_refused(seconds):
    with pytest.raises(InputError, match="time_shift"):
        AugmentConfig(time_shift=seconds)
