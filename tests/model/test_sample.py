"""Posterior files: what is in them, and when they are made."""

import inspect
import json
import shutil
from dataclasses import fields, replace
from pathlib import Path

import bilby
import numpy as np
import pytest
import torch
from toy import START as TOY_START
from toy import draw_event

from model import commands, sample
from model.checkpoint import load
from model.plots import plot_corner
from model.sample import SampleConfig, parse_range, sample_dataset
from storage.dataset import create_dataset, open_dataset
from storage.errors import DamagedDataError, InputError
from storage.posterior import Exact, Posterior
from storage.results import read_posterior, result_files, result_path, write_posterior
from storage.writer import write_shard
from strainflow import main

SMALL = SampleConfig(events="0:5", samples=40, seed=3, device="cpu")


@pytest.fixture(scope="module")
def data(toy_data):
    return toy_data(noisy=False)


@pytest.fixture(scope="module")
def results(trained, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    report = sample_dataset(SMALL, trained[0], data, folder)
    assert (report.events, report.sampled, report.samples) == (5, 5, 40)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_results_are_not_written_into_a_data_set_or_a_run(trained, data, capsys):
    words = ["sample", "--run", str(trained[0]), "--data", str(data), "--out"]
    for place, name in ((data, "zarr.json"), (trained[0], "config.yaml")):
        assert main([*words, str(place)]) == 2
        said = capsys.readouterr().err
        assert f"({name}); give another --out" in said
        assert said.count("\n") == 1
        assert not list(Path(place).glob("event_*"))


def test_info_explains_a_folder_of_results(results, data, capsys):
    assert main(["info", str(results)]) == 0
    said = capsys.readouterr().out
    for words in (
        "result files, as they were sampled",
        "events      5, from 0 to 4",
        "samples     40 an event of chirp_mass, geocent_time",
        f"data        {data} (SHA-256",
        "seed 3",
        f"strainflow diagnose {results}",
    ):
        assert words in said
    assert main(["info", str(results), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["reweighted"] is False


def test_bilby_reads_a_result(results, data, schema):
    result = bilby.result.read_in_result(str(result_path(results, 2)))
    assert result.label == "event_000000002"
    assert result.search_parameter_keys == ["chirp_mass", "geocent_time"]
    assert result.fixed_parameter_keys == ["phase"]
    ours = read_posterior(result_path(results, 2))
    assert len(result.posterior) == 40
    for column, name in enumerate(ours.names):
        assert np.array_equal(result.posterior[name], ours.samples[:, column])
    assert isinstance(result.priors, bilby.core.prior.PriorDict)
    assert set(result.priors) == set(schema.parameter_names)
    assert isinstance(result.priors["chirp_mass"], bilby.core.prior.Uniform)
    assert (result.priors["chirp_mass"].minimum, result.priors["chirp_mass"].maximum) == (25, 100)
    assert result.priors["phase"].peak == 0.5
    truth = open_dataset(data)["parameters"][2].values
    assert result.injection_parameters == dict(zip(schema.parameter_names, truth, strict=True))


def test_samples_lie_in_the_prior_and_carry_their_provenance(results, trained):
    for path in result_files(results):
        posterior = read_posterior(path)
        assert ((posterior.samples[:, 0] >= 25) & (posterior.samples[:, 0] <= 100)).all()
        assert len(posterior.log_prob) == 40
        assert posterior.provenance["seed"] == 3
        assert len(posterior.provenance["checkpoint_sha256"]) == 64
        assert posterior.optimal_snr > 0


def test_a_posterior_comes_back_from_its_file(tmp_path):
    written = Posterior(
        event=7,
        names=("ra", "psi"),
        samples=np.random.default_rng(0).normal(size=(9, 2)),
        log_prob=np.random.default_rng(1).normal(size=9),
        truth={"ra": 0.1, "psi": 1 / 3, "phase": 2.0},
        priors={"ra": "Uniform(0, 1)", "psi": "Uniform(0, 3)", "phase": "2.0"},
        optimal_snr=12.5,
        provenance={"seed": 3},
    )
    read = read_posterior(write_posterior(tmp_path, written))
    assert np.array_equal(read.samples, written.samples)
    assert np.array_equal(read.log_prob, written.log_prob)
    assert replace(read, samples=None, log_prob=None) == replace(
        written, samples=None, log_prob=None
    )


def test_a_reweighted_posterior_comes_back_whole_and_gives_bilby_equal_weights(tmp_path):
    samples, weights = np.arange(20.0).reshape(10, 2), np.arange(10.0) / 4.5
    priors = {"ra": "Uniform(0, 1)", "psi": "Uniform(0, 3)"}
    exact = Exact(-np.arange(10.0), np.full(10, -1.0), weights, 55.0, 0.1, -1000.0)
    written = Posterior(7, ("ra", "psi"), samples, np.zeros(10), {}, priors, exact=exact)
    path = write_posterior(tmp_path, written)
    read = read_posterior(path)
    assert np.array_equal(read.samples, samples)
    for name in ("log_likelihood", "log_prior", "weights"):
        assert np.array_equal(getattr(read.exact, name), getattr(exact, name))
    assert read.exact.efficiency == pytest.approx(45**2 / (10 * 285))
    result = bilby.result.read_in_result(str(path))
    assert result.log_evidence == -945.0
    assert result.log_evidence_err == 0.1
    assert result.log_bayes_factor == 55.0
    assert len(result.posterior) == 8  # the effective ones, rounded up
    assert 0.0 not in result.posterior["ra"].values  # of weight 0
    assert len(result.nested_samples) == 10


def test_samples_of_equal_weight_follow_the_weights():
    weights = np.random.default_rng(0).exponential(size=100_000)
    exact = Exact(weights, weights, weights, 0.0, 0.0, 0.0)
    posterior = Posterior(1, ("ra",), weights[:, None], weights, {}, {}, exact=exact)
    mean = np.average(weights, weights=weights)
    drawn = weights[posterior.equally_weighted()]
    assert drawn.mean() == pytest.approx(mean, rel=0.01)
    assert weights.mean() < 0.6 * mean


def test_a_rerun_does_only_what_is_missing_and_gives_the_same_bytes(
    results, trained, data, tmp_path
):
    shutil.copytree(results, tmp_path / "copy")
    result_path(tmp_path / "copy", 3).unlink()
    kept = result_path(tmp_path / "copy", 1)
    kept.write_bytes(kept.read_bytes() + b"\n")  # a mark that a second writing would remove
    report = sample_dataset(SMALL, trained[0], data, tmp_path / "copy")
    assert report.sampled == 1
    changed = [
        name
        for name, there in contents(tmp_path / "copy").items()
        if there != contents(results)[name]
    ]
    assert changed == [kept.name]
    assert sample_dataset(SMALL, trained[0], data, tmp_path / "copy").sampled == 0


def test_an_event_is_the_same_whatever_range_it_is_drawn_in(results, trained, data, tmp_path):
    sample_dataset(replace(SMALL, events="4"), trained[0], data, tmp_path)
    assert contents(tmp_path) == {
        name: text for name, text in contents(results).items() if name.startswith("event_000000004")
    }


@pytest.mark.parametrize(("events", "samples"), [(2, 2**20), (32, 80), (32, 1)])
def test_files_are_the_same_however_many_events_are_drawn_together(
    events, samples, results, trained, data, tmp_path, monkeypatch
):
    monkeypatch.setattr(sample, "EVENTS_AT_ONCE", events)
    monkeypatch.setattr(sample, "SAMPLES_AT_ONCE", samples)
    sample_dataset(SMALL, trained[0], data, tmp_path)
    assert contents(tmp_path) == contents(results)


def test_what_was_drawn_before_an_interruption_is_kept(
    results, trained, data, tmp_path, monkeypatch
):
    monkeypatch.setattr(sample, "EVENTS_AT_ONCE", 2)
    draw = sample._Sampler.draw

    def interrupted(self, stored, events):
        if 4 in events:
            raise KeyboardInterrupt
        return draw(self, stored, events)

    monkeypatch.setattr(sample._Sampler, "draw", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sample_dataset(SMALL, trained[0], data, tmp_path)
    assert len(result_files(tmp_path)) == 4
    monkeypatch.setattr(sample._Sampler, "draw", draw)
    assert sample_dataset(SMALL, trained[0], data, tmp_path).sampled == 1
    assert contents(tmp_path) == contents(results)


def test_a_block_is_smaller_on_a_cpu_and_has_work_for_each_thread(monkeypatch):
    assert sample._samples_at_once(torch.device("cuda")) == 2**20
    for threads, samples in ((2, 2**17), (32, 2**19), (256, 2**20)):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert sample._samples_at_once(torch.device("cpu")) == samples


def test_the_progress_bar_counts_what_is_written(trained, data, tmp_path, monkeypatch):
    """Of three blocks, the second is drawn when the first is there, and the bar says so."""
    monkeypatch.setattr(sample, "SAMPLES_AT_ONCE", 2 * SMALL.samples)
    bars, counted = [], []
    make, draw = sample.progress_bar, sample._Sampler.draw
    monkeypatch.setattr(sample, "progress_bar", lambda *words: bars.append(make(*words)) or bars[0])

    def counting(self, stored, events):
        drawn = draw(self, stored, events)
        counted.append((bars[0].n, events[0]))
        if 4 in events:
            raise KeyboardInterrupt
        return drawn

    monkeypatch.setattr(sample._Sampler, "draw", counting)
    with pytest.raises(KeyboardInterrupt):
        sample_dataset(SMALL, trained[0], data, tmp_path)
    assert all(written <= first for written, first in counted), "what is drawn was counted"
    assert bars[0].n == len(result_files(tmp_path)) == 4


def test_a_file_that_cannot_be_written_is_no_success(trained, data, tmp_path):
    result_path(tmp_path, 3).with_name(result_path(tmp_path, 3).name + ".partial").mkdir()
    with pytest.raises(IsADirectoryError):
        sample_dataset(SMALL, trained[0], data, tmp_path)


def test_the_progress_bar_counts_every_event_once(results, trained, data, tmp_path, monkeypatch):
    shutil.copy(result_path(results, 1), tmp_path)
    bars = []
    make = sample.progress_bar
    monkeypatch.setattr(sample, "progress_bar", lambda *words: bars.append(make(*words)) or bars[0])
    sample_dataset(SMALL, trained[0], data, tmp_path)
    assert bars[0].n == bars[0].total == 5


def test_the_noise_of_noise_free_data_is_a_function_of_seed_and_event(
    results, trained, data, tmp_path
):
    """Another seed gives other noise: posterior means move by more than a draw's error."""
    many = replace(SMALL, samples=2000)
    estimator = load(trained[0], "cpu")
    silent, _ = estimator.sample(open_dataset(data)["strain"][:5].values, 2000, range(5))
    means = [silent.mean(1).numpy()]
    for seed in (3, 4):
        sample_dataset(replace(many, seed=seed), trained[0], data, tmp_path / str(seed))
        means.append(
            np.array(
                [read_posterior(f).samples.mean(0) for f in result_files(tmp_path / str(seed))]
            )
        )
    error = silent.std(1).numpy() / np.sqrt(2000)
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert (np.abs(means[one] - means[other]) / error).max() > 8


def test_noisy_data_get_no_more_noise(trained, toy_data, tmp_path):
    data = toy_data()
    many = replace(SMALL, samples=2000, events="0:3")
    sample_dataset(many, trained[0], data, tmp_path)
    strain = open_dataset(data)["strain"][:3].values
    as_stored, _ = load(trained[0], "cpu").sample(strain, 2000, range(3))
    means = np.array([read_posterior(path).samples.mean(0) for path in result_files(tmp_path)])
    error = as_stored.std(1).numpy() / np.sqrt(2000)
    assert (np.abs(means - as_stored.mean(1).numpy()) / error).max() < 7


@pytest.mark.parametrize(
    ("change", "name"), [({"seed": 4}, "seed"), ({"samples": 41}, "number of samples")]
)
def test_other_results_into_the_same_folder_are_refused(change, name, results, trained, data):
    before = contents(results)
    with pytest.raises(InputError, match=f"made from another {name}"):
        sample_dataset(replace(SMALL, **change), trained[0], data, results)
    assert contents(results) == before


def test_a_last_file_of_another_seed_is_refused(results, trained, data, tmp_path):
    shutil.copytree(results, tmp_path / "mixed")
    last = read_posterior(result_path(results, 4))
    other = replace(last, provenance={**last.provenance, "seed": 4})
    write_posterior(tmp_path / "mixed", other)
    with pytest.raises(InputError, match="made from another seed"):
        sample_dataset(SMALL, trained[0], data, tmp_path / "mixed")


def test_results_of_other_data_into_the_same_folder_are_refused(results, trained, toy_data):
    with pytest.raises(InputError, match="made from another data set"):
        sample_dataset(SMALL, trained[0], toy_data(), results)


def test_a_result_that_was_cut_off_is_no_obstacle(trained, data, tmp_path):
    path = result_path(tmp_path, 0)
    path.with_name(path.name + ".partial").write_text("{")
    assert sample_dataset(SMALL, trained[0], data, tmp_path).sampled == 5


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"detectors": ("E1", "E3")}, "detectors"),
        ({"detectors": ("E1", "E2", "E3")}, "detectors"),
        ({"sample_rate": 2048.0}, "sample_rate"),
        ({"samples": 4096}, "samples"),
    ],
)
def test_data_of_another_kind_are_refused(change, name, trained, toy_data, tmp_path):
    with pytest.raises(InputError, match=f"its {name} is .*was trained on"):
        sample_dataset(SMALL, trained[0], toy_data(events=20, **change), tmp_path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0:32", range(32)),
        ("5", range(5, 6)),
        ("3:", range(3, 40)),
        (":7", range(7)),
        ("", range(40)),
        ("39", range(39, 40)),
    ],
)
def test_a_range_of_events_is_read(text, expected):
    assert parse_range(text, 40) == expected


