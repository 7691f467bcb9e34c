"""Validation has the first events, training the rest, also of a data set that grows."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from toy import write_shards

from model.history import read_history
from model.split import split, training_parameters
from model.train import train
from model.trainer import Trainer
from storage.audit import Audit
from storage.dataset import read_parameters
from storage.errors import DamagedDataError, InputError
from storage.stream_config import StreamConfig

CPU = torch.device("cpu")


@pytest.fixture
def small(schema):
    """Eight shards of ten events; the first shard is for validation."""
    return replace(schema, events=80, events_per_shard=10)


@pytest.fixture
def growing(config):
    return replace(
        config, validation=0.125, epochs=3, batch_size=10, stream=StreamConfig(growing=True)
    )


def events(batches):
    return [int(event) for batch in batches for event in batch.event]


def test_the_first_events_are_for_validation_and_all_others_for_training(config, toy_data):
    parts = split(config, toy_data(), CPU)
    assert events(parts.validation) == list(range(24))
    assert sorted(events(parts.training)) == list(range(24, 240))


def test_the_scale_of_the_parameters_is_learnt_from_training_events_alone(
    config, growing, toy_data
):
    table = read_parameters(toy_data())[24:]
    for one in (config, replace(config, stream=growing.stream)):
        assert np.array_equal(training_parameters(one, toy_data(), 24).numpy(), table)


def test_a_set_that_grows_is_trained_on_with_what_is_there_at_the_start_of_each_epoch(
    growing, small, tmp_path
):
    data, run = tmp_path / "toy.zarr", tmp_path / "run"
    write_shards(data, small, range(3))
    trainer = Trainer(growing, data, run)
    assert (trainer.step, trainer.left) == (0, 6)
    write_shards(data, small, [3, 5])  # not in the epoch that has begun
    assert trainer.fit() == 0
    assert (trainer.step, trainer.left) == (2 + 4 + 4, 0)
    assert events(trainer.validation) == list(range(10))
    digests = [row["audit"] for row in read_history(run) if row["audit"]]
    later = [*range(10, 40), *range(50, 60)]
    expected = [
        Audit.of(np.array(numbers), epoch).digest
        for epoch, numbers in enumerate((range(10, 30), later, later))
    ]
    assert digests == expected


def test_a_run_on_a_growing_set_that_is_interrupted_takes_the_events_of_its_epoch(
    growing, small, tmp_path
):
    data, run = tmp_path / "toy.zarr", tmp_path / "run"
    write_shards(data, small, range(4))
    first = train(replace(growing, minutes=1e-6), data, run)
    assert (first.steps, first.total_steps, first.time_is_up) == (1, 9, True)
    write_shards(data, small, range(4, 8))
    last = train(growing, data, run)
    assert last.finished
    assert last.steps == 3 + 7 + 7
    digests = [row["audit"] for row in read_history(run) if row["audit"]]
    assert digests == [Audit.of(np.arange(10, stop)).digest for stop in (40, 80, 80)]


def test_validation_events_that_are_not_all_there_yet_are_refused(growing, small, tmp_path):
    data, run = tmp_path / "toy.zarr", tmp_path / "run"
    write_shards(data, small, [1, 2])
    with pytest.raises(InputError, match="shard 0 is not finished") as error:
        train(growing, data, run)
    assert "\n" not in str(error.value)
    assert not run.exists()


def test_a_growing_set_without_training_events_is_refused(growing, small, tmp_path):
    data = tmp_path / "toy.zarr"
    write_shards(data, small, [0])
    with pytest.raises(InputError, match="none but the 10 events for validation are finished"):
        train(growing, data, tmp_path / "run")


def test_a_set_that_is_not_complete_is_refused_unless_it_may_grow(growing, small, tmp_path):
    data = tmp_path / "toy.zarr"
    write_shards(data, small, range(3))
    with pytest.raises(DamagedDataError, match="5 of 8 shards are missing"):
        train(replace(growing, stream=StreamConfig()), data, tmp_path / "run")
