"""Ranks that train together: the same as one, together until the end, however it comes.

Losses and weights of different numbers of ranks agree to rounding: of single precision, that sums
are made in another order.
"""

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from model.checkpoint import restore
from model.config import OptimiserConfig, SpeedConfig
from model.failure import reproduce
from model.folder import only_training
from model.history import read_history
from model.ranks import ALONE, Ranks, from_environment
from model.recipe import config_to_bytes
from model.split import refuse_uneven_shares
from model.train import train
from storage.audit import Audit
from storage.errors import InputError
from storage.stream import EventStream
from storage.stream_config import StreamConfig

EVENTS, KEPT, EPOCHS = 201, 20, 2  # the last batch of an epoch has a single event
STEPS = 10  # an epoch
ROUNDING = 5e-6  # of losses of 3 nats; 7e-7 were found, and 4e-7 of the weights
TRAINING_EVENTS = range(KEPT, EVENTS)


@pytest.fixture(scope="module")
def data(toy_data):
    """Signals alone, so that ranks have to draw noise."""
    return toy_data(noisy=False, events=EVENTS)


@pytest.fixture(scope="module")
def short(config):
    return replace(config, epochs=EPOCHS, validation=0.1)


@pytest.fixture(scope="module")
def alone(short, data, tmp_path_factory):
    """A run of one process."""
    run = tmp_path_factory.mktemp("run") / "alone"
    train(short, data, run)
    return run


@pytest.fixture
def copy(tmp_path, data):
    """A data set to be damaged."""
    folder = tmp_path / "toy.zarr"
    shutil.copytree(data, folder)
    return folder


def column(run, name):
    return np.array([float(row[name]) for row in read_history(run) if row[name]])


def far_apart(one, other):
    """What differs between two runs by more than rounding."""
    found = []
    for name in ("train_loss", "validation_loss", "learning_rate", "epoch"):
        first, second = column(one, name), column(other, name)
        if first.shape != second.shape or np.abs(first - second).max() > ROUNDING:
            found.append(name)
    if [row["audit"] for row in read_history(one)] != [row["audit"] for row in read_history(other)]:
        found.append("audit")
    first, second = restore(one), restore(other)
    if (first.step, first.stream, first.tally.events) != (
        second.step, second.stream, second.tally.events,
    ):  # fmt: skip
        found.append("place")
    weights = [
        torch.cat([w.flatten() for w in state.network.values()]) for state in (first, second)
    ]
    # AdamW makes a whole step of a gradient that is nothing but rounding.
    if (weights[0] - weights[1]).square().mean().sqrt() > 1e-5 * weights[0].std():
        found.append("weights")
    return found


@pytest.mark.parametrize(
    ("ranks", "parts"),
    [(2, 1), (1, 2), (4, 5), *(pytest.param(*n, marks=pytest.mark.slow) for n in ((4, 1), (2, 2)))],
)
def test_ranks_and_parts_of_a_batch_give_the_losses_and_weights_of_one_process(
    ranks, parts, short, data, alone, start_ranks, tmp_path
):
    outcome = start_ranks(ranks, replace(short, accumulate=parts), data, tmp_path / "run")
    assert outcome.codes == [0] * ranks, outcome.said
    assert far_apart(alone, tmp_path / "run") == []
    assert len(outcome.sentences) == 1, "one rank speaks"


def test_the_comparison_of_runs_catches_other_noise_and_another_batch(short, data, alone, tmp_path):
    other = tmp_path / "batch"
    train(replace(short, batch_size=18), data, other)
    assert {"train_loss", "weights"} <= set(far_apart(alone, other))
    lines = (alone / "history.csv").read_text().splitlines(keepends=True)
    shutil.copytree(alone, tmp_path / "line")
    (tmp_path / "line" / "history.csv").write_text("".join(lines[:-1]))
    assert "train_loss" in far_apart(alone, tmp_path / "line")


