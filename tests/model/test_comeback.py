"""A run comes back: from time limits, damaged events, batches that cannot be learnt from."""

import random
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from model.checkpoint import checkpoint_path, load, restore
from model.config import OptimiserConfig
from model.failure import reproduce
from model.history import read_history
from model.recipe import config_to_bytes
from model.sample import SampleConfig, sample_dataset
from model.train import train
from model.trainer import Trainer
from storage.audit import Audit
from storage.errors import DamagedDataError, InputError
from storage.results import read_posterior, result_files
from storage.stream import EventStream
from storage.stream_config import StreamConfig
from strainflow import main

EVENTS, KEPT = 200, 20


@pytest.fixture(scope="module")
def data(toy_data):
    """Signals alone, so that the noise of each step has to be repeated too."""
    return toy_data(noisy=False, events=EVENTS)


@pytest.fixture(scope="module")
def short(config):
    """Three epochs of 18 steps."""
    return replace(config, epochs=3, batch_size=10)


@pytest.fixture(scope="module")
def whole(short, data, tmp_path_factory):
    """A run without interruption."""
    run = tmp_path_factory.mktemp("run") / "whole"
    train(short, data, run)
    return run


@pytest.fixture
def copy(tmp_path, toy_data):
    """A data set of 40 events to be damaged, the first four of them for validation."""
    folder = tmp_path / "toy.zarr"
    shutil.copytree(toy_data(events=40, events_per_shard=10), folder)
    return folder


def skipping(config, **changes):
    return replace(config, epochs=2, stream=StreamConfig(damaged="skip"), **changes)


def digests(run):
    return [row["audit"] for row in read_history(run) if row["audit"]]


@pytest.mark.parametrize("seed", [random.randrange(10**6) for _ in range(2)])
def test_random_interruptions_neither_repeat_nor_lose_an_event_and_change_no_bit(
    seed, short, data, whole, tmp_path
):
    draw, run = random.Random(seed), tmp_path / "run"
    report = train(replace(short, minutes=1e-6), data, run)  # a step, however fast the machine is
    while not report.finished:
        assert report.time_is_up
        report = train(replace(short, minutes=draw.uniform(1e-6, 0.006)), data, run)
    expected = Audit.of(np.arange(KEPT, EVENTS)).digest
    assert digests(run) == [expected] * 3, f"seed {seed}"
    first, second = restore(whole), restore(run)
    assert all(torch.equal(first.network[name], second.network[name]) for name in first.network)
    losses = [[row["train_loss"] for row in read_history(one)] for one in (whole, run)]
    assert losses[0] == losses[1]
    assert second.tally.events == 3 * (EVENTS - KEPT)


def test_the_proof_by_audits_would_see_a_lost_and_a_repeated_event(short, data, tmp_path):
    trainer = Trainer(short, data, tmp_path / "run")
    numbers = np.concatenate([batch.event.copy() for batch in trainer.training])
    expected = Audit.of(np.arange(KEPT, EVENTS)).digest
    assert Audit.of(numbers).digest == expected
    assert Audit.of(numbers[1:]).digest != expected
    assert Audit.of(np.append(numbers[1:], numbers[1])).digest != expected


@pytest.mark.parametrize("stop_at", range(1, 8))
def test_a_run_can_be_saved_and_left_after_any_step(stop_at, config, toy_data, tmp_path):
    """Also in the middle of an epoch, and at its end: an epoch has 4 steps."""
    quick, data = replace(config, epochs=2, batch_size=10), toy_data(noisy=False, events=40)
    ends = []
    for run, stops in (("straight", []), ("left", [stop_at])):
        for stop in (*stops, 8):
            trainer = Trainer(quick, data, tmp_path / run)
            for batch in trainer.training.epochs(2):
                trainer.learn(batch)
                if trainer.step == stop:
                    break
            trainer.save()
        ends.append(restore(tmp_path / run))
    assert ends[0].step == ends[1].step == 8
    assert ends[0].stream == ends[1].stream
    for name, weights in ends[0].network.items():
        assert torch.equal(weights, ends[1].network[name]), name


def test_what_a_network_draws_itself_is_a_function_of_seed_and_step(config, data, tmp_path):
    """Such as dropout: so no state of PyTorch's generator has to be saved."""
    trainer = Trainer(config, data, tmp_path / "run")
    trainer.estimator.embedding = nn.Sequential(trainer.estimator.embedding, nn.Dropout(0.5))
    with torch.no_grad():  # the untrained flow does not look at the condition
        for weights in trainer.estimator.flow.parameters():
            weights += 0.1 * torch.randn(weights.shape)
    batch = next(iter(trainer.training))
    first = trainer.loss(batch, 0, 3)
    torch.manual_seed(5)
    torch.rand(17)
    assert torch.equal(first, trainer.loss(batch, 0, 3))
    assert not torch.equal(first, trainer.loss(batch, 0, 4))


