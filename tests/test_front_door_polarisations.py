"""By the command: train on polarisations, then look at events of detectors as ever."""

import json

import pytest
from polarised import POLARISATIONS, short, write_set

import strainflow
from model.config import EmbeddingConfig, FlowConfig, TrainConfig
from model.recipe import config_to_bytes

NETWORK = TrainConfig(
    embedding=EmbeddingConfig(patch=(4, 8), channels=(8, 16), condition=16),
    flow=FlowConfig(transforms=2, hidden=16, blocks=1, bins=4),
    epochs=2,
    batch_size=8,
    validation=0.25,
    device="cpu",
)
# Fixed: all but the chirp mass and what waveforms do not hold, so that there are few pictures.
SIMPLE = [
    f"--prior.{name}=0"
    for name in ("a_1", "a_2", "tilt_1", "tilt_2", "phi_12", "phi_jl", "theta_jn", "phase")
] + ["--prior.mass_ratio=0.8"]


def call(*words):
    return strainflow.main([str(word) for word in words])


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Polarisations to train on, events of the same kind to be tested on, and a trained run."""
    folder = tmp_path_factory.mktemp("place")
    write_set(folder / "p.zarr", short(POLARISATIONS, *SIMPLE))
    write_set(folder / "test.zarr", short("--noise=gaussian", "--seed=7", *SIMPLE, events=20))
    (folder / "network.yaml").write_bytes(config_to_bytes(NETWORK))
    words = ["--config", folder / "network.yaml", "--data", folder / "p.zarr"]
    assert call("train", *words, "--out", folder / "run") == 0
    run = ["--run", folder / "run", "--data", folder / "test.zarr", "--samples", 20]
    assert call("sample", *run, "--out", folder / "results") == 0
    assert call("sample", *run, "--events", "0:2", "--out", folder / "few") == 0
    return folder


@pytest.mark.slow
def test_the_results_are_diagnosed_as_any(place, capsys):
    assert call("diagnose", place / "results", "--out", place / "pictures", "--json") in (0, 1)
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["events"] == 20


def test_the_results_are_reweighted_as_any(place, capsys):
    words = ["--cluster.workers", 1, "--json"]
    assert call("reweight", place / "few", *words) in (0, 1)  # nothing was learnt yet
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert len(found["events"]) == 2
    assert found["likelihoods"] == 40


def test_info_explains_the_data_set_and_the_run(place, capsys):
    assert call("info", place / "p.zarr") == 0
    text = capsys.readouterr().out
    assert "plus, cross x 4,096 samples at 1024 Hz (4 s), polarisations, of which training" in text
    assert call("info", place / "run") == 0
    text = capsys.readouterr().out
    assert "H1, L1, V1 x 1,024 samples at 1024 Hz, made of polarisations, in" in text
    assert call("info", place / "p.zarr", "--json") == 0
    assert json.loads(capsys.readouterr().out)["polarisations"] == ["plus", "cross"]


def test_it_is_verified_and_measured_as_any(place, capsys):
    assert call("verify", place / "p.zarr") == 0
    words = [place / "p.zarr", "--rounds", 1, "--cold", "false", "--out", place / "bench"]
    assert call("bench", "read", *words, "--batch_size", 8) == 0
    assert call("bench", "feed", *words, "--run", place / "run", "--batches", 20) in (0, 1)


def test_to_sample_polarisations_is_refused_in_one_sentence(place, capsys):
    words = ["--run", place / "run", "--data", place / "p.zarr", "--out", place / "none"]
    assert call("sample", *words) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "holds polarisations, of which training makes events" in said
    assert "simulate a test set with stored: strain" in said
    assert not (place / "none").exists()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--noise=gaussian"], "set noise: none"),
        (["--extrinsic_draws_per_waveform=2"], "set it to 1"),
    ],
)
def test_what_cannot_be_simulated_so_is_refused_in_one_sentence(tmp_path, capsys, flags, says):
    words = ["--config", "pipeline/recipes/et-bbh.yaml", "--noise=none", POLARISATIONS, *flags]
    assert call("simulate", *words, "--out", tmp_path / "x.zarr") == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert says in said
