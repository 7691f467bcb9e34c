"""Signals and the stretch over which they are generated."""

from dataclasses import replace

import numpy as np
import pytest

from pipeline.simulate import Simulator
from pipeline.wraparound import longest_stretch, measure_wraparound, require_room
from storage.errors import InputError


def test_little_of_the_recipes_signals_wraps_around(simulator):
    """Measured over 250 draws: median 0.09 %, 95 % below 0.67 %, worst 1.5 %."""
    found = measure_wraparound(simulator, 20)
    assert found.draws == 20
    assert 0 < found.median < 2e-3
    assert found.median <= found.percent_95 <= found.largest < 2e-2


def test_a_generation_too_short_is_seen(simulator, simulator_with):
    """Measured: 2.1 % in place of 0.09 %; of binaries of 15 Msun 35 %."""
    short = simulator_with(generation_duration=8.0)
    assert measure_wraparound(short, 20).median > 10 * measure_wraparound(simulator, 20).median
    prior = replace(short.config.prior, chirp_mass=15.0)
    light = replace(short, config=replace(short.config, prior=prior))
    assert measure_wraparound(light, 20).median > 0.1


def test_the_measurement_is_the_same_each_time(simulator):
    assert measure_wraparound(simulator, 3) == measure_wraparound(simulator, 3)


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (("--prior.chirp_mass=Uniform(5, 20)", "--waveform.f_lower=20"), "17.* s .*set it to 32"),
        (("--waveform.f_lower=5",), "a signal of 25 Msun from 5 Hz .*set it to 64"),
        (("--prior.chirp_mass=10",), "a signal of 10 Msun .*set it to 64"),
    ],
)
def test_signals_that_do_not_fit_are_refused_with_the_duration_to_set(et_bbh, flags, reason):
    config = et_bbh(*flags).simulation
    with pytest.raises(InputError, match=reason):
        Simulator.from_config(config)
    words = str(pytest.raises(InputError, require_room, config).value)
    enough = float(words.split("set it to ")[1].split(",")[0])
    require_room(replace(config, segment=replace(config.segment, generation_duration=enough)))
    half = replace(config.segment, generation_duration=enough / 2)
    with pytest.raises(InputError):
        require_room(replace(config, segment=half))


def test_the_longest_stretch_is_where_the_model_passes_f_lower(simulator, sources):
    """The stationary time of the generated signal at f_lower, 24 = (2, 2) alone."""
    from pipeline.waveform import polarisations

    config = simulator.config
    facts = {"chirp_mass": 25.0, "mass_ratio": 1.0, "a_1": 0.5, "a_2": 0.5, "theta_jn": 0.0}
    source = dict(sources[0], **facts, tilt_1=0.0, tilt_2=0.0)
    waveform = replace(config.waveform, approximant="IMRPhenomXAS")
    segment = replace(config.segment, generation_duration=64.0)
    waves = polarisations(source, waveform, segment)
    phase = np.unwrap(np.angle(waves.plus[1:40]))
    start = -np.polyval(np.polyder(np.polyfit(np.arange(1, 40) / 64, phase, 5)), 1 / 64)
    fixed = {name: source[name] for name in facts} | {"tilt_1": 0.0, "tilt_2": 0.0}
    prior = replace(config.prior, geocent_time=1577491218.0, **fixed)
    stretch = longest_stretch(replace(config, prior=prior))
    assert stretch - 1.0 - 0.0213 == pytest.approx(-start / (2 * np.pi), abs=0.1)
