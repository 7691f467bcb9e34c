"""The verdict: right posteriors pass, wrong ones are caught."""

import json
from dataclasses import replace

import numpy as np
import pytest

from model import report
from model.diagnose import diagnose
from storage.errors import DamagedDataError, InputError
from storage.posterior import Posterior
from storage.results import read_posterior, result_files, write_posterior
from strainflow import main

NAMES = ("mass", "offset", "rate")
PRIORS = {name: "Normal(0, 1)" for name in NAMES}
NOISE = 0.5
PNG = b"\x89PNG\r\n\x1a\n"


def write_conjugate(folder, events, width=1.0, bias=0.0, samples=100):
    """Posteriors of a normal truth seen in normal noise, which are known in closed form.

    Args:
        folder: Where to.
        events: How many.
        width: Of the posteriors, in units of the right one.
        bias: Of the posteriors, in units of the right width.
        samples: Of each.
    """
    draw = np.random.default_rng(2)
    sigma = np.sqrt(NOISE**2 / (1 + NOISE**2))
    for event in range(events):
        truth = draw.standard_normal(3)
        data = truth + NOISE * draw.standard_normal(3)
        mean = data / (1 + NOISE**2)
        values = mean + sigma * (bias + width * draw.standard_normal((samples, 3)))
        write_posterior(
            folder,
            Posterior(
                event=event,
                names=NAMES,
                samples=values,
                log_prob=np.zeros(samples),
                truth=dict(zip(NAMES, truth.tolist(), strict=True)),
                priors=PRIORS,
            ),
        )
    return folder


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory):
    return write_conjugate(tmp_path_factory.mktemp("calibrated"), 1000)


def verdict(folder, out, capsys):
    code = main(["diagnose", str(folder), "--out", str(out), "--json", "--corners", "0"])
    return code, json.loads(capsys.readouterr().out)


def test_right_posteriors_pass(calibrated, tmp_path, capsys):
    code, found = verdict(calibrated, tmp_path, capsys)
    assert code == 0
    assert found["calibrated"]
    assert found["events"] == 1000
    for check in found["checks"]:
        assert check["narrowing"] == pytest.approx(np.sqrt(1 + 1 / NOISE**2), rel=0.1)
        assert check["bias"] == pytest.approx(0, abs=0.1)


def test_posteriors_that_are_too_narrow_by_a_fifth_are_caught(tmp_path, capsys):
    folder = write_conjugate(tmp_path / "narrow", 1000, width=0.8)
    code, found = verdict(folder, tmp_path / "out", capsys)
    assert code == 1
    assert found["combined_p_value"] < 1e-3
    assert max(found["pp_p_value"], found["sbc_p_value"]) < 0.01


def test_posteriors_that_are_biased_by_half_a_sigma_are_caught(tmp_path, capsys):
    folder = write_conjugate(tmp_path / "biased", 300, bias=0.5)
    code, found = verdict(folder, tmp_path / "out", capsys)
    assert code == 1
    assert all(0.4 < check["bias"] < 0.6 for check in found["checks"])


def test_pictures_are_written_where_the_words_say(calibrated, tmp_path, capsys):
    assert main(["diagnose", str(calibrated), "--out", str(tmp_path), "--corners", "2"]) == 0
    words = capsys.readouterr().out
    pictures = sorted(tmp_path.glob("*.png"))
    assert [path.name for path in pictures] == [
        "corner_000000000.png",
        "corner_000000001.png",
        "diagnosis.png",
        "pp.png",
        "sbc.png",
        "tarp.png",
    ]
    for path in pictures:
        assert str(path) in words
        assert path.read_bytes()[:8] == PNG
        assert path.stat().st_size > 10_000
    assert "verdict: calibrated" in words
    assert str(tmp_path / "diagnosis.html") in words

    page = (tmp_path / "diagnosis.html").read_text()
    assert page.count('src="data:image/png;base64,') == 5
    assert page.count("src=") == 5
    assert "http" not in page, "the page needs something else"
    assert ">1000 posteriors: calibrated<" in page
    assert "all on one page" not in page, "the page tells where it lies, and does not know yet"
    for name in NAMES:
        assert f"<td>{name}</td>" in page


