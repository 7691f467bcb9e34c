"""`strainflow info RUN` explains a run, and its advice can be followed."""

import json
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from model.checkpoint import restore
from model.info import describe
from model.train import train
from storage.dataset import dataset_digest
from strainflow import main


@pytest.fixture
def half(config, toy_data, tmp_path):
    """A run that stopped early, on signals without noise."""
    run = tmp_path / "half a run"
    train(replace(config, minutes=1e-6), toy_data(noisy=False), run)
    return run


def test_it_says_how_far_a_run_is_and_with_what(half, toy_data):
    facts, state = describe(half), restore(half)
    data = toy_data(noisy=False)
    assert (facts.steps, facts.epochs, facts.finished) == (1, 5, False)
    assert facts.epochs_done == pytest.approx(20 / 216)
    assert facts.data == str(data)
    assert facts.data_sha256 == dataset_digest(data)
    assert facts.parameters == ("chirp_mass", "geocent_time")
    assert facts.embedding_parameters + facts.flow_parameters == sum(
        weights.numel() for weights in state.network.values()
    )
    assert facts.train_loss == state.tally.train_loss
    assert (facts.validation_loss, facts.best_validation_loss, facts.best_step) == (None,) * 3
    assert facts.seconds > 0
    (call,) = facts.calls
    assert call["step"] == 0
    assert call["versions"]["torch"] == torch.__version__


def test_the_sizes_of_the_networks_are_those_of_the_report(trained):
    assert describe(trained[0]).embedding_parameters == trained[1].embedding_parameters


def test_its_advice_goes_on_with_the_run(half, capsys):
    words = shlex.split(describe(half).following)
    assert words[:2] == ["strainflow", "train"]
    assert main(words[1:]) == 85  # the recorded limit is there again
    assert restore(half).step == 2
    assert [call["step"] for call in describe(half).calls] == [0, 1]


def test_text_and_json_say_the_same(half, trained, capsys):
    for run, state in ((half, "1.9 % done"), (trained[0], "finished")):
        assert main(["info", str(run)]) == 0
        text = capsys.readouterr().out
        assert text.startswith(f"{run}: {state}\n")
        assert main(["info", str(run), "--json"]) == 0
        facts = json.loads(capsys.readouterr().out)
        for name in ("data", "following"):
            assert facts[name] in text
        assert f"{facts['embedding_parameters']:,} parameters" in text
        assert f"training {facts['train_loss']:.3f} nats" in text
        assert facts["configuration"]["epochs"] == 5
    assert "strainflow sample --run" in text
    assert f"best {facts['best_validation_loss']:.3f} nats" in text


def test_it_names_the_batch_that_ended_a_run(half, capsys):
    (half / "failed-000017.pt").write_bytes(b"")
    main(["info", str(half)])
    assert f"ended by the batch in {half / 'failed-000017.pt'}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "content", "code", "part"),
    [
        ("checkpoint.pt", b"half", 1, "the file is damaged"),
        ("run.json", b"{", 1, "is not valid JSON"),
        ("checkpoint.pt", None, 2, "no checkpoint.pt"),
    ],
)
def test_a_run_that_cannot_be_read_is_one_sentence(name, content, code, part, half, capsys):
    if content is None:
        (half / name).unlink()
    else:
        (half / name).write_bytes(content)
    assert main(["info", str(half)]) == code
    complaint = capsys.readouterr().err
    assert complaint.count("\n") == 1
    assert part in complaint


def test_a_run_without_a_record_is_told_all_the_same(half, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(half, copy)
    (copy / "run.json").unlink()
    assert main(["info", str(copy)]) == 0
    assert "not recorded" in capsys.readouterr().out


def test_info_of_a_data_set_does_not_load_torch(toy_data):
    code = (
        "import sys, strainflow; "
        f"assert strainflow.main(['info', {str(toy_data())!r}]) == 0; "
        "assert 'torch' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL).returncode == 0