@pytest.mark.parametrize("text", ["0:41", "40", "7:7", "9:3", "-1", "1:2:3", "a", "1.5", "0-3"])
def test_a_range_that_is_none_is_refused(text):
    with pytest.raises(InputError, match="events: "):
        parse_range(text, 40)


def test_all_that_can_be_said_of_samples_can_be_said_on_the_command_line():
    flags = inspect.signature(commands.sample).parameters
    assert {field.name for field in fields(SampleConfig)} <= set(flags)


@pytest.mark.parametrize(
    "flags", [["--seed", "-1"], ["--samples", "0"], ["--device", "gpu"], ["--events", "9:3"]]
)
def test_a_wrong_flag_is_one_sentence(flags, trained, data, tmp_path, capsys):
    words = ["sample", "--run", str(trained[0]), "--data", str(data), "--out", str(tmp_path)]
    assert main([*words, *flags]) == 2
    complaint = capsys.readouterr().err
    assert complaint.count("\n") == 1
    assert flags[0][2:] in complaint


def test_the_verb_reports_in_json(trained, data, tmp_path, capsys):
    words = ["sample", "--run", str(trained[0]), "--data", str(data), "--out", str(tmp_path)]
    assert main([*words, "--events", "1:3", "--samples", "10", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["sampled"], report["samples"]) == (2, 10)
    assert len(result_files(tmp_path)) == 2


def test_a_folder_without_a_run_is_refused(data, tmp_path):
    with pytest.raises(InputError, match="no trained run there"):
        sample_dataset(SMALL, tmp_path, data, tmp_path / "out")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"posterior": null}'])
