"""The schedule is a function of where the stream stands, and of nothing else."""

import pytest

from model.config import OptimiserConfig
from model.schedule import epochs_done, learning_rate, progress, steps_left
from storage.stream import EventStream


def test_the_rate_rises_then_falls_and_never_is_zero_in_the_middle_of_a_step():
    config = OptimiserConfig(learning_rate=1.0, warmup=0.1)
    rates = [learning_rate(config, (step + 0.5) / 100) for step in range(100)]
    assert rates[:10] == pytest.approx([0.05 + 0.1 * step for step in range(10)])
    assert all(a >= b for a, b in zip(rates[10:], rates[11:], strict=False))
    assert 0 < rates[-1] < 1e-3
    assert learning_rate(config, 1.0) == 0


@pytest.mark.parametrize("steps", [1, 3])
def test_without_a_warm_up_even_a_run_of_few_steps_begins_near_the_peak(steps):
    config = OptimiserConfig(learning_rate=1.0, warmup=0.0)
    assert learning_rate(config, 0.5 / steps) >= 0.5


@pytest.mark.parametrize("batch_size", [7, 20, 1000])
def test_progress_goes_from_nothing_to_all_with_the_events_that_were_taken(toy_data, batch_size):
    stream = EventStream(toy_data(events=100), batch_size=batch_size)
    found, taken = [progress(stream.state_dict(), 3)], 0
    for batch in stream.epochs(3):
        taken += len(batch.event)
        found.append(progress(stream.state_dict(), 3))
        assert found[-1] == pytest.approx(taken / 300)
    assert found[0] == 0
    assert found[-1] == 1
    assert all(a < b for a, b in zip(found, found[1:], strict=False))


@pytest.mark.parametrize("batch_size", [7, 20, 1000])
def test_the_steps_that_are_left_are_those_that_come(toy_data, batch_size):
    stream = EventStream(toy_data(events=100), batch_size=batch_size)
    left = [steps_left(stream.state_dict(), 3, stream.events, batch_size)]
    left += [
        steps_left(stream.state_dict(), 3, stream.events, batch_size) for _ in stream.epochs(3)
    ]
    assert left == list(range(len(left) - 1, -1, -1))


def test_epochs_of_different_lengths_count_alike():
    assert epochs_done({"epoch": 2, "position": 50, "events": 100}) == 2.5
    assert epochs_done({"epoch": 2, "position": 500, "events": 1000}) == 2.5
    assert epochs_done({"epoch": 3, "position": 0}) == 3
