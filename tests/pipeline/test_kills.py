"""SIGKILL at random times, to a random worker and to the client: a rerun leaves the same bytes."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from pipeline.run import simulate_dataset

EVENTS, EVENTS_PER_SHARD, WORKERS = 128, 8, 2
PATIENCE = 120.0  # seconds until a run is taken for hung


def digests(folder):
    """SHA-256 of every file of a folder, by its path."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def start_run(out):
    """Start the command line, in a process of its own."""
    words = ["simulate", "--config=pipeline/recipes/et-bbh.yaml", f"--out={out}", "--seed=11"]
    words += [f"--events={EVENTS}", f"--events_per_shard={EVENTS_PER_SHARD}", "--encoding=float32"]
    words += [f"--cluster.workers={WORKERS}", "--json"]
    return subprocess.Popen(
        [sys.executable, "-m", "strainflow", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def wait_until_writing(out, run):
    """Wait until a worker writes its first shard, or the run has ended."""
    deadline = time.monotonic() + PATIENCE
    while run.poll() is None and not any(out.glob("strain/c/*/0/0*")):
        assert time.monotonic() < deadline, f"nothing is written after {PATIENCE} s"
        time.sleep(0.005)


@pytest.fixture(scope="module")
def reference(et_bbh, tmp_path_factory):
    """The data set of a run that nothing happens to, and for how long it writes [s]."""
    flags = (f"--events={EVENTS}", f"--events_per_shard={EVENTS_PER_SHARD}", "--seed=11")
    out = tmp_path_factory.mktemp("reference") / "x.zarr"
    report = simulate_dataset(et_bbh(*flags, f"--cluster.workers={WORKERS}"), out)
    return digests(out), report.seconds


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_a_worker_and_the_client_killed_at_random_times_leave_the_same_bytes(
    reference, workers_of, tmp_path, seed
):
    expected, seconds = reference
    generator = random.Random(seed)
    out = tmp_path / "x.zarr"
    run = start_run(out)
    try:
        wait_until_writing(out, run)
        kill_worker, kill_client = (generator.uniform(0, seconds) for _ in range(2))
        time.sleep(min(kill_worker, kill_client))
        if kill_worker < kill_client:
            if workers := workers_of(run):
                os.kill(generator.choice(workers), signal.SIGKILL)
            time.sleep(kill_client - kill_worker)
        run.send_signal(signal.SIGKILL)  # the client alone: its workers must find out themselves
        run.communicate(timeout=PATIENCE)
        again = start_run(out)  # at once: the old workers may still be there
        if kill_worker >= kill_client:
            wait_until_writing(out, again)
            time.sleep(generator.uniform(0, seconds))
            if workers := workers_of(again):
                os.kill(generator.choice(workers), signal.SIGKILL)
        output, _ = again.communicate(timeout=PATIENCE)
    finally:
        run.kill()
    assert again.returncode == 0
    assert json.loads(output)["events"] == EVENTS
    assert digests(out) == expected
