"""Reweighting: weights, evidence and flags against grids; bytes, reruns and refusals."""

import json
import shutil
import subprocess
import sys
import time
from dataclasses import replace

import bilby
import numpy as np
import pytest
from scipy.stats import t

from pipeline.description import describe_dataset
from pipeline.evaluate import evaluate, read_strain
from pipeline.likelihood import Likelihood, SegmentNoise
from pipeline.priors import PARAMETERS
from pipeline.provenance import simulator_of_dataset
from pipeline.reweight import ReweightConfig, reweight_results
from pipeline.reweight_event import Gathered, Target
from pipeline.shard_task import simulate_shard
from pipeline.simulate import Simulator
from storage.dataset import create_dataset, dataset_digest, read_parameters
from storage.errors import InputError
from storage.posterior import IMPOSSIBLE, Posterior
from storage.results import read_posterior, result_files, write_posterior
from strainflow import main

FIXED = {
    "mass_ratio": 0.8, "luminosity_distance": 25000, "ra": 1, "dec": 0.5, "a_1": 0.1, "a_2": 0.2,
    "tilt_1": 0.3, "tilt_2": 0.4, "theta_jn": 0.4, "psi": 0.3, "phi_12": 0, "phi_jl": 0,
    "phase": 1, "geocent_time": 1577491218,
}  # fmt: skip
FAST = (
    "--waveform.approximant=IMRPhenomXP",
    "--waveform.f_lower=30",
    "--waveform.f_ref=30",
    "--segment.duration=2",
    "--segment.generation_duration=4",
    "--segment.sample_rate=1024",
    "--segment.start_time=1577491216.5",
    "--prior.chirp_mass=Uniform(30, 36)",
    "--network_snr.minimum=0",
    "--encoding=int16",
)
DISTANCE = "--prior.luminosity_distance=PowerLaw(alpha=2, minimum=12000, maximum=40000)"
PHASE = "--prior.phase=Uniform(0, 2 * pi)"
WINDOW = "--network_snr={minimum: 14, maximum: 20}"


@pytest.fixture(scope="module")
def stored(et_bbh, tmp_path_factory):
    """Make a data set of three events, in which the chirp mass and what is named are free."""
    made = {}

    def build(*flags):
        if flags not in made:
            fixed = [f"--prior.{name}={value}" for name, value in FIXED.items()]
            config = et_bbh(*FAST, *fixed, *flags, "--events=3")
            simulator = Simulator.from_config(config.simulation)
            folder = tmp_path_factory.mktemp("reweight") / "x.zarr"
            create_dataset(folder, describe_dataset(config, simulator), simulator.psd)
            simulate_shard(str(folder), 0)
            made[flags] = folder
        return made[flags]

    return build


def truth_of(folder, event):
    return dict(zip(PARAMETERS, read_parameters(folder)[event], strict=True))


def likelihood_of(folder, event):
    """Simulator and likelihood, without what reweighting is made of."""
    simulator, schema = simulator_of_dataset(str(folder))
    strain = read_strain(str(folder), schema, event)
    return simulator, Likelihood.of(SegmentNoise.of(simulator.config, schema), strain)


def proposal(folder, event, centres, widths, count=1000):
    """Samples of a wide Student distribution in some parameters, with their density."""
    generator = np.random.default_rng(event)
    samples = np.array(list(centres.values())) + np.array(widths) * t(5).rvs(
        size=(count, len(centres)), random_state=generator
    )
    centred = (samples - np.array(list(centres.values()))) / widths
    log_prob = t(5).logpdf(centred).sum(1) - np.log(widths).sum()
    return Posterior(
        event=event,
        names=tuple(centres),
        samples=samples,
        log_prob=log_prob,
        truth=truth_of(folder, event),
        priors={name: "0" for name in PARAMETERS},
        provenance={"data_sha256": dataset_digest(folder)},
        data=str(folder),
    )


def reweighted(folder, posterior):
    """The same as the command does, in this process."""
    gathered = Gathered(posterior, "", Target.of(str(folder)))
    for piece in gathered.pieces():
        gathered.add(evaluate(piece))
    assert gathered.complete
    return gathered.reweighted()


def log_mean(values):
    return values.max() + np.log(np.mean(np.exp(values - values.max())))


def distance_to(axis, marginal, posterior, column, weights):
    """Largest difference of two cumulative distributions, in units of what chance allows.

    Of a column of weighted samples, and of a marginal on a grid; above 1 with 1 % of chance.
    """
    cumulative = (np.cumsum(marginal) - marginal / 2) / marginal.sum()
    order = np.argsort(posterior.samples[:, column])
    expected = np.interp(posterior.samples[order, column], axis, cumulative)
    shares = np.cumsum(weights[order]) / weights.sum()
    effective = weights.sum() ** 2 / (weights**2).sum()
    return np.abs(shares - expected).max() * np.sqrt(effective) / 1.63