def test_a_damaged_result_is_named(text, tmp_path):
    path = result_path(tmp_path, 0)
    path.write_text(text)
    with pytest.raises(DamagedDataError, match=r"event_000000000_result.json.*; delete it and sam"):
        read_posterior(path)


def cut_out_of_frames(schema, folder):
    """A toy data set as `strainflow cut` writes it: two events of which nothing is known."""
    gps = {"gps": 1e9, "start": 1e9 - 1, "ra_shift": 2.0, "geocent_time": "Uniform(0, 1)"}
    moments = [{**gps, "time_shift": shift} for shift in (100.0, -3e8)]
    frames = {"channels": ["E1:X", "E2:X"], "files": {"a.gwf": "00"}, "psd": "ET-D"}
    provenance = {**schema.provenance, "frames": {**frames, "events": moments}}
    real = replace(schema, events=2, events_per_shard=2, provenance=provenance)
    create_dataset(folder, real, np.ones((2, real.frequencies)))
    unknown = {
        "parameters": np.full(len(real.parameters), np.nan),
        "optimal_snr": np.full(2, np.nan),
    }
    events = [replace(draw_event(real, number), **unknown) for number in (0, 1)]
    write_shard(folder, real, 0, events)
    return folder


def test_a_real_event_is_sampled_and_its_file_tells_the_time_in_the_sky(trained, schema, tmp_path):
    data = cut_out_of_frames(schema, tmp_path / "cut.zarr")
    sample_dataset(replace(SMALL, events=""), trained[0], data, tmp_path / "results")
    for event, shift in enumerate((100.0, -3e8)):
        path = result_path(tmp_path / "results", event)
        ours, result = read_posterior(path), bilby.result.read_in_result(str(path))
        assert (ours.truth, ours.optimal_snr, result.injection_parameters) == ({}, None, None)
        times = ours.samples[:, ours.names.index("geocent_time")]
        assert ((times >= TOY_START) & (times <= TOY_START + 0.2)).all()
        assert result.posterior["geocent_time"].values == pytest.approx(times + shift, abs=1e-6)
        assert json.loads(path.read_text())["priors"]["geocent_time"] == "Uniform(0, 1)"
        assert ours.priors["geocent_time"].startswith("Uniform")
    plot_corner(ours, tmp_path / "corner.png")


