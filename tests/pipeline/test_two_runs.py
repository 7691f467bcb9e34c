"""Two runs into one place: one at a time, whatever they do there. Real processes."""

import hashlib
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

import strainflow
from pipeline.run import simulate_dataset

SIZES = ("--events=32", "--events_per_shard=8", "--seed=5", "--encoding=int16+blosc")
RECIPE = "pipeline/recipes/et-bbh.yaml"
PATIENCE = 120.0  # seconds until a run is taken for hung


def digests(folder):
    """SHA-256 of every file of a folder, by its path."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def first(tmp_path):
    """A run that writes, killed at the end; and where it writes."""
    out = tmp_path / "x.zarr"
    words = ["simulate", f"--config={RECIPE}", f"--out={out}", *SIZES, "--cluster.workers=1"]
    run = subprocess.Popen(
        [sys.executable, "-m", "strainflow", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + PATIENCE
        while not any(out.glob("strain/c/*/0/0*")):
            assert run.poll() is None, "the run ended before it wrote"
            assert time.monotonic() < deadline, "nothing is written"
            time.sleep(0.005)
        yield run, out
    finally:
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)
        run.wait()


def test_while_one_writes_others_are_refused_and_once_it_is_killed_the_next_goes_on_at_once(
    first, capsys, et_bbh, running_cluster, tmp_path
):
    run, out = first
    run.send_signal(signal.SIGSTOP)  # it writes for as long as this takes
    before = digests(out)
    holder = f"{out}: process {run.pid} on {socket.gethostname()} is writing there"
    other = tmp_path / "other.zarr"
    for words in (
        ["simulate", f"--config={RECIPE}", f"--out={out}", *SIZES],
        ["simulate", f"--config={RECIPE}", f"--out={out}", *SIZES[:2], "--seed=6"],
        ["repair", str(out)],
    ):
        assert strainflow.main(words) == strainflow.WRONG_CALL
        (sentence,) = capsys.readouterr().err.splitlines()
        assert sentence.startswith(f"strainflow {words[0]}: {holder}; wait for its end")
    left = set(digests(out))  # its worker is not stopped
    assert {name for name in before if not name.endswith(".partial")} <= left
    assert not other.exists()
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    flags = (f"--cluster.address={running_cluster.address}", "--cluster.kind=address")
    simulate_dataset(et_bbh(*SIZES, *flags), out)
    simulate_dataset(et_bbh(*SIZES, *flags), other)
    assert digests(out) == digests(other)
    assert len(digests(other)) == 4 * 4 + 8


def test_a_data_set_is_verified_while_a_run_writes_it_and_lacks_only_what_is_not_finished(
    first, capsys
):
    _, out = first
    deadline = time.monotonic() + PATIENCE
    code = strainflow.ANSWER_IS_NO
    while code == strainflow.ANSWER_IS_NO:
        assert time.monotonic() < deadline, "the run hangs"
        code = strainflow.main(["verify", str(out)])
        said = capsys.readouterr().out.splitlines()
        faults = [line for line in said[1:] if line.startswith("  ") and ": " in line]
        faults = [line for line in faults if "every byte of" not in line]
        assert all("not finished" in line for line in faults), faults
    assert code == strainflow.DONE
