"""The phase integrated out: exact, whatever the waveform's harmonics."""

import numpy as np
import pytest
from scipy.special import ive
from scipy.stats import kstest

from pipeline.config import SnrWindow
from pipeline.likelihood import Likelihood, SegmentNoise, Waves
from pipeline.noise import optimal_snr
from pipeline.phase import PhaseCurve, curve_of, draw_phase, harmonics_of
from pipeline.simulate import Simulator

FAST = (
    "--waveform.f_lower=30",
    "--waveform.f_ref=30",
    "--segment.duration=2",
    "--segment.generation_duration=4",
    "--segment.sample_rate=1024",
    "--segment.start_time=1577491216.5",
)
ALL = SnrWindow()
# What the sum of harmonics may miss a log likelihood by: the models with higher modes are not quite
# continuous.
AGREEMENT = {"IMRPhenomXP": 1e-3, "IMRPhenomXPHM": 0.05, "IMRPhenomTPHM": 0.05}


@pytest.fixture(scope="module", params=AGREEMENT)
def problem(request, et_bbh):
    """An event, its likelihood, and the curve of its phase at the true parameters."""
    config = et_bbh(*FAST, f"--waveform.approximant={request.param}")
    simulator = Simulator.from_config(config.simulation)
    generator = np.random.default_rng(1)
    for _ in range(2):
        source = simulator.draw_parameters(generator)
    strain = simulator.signal(source)
    simulator.whitening.add_noise(strain, generator)
    likelihood = Likelihood.of(SegmentNoise.of(simulator.config), strain)
    harmonics = harmonics_of(Waves(simulator), source, snr=100.0)
    curve = curve_of(simulator, likelihood, harmonics, source)
    return simulator, source, likelihood, curve, AGREEMENT[request.param]


def test_the_curve_is_the_likelihood_of_signals_at_every_phase(problem):
    simulator, source, likelihood, curve, agreement = problem
    phases = np.linspace(0, 2 * np.pi, 23)
    signals = [simulator.signal({**source, "phase": phase}) for phase in phases]
    expected = np.array([likelihood.log_ratio(signal) for signal in signals])
    assert np.ptp(expected) > 50
    assert np.abs(curve.log_ratio(phases) - expected).max() < agreement
    snrs = [np.linalg.norm(optimal_snr(signal)) for signal in signals]
    assert np.abs(curve.network_snr(phases) - snrs).max() < 1e-3


def test_the_integral_is_that_of_a_far_finer_grid(problem):
    """And the number of points is more than enough: half as many give the same."""
    *_, curve, _ = problem
    fine = curve.log_ratio(2 * np.pi * np.arange(2**16) / 2**16)
    expected = fine.max() + np.log(np.mean(np.exp(fine - fine.max())))
    assert draw_phase(curve, ALL, 0.5).log_marginal == pytest.approx(expected, abs=1e-9)
    half = fine[:: 2 * 2**16 // curve.points()]
    assert expected == pytest.approx(half.max() + np.log(np.mean(np.exp(half - half.max()))))


def test_drawn_phases_follow_their_posterior_and_carry_its_density(problem):
    *_, curve, _ = problem
    draws = [draw_phase(curve, ALL, (i + 0.5) / 2000) for i in range(2000)]
    grid = 2 * np.pi * np.arange(2**14) / 2**14
    density = np.exp(curve.log_ratio(grid) - draws[0].log_marginal) / (2 * np.pi)
    assert density.mean() * 2 * np.pi == pytest.approx(1, abs=1e-9)
    cumulative = np.cumsum(density) * grid[1]
    phases = np.array([item.phase for item in draws])
    assert kstest(np.interp(phases, grid, cumulative), "uniform").statistic < 0.01
    log_density = np.array([item.log_density for item in draws])
    assert np.exp(log_density) == pytest.approx(np.interp(phases, grid, density), rel=0.01)
    ratios = np.array([item.log_likelihood for item in draws])
    assert ratios == pytest.approx(curve.log_ratio(phases))


def test_a_window_leaves_out_phases_of_other_snrs(problem):
    *_, curve, _ = problem
    grid = 2 * np.pi * np.arange(2**12) / 2**12
    snrs = curve.network_snr(grid)
    if np.ptp(snrs) > 1e-3:  # the norm depends on the phase
        window = SnrWindow(minimum=float(np.median(snrs)))
        inside = [draw_phase(curve, window, u).phase for u in np.linspace(0.01, 0.99, 50)]
        assert curve.network_snr(np.array(inside)).min() > window.minimum - 0.01
    assert draw_phase(curve, SnrWindow(minimum=2 * snrs.max()), 0.5) is None


@pytest.mark.parametrize("snr", [0.1, 5.0, 100.0, 1000.0])
def test_the_integral_is_a_bessel_function_where_the_norm_is_constant(snr):
    """log I0(|<d, h>|) - <h, h> / 2."""
    linear = 0.97 * snr**2 * np.array([np.cos(0.7), np.sin(0.7)])
    curve = PhaseCurve((2,), linear, snr**2 * np.eye(2), snr**2 * np.eye(2))
    size = 0.97 * snr**2
    expected = np.log(ive(0, size)) + size - snr**2 / 2
    assert draw_phase(curve, ALL, 0.3).log_marginal == pytest.approx(expected, rel=1e-10)
