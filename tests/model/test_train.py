"""The training loop: it learns, it comes back from any interruption, it refuses what is wrong."""

import math
import random
import shutil
import signal
from dataclasses import replace

import pytest
import torch

from model.checkpoint import restore
from model.config import OptimiserConfig
from model.history import read_history
from model.train import train
from model.trainer import Trainer
from storage.encodings import ENCODINGS
from storage.errors import DamagedDataError, InputError
from strainflow import main

EPOCHS = 5
TOTAL = EPOCHS * 18  # steps


@pytest.fixture(scope="module")
def long_config(config):
    """Many short steps, with a checkpoint after every few."""
    return replace(config, epochs=EPOCHS, batch_size=10, checkpoint_minutes=0.001)


@pytest.fixture(scope="module")
def data(toy_data):
    """Signals alone, so that the noise of each step has to be repeated too."""
    return toy_data(noisy=False, events=200)


@pytest.fixture(scope="module")
def uninterrupted(long_config, data, tmp_path_factory):
    run = tmp_path_factory.mktemp("run") / "uninterrupted"
    # Resuming and how often the state is saved are no part of what is learnt.
    train(replace(long_config, checkpoint_minutes=10.0), data, run)
    return run


def place(state):
    """Where a run stands, and which epoch was its best."""
    tally = state.tally
    return state.step, state.stream, tally.audit, tally.best_step, tally.best_validation_loss


def difference(one, other):
    """What differs between two runs' ends: weights, optimiser, place or history."""
    first, second = restore(one), restore(other)
    found = [
        name
        for name, weights in first.network.items()
        if not torch.equal(weights, second.network[name])
    ]
    states = first.optimiser["state"], second.optimiser["state"]
    for number, state in states[0].items():
        found += [
            f"{key} of {number}"
            for key, value in state.items()
            if not torch.equal(value, states[1][number][key])
        ]
    if place(first) != place(second):
        found.append("place")
    columns = ("step", "epoch", "train_loss", "validation_loss", "learning_rate", "audit")
    tables = [
        [[row[name] for name in columns] for row in read_history(run)] for run in (one, other)
    ]
    return found + ([] if tables[0] == tables[1] else ["history"])


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_an_interrupted_run_ends_at_the_weights_of_an_uninterrupted_one(
    number, code, long_config, data, uninterrupted, shell, interrupt, tmp_path
):
    run = tmp_path / "run"
    delay = random.Random().uniform(0, 0.5)  # anywhere: each run of this test tries another place
    process = shell(long_config, data, run)
    assert interrupt(process, run, number, delay) == code
    message = process.stderr.read()
    assert "Traceback" not in message
    assert ("run the same command again to go on" in message) == (number == signal.SIGTERM)
    stopped = restore(run).step
    steps = [int(row["step"]) for row in read_history(run)]
    assert 0 < stopped < TOTAL, f"after {delay} s"
    assert number == signal.SIGKILL or steps == list(range(1, stopped + 1))
    report = train(long_config, data, run)
    assert report.finished
    assert report.events == 10 * (TOTAL - stopped)
    assert [int(row["step"]) for row in read_history(run)] == list(range(1, TOTAL + 1))
    # What the two runs save about how often to save differs, what they learnt must not.
    assert difference(run, uninterrupted) == [], f"stopped at {stopped}"


def test_the_comparison_of_runs_catches_another_seed_and_a_lost_line(
    uninterrupted, trained, tmp_path
):
    found = difference(uninterrupted, trained[0])
    assert "place" in found
    assert "history" in found
    assert any("weight" in name for name in found)
    copy = tmp_path / "copy"
    shutil.copytree(uninterrupted, copy)
    assert difference(uninterrupted, copy) == []
    lines = (copy / "history.csv").read_text().splitlines(keepends=True)
    (copy / "history.csv").write_text("".join(lines[:-1]))
    assert difference(uninterrupted, copy) == ["history"]


def test_a_second_call_after_the_end_does_nothing(trained, toy_data, config, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained[0], run)
    before = {name: (run / name).read_bytes() for name in ("checkpoint.pt", "history.csv")}
    report = train(config, toy_data(noisy=False), run)
    assert report.finished
    assert (report.events, report.steps) == (0, trained[1].steps)
    assert report.validation_loss == trained[1].validation_loss
    assert {name: (run / name).read_bytes() for name in before} == before


def test_it_learns(trained):
    run, report = trained
    losses = [float(row["train_loss"]) for row in read_history(run)]
    prior = math.log(2 * math.pi * math.e)  # of two standard normal values, in nats
    assert sum(losses[-5:]) < sum(losses[:5]) - 2
    assert report.validation_loss < prior - 0.3


