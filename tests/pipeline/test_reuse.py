"""A waveform that serves several events: each event is what it would be by itself."""

import lalsimulation
import numpy as np
import pytest
from scipy.stats import ks_2samp

from pipeline.polarisations import EXTRINSIC
from pipeline.priors import PARAMETERS
from pipeline.simulate import Simulator
from pipeline.waveform import PHASE_IS_A_FACTOR, lal_arguments
from storage.errors import InputError

FLAGS = ("--noise=none", "--network_snr.minimum=30")
# A short segment of a fast model, where statistics are wanted.
FAST = (
    "--waveform.approximant=IMRPhenomXP",
    "--waveform.f_lower=30",
    "--waveform.f_ref=30",
    "--segment.duration=2",
    "--segment.generation_duration=4",
    "--segment.sample_rate=1024",
    "--segment.start_time=1577491216.5",
)


def simulator_of(et_bbh, draws, *flags):
    config = et_bbh(*FLAGS, *flags, f"--extrinsic_draws_per_waveform={draws}")
    return Simulator.from_config(config.simulation)


def table(simulator, numbers):
    return np.array([simulator.event(number).parameters for number in numbers])


def columns(*names):
    return [list(PARAMETERS).index(name) for name in names]


@pytest.mark.parametrize("model", ["IMRPhenomXPHM", "IMRPhenomXP"])
def test_an_event_is_the_event_of_its_parameters(et_bbh, model):
    flags = (f"--waveform.approximant={model}",)
    shared = simulator_of(et_bbh, 4, *flags)
    alone = simulator_of(et_bbh, 1, *flags)
    for number in range(8):
        event = shared.event(number)
        expected = alone.signal(dict(zip(PARAMETERS, event.parameters, strict=True)))
        assert np.linalg.norm(event.strain - expected) < 1e-6 * np.linalg.norm(expected)


def test_a_group_shares_what_the_waveform_holds_and_nothing_else(et_bbh):
    for model, own in (("IMRPhenomXPHM", EXTRINSIC), ("IMRPhenomXP", (*EXTRINSIC, "phase"))):
        drawn = table(simulator_of(et_bbh, 3, f"--waveform.approximant={model}"), range(6))
        for index, name in enumerate(PARAMETERS):
            values = [len(set(group)) for group in (drawn[:3, index], drawn[3:, index])]
            assert values == ([3, 3] if name in own else [1, 1]), name
            assert drawn[0, index] != drawn[3, index], name


def test_the_first_of_a_group_is_the_event_without_groups(et_bbh):
    for number in (0, 3, 6):
        ours, theirs = (simulator_of(et_bbh, draws).event(number) for draws in (3, 1))
        assert ours.strain.tobytes() == theirs.strain.tobytes()


def test_an_event_does_not_depend_on_which_were_made_before(et_bbh):
    in_order = simulator_of(et_bbh, 4)
    expected = {number: in_order.event(number).strain.tobytes() for number in range(6)}
    for number in (5, 2, 0, 3):
        assert simulator_of(et_bbh, 4).event(number).strain.tobytes() == expected[number]


@pytest.mark.slow
def test_each_event_by_itself_is_distributed_as_without_groups(et_bbh):
    """The window cuts most draws away, so that a group whose waveform is loud must come often."""
    flags = (*FAST, "--network_snr.minimum=60")
    members = table(simulator_of(et_bbh, 2, *flags), range(1, 1200, 2))
    alone = table(simulator_of(et_bbh, 1, *flags, "--seed=1"), range(600))
    names = ("chirp_mass", "mass_ratio", "luminosity_distance", "theta_jn", "phase", "dec")
    p_values = [ks_2samp(members[:, i], alone[:, i]).pvalue for i in columns(*names)]
    assert min(p_values) > 0.01 / len(names), dict(zip(names, p_values, strict=True))
    # The comparison sees a prior that ignores the window.
    prior = table(simulator_of(et_bbh, 1, *FAST, "--network_snr.minimum=0"), range(600))
    (mass,) = columns("chirp_mass")
    assert ks_2samp(members[:, mass], prior[:, mass]).pvalue < 1e-6


@pytest.mark.parametrize("model", sorted(PHASE_IS_A_FACTOR))
def test_the_phase_is_a_factor_where_we_say_so(et_bbh, simulator, model):
    config = et_bbh(f"--waveform.approximant={model}").simulation
    generator = np.random.default_rng(5)
    for shift in (0.3, 2.0):
        source = simulator.draw_parameters(generator)
        if model in ("IMRPhenomD", "IMRPhenomXAS"):  # for aligned spins alone
            source |= {"tilt_1": 0.0, "tilt_2": 0.0}
        waves = [
            lalsimulation.SimInspiralChooseFDWaveform(
                *lal_arguments(source | {"phase": phase}, config.waveform, config.segment)
            )
            for phase in (source["phase"], source["phase"] + shift)
        ]
        for before, after in zip(*waves, strict=True):
            turned = before.data.data * np.exp(2j * shift)
            error = np.linalg.norm(after.data.data - turned) / np.linalg.norm(turned)
            assert error < 1e-11


def test_no_event_a_waveform_is_refused(et_bbh):
    with pytest.raises(InputError, match="extrinsic_draws_per_waveform: got 0"):
        et_bbh("--extrinsic_draws_per_waveform=0")