def test_right_ascension_and_truth_are_turned_and_come_back(tmp_path):
    sky = {"gps": 1e9, "time_shift": 50.0, "ra_shift": 6.0, "geocent_time": "Uniform(51, 52)"}
    samples = np.array([[0.1, 1.5], [0.5, 1.25]])
    written = Posterior(
        event=0,
        names=("ra", "geocent_time"),
        samples=samples,
        log_prob=np.zeros(2),
        truth={"ra": 3.0, "geocent_time": 1.5, "dec": 0.25},
        priors={"ra": "Uniform(0, 2 * pi)", "geocent_time": "Uniform(1, 2)"},
        sky=sky,
    )
    path = write_posterior(tmp_path, written)
    document = json.loads(path.read_text())
    turned = document["posterior"]["content"]
    assert turned["ra"] == pytest.approx([6.1, 6.5 - 2 * np.pi])
    assert turned["geocent_time"] == [51.5, 51.25]
    truth = document["injection_parameters"]
    assert truth == {"ra": pytest.approx(9 - 2 * np.pi), "geocent_time": 51.5, "dec": 0.25}
    read = read_posterior(path)
    assert np.allclose(read.samples, samples, atol=1e-12)
    assert read.truth == {"ra": pytest.approx(3.0), "geocent_time": 1.5, "dec": 0.25}
    assert (read.priors, read.sky) == (written.priors, sky)
    there = written.in_the_sky()
    assert there.in_the_sky() is there, "what is in the sky was shifted once more"
    assert read_posterior(write_posterior(tmp_path, there)).samples == pytest.approx(there.samples)


