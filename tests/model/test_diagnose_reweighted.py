"""What is said of the sky, of widths, and of posteriors that were reweighted."""

import json
from dataclasses import replace

import numpy as np
import pytest

from model.diagnose import diagnose, judge
from storage.errors import InputError
from storage.posterior import Exact, Posterior
from storage.results import write_posterior
from strainflow import main

PARAMETERS = ("chirp_mass", "ra", "dec")
PRIORS = {
    "chirp_mass": "Uniform(25, 100)",
    "ra": "Uniform(0, 6.283185307179586)",
    "dec": "Cosine(minimum=-1.5707963267948966, maximum=1.5707963267948966)",
    "psi": "0.3",
}


def events_on_the_sky(events=30, samples=400, spread=0.0, seed=0):
    """Posteriors of a mass and a place on the sky, of one mode, but every third of two.

    Args:
        events: How many.
        samples: Of each.
        spread: Of the log weights; 0 for posteriors that are not reweighted.
        seed: Of everything.
    """
    draw = np.random.default_rng(seed)
    for event in range(events):
        snr, modes = float(draw.uniform(20, 200)), 1 + (event % 3 == 0)
        width = np.array([20.0, 2.0, 2.0]) / snr
        truth = np.array([draw.uniform(35, 90), draw.uniform(0, 6.28), draw.uniform(-0.8, 0.8)])
        values = truth + width * draw.standard_normal(3)
        values = values + width * draw.standard_normal((samples, 3))
        own = draw.integers(modes)  # the mode that holds the truth, as likely as any
        values[:, 1] += (draw.integers(modes, size=samples) - own) * np.pi
        values[:, 1] %= 2 * np.pi
        values[:, 2] = np.clip(values[:, 2], -1.5, 1.5)
        flat = np.zeros(samples)
        weights = np.exp(spread * np.random.default_rng(event).standard_normal(samples))
        exact = Exact(flat, flat, weights / weights.mean(), 9.0, 0.1, -99.0) if spread else None
        true = {**dict(zip(PARAMETERS, truth.tolist(), strict=True)), "psi": 0.3}
        yield Posterior(event, PARAMETERS, values, flat, true, PRIORS, snr, exact=exact)