def test_the_time_limit_ends_with_the_exit_code_that_means_run_me_again(
    short, data, tmp_path, capfd
):
    (tmp_path / "recipe.yaml").write_bytes(config_to_bytes(short))
    words = ["train", "--config", str(tmp_path / "recipe.yaml"), "--data", str(data)]
    words += ["--out", str(tmp_path / "run")]
    assert main([*words, "--minutes", "1e-6"]) == 85
    assert (
        "stopped by --minutes 1e-06 after step 1 of 54, the state is saved" in capfd.readouterr()[1]
    )
    assert main(words) == 0  # the limit is no part of what the run is
    assert restore(tmp_path / "run").step == 54


@pytest.mark.parametrize("which", ["first", "last"])
def test_a_batch_whose_events_are_all_damaged_is_passed_over_and_counted(
    which, config, copy, flip_bit, tmp_path
):
    one_by_one = skipping(config, batch_size=1)
    order = [int(b.event[0]) for b in EventStream(copy, batch_size=1, start=4)]
    event = order[0] if which == "first" else order[-1]
    flip_bit(copy, event)
    report = train(one_by_one, copy, tmp_path / "run")
    assert report.finished
    assert (report.skipped, report.steps, report.events) == (1, 70, 70)
    rows = read_history(tmp_path / "run")
    assert [row["train_loss"] for row in rows].count("") == 2
    assert all(np.isfinite(float(row["train_loss"])) for row in rows if row["train_loss"])
    assert sum(row["validation_loss"] != "" for row in rows) == 2
    rest = np.array([number for number in range(4, 40) if number != event])
    assert digests(tmp_path / "run") == [Audit.of(rest).digest] * 2


def test_damaged_events_are_counted_once_over_all_calls(config, copy, flip_bit, tmp_path):
    flip_bit(copy, 2)  # for validation
    flip_bit(copy, 30)
    run, some = tmp_path / "run", skipping(config, batch_size=36)
    assert train(replace(some, minutes=1e-6), copy, run).steps == 1
    assert train(some, copy, run).skipped == 2
    assert restore(run).tally.skipped == (2, 30)


def test_validation_without_one_sound_event_is_an_error_and_no_nan(
    config, copy, flip_bit, tmp_path
):
    for event in range(4):
        flip_bit(copy, event)
    with pytest.raises(DamagedDataError, match="all events for validation are damaged"):
        train(skipping(config), copy, tmp_path / "run")


def test_a_damaged_event_ends_the_run_which_goes_on_from_there_once_it_is_mended(
    config, copy, flip_bit, tmp_path
):
    one_by_one, run = replace(config, epochs=1, batch_size=1), tmp_path / "run"
    order = [int(b.event[0]) for b in EventStream(copy, batch_size=1, start=4)]
    flip_bit(copy, order[20])
    with pytest.raises(DamagedDataError, match=f"event {order[20]} "):
        train(one_by_one, copy, run)
    assert restore(run).step == 20
    flip_bit(copy, order[20])
    report = train(one_by_one, copy, run)
    assert (report.steps, report.events) == (36, 16)


def test_a_loss_that_is_too_large_ends_the_run_with_a_batch_that_gives_it_again(
    config, data, tmp_path
):
    run = tmp_path / "run"
    strict = replace(config, optimiser=OptimiserConfig(largest_loss=0.1))
    with pytest.raises(InputError) as error:
        train(strict, data, run)
    sentence = str(error.value)
    path = run / "failed-000000.pt"
    assert str(path) in sentence
    assert "\n" not in sentence
    loss = reproduce(path)
    assert f"the loss became {loss.mean():.4g} after step 0" in sentence
    content = torch.load(path, weights_only=True)
    first = next(iter(Trainer(strict, data, run).training))  # the run can be opened again
    assert content["events"].tolist() == first.event.tolist()
    assert torch.equal(content["strain"], first.strain)


def test_weights_that_became_no_number_end_the_run_with_what_they_met(config, data, tmp_path):
    trainer = Trainer(config, data, tmp_path / "run")
    with torch.no_grad():
        next(trainer.estimator.flow.parameters()).fill_(torch.nan)
    with pytest.raises(InputError, match=r"the loss became nan after step 0, its batch of 20"):
        trainer.fit()
    assert torch.isnan(reproduce(tmp_path / "run" / "failed-000000.pt")).all()
    assert not (tmp_path / "run" / "checkpoint.pt").exists()