@pytest.mark.parametrize(
    ("counted", "turned"),
    [
        ("3.0", "2.7168146928204138"),
        ("Uniform(minimum=0.5, maximum=1.0)", "Uniform(minimum=0.21681469282041377, maximum="),
        ("Uniform(0.5, 1.0)", "Uniform(minimum=0.21681469282041377, maximum=0.716814692820"),
        ("Uniform(minimum=0.1, maximum=1.1)", "Uniform(minimum=6.1, maximum=7.1)"),
        ("Uniform(minimum=0.0, maximum=6.283185307179586)",) * 2,
        ("Sine(minimum=0.5, maximum=1.0)",) * 2,
    ],
)
def test_the_prior_of_right_ascension_is_turned_and_comes_back(counted, turned, tmp_path):
    sky = {"gps": 1e9, "time_shift": 50.0, "ra_shift": 6.0, "geocent_time": "51.0"}
    priors = {"dec": "Cosine()", "ra": counted, "geocent_time": "1.0"}
    written = Posterior(0, ("dec",), np.zeros((2, 1)), np.zeros(2), {}, priors, sky=sky)
    path = write_posterior(tmp_path, written)
    document = json.loads(path.read_text())
    assert document["priors"]["ra"].startswith(turned)
    assert document["priors"] == written.in_the_sky().priors
    assert read_posterior(path).priors == priors

    document["meta_data"]["sky"]["counted"] = "1.0"  # as it was before: of the time alone
    document["priors"]["ra"] = counted
    path.write_text(json.dumps(document))
    assert read_posterior(path).priors == priors
    for damaged in (None, [], {"dec": "1.0"}, {"ra": 1.0}):
        document["meta_data"]["sky"]["counted"] = damaged
        path.write_text(json.dumps(document))
        with pytest.raises(DamagedDataError, match="is no posterior file"):
            read_posterior(path)