def test_fewer_than_twenty_events_are_refused(tmp_path):
    write_conjugate(tmp_path, 19, samples=5)
    with pytest.raises(InputError, match="19 events, at least 20"):
        diagnose(tmp_path, tmp_path / "out")


def test_a_damaged_result_is_named(tmp_path, capsys):
    write_conjugate(tmp_path, 20, samples=50)
    damaged = result_files(tmp_path)[11]
    damaged.write_bytes(damaged.read_bytes()[:-20])
    with pytest.raises(DamagedDataError, match=damaged.name):
        diagnose(tmp_path, tmp_path / "out")
    assert main(["diagnose", str(tmp_path), "--out", str(tmp_path / "out")]) == 1
    assert damaged.name in capsys.readouterr().err


def test_results_without_a_truth_are_refused(tmp_path):
    write_conjugate(tmp_path, 20, samples=5)
    first = read_posterior(result_files(tmp_path)[0])
    write_posterior(tmp_path, replace(first, truth={}))
    with pytest.raises(InputError, match="event 0: has no true mass"):
        diagnose(tmp_path, tmp_path / "out")


def test_results_of_different_parameters_are_refused(tmp_path):
    write_conjugate(tmp_path, 20, samples=5)
    path = result_files(tmp_path)[4]
    write_posterior(tmp_path, replace(read_posterior(path), names=("offset", "mass", "rate")))
    with pytest.raises(InputError, match="infers offset, mass, rate"):
        diagnose(tmp_path, tmp_path / "out")


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("checkpoint_sha256", "checkpoint"),
        ("data_sha256", "data set"),
        ("seed", "seed"),
        ("samples", "number of samples"),
    ],
)
def test_results_of_different_origin_are_refused_by_the_names_of_two(key, words, tmp_path):
    write_conjugate(tmp_path, 20, samples=5)
    for path in result_files(tmp_path):
        posterior = read_posterior(path)
        made_from = {"checkpoint_sha256": "a", "data_sha256": "b", "seed": 1, "samples": 5}
        other = {key: 2} if posterior.event == 13 else {}
        write_posterior(tmp_path, replace(posterior, provenance=made_from | other))
    match = f"event_000000013_result.json: was made from another {words} than event_000000000_"
    with pytest.raises(InputError, match=match):
        diagnose(tmp_path, tmp_path / "out")


def test_no_picture_is_written_before_there_is_a_verdict(tmp_path):
    write_conjugate(tmp_path, 20, samples=50)
    last = read_posterior(result_files(tmp_path)[-1])
    write_posterior(tmp_path, replace(last, truth={}))
    with pytest.raises(InputError, match="has no true mass"):
        diagnose(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_pictures_that_were_not_finished_do_not_lie_beside_an_older_page(tmp_path, monkeypatch):
    write_conjugate(tmp_path, 20, samples=50)
    diagnose(tmp_path, tmp_path / "out", corners=0)

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(report, "plot_corner", interrupted)
    with pytest.raises(KeyboardInterrupt):
        diagnose(tmp_path, tmp_path / "out", corners=1)
    assert not (tmp_path / "out" / "diagnosis.html").exists()


@pytest.mark.parametrize("level", [0.0, 1.0, -0.1])
def test_a_level_that_is_no_probability_is_refused(level, calibrated, tmp_path):
    with pytest.raises(InputError, match="level: got"):
        diagnose(calibrated, tmp_path, level=level)


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match="no posterior files there"):
        diagnose(tmp_path, tmp_path / "out")


@pytest.mark.parametrize("name", ["zarr.json", "config.yaml"])
def test_no_picture_is_drawn_into_a_data_set_or_a_run(name, tmp_path):
    (tmp_path / name).write_text("{}")
    with pytest.raises(InputError, match=rf"holds a .* \({name}\); give another --out"):
        diagnose(tmp_path / "results", tmp_path)
    with pytest.raises(InputError, match="is a file; give the name of a folder"):
        diagnose(tmp_path / "results", tmp_path / name)