def test_a_gradient_that_is_no_number_ends_the_run_before_it_reaches_the_weights(
    config, data, tmp_path
):
    trainer = Trainer(config, data, tmp_path / "run")
    weights = next(trainer.estimator.flow.parameters())
    weights.register_hook(lambda gradient: gradient * torch.nan)
    with pytest.raises(InputError, match="the gradient became nan after step 0"):
        trainer.fit()
    assert all(torch.isfinite(value).all() for value in trainer.estimator.parameters())
    assert torch.isfinite(reproduce(tmp_path / "run" / "failed-000000.pt")).all()


def test_a_run_that_failed_before_its_first_checkpoint_can_be_tried_again(config, data, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(InputError):
        train(replace(config, optimiser=OptimiserConfig(largest_loss=0.1)), data, run)
    with pytest.raises(InputError, match="holds the config.yaml of something else"):
        train(config, data, run)
    with pytest.raises(InputError, match="the loss became"):
        train(replace(config, optimiser=OptimiserConfig(largest_loss=0.1), minutes=5.0), data, run)


def test_a_file_of_a_failure_that_is_not_there_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        reproduce(tmp_path / "failed-000001.pt")


def test_the_best_checkpoint_is_of_the_epoch_with_the_lowest_validation_loss(
    config, data, tmp_path
):
    """Provoked by a rate so high that later epochs are worse: any of them may be the best."""
    wild = replace(config, epochs=6, optimiser=OptimiserConfig(learning_rate=0.05, warmup=0.0))
    run = tmp_path / "run"
    report = train(wild, data, run)
    found = [
        (float(row["validation_loss"]), int(row["step"]))
        for row in read_history(run)
        if row["validation_loss"]
    ]
    best = restore(run, which="best")
    assert (best.tally.best_validation_loss, best.step) == min(found)
    assert report.best_validation_loss == min(found)[0]
    newest = restore(run)
    assert newest.step == report.steps
    assert (newest.tally.best_validation_loss, newest.tally.best_step) == min(found)
    trainer = Trainer(wild, data, run)
    trainer.estimator.load_state_dict(best.network)
    assert trainer.validate() == min(found)[0]


def test_sampling_takes_the_best_weights_or_the_newest_on_request(whole, toy_data, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    other = torch.load(run / "best.pt", weights_only=True)
    for weights in other["network"].values():
        if weights.is_floating_point():
            weights *= 1.5
    torch.save(other, run / "best.pt")
    found = {}
    for which in ("best", "newest"):
        config = SampleConfig(events="0:1", samples=20, checkpoint=which)
        sample_dataset(config, run, toy_data(), tmp_path / which)
        found[which] = read_posterior(result_files(tmp_path / which)[0])
        weights, expected = load(run, which=which).state_dict(), restore(run, which=which).network
        assert all(torch.equal(weights[name], expected[name]) for name in expected)
    one, other = found["best"], found["newest"]
    assert not np.array_equal(one.samples, other.samples)
    assert one.provenance["checkpoint_sha256"] != other.provenance["checkpoint_sha256"]


def test_with_the_newest_checkpoint_damaged_and_deleted_a_run_goes_on_from_the_best(
    whole, short, data, tmp_path
):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    (run / "checkpoint.pt").write_bytes(b"damaged")
    with pytest.raises(DamagedDataError, match="delete it.* goes on from best.pt"):
        train(short, data, run)
    (run / "checkpoint.pt").unlink()
    best = restore(run, which="best").step
    again = Trainer(short, data, run)
    assert again.step == best
    assert train(short, data, run).finished
    one, other = (restore(folder).network for folder in (whole, run))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert read_history(run)[-1]["step"] == read_history(whole)[-1]["step"]


def test_a_damaged_best_checkpoint_says_which_one_is_left(whole, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    (run / "best.pt").write_bytes(b"damaged")
    with pytest.raises(DamagedDataError, match="--checkpoint newest"):
        load(run)


def test_before_the_end_of_the_first_epoch_the_newest_weights_are_the_best(config, data, tmp_path):
    run = tmp_path / "run"
    train(replace(config, minutes=1e-6), data, run)
    assert not (run / "best.pt").exists()
    assert checkpoint_path(run, "best") == run / "checkpoint.pt"
    load(run)