def delivered(outcomes):
    """How often each event was learnt from, in each epoch."""
    counts = [Counter() for _ in range(EPOCHS)]
    for outcome in outcomes:
        for step, shares in outcome.steps.items():
            for share in shares:
                counts[(step - 1) // STEPS].update(share)
    return counts


def test_a_run_goes_on_with_other_numbers_of_ranks_without_a_repeated_or_lost_event(
    short, data, alone, start_ranks, tmp_path
):
    run, outcomes, draw = tmp_path / "run", [], random.Random()
    for ranks in (1, 2, 4, 2):
        done = restore(run).step if run.exists() else 0
        stop = [draw.randrange(ranks), done + draw.randrange(1, 5), signal.SIGTERM]
        outcomes.append(start_ranks(ranks, short, data, run, at=stop))
        assert outcomes[-1].codes == [143] * ranks, outcomes[-1].said
        assert restore(run).step == max(outcomes[-1].steps) == stop[1] + 1
    outcomes.append(start_ranks(4, short, data, run))
    assert outcomes[-1].codes == [0] * 4
    assert delivered(outcomes) == [Counter(TRAINING_EVENTS)] * EPOCHS
    assert far_apart(alone, run) == []


@pytest.mark.slow
def test_the_proof_by_numbers_would_see_a_lost_and_a_repeated_event(
    short, data, start_ranks, tmp_path
):
    outcome = start_ranks(2, short, data, tmp_path / "run")
    assert delivered([outcome]) == [Counter(TRAINING_EVENTS)] * EPOCHS
    outcome.steps[3][1][0] = outcome.steps[3][0][0]
    assert delivered([outcome]) != [Counter(TRAINING_EVENTS)] * EPOCHS


def test_the_time_limit_ends_all_ranks_with_the_code_that_means_run_me_again(
    short, data, start_ranks, tmp_path
):
    outcome = start_ranks(3, replace(short, batch_size=21, minutes=1e-6), data, tmp_path / "run")
    assert outcome.codes == [85] * 3
    assert len(outcome.sentences) == 1
    assert "stopped by --minutes 1e-06 after step 1 of 18, the state is saved" in outcome.said[0]


def test_a_damaged_event_on_one_rank_ends_all_which_go_on_once_it_is_mended(
    short, copy, alone, flip_bit, start_ranks, tmp_path
):
    run, order = tmp_path / "run", []
    for batch in EventStream(copy, batch_size=5, rank=2, world_size=4, start=KEPT):
        order.append(batch.event.copy())
    event = int(order[6][3])
    flip_bit(copy, event)
    outcome = start_ranks(4, short, copy, run)
    assert outcome.codes == [1] * 4
    assert outcome.seconds < 5
    assert len(outcome.sentences) == 1
    assert f"event {event} " in outcome.said[2]
    assert restore(run).step == 6
    flip_bit(copy, event)
    assert start_ranks(2, short, copy, run).codes == [0, 0]
    assert far_apart(alone, run) == []


def test_a_damaged_event_for_validation_ends_all_ranks(
    short, copy, flip_bit, start_ranks, tmp_path
):
    flip_bit(copy, 13)
    outcome = start_ranks(4, short, copy, tmp_path / "run")
    assert outcome.codes == [1] * 4
    assert len(outcome.sentences) == 1
    assert "event 13 " in outcome.sentences[0]


def test_damaged_events_that_ranks_skip_are_counted_once_and_the_rest_is_learnt_from(
    short, copy, flip_bit, start_ranks, tmp_path
):
    for event in (3, 50, 190):
        flip_bit(copy, event)
    skipping = replace(short, stream=StreamConfig(damaged="skip"))
    train(skipping, copy, tmp_path / "alone")
    assert start_ranks(4, skipping, copy, tmp_path / "run").codes == [0] * 4
    assert far_apart(tmp_path / "alone", tmp_path / "run") == []
    assert restore(tmp_path / "run").tally.skipped == (3, 50, 190)
    rest = np.array([n for n in TRAINING_EVENTS if n not in (50, 190)])
    audits = [row["audit"] for row in read_history(tmp_path / "run") if row["audit"]]
    assert audits == [Audit.of(rest).digest] * EPOCHS
    assert [row["skipped"] for row in read_history(tmp_path / "run")][-1] == "3"


def test_a_loss_that_is_too_large_ends_all_ranks_with_the_whole_batch_saved(
    short, data, start_ranks, tmp_path
):
    strict = replace(short, optimiser=OptimiserConfig(largest_loss=0.1))
    outcome = start_ranks(4, strict, data, tmp_path / "run")
    assert outcome.codes == [2] * 4
    assert len(outcome.sentences) == 1
    path = tmp_path / "run" / "failed-000000.pt"
    first = next(iter(EventStream(data, batch_size=20, start=KEPT)))
    content = torch.load(path, weights_only=True)
    assert content["events"].tolist() == first.event.tolist()
    assert np.array_equal(content["strain"].numpy(), first.strain)
    assert f"became {reproduce(path).mean():.4g} after step 0" in outcome.said[0]


def test_a_rank_that_is_killed_ends_the_others_and_the_run_goes_on_from_its_checkpoint(
    short, data, alone, start_ranks, tmp_path
):
    run, often = tmp_path / "run", replace(short, checkpoint_minutes=1e-6)
    outcome = start_ranks(4, often, data, run, at=[3, 5, signal.SIGKILL])
    assert outcome.codes == [85, 85, 85, -9], outcome.said
    assert outcome.seconds < 10
    assert "another rank is gone" in outcome.said[0]
    assert "Traceback" not in "".join(outcome.said)
    assert restore(run).step == 5
    assert start_ranks(2, often, data, run).codes == [0, 0]
    assert far_apart(alone, run) == []


def test_where_a_rank_is_killed_before_anything_was_saved_the_others_do_not_ask_to_be_run_again(
    short, data, start_ranks, tmp_path
):
    seldom = replace(short, checkpoint_minutes=10)
    outcome = start_ranks(2, seldom, data, tmp_path / "run", at=[1, 0, signal.SIGKILL])
    assert outcome.codes == [1, -9], outcome.said
    assert "another rank is gone" in outcome.said[0]


@pytest.mark.slow
def test_a_set_that_grows_is_trained_on_by_ranks(short, data, alone, start_ranks, tmp_path):
    growing = replace(short, stream=StreamConfig(growing=True))
    assert start_ranks(2, growing, data, tmp_path / "run").codes == [0, 0]
    assert np.allclose(
        column(tmp_path / "run", "train_loss"), column(alone, "train_loss"), atol=ROUNDING
    )


def test_a_batch_that_the_ranks_do_not_divide_is_one_sentence(short, data, start_ranks, tmp_path):
    outcome = start_ranks(3, short, data, tmp_path / "run")
    assert outcome.codes == [2] * 3
    assert len(outcome.sentences) == 1
    assert "got 20 events, which 3 ranks by 1 parts" in outcome.sentences[0]
    with pytest.raises(InputError, match="give a multiple of 8"):
        refuse_uneven_shares(replace(short, accumulate=4), Ranks(1, 2))
    with pytest.raises(InputError, match="accumulate: got 3, which does not divide"):
        replace(short, accumulate=3)


def test_a_second_run_into_the_same_folder_is_refused_with_the_first_ones_process(
    short, data, start_ranks, tmp_path
):
    run = tmp_path / "run"
    with only_training(run):
        before = list(run.iterdir())
        outcome = start_ranks(2, short, data, run)
        assert list(run.iterdir()) == before
    assert outcome.codes == [2, 2]
    assert len(outcome.sentences) == 1
    wanted = f"process {os.getpid()} on {socket.gethostname()} is writing there; wait for its end"
    assert wanted in outcome.said[0]
    assert start_ranks(1, short, data, run).codes == [0]
    assert not (run / "writer.json").exists()


def test_a_folder_whose_process_was_killed_is_free_at_once(short, data, start_ranks, tmp_path):
    run, often = tmp_path / "run", replace(short, checkpoint_minutes=1e-6)
    assert start_ranks(1, often, data, run, at=[0, 3, signal.SIGKILL]).codes == [-9]
    assert (run / "writer.json").exists()
    assert start_ranks(1, often, data, run).codes == [0]


def test_a_log_of_the_runs_name_beside_its_folder_is_in_nobodys_way(tmp_path):
    (tmp_path / "run.log").write_text("of the shell")
    with only_training(tmp_path / "run"):
        assert [path.name for path in (tmp_path / "run").iterdir()] == ["writer.json"]
    assert [path.name for path in tmp_path.iterdir()] == ["run.log"]


ENVIRONMENT = {
    "RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "0", "MASTER_ADDR": "a", "MASTER_PORT": "1"
}  # fmt: skip


def test_the_environment_says_who_a_process_is():
    assert from_environment({}) == ALONE
    assert from_environment({**ENVIRONMENT, "WORLD_SIZE": "1"}) == ALONE
    assert from_environment(ENVIRONMENT) == Ranks(1, 4, 0)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"RANK": ""}, "WORLD_SIZE: is 4, but RANK is not set"),
        ({"RANK": "4"}, r"RANK: got 4, must lie in \[0, 4\)"),
        ({"LOCAL_RANK": "x"}, "give whole numbers"),
    ],
)
def test_an_environment_that_says_too_little_is_refused(change, says):
    with pytest.raises(InputError, match=says):
        from_environment({**ENVIRONMENT, **change})