def near(folder, event, *names):
    truth = truth_of(folder, event)
    return {name: truth[name] for name in names}


MASSES = np.linspace(30, 36, 241)


def test_one_parameter_agrees_with_its_grid(stored):
    folder = stored()
    simulator, likelihood = likelihood_of(folder, 0)
    truth = truth_of(folder, 0)
    grid = np.array(
        [likelihood.log_ratio(simulator.signal({**truth, "chirp_mass": m})) for m in MASSES]
    )
    weights = np.exp(grid - grid.max())
    centre = {"chirp_mass": float((weights * MASSES).sum() / weights.sum())}
    found = reweighted(folder, proposal(folder, 0, centre, [0.3]))
    exact = found.exact
    assert exact.efficiency > 0.2
    assert abs(exact.log_evidence - log_mean(grid)) < 3 * exact.log_evidence_error < 0.2
    assert exact.log_noise_evidence == likelihood.log_noise_evidence
    assert distance_to(MASSES, weights, found, 0, exact.weights) < 1
    # The comparison sees samples without their weights.
    assert distance_to(MASSES, weights, found, 0, np.ones(len(exact.weights))) > 3


@pytest.mark.parametrize("window", [(), (WINDOW,)])
def test_two_parameters_agree_with_their_grid_and_the_snr_window_is_part_of_the_prior(
    stored, window
):
    """The window cuts the posterior; the grid cuts it by itself, from each signal's norm."""
    folder = stored(DISTANCE, *window)
    simulator, likelihood = likelihood_of(folder, 1)
    truth = truth_of(folder, 1)
    masses, distances = np.linspace(30, 36, 121), np.linspace(12000, 40000, 351)
    reference = {**truth, "luminosity_distance": 20000.0}
    signals = [simulator.signal({**reference, "chirp_mass": mass}) for mass in masses]
    templates = [likelihood.noise.coordinates(item) for item in signals]
    linear = np.array([likelihood.data @ item for item in templates])[:, None]
    square = np.array([item @ item for item in templates])[:, None]
    scale = 20000 / distances
    density = linear * scale - square * scale**2 / 2 + 2 * np.log(distances)
    snr = np.array([np.linalg.norm(item.astype(float)) for item in signals])[:, None] * scale
    limits = simulator.config.network_snr
    inside = (snr >= limits.minimum) & (snr <= limits.maximum)
    assert inside.all() == (not window)
    density = np.where(inside, density, -np.inf)
    prior = np.where(inside, np.broadcast_to(distances**2, inside.shape), 0).sum()
    weights = np.exp(density - density.max())
    expected = density.max() + np.log(weights.sum()) - np.log(prior)
    centres = {
        "chirp_mass": float((weights.sum(1) * masses).sum() / weights.sum()),
        "luminosity_distance": float((weights.sum(0) * distances).sum() / weights.sum()),
    }
    found = reweighted(folder, proposal(folder, 1, centres, [0.3, 3000.0], 2000))
    exact = found.exact
    assert exact.efficiency > 0.05
    assert abs(exact.log_evidence - expected) < 3 * exact.log_evidence_error
    assert exact.log_evidence_error < (1.0 if window else 0.1)  # 3 events tell the window's share
    for column, (axis, marginal) in enumerate(
        [(masses, weights.sum(1)), (distances, weights.sum(0))]
    ):
        assert distance_to(axis, marginal, found, column, exact.weights) < 1
    outside = exact.log_prior == IMPOSSIBLE
    assert outside.any()
    assert np.all(exact.weights[outside] == 0)