def write_all(folder, posteriors):
    folder.mkdir(parents=True, exist_ok=True)
    for posterior in posteriors:
        write_posterior(folder, posterior)
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Not to be written to."""
    return write_all(tmp_path_factory.mktemp("plain"), events_on_the_sky())


def test_the_sky_and_the_widths_are_reported_and_drawn(plain, tmp_path):
    found = diagnose(plain, tmp_path, corners=1)
    assert found.sky.smallest_area < found.sky.median_area < found.sky.largest_area
    assert sum(found.sky.modes.values()) == 30
    loud = [event for event in found.per_event if event.optimal_snr > 60]
    assert len(loud) > 10
    assert all(event.sky_modes == 1 + (event.event % 3 == 0) for event in loud)
    assert found.reweighting is None
    drawn = {path.name for path in tmp_path.glob("*.png")}
    assert drawn >= {"widths.png", "sky.png", "diagnosis.png", "corner_000000000.png"}
    assert "jsd.png" not in drawn
    for event in found.per_event:
        assert event.widths["chirp_mass"] == pytest.approx(3.29 * 20 / event.optimal_snr, rel=0.25)


def test_reweighted_posteriors_are_judged_with_their_weights(tmp_path):
    """Weights that move the mass by half a sigma make right posteriors wrong."""
    right = list(events_on_the_sky(events=150, samples=150, spread=0.1))
    moved = []
    for posterior in right:
        mass = posterior.samples[:, 0]
        weights = np.exp(0.5 * (mass - mass.mean()) / mass.std())
        exact = replace(posterior.exact, weights=weights / weights.mean())
        moved.append(replace(posterior, exact=exact))
    good, _ = judge(write_all(tmp_path / "good", right))
    bad, _ = judge(write_all(tmp_path / "bad", moved))
    assert good.weighted
    assert good.checks[0].p_value > 0.01
    assert bad.checks[0].p_value < 1e-3
    assert not bad.calibrated
    assert bad.checks[0].bias > good.checks[0].bias + 0.3
    assert bad.checks[0].jsd > 0.02 > bad.checks[1].jsd
    assert good.checks[0].jsd < 0.002


def test_what_reweighting_changed_is_told_from_the_folder_below(plain, tmp_path, capsys):
    folder = write_all(tmp_path / "r", events_on_the_sky())
    reweighted = list(events_on_the_sky(spread=1.0))
    heavy = np.full(400, 1e-9)
    heavy[7] = 400.0
    broken = replace(reweighted[5].exact, weights=heavy)
    reweighted[5] = replace(reweighted[5], exact=broken)
    write_all(folder / "reweighted", reweighted)
    before, _ = judge(plain)
    after, _ = judge(folder)
    assert after.combined_p_value == before.combined_p_value
    assert not after.weighted
    assert after.reweighting.events == 30
    assert after.reweighting.low == ("event_000000005",)
    assert after.reweighting.median_efficiency == pytest.approx(np.exp(-1), rel=0.2)
    main(["diagnose", str(folder), "--out", str(tmp_path / "out"), "--corners", "0"])
    assert (tmp_path / "out" / "jsd.png").is_file()
    assert "efficiency below 1 %: event_000000005\n" in capsys.readouterr().out


def test_a_phase_that_reweighting_added_is_no_other_sample(tmp_path):
    folder = write_all(tmp_path / "r", events_on_the_sky())
    with_phase = [
        replace(one, names=("phase", *one.names), samples=np.c_[np.zeros(400), one.samples])
        for one in events_on_the_sky(spread=1.0)
    ]
    write_all(folder / "reweighted", with_phase)
    found, _ = judge(folder)
    assert found.reweighting.events == 30
    assert [check.name for check in found.checks] == list(PARAMETERS)
    assert all(check.jsd is not None for check in found.checks)


def test_weights_of_other_samples_are_refused(tmp_path):
    folder = write_all(tmp_path / "r", events_on_the_sky())
    write_all(folder / "reweighted", events_on_the_sky(seed=1, spread=1.0))
    with pytest.raises(InputError, match="was made from other samples"):
        judge(folder)


def with_weights(posterior, effective):
    """The same, of which only so many samples have any weight."""
    weights = np.zeros(len(posterior.samples))
    if effective:
        weights[:effective] = len(weights) / effective
    return replace(posterior, exact=replace(posterior.exact, weights=weights))


def test_an_event_without_any_weight_is_named_and_left_out(tmp_path, capsys):
    posteriors = list(events_on_the_sky(spread=0.1))
    posteriors[0] = with_weights(posteriors[0], 0)
    folder, out = write_all(tmp_path / "r", posteriors), tmp_path / "out"
    found, _ = judge(folder)
    assert (
        found.left_out == found.reweighting.dead == found.reweighting.low == (posteriors[0].label,)
    )
    assert found.reweighting.smallest_efficiency == 0
    assert not found.per_event[0].ranks
    assert found.combined_p_value is not None
    main(["diagnose", str(folder), "--out", str(out), "--corners", "1"])
    words = capsys.readouterr().out
    assert "no sample of positive weight: event_000000000\n" in words
    assert "1 of 30 events left out of the tests, fewer than 30 effective samples: event" in words
    assert [path.name for path in out.glob("corner_*")] == ["corner_000000001.png"]
    assert (out / "jsd.png").is_file()


def test_samples_that_reweighting_left_without_weight_are_judged_by_themselves(plain, tmp_path):
    folder = write_all(tmp_path / "r", events_on_the_sky())
    write_all(folder / "reweighted", (with_weights(p, 0) for p in events_on_the_sky(spread=0.1)))
    (before, _), (after, _) = judge(plain), judge(folder)
    assert after.combined_p_value == before.combined_p_value
    assert after.left_out == ()
    assert len(after.reweighting.dead) == 30
    assert after.checks[0].jsd is None


def test_reweighting_that_failed_is_no_verdict(tmp_path, capsys):
    few = (with_weights(posterior, 7) for posterior in events_on_the_sky(spread=0.1))
    folder, out = write_all(tmp_path / "r", few), tmp_path / "out"
    assert main(["diagnose", str(folder), "--out", str(out), "--corners", "1"]) == 1
    why = "30 of 30 events have fewer than 30 effective samples, and at least 20 must have more"
    assert f"verdict: cannot tell: {why}\n" in capsys.readouterr().out
    assert why in (out / "diagnosis.html").read_text()
    assert main(["diagnose", str(folder), "--out", str(out), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["calibrated"], found["combined_p_value"], found["checks"]) == (False, None, [])


@pytest.mark.parametrize(("left_out", "tells"), [(3, True), (4, False)])
def test_more_than_a_tenth_left_out_is_no_verdict(left_out, tells, tmp_path):
    posteriors = [
        with_weights(posterior, 29 if posterior.event < left_out else 400)
        for posterior in events_on_the_sky(spread=0.1)
    ]
    found, _ = judge(write_all(tmp_path / "r", posteriors), level=1e-9)
    assert len(found.left_out) == left_out
    assert (found.calibrated, not found.cannot_tell) == (tells, tells)
    assert found.combined_p_value > 1e-9


def test_a_posterior_that_is_one_point_does_not_move_the_bias(plain, tmp_path):
    posteriors = list(events_on_the_sky())
    points = np.tile(posteriors[4].samples[:1], (400, 1)) + 5
    posteriors[4] = replace(posteriors[4], samples=points)
    (before, _), (after, _) = judge(plain), judge(write_all(tmp_path / "r", posteriors))
    assert after.checks[0].bias == pytest.approx(before.checks[0].bias, abs=0.2)
    assert 0 < after.checks[0].narrowing < 1.2 * before.checks[0].narrowing


def test_a_folder_of_both_kinds_is_refused(tmp_path):
    folder = write_all(tmp_path / "r", events_on_the_sky())
    write_all(folder, list(events_on_the_sky(spread=1.0))[:1])
    with pytest.raises(InputError, match="one is reweighted and the other is not"):
        judge(folder)


def test_a_truth_beyond_all_samples_is_counted(tmp_path):
    posteriors = list(events_on_the_sky())
    truth = {**posteriors[0].truth, "chirp_mass": 1e4}
    posteriors[0] = replace(posteriors[0], truth=truth)
    found, _ = judge(write_all(tmp_path / "r", posteriors))
    assert "chirp_mass" in found.per_event[0].outside
    assert found.checks[0].outside >= 1 / 30


def test_a_verdict_does_not_change_from_call_to_call(plain):
    (one, _), (other, _) = judge(plain), judge(plain)
    assert one.combined_p_value == other.combined_p_value
    assert one.per_event == other.per_event