def test_noise_free_data_get_other_noise_each_step_but_the_same_in_validation(
    config, toy_data, tmp_path
):
    trainer = Trainer(config, toy_data(noisy=False), tmp_path / "run")
    batch = next(iter(trainer.training))
    first, again, other = (trainer.loss(batch, 0, step) for step in (3, 3, 4))
    torch.manual_seed(5)
    assert torch.equal(first, trainer.loss(batch, 0, 3))
    assert torch.equal(first, again)
    assert trainer.validate() == trainer.validate()
    # The untrained flow does not look at the condition: the noise shows in the embedding.
    noisy = [trainer.loss.preprocess(torch.ones(1, 2, 1024), [seed]) for seed in (3, 4)]
    assert not torch.equal(*noisy)
    assert torch.equal(first, other)


def test_noisy_data_are_trained_on_as_they_are(config, toy_data, tmp_path):
    report = train(
        replace(config, epochs=1), toy_data(encoding=ENCODINGS["int8"]), tmp_path / "run"
    )
    assert report.finished
    assert (tmp_path / "run" / "loss.png").stat().st_size > 1000


def one_sentence(error):
    text = str(error.value)
    assert "\n" not in text
    assert 20 < len(text) < 400
    return text


def test_another_configuration_in_the_same_folder_is_refused(trained, config, toy_data):
    with pytest.raises(InputError) as error:
        train(replace(config, seed=1), toy_data(noisy=False), trained[0])
    assert "another configuration" in one_sentence(error)


def test_another_data_set_in_the_same_folder_is_refused(trained, config, toy_data):
    with pytest.raises(InputError) as error:
        train(config, toy_data(), trained[0])
    assert "another data set" in one_sentence(error)


@pytest.mark.parametrize("name", ["thesis.tex", "config.yaml"])
def test_a_folder_with_something_else_is_refused_and_left_alone(name, config, toy_data, tmp_path):
    (tmp_path / name).write_text("mine")
    with pytest.raises(InputError) as error:
        train(config, toy_data(), tmp_path)
    assert "give a new or an empty folder" in one_sentence(error)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "mine"


@pytest.mark.parametrize("name", ["config.yaml.partial", "checkpoint.pt.partial"])
def test_what_a_run_killed_before_its_first_checkpoint_left_is_no_obstacle(
    name, config, toy_data, tmp_path
):
    quick = replace(config, epochs=1)
    Trainer(quick, toy_data(events=40), tmp_path / "run")
    (tmp_path / "run" / name).write_bytes(b"half")
    assert train(quick, toy_data(events=40), tmp_path / "run").finished


def test_a_file_in_place_of_the_folder_is_refused(config, toy_data, tmp_path):
    (tmp_path / "run").write_text("mine")
    with pytest.raises(InputError, match="is a file"):
        train(config, toy_data(), tmp_path / "run")


@pytest.mark.parametrize("damage", ["cut", "one bit", "empty", "foreign"])
def test_a_damaged_checkpoint_is_refused(damage, trained, config, toy_data, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained[0], run)
    path = run / "checkpoint.pt"
    whole = path.read_bytes()
    middle = len(whole) // 2
    if damage == "foreign":
        torch.save({"weights": torch.zeros(3)}, path)
    else:
        path.write_bytes(
            {
                "cut": whole[:middle],
                "one bit": whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
                "empty": b"",
            }[damage]
        )
    kind = InputError if damage == "foreign" else DamagedDataError
    with pytest.raises(kind) as error:
        train(config, toy_data(noisy=False), run)
    assert str(path) in one_sentence(error)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_that_is_not_there_is_refused(config, toy_data, tmp_path):
    with pytest.raises(InputError) as error:
        train(replace(config, device="cuda"), toy_data(), tmp_path / "run")
    assert "sees no GPU" in one_sentence(error)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("share", [0.001, 0.999])
def test_no_events_for_validation_or_for_training_are_refused(share, config, toy_data, tmp_path):
    with pytest.raises(InputError) as error:
        train(replace(config, validation=share), toy_data(), tmp_path / "run")
    assert "neither may be none" in one_sentence(error)


@pytest.mark.parametrize("epochs", [1, 3])
def test_a_loss_that_is_no_number_ends_the_run_with_a_sentence(epochs, config, toy_data, tmp_path):
    # One epoch is one step here: its own loss is finite, what it leaves behind is not.
    optimiser = OptimiserConfig(learning_rate=1e12, warmup=0.0)
    absurd = replace(config, epochs=epochs, batch_size=36, optimiser=optimiser)
    with pytest.raises(InputError) as error:
        train(absurd, toy_data(events=40), tmp_path / "run")
    assert "lower optimiser.learning_rate" in one_sentence(error)


def test_a_data_set_that_is_not_there_is_one_sentence_on_the_command_line(tmp_path, capsys):
    words = ["train", "--data", str(tmp_path / "no.zarr"), "--out", str(tmp_path / "run")]
    assert main(words) == 2
    complaint = capsys.readouterr().err
    assert complaint.count("\n") == 1
    assert "no data set there" in complaint
