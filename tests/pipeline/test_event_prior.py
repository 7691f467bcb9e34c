"""The density of a data set's events: bilby's prior, normalised by what was accepted."""

from collections import Counter
from dataclasses import replace

import bilby
import numpy as np
import pytest

from pipeline import event_prior
from pipeline.config import SnrWindow
from pipeline.event_prior import EventPrior, accepted_share, drawn_share
from pipeline.prior_text import describe
from pipeline.simulate import Simulator
from storage.errors import InputError

FAST = (
    "--waveform.approximant=IMRPhenomXP",
    "--waveform.f_lower=30",
    "--waveform.f_ref=30",
    "--segment.duration=2",
    "--segment.generation_duration=4",
    "--segment.sample_rate=1024",
    "--segment.start_time=1577491216.5",
    "--noise=none",
)
CONSTRAINED = '--prior.constraints={"mass_2": "Constraint(25, 100)"}'


def test_the_density_is_bilbys_with_constraints(et_bbh):
    config = et_bbh(CONSTRAINED, "--prior.a_1=0.3").simulation
    prior = EventPrior(config, share=0.25, share_error=0.0)
    names = [name for name in prior.distributions if name != "a_1"]
    reference = bilby.core.prior.PriorDict(
        {name: describe(prior.distributions[name]) for name in names}
    )
    samples = np.array(list(reference.sample(200).values())).T
    samples[0, 0] = 20.0  # below the prior's chirp masses
    found = prior.log_density(names, samples)
    chirp_mass, ratio = samples[:, 0], samples[:, 1]
    mass_2 = chirp_mass * (1 + ratio) ** 0.2 * ratio**0.4
    allowed = (mass_2 > 25) & (mass_2 < 100) & (chirp_mass >= 25)
    assert 0 < allowed.sum() < 200
    assert np.all(found[~allowed] == -np.inf)
    table = dict(zip(names, samples[allowed].T, strict=True))
    assert found[allowed] == pytest.approx(reference.ln_prob(table, axis=0) - np.log(0.25))


@pytest.mark.parametrize("together", [1, 3])
def test_the_accepted_share_is_that_of_draws_from_the_prior(et_bbh, together):
    """Whether events share waveforms or not, from the draws that they threw away."""
    flags = (*FAST, CONSTRAINED, "--network_snr={minimum: 25, maximum: 60}")
    config = et_bbh(*flags, f"--extrinsic_draws_per_waveform={together}").simulation
    simulator = Simulator.from_config(config)
    events, rejected = 300, Counter()
    for event in simulator.events(range(events)):
        rejected.update(event.rejected)
    share, error = accepted_share(events, rejected, together)
    generator, accepted, draws = np.random.default_rng(0), 0, 800
    for _ in range(draws):
        parameters = simulator.draw_parameters(generator)
        if config.prior.allows(parameters):
            snr = np.linalg.norm(simulator.signal(parameters).astype(float))
            accepted += simulator.accepts(float(snr))
    expected = accepted / draws
    spread = np.hypot(error, np.sqrt((1 - expected) / accepted))
    assert abs(np.log(share / expected)) < 3 * spread
    assert 0.1 < share < 0.6


@pytest.fixture(scope="module")
def limited(et_bbh):
    """A simulator with a constraint and a window."""
    flags = (*FAST, CONSTRAINED, "--network_snr={minimum: 25, maximum: 60}")
    return Simulator.from_config(et_bbh(*flags).simulation)


def test_a_drawn_share_is_that_which_simulated_events_count(limited, monkeypatch):
    monkeypatch.setattr(event_prior, "DRAWS", 300)
    events, rejected = 100, Counter()
    for event in limited.events(range(events)):
        rejected.update(event.rejected)
    counted, error = accepted_share(events, rejected, 1)
    drawn, drawn_error = drawn_share(limited)
    assert abs(np.log(drawn / counted)) < 3 * np.hypot(error, drawn_error)
    assert 0.05 < drawn_error < 0.2
    assert drawn_share(limited) == (drawn, drawn_error)


def test_nothing_is_drawn_where_nothing_can_be_refused(et_bbh):
    config = replace(et_bbh(*FAST).simulation, network_snr=SnrWindow())
    assert drawn_share(Simulator(config, (), np.ones((0, 1)))) == (1.0, 0.0)


def test_draws_that_take_too_long_or_accept_nothing_are_refused(limited, monkeypatch):
    monkeypatch.setattr(event_prior, "LONGEST", 0.0)
    with pytest.raises(InputError, match="draws of IMRPhenomXP would take .* --like that has its"):
        drawn_share(limited)
    monkeypatch.setattr(event_prior, "DRAWS", 5)
    window = replace(limited.config.network_snr, minimum=1e5, maximum=1e6)
    loud = replace(limited, config=replace(limited.config, network_snr=window))
    with pytest.raises(InputError, match="accepts none of 5 draws from the prior"):
        drawn_share(loud)


def test_nothing_thrown_away_is_a_share_of_one():
    assert accepted_share(10, Counter(), 1) == (1.0, 0.0)


def test_stretches_of_noise_with_gaps_are_no_draws_from_the_prior():
    rejected = Counter(snr_below_minimum=10, waveform_failed=5)
    assert accepted_share(10, rejected + Counter(noise_incomplete=7), 1) == accepted_share(
        10, rejected, 1
    )


def test_the_phase_alone_may_be_left_out(et_bbh):
    prior = EventPrior(et_bbh("--prior.a_1=0.3").simulation, 1.0, 0.0)
    free = [name for name in prior.distributions if name != "a_1"]
    assert not prior.needs_phase(free)
    assert prior.needs_phase([name for name in free if name != "phase"])
    with pytest.raises(InputError, match="dec, psi vary in the data set but were not sampled"):
        prior.needs_phase([name for name in free if name not in ("dec", "psi", "phase")])
    with pytest.raises(InputError, match="a_1 were sampled, but are fixed"):
        prior.needs_phase([*free, "a_1"])
    half = EventPrior(et_bbh("--prior.phase=Uniform(0, 2)").simulation, 1.0, 0.0)
    with pytest.raises(InputError, match="not uniform from 0 to 2 pi"):
        half.needs_phase([name for name in half.distributions if name != "phase"])