def test_a_phase_that_was_not_sampled_is_integrated_out_and_drawn(stored):
    """Against a grid of masses and phases."""
    folder = stored(PHASE)
    simulator, likelihood = likelihood_of(folder, 0)
    truth = truth_of(folder, 0)
    phases = np.linspace(0, 2 * np.pi, 200, endpoint=False)
    masses = np.linspace(30, 36, 91)
    grid = np.empty((len(masses), len(phases)))
    for row, mass in zip(grid, masses, strict=True):
        pair = [
            likelihood.noise.coordinates(
                simulator.signal({**truth, "chirp_mass": mass, "phase": phase})
            )
            for phase in (0, np.pi / 4)
        ]
        templates = np.outer(np.cos(2 * phases), pair[0]) + np.outer(np.sin(2 * phases), pair[1])
        row[:] = templates @ likelihood.data - (templates**2).sum(1) / 2
    weights = np.exp(grid - grid.max())
    centre = {"chirp_mass": float((weights.sum(1) * masses).sum() / weights.sum())}
    found = reweighted(folder, proposal(folder, 0, centre, [0.4]))
    exact = found.exact
    assert found.names == ("chirp_mass", "phase")
    step = masses[1] - masses[0]
    expected = grid.max() + np.log(weights.mean(1).sum() * step / 6)  # the prior's width is 6
    assert abs(exact.log_evidence - expected) < 3 * exact.log_evidence_error < 0.2
    for column, (axis, marginal) in enumerate([(masses, weights.sum(1)), (phases, weights.sum(0))]):
        assert distance_to(axis, marginal, found, column, exact.weights) < 1
    # The columns of the file are consistent: likelihood times prior over density.
    inside = exact.weights > 0
    columns = exact.log_likelihood, exact.log_prior, -found.log_prob
    log_weights = sum(column[inside] for column in columns)
    assert np.exp(log_weights - exact.log_evidence) == pytest.approx(exact.weights[inside])
    sample = dict(zip(found.names, found.samples[5], strict=True))
    assert exact.log_likelihood[5] == pytest.approx(
        likelihood.log_ratio(simulator.signal({**truth, **sample})), abs=1e-3
    )


@pytest.fixture(scope="module")
def results(stored, tmp_path_factory):
    """Result files of three events; the samples of event 1 miss its posterior."""
    folder, out = stored(), tmp_path_factory.mktemp("results")
    for event in range(3):
        centre = near(folder, event, "chirp_mass")
        if event == 1:
            centre["chirp_mass"] += 3.0 if centre["chirp_mass"] < 33 else -3.0
        write_posterior(out, proposal(folder, event, centre, [0.1 if event == 1 else 0.3], 230))
    return out


@pytest.fixture(scope="module")
def report(results, running_cluster):
    return reweight_results(ReweightConfig(str(results), cluster=running_cluster))


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_an_event_whose_samples_miss_the_posterior_is_flagged_by_name(report, results):
    assert [event.event for event in report.events] == [0, 1, 2]
    assert [event.flag for event in report.events] == ["ok", "failed", "ok"]
    assert report.failed[0].efficiency < 0.02
    assert report.reweighted == 3
    assert report.likelihoods > 400
    assert report.microseconds > 0


def test_files_are_the_same_whatever_computes_them(report, results, stored):
    for path in result_files(results):
        there = results / "reweighted" / path.name
        alone = reweighted(stored(), read_posterior(path))
        read = read_posterior(there)
        for name in ("log_likelihood", "log_prior", "weights"):
            assert np.array_equal(getattr(read.exact, name), getattr(alone.exact, name))
        assert read.exact.log_evidence == alone.exact.log_evidence


def test_a_rerun_computes_only_what_is_missing(report, results, running_cluster):
    before = contents(results / "reweighted")
    assert len(before) == 3
    (results / "reweighted" / "event_000000002_result.json").unlink()
    again = reweight_results(ReweightConfig(str(results), cluster=running_cluster))
    assert again.reweighted == 1
    assert again.events == report.events
    assert contents(results / "reweighted") == before
    none = reweight_results(ReweightConfig(str(results), cluster=running_cluster))
    assert (none.reweighted, none.likelihoods) == (0, 0)
    assert none.events == report.events


def test_bilby_reads_evidence_weights_and_samples(report, results):
    result = bilby.result.read_in_result(str(results / "reweighted/event_000000000_result.json"))
    event = report.events[0]
    assert result.log_bayes_factor == event.log_bayes_factor
    assert result.log_evidence_err == event.log_bayes_factor_error
    assert len(result.posterior) == np.ceil(event.effective_samples)
    assert {"log_likelihood", "log_prior", "weights"} <= set(result.nested_samples)


def test_the_command_names_the_failed_event_and_says_no(report, results, capsys):
    assert main(["reweight", str(results), "--json"]) == 1
    answer = json.loads(capsys.readouterr().out)
    assert [event["flag"] for event in answer["events"]] == ["ok", "failed", "ok"]
    wanted = {"efficiency", "effective_samples", "log_bayes_factor", "log_bayes_factor_error"}
    assert all(wanted <= set(event) for event in answer["events"])
    assert main(["reweight", str(results)]) == 1
    said = capsys.readouterr().out
    assert "FAILED: event 1: " in said
    assert "event 0" not in said


