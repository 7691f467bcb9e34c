"""A run can be seen while it trains: progress bar, history, TensorBoard; none of it is needed."""

import sys
from dataclasses import fields, replace

import pytest

from model.checkpoint import restore
from model.history import Entry, History, iterate_history, read_history
from model.train import train
from model.watch import TAGS, in_words
from storage.errors import InputError

ENTRY = Entry(
    step=7,
    epoch=1.5,
    train_loss=2.5,
    validation_loss=None,
    learning_rate=1e-3,
    events_per_second=1234.0,
    batches_per_second=4.8,
    gigabytes_per_second=0.97,
    data_wait=0.12,
    gpu_memory=2_500_000_000,
    seconds=60.0,
    skipped=3,
    audit=None,
)


def test_the_progress_bar_says_all_that_is_to_be_watched():
    assert in_words(ENTRY, 2.25) == (
        "1234 events/s, 4.8 batches/s, 0.97 GB/s, waiting 12 %, loss 2.500, validation 2.250, "
        "rate 0.001, GPU 2.5 GB, 3 skipped"
    )


def test_the_progress_bar_leaves_out_what_there_is_not():
    words = in_words(replace(ENTRY, train_loss=None, gpu_memory=None, skipped=0), None)
    assert words == "1234 events/s, 4.8 batches/s, 0.97 GB/s, waiting 12 %, rate 0.001"


def test_the_history_has_the_share_of_waiting_of_every_step(trained):
    rows = read_history(trained[0])
    assert [int(row["step"]) for row in rows] == list(range(1, trained[1].steps + 1))
    assert all(0 <= float(row["data_wait"]) <= 1 for row in rows)
    assert len({row["data_wait"] for row in rows}) > 1
    assert all(float(row["events_per_second"]) > 0 for row in rows)
    seconds = [float(row["seconds"]) for row in rows]
    assert seconds == sorted(seconds)


def test_a_line_that_a_crash_cut_off_and_those_after_the_checkpoint_are_dropped(tmp_path):
    history = History(tmp_path, 0.0)
    for step in range(1, 6):
        history.add(replace(ENTRY, step=step, epoch=step / 10))
    history.close()
    path = tmp_path / "history.csv"
    whole = path.read_text()
    for cut in range(1, len(whole.splitlines()[-1]) + 1):
        path.write_text(whole[:-cut])
        assert [row["step"] for row in iterate_history(tmp_path)] == ["1", "2", "3", "4"]
    History(tmp_path, 0.3).close()
    assert path.read_text() == "".join(whole.splitlines(keepends=True)[:4])


def test_tensorboard_shows_what_the_history_says_over_all_calls(config, toy_data, tmp_path):
    event_files = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run, seen = tmp_path / "run", replace(config, epochs=2, tensorboard=True)
    train(replace(seen, minutes=1e-6), toy_data(), run)
    train(seen, toy_data(), run)
    board = event_files.EventAccumulator(str(run / "tensorboard"), {"scalars": 0}).Reload()
    rows = read_history(run)
    for name, tag in TAGS.items():
        expected = [(int(row["step"]), float(row[name])) for row in rows if row[name]]
        if name != "gpu_memory":
            assert len(expected) > 1
        found = [(item.step, item.value) for item in board.Scalars(tag)] if expected else []
        assert [step for step, _ in found] == [step for step, _ in expected], name
        assert [value for _, value in found] == pytest.approx([value for _, value in expected])
    assert set(TAGS) < {field.name for field in fields(Entry)}


def test_without_the_package_training_works_and_only_asking_for_it_is_refused(
    config, toy_data, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    quick, run = replace(config, epochs=1), tmp_path / "run"
    with pytest.raises(InputError, match=r"install strainflow\[tensorboard\]"):
        train(replace(quick, tensorboard=True), toy_data(), run)
    assert not run.exists()
    assert train(quick, toy_data(), run).finished
    assert not (run / "tensorboard").exists()


def test_the_time_that_is_told_is_that_of_all_calls(config, toy_data, tmp_path):
    run, quick = tmp_path / "run", replace(config, epochs=1)
    first = train(replace(quick, minutes=1e-6), toy_data(), run)
    second = train(quick, toy_data(), run)
    tally = restore(run).tally
    assert tally.seconds == pytest.approx(first.seconds + second.seconds, abs=0.05)
    assert tally.events == first.events + second.events
