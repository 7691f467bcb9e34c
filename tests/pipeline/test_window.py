"""The window of tasks, on real Dask clusters: workers of ours, of a scheduler, and none at all."""

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace

import pytest

from pipeline import window
from pipeline.cluster import ClusterConfig, connect
from pipeline.run import simulate_dataset
from pipeline.window import TASKS_PER_WORKER, map_window
from storage.errors import InputError

START_SECONDS = 60.0


@contextmanager
def command(*words):
    """Run a command in the background until the end of the context."""
    process = subprocess.Popen(
        [sys.executable, "-m", "distributed.cli.dask_" + words[0], *words[1:]],
        stderr=subprocess.DEVNULL,
        env=os.environ | {"DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "2s"},
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def scheduler(tmp_path):
    """A scheduler of somebody else: its address, and its process."""
    file = tmp_path / "scheduler.json"
    words = ("--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", file)
    with command("scheduler", *words) as process:
        deadline = time.monotonic() + START_SECONDS
        while not file.exists() or "tcp://" not in file.read_text():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield file.read_text().partition("tcp://")[2].partition('"')[0], process


def worker(address):
    return command("worker", f"tcp://{address}", "--no-dashboard", "--nthreads", "2")


def cluster_at(address, **settings):
    return ClusterConfig(kind="address", address=f"tcp://{address}", **settings)


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory):
    with connect(ClusterConfig(workers=2), tmp_path_factory.mktemp("logs")) as cluster:
        yield cluster


def double(number):
    return 2 * number


def test_every_item_is_done_once(two_workers):
    assert sorted(map_window(two_workers, double, range(200), 10)) == list(range(0, 400, 2))


def test_items_are_taken_only_as_results_come(two_workers):
    taken = []

    def items():
        for number in range(100):
            taken.append(number)
            yield number

    ahead = [
        len(taken) - done for done, _ in enumerate(map_window(two_workers, double, items(), 10))
    ]
    assert max(ahead) == 2 * TASKS_PER_WORKER
    assert len(taken) == 100


def test_workers_that_leave_do_not_end_the_run(two_workers, monkeypatch):
    """As with a scheduler of somebody else: five workers at the start, then one."""

    def shrink(watch):
        watch.workers = 1 if watch.workers else 5

    monkeypatch.setattr(window._Watch, "look_if_due", shrink)
    cluster = replace(two_workers, wanted=0)
    assert sorted(map_window(cluster, double, range(60), 10)) == list(range(0, 120, 2))


def test_what_a_task_raises_reaches_the_caller_and_the_workers_stay(two_workers):
    with pytest.raises(ZeroDivisionError):
        list(map_window(two_workers, (1).__truediv__, [1, 0, 1], 10))
    assert list(map_window(two_workers, double, [1], 10)) == [2]


@pytest.mark.slow
def test_a_scheduler_of_somebody_else_leaves_the_same_bytes(et_bbh, scheduler, tmp_path):
    flags = ("--noise=none", "--encoding=float16", "--events_per_shard=1")
    simulate_dataset(et_bbh(*flags, "--cluster.workers=1"), tmp_path / "ours.zarr")
    with worker(scheduler[0]):
        there = ("--cluster.kind=address", f"--cluster.address=tcp://{scheduler[0]}")
        report = simulate_dataset(et_bbh(*flags, *there), tmp_path / "theirs.zarr")
    assert report.simulated == 4
    ours, theirs = (
        {
            path.relative_to(folder): path.read_bytes()
            for path in folder.rglob("*")
            if path.is_file()
        }
        for folder in (tmp_path / "ours.zarr", tmp_path / "theirs.zarr")
    )
    assert ours == theirs


@pytest.mark.slow
def test_workers_that_never_come_are_given_up(scheduler, tmp_path):
    with (
        connect(cluster_at(scheduler[0]), tmp_path) as cluster,
        pytest.raises(InputError, match=r"no worker came within 1 s; the scheduler at .* has no"),
    ):
        list(map_window(cluster, double, range(3), patience=1.0))


def test_workers_that_come_late_are_used(scheduler, tmp_path):
    with connect(cluster_at(scheduler[0]), tmp_path) as cluster:
        results = map_window(cluster, abs, range(3), patience=START_SECONDS)
        with worker(scheduler[0]):
            assert sorted(results) == [0, 1, 2]


def test_a_lost_scheduler_ends_the_run_with_one_sentence(scheduler, tmp_path):
    address, process = scheduler
    with worker(address), connect(cluster_at(address), tmp_path) as cluster:
        results = map_window(cluster, time.sleep, [0.1] * 1000, 30.0)
        next(results)
        process.send_signal(signal.SIGKILL)
        with pytest.raises(InputError, match=r"Dask's scheduler was lost; what is finished stays"):
            list(results)


def test_an_address_where_nobody_answers_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.cluster.CONNECT_SECONDS", 1.0)
    with (
        pytest.raises(InputError, match=r"no Dask scheduler answers at tcp://127.0.0.1:9 "),
        connect(cluster_at("127.0.0.1:9"), tmp_path),
    ):
        pass


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "pbs"}, "cluster.kind: got 'pbs', known are local, htcondor, slurm, address"),
        ({"workers": -1}, "cluster.workers: got -1"),
        ({"kind": "slurm"}, "cluster.workers: say how many jobs slurm is to run"),
        ({"kind": "address"}, "cluster.address: got None"),
        ({"address": "tcp://a:1"}, "cluster.address: got 'tcp://a:1' with cluster.kind local"),
        ({"patience": 0}, "cluster.patience: got 0 s"),
        ({"walltime": "4h"}, "cluster.walltime: got '4h', write hours:minutes:seconds"),
        ({"walltime": "4:30"}, "cluster.walltime: got '4:30', write hours:minutes:seconds"),
        ({"walltime": 270}, "cluster.walltime: got 270 s, for which YAML also takes 4:30"),
        ({"walltime": "00:00:00"}, "cluster.walltime: got '00:00:00', must be positive"),
    ],
)
def test_impossible_settings_are_one_sentence(settings, message):
    with pytest.raises(InputError) as caught:
        ClusterConfig(**settings)
    assert str(caught.value).startswith(message)


def test_a_batch_system_that_is_not_there_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    config = ClusterConfig(kind="slurm", workers=1)
    with (
        pytest.raises(InputError, match="there is no command sbatch here"),
        connect(config, tmp_path),
    ):
        pass