def refusal(*words, capsys):
    assert main(["reweight", *map(str, words)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_results_of_other_data_are_refused(results, stored, tmp_path, capsys):
    other = stored(DISTANCE)
    line = refusal(results, "--data", other, "--out", tmp_path / "new", capsys=capsys)
    assert "was sampled from another data set" in line
    line = refusal(results, "--data", tmp_path, "--out", tmp_path / "new", capsys=capsys)
    assert "no data set there" in line


def test_a_data_set_that_has_moved_is_asked_for(stored, tmp_path, monkeypatch, capsys):
    folder = stored()
    posterior = proposal(folder, 0, near(folder, 0, "chirp_mass"), [0.3], 20)
    monkeypatch.chdir(folder.parent)
    write_posterior(tmp_path / "away", replace(posterior, data=str(tmp_path / "away.zarr")))
    write_posterior(tmp_path / "relative", replace(posterior, data="x.zarr"))
    monkeypatch.chdir(tmp_path)
    for name in ("away", "relative"):
        line = refusal(tmp_path / name, capsys=capsys)
        assert "as its data set, but there is none" in line
        assert "say with --data where it is now" in line


def test_results_that_are_reweighted_already_are_refused(report, results, capsys):
    assert "is reweighted already; give" in refusal(results / "reweighted", capsys=capsys)
    assert not (results / "reweighted" / "reweighted").exists()


def test_a_data_set_without_a_shard_is_named_by_its_place(et_bbh, stored, tmp_path):
    bare = tmp_path / "bare.zarr"
    shutil.copytree(stored(), bare, ignore=shutil.ignore_patterns("manifest"))
    with pytest.raises(InputError, match=f"^{bare}: holds no finished shard"):
        Target.of(str(bare))


def test_parameters_that_were_not_sampled_are_named(stored, tmp_path, capsys):
    folder = stored(DISTANCE)
    write_posterior(tmp_path, proposal(folder, 0, near(folder, 0, "chirp_mass"), [0.3], 20))
    assert "luminosity_distance vary in the data set" in refusal(tmp_path, capsys=capsys)


def test_data_without_noise_are_refused(stored, tmp_path, capsys):
    folder = stored("--noise=none", "--encoding=float32")
    write_posterior(tmp_path, proposal(folder, 0, near(folder, 0, "chirp_mass"), [0.3], 20))
    assert "holds signals without noise" in refusal(tmp_path, capsys=capsys)


def test_results_that_were_sampled_anew_are_not_mixed_with_old_weights(
    report, results, stored, tmp_path, capsys
):
    for path in result_files(results):
        write_posterior(tmp_path, read_posterior(path))
    there = read_posterior(result_files(results)[0])
    write_posterior(tmp_path, replace(there, samples=there.samples + 0.01))
    line = refusal(tmp_path, "--out", results / "reweighted", capsys=capsys)
    assert "was not made from" in line


def test_no_sample_inside_the_prior_is_a_failure_with_finite_numbers(stored, tmp_path):
    folder = stored()
    found = reweighted(folder, proposal(folder, 0, {"chirp_mass": 80.0}, [0.1], 20))
    assert found.exact.log_evidence == IMPOSSIBLE
    assert found.exact.log_noise_evidence == likelihood_of(folder, 0)[1].log_noise_evidence
    read = read_posterior(write_posterior(tmp_path, found))
    assert read.exact.efficiency == 0
    assert len(read.equally_weighted()) == 0


def test_a_store_that_is_no_posterior_is_refused(tmp_path):
    with pytest.raises(InputError, match="no posterior files"):
        reweight_results(ReweightConfig(str(tmp_path)))


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on_to_the_same_bytes_with_another_number_of_workers(
    stored, tmp_path
):
    folder = stored()
    for event in range(3):
        centre = near(folder, event, "chirp_mass")
        write_posterior(tmp_path / "results", proposal(folder, event, centre, [0.3], 6000))

    def start(out, workers):
        words = ["reweight", str(tmp_path / "results"), "--out", str(tmp_path / out)]
        words += ["--cluster.workers", str(workers), "--json"]
        command = [sys.executable, "-m", "strainflow", *words]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    run, first = start("killed", 2), tmp_path / "killed" / "event_000000000_result.json"
    deadline = time.monotonic() + 300
    while not first.exists():
        assert run.poll() is None, run.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    run.kill()
    run.communicate()
    assert 1 <= len(list((tmp_path / "killed").glob("*.json"))) < 3
    for out, workers, fewest in (("killed", 1, 1), ("whole", 2, 3)):
        run = start(out, workers)
        answer, said = run.communicate(timeout=600)
        assert run.returncode == 0, said
        assert fewest <= json.loads(answer)["reweighted"] <= (2 if out == "killed" else 3)
    whole = contents(tmp_path / "whole")
    assert len(whole) == 3
    assert {
        name: text for name, text in contents(tmp_path / "killed").items() if name in whole
    } == whole