def test_a_right_ascension_beyond_midnight_lies_within_its_prior_and_comes_back(tmp_path):
    """Of a patch of the sky about 0 h, which the prior reaches over."""
    sky = {"gps": 1e9, "time_shift": 0.0, "ra_shift": 6.0, "geocent_time": "51.0"}
    ra = np.linspace(0.1, 1.1, 9)
    priors = {"ra": "Uniform(minimum=0.1, maximum=1.1)"}
    written = Posterior(0, ("ra",), ra[:, None], np.zeros(9), {"ra": 0.6}, priors, sky=sky)
    there = written.in_the_sky()
    assert there.priors == {"ra": "Uniform(minimum=6.1, maximum=7.1)"}
    assert np.allclose(there.samples[:, 0], 6 + ra, atol=1e-12)
    assert there.truth == {"ra": pytest.approx(6.6)}
    assert np.allclose(read_posterior(write_posterior(tmp_path, written)).samples[:, 0], ra)


def test_a_result_under_another_events_name_is_damage(tmp_path):
    posterior = Posterior(4, ("dec",), np.zeros((2, 1)), np.zeros(2), {}, {})
    path = write_posterior(tmp_path, posterior).rename(tmp_path / "event_000000005_result.json")
    with pytest.raises(DamagedDataError, match="holds event_000000004, another event"):
        read_posterior(path)


@pytest.mark.parametrize("value", ["null", "1e999"])
@pytest.mark.parametrize("column", ["dec", "log_prob"])
def test_a_sample_that_is_no_number_is_damage(column, value, tmp_path):
    posterior = Posterior(4, ("dec",), np.full((2, 1), 0.25), np.full(2, 0.5), {}, {})
    path = write_posterior(tmp_path, posterior)
    number = {"dec": "0.25", "log_prob": "0.5"}[column]
    text = path.read_text()
    assert number in text
    path.write_text(text.replace(number, value, 1))
    with pytest.raises(DamagedDataError):
        read_posterior(path)