@pytest.fixture
def torchrun(short, data, tmp_path):
    """Start ranks with torchrun."""

    def start(ranks, config=short):
        (tmp_path / "recipe.yaml").write_bytes(config_to_bytes(config))
        words = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        words += ["--nproc-per-node", str(ranks), "-m", "strainflow", "train"]
        words += ["--config", str(tmp_path / "recipe.yaml"), "--data", str(data)]
        words += ["--out", str(tmp_path / "run")]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
        return subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True)

    return start


LEFT_BEHIND = """
import os, torch
from pathlib import Path
from model.ranks import from_environment, joined
try:
    with joined(from_environment(os.environ), torch.device("cpu")):
        import torch._dynamo, torch.distributed.nn.functional  # as optimisers do
        {}
except ZeroDivisionError:
    pass
for task in Path("/proc/self/task").iterdir():
    print((task / "comm").read_text().strip())
"""


@pytest.mark.slow
@pytest.mark.parametrize("end", ["pass", "1 / 0"])
def test_ranks_leave_no_thread_of_gloo_that_would_abort_the_process_as_it_ends(end):
    words = [sys.executable, "-c", LEFT_BEHIND.format(end)]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ours = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ours |= {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            words,
            env={**os.environ, **ours, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for process in processes:
        threads = process.communicate(timeout=120)[0]
        assert process.returncode == 0
        assert "python" in threads
        assert "gloo" not in threads


@pytest.mark.slow
def test_torchrun_starts_ranks_that_train_together(torchrun, alone, tmp_path):
    with torchrun(2) as process:
        complaints = process.communicate(timeout=120)[1]
    assert process.returncode == 0, complaints
    assert far_apart(alone, tmp_path / "run") == []


@pytest.mark.slow
def test_torchrun_that_is_told_to_end_lets_all_ranks_save_the_same_step(
    torchrun, short, data, tmp_path
):
    run, long = tmp_path / "run", replace(short, epochs=500, checkpoint_minutes=1e-6)
    with torchrun(4, long) as process:
        while not (run / "checkpoint.pt").exists():
            assert process.poll() is None, process.stderr.read()
        process.send_signal(signal.SIGTERM)
        complaints = process.communicate(timeout=120)[1]
    assert process.returncode != 0
    step = restore(run).step
    assert f"stopped by signal 15 after step {step} of" in complaints
    assert [int(row["step"]) for row in read_history(run)] == list(range(1, step + 1))
    assert train(replace(long, minutes=1e-6), data, run).steps == step + 1


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are no two GPUs")
def test_two_gpus_give_the_losses_of_one(torchrun, short, data, tmp_path):
    plain = replace(short, device="cuda", speed=SpeedConfig(precision="fp32"))
    train(plain, data, tmp_path / "alone")
    with torchrun(2, plain) as process:
        complaints = process.communicate(timeout=300)[1]
    assert process.returncode == 0, complaints
    losses = [column(tmp_path / run, "train_loss") for run in ("alone", "run")]
    assert np.allclose(*losses, atol=1e-3)
