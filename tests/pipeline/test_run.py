"""Whole data sets on Dask: the same bytes whatever the workers, the shards, crashes and reruns.

Each test shares the data sets made here once: 64 full-size noisy events of et-bbh with seed 7.
"""

import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import storage
from pipeline.cluster import ClusterConfig
from pipeline.description import describe_dataset
from pipeline.run import nothing_left_half_written, simulate_dataset
from pipeline.runlog import LOG, RunLog, ShardReport
from pipeline.simulate import Simulator, simulate_event
from storage.dataset import create_dataset, read_schema
from storage.errors import InputError
from storage.local import LocalStore
from storage.manifest import read_manifests

EVENTS = 64
PATIENCE = 120.0  # seconds until a run is taken for hung


def digests(folder):
    """SHA-256 of every file of a folder, by its path."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def differing(folder, reference):
    """Paths of the files that are not in both folders with the same bytes."""
    return sorted(
        name for name, _ in set(digests(folder).items()) ^ set(digests(reference).items())
    )


def config_of(et_bbh, events_per_shard, workers, *flags):
    return et_bbh(
        f"--events={EVENTS}",
        "--seed=7",
        f"--events_per_shard={events_per_shard}",
        f"--cluster.workers={workers}",
        *flags,
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def by_one_worker(et_bbh, folders):
    """16 events a shard, one worker: what the others are compared with."""
    report = simulate_dataset(config_of(et_bbh, 16, 1), folders / "one.zarr")
    assert report.simulated == EVENTS
    assert report.workers == 1
    return folders / "one.zarr"


@pytest.fixture(scope="module")
def by_two_workers(et_bbh, folders):
    """The same by two workers."""
    simulate_dataset(config_of(et_bbh, 16, 2), folders / "two.zarr")
    return folders / "two.zarr"


@pytest.fixture(scope="module")
def in_larger_shards(et_bbh, folders):
    """The same events, 32 to a shard."""
    simulate_dataset(config_of(et_bbh, 32, 2), folders / "larger.zarr")
    return folders / "larger.zarr"


@pytest.fixture
def copy(by_one_worker, tmp_path):
    """A copy of the data set of one worker, to be damaged."""
    return Path(shutil.copytree(by_one_worker, tmp_path / "copy.zarr"))


def test_one_and_two_workers_leave_the_same_bytes(by_one_worker, by_two_workers):
    assert differing(by_one_worker, by_two_workers) == []
    assert len(digests(by_one_worker)) > 4 * 4  # four files for each shard, and the metadata


def test_the_comparison_of_folders_sees_one_bit_and_one_file(by_one_worker, copy):
    shard = copy / "strain/c/2/0/0"
    with shard.open("r+b") as file:
        file.seek(123_456)
        byte = file.read(1)[0]
        file.seek(123_456)
        file.write(bytes([byte ^ 1]))
    (copy / "extra").touch()
    assert differing(copy, by_one_worker) == ["extra", "strain/c/2/0/0"] + ["strain/c/2/0/0"]


def test_the_events_do_not_depend_on_the_sharding(by_one_worker, in_larger_shards):
    assert differing(by_one_worker, in_larger_shards) != []  # the files do
    ours, theirs = map(storage.open_dataset, (in_larger_shards, by_one_worker))
    assert ours.sizes["event"] == EVENTS
    for name in ("strain", "parameters", "optimal_snr"):
        assert ours[name].values.tobytes() == theirs[name].values.tobytes(), name


@pytest.mark.parametrize("number", [0, 17, 63])
def test_a_stored_event_is_the_event_of_the_pure_function(et_bbh, in_larger_shards, number):
    event = simulate_event(config_of(et_bbh, 8, 1).simulation, number)
    stored = storage.open_dataset(in_larger_shards).sel(event=number)
    assert stored.strain.values.tobytes() == event.strain.tobytes()
    assert np.array_equal(stored.parameters.values, event.parameters)
    assert np.array_equal(stored.optimal_snr.values, event.optimal_snr)


def test_the_draws_thrown_away_are_recorded(et_bbh, by_one_worker):
    manifests = read_manifests(by_one_worker, read_schema(by_one_worker))
    config = config_of(et_bbh, 8, 1).simulation
    expected = sum(sum(simulate_event(config, number).rejected.values()) for number in range(16))
    assert sum(manifests[0].rejected.values()) == expected


def test_a_complete_data_set_is_left_alone(et_bbh, by_one_worker):
    before = digests(by_one_worker)
    modified = {path: path.stat().st_mtime_ns for path in by_one_worker.rglob("*")}
    report = simulate_dataset(config_of(et_bbh, 16, 2), by_one_worker)
    assert report.simulated == 0
    assert digests(by_one_worker) == before
    assert {path: path.stat().st_mtime_ns for path in by_one_worker.rglob("*")} == modified


def test_a_rerun_simulates_only_what_is_missing(et_bbh, by_one_worker, copy):
    """A shard without its manifest, one with a truncated file and one with a lost file."""
    (copy / "manifest/000000.json").unlink()
    os.truncate(copy / "strain/c/1/0/0", 1_000_000)
    (copy / "parameters/c/2/0").unlink()
    (copy / "strain/c/0/0/0.partial").write_bytes(b"left by a writer that died")
    untouched = [path for path in copy.rglob("*") if "/3" in str(path.relative_to(copy))]
    before = {path: path.stat().st_mtime_ns for path in untouched}
    report = simulate_dataset(config_of(et_bbh, 16, 2), copy)
    assert report.simulated == 48
    assert before
    assert {path: path.stat().st_mtime_ns for path in untouched} == before
    assert differing(copy, by_one_worker) == []


def start_run(out, *flags):
    """Start the command line in a process group of its own."""
    recipe = "pipeline/recipes/et-bbh.yaml"
    words = ["simulate", f"--config={recipe}", f"--events={EVENTS}", "--seed=7", f"--out={out}"]
    words.append("--encoding=float32")
    return subprocess.Popen(
        [sys.executable, "-m", "strainflow", *words, "--events_per_shard=16", *flags],
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(path_pattern, folder, run):
    """Wait until a file is there, while the run goes on."""
    deadline = time.monotonic() + PATIENCE
    while not any(folder.glob(path_pattern)):
        assert run.poll() is None, f"the run ended before there was {path_pattern}"
        assert time.monotonic() < deadline, f"no {path_pattern} after {PATIENCE} s"
        time.sleep(0.005)


@pytest.mark.slow
def test_a_killed_run_is_taken_up_again_and_leaves_the_same_bytes(et_bbh, by_one_worker, folders):
    out = folders / "killed.zarr"
    run = start_run(out, "--cluster.workers=2")
    wait_for("strain/c/*/0/0.*.partial", out, run)
    os.killpg(run.pid, signal.SIGKILL)
    run.communicate()
    left = digests(out)
    assert [name for name in left if name.endswith(".partial")]
    assert differing(out, by_one_worker) != []
    report = simulate_dataset(config_of(et_bbh, 16, 2), out)
    assert 0 < report.simulated <= EVENTS
    assert differing(out, by_one_worker) == []


def test_a_killed_worker_leaves_the_same_bytes(by_one_worker, folders, workers_of):
    out = folders / "worker.zarr"
    run = start_run(out, "--cluster.workers=1", "--json")
    try:
        wait_for("strain/c/*/0/0.*.partial", out, run)
        (worker,) = workers_of(run)
        os.kill(worker, signal.SIGKILL)
        output, errors = run.communicate(timeout=PATIENCE)
    finally:
        run.kill()
    assert run.returncode == 0, errors
    assert "Dask dashboard: http://" in errors
    report = json.loads(output)
    assert report["out"] == str(out)
    assert (report["events"], report["simulated"], report["workers"]) == (EVENTS, EVENTS, 1)
    assert differing(out, by_one_worker) == []


@pytest.mark.slow
def test_an_interrupted_run_says_so_and_keeps_what_is_finished(folders, by_one_worker):
    out = folders / "interrupted.zarr"
    run = start_run(out, "--cluster.workers=1")
    try:
        wait_for("manifest/0*.json", out, run)
        os.killpg(run.pid, signal.SIGINT)  # as Ctrl-C in a terminal does: to the workers too
        _, errors = run.communicate(timeout=PATIENCE)
    finally:
        run.kill()
    assert run.returncode == 130, errors
    assert "interrupted; what is finished stays" in errors.splitlines()[-1]
    assert "Traceback" not in errors
    finished = [name for name in digests(out) if name.startswith("manifest/0")]
    assert finished
    assert not set(finished) & set(differing(out, by_one_worker))


PARTIAL = "strain/c/0/0/0.0123456789ab.partial"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left")])
@pytest.mark.parametrize("kind", ["local", "address"])
def test_what_workers_here_were_writing_is_removed_and_what_others_may_write_is_not(
    tmp_path, kind, error
):
    (tmp_path / PARTIAL).parent.mkdir(parents=True)
    (tmp_path / PARTIAL).touch()
    cluster = ClusterConfig(kind=kind, address=None if kind == "local" else "tcp://host:8786")
    with pytest.raises(type(error)), nothing_left_half_written(LocalStore(tmp_path), cluster):
        raise error
    assert (tmp_path / PARTIAL).exists() == (kind == "address")


def test_a_log_that_a_full_disk_does_not_take_is_named(tmp_path):
    (tmp_path / LOG).symlink_to("/dev/full")
    report = ShardReport(0, 1, 1, {}, (), 0.1, 0.1, "0", "here", 1)
    with pytest.raises(OSError, match="No space left") as told:
        RunLog(tmp_path).add(report)
    assert told.value.filename == str(tmp_path / LOG)


@pytest.mark.parametrize("to_workers_too", [False, True])
def test_a_run_that_sigterm_ends_keeps_what_is_finished_and_leaves_nothing_else(
    folders, by_one_worker, to_workers_too
):
    """As `timeout` sends it, or a batch system to all processes of a job."""
    out = folders / f"terminated-{to_workers_too}.zarr"
    run = start_run(out, "--cluster.workers=1")
    try:
        wait_for("manifest/0*.json", out, run)
        wait_for("strain/c/*/0/0.*.partial", out, run)
        (os.killpg if to_workers_too else os.kill)(run.pid, signal.SIGTERM)
        _, errors = run.communicate(timeout=PATIENCE)
    finally:
        run.kill()
    assert run.returncode == 143, errors
    assert errors.splitlines()[-1] == (
        "strainflow simulate: interrupted; what is finished stays, run it again to go on"
    )
    assert "Traceback" not in errors
    left = digests(out)
    assert not [name for name in left if name.endswith(".partial")]
    assert not (out.with_name(out.name + ".log") / "writer.json").exists()
    finished = [name for name in left if name.startswith("manifest/0")]
    assert finished
    assert not set(finished) & set(differing(out, by_one_worker))


@pytest.mark.parametrize(
    "flags",
    [("--seed=8",), ("--encoding=int16",), ("--prior.psi=1",), ("--waveform.f_ref=25",)],
)
def test_another_configuration_is_refused_and_changes_nothing(et_bbh, by_one_worker, flags):
    before = digests(by_one_worker)
    with pytest.raises(InputError, match="another configuration"):
        simulate_dataset(config_of(et_bbh, 16, 1, *flags), by_one_worker)
    assert digests(by_one_worker) == before


def test_the_same_psd_file_elsewhere_is_the_same_configuration(et_bbh, tmp_path):
    folder, made = tmp_path / "x.zarr", []
    for place in ("here", "there"):
        (tmp_path / place).mkdir()
        path = tmp_path / place / "psd.txt"
        path.write_text("5 1e-24\n5000 1e-24\n")
        config = et_bbh(f"--psd.file={path}")
        simulator = Simulator.from_config(config.simulation)
        create_dataset(folder, describe_dataset(config, simulator), simulator.psd)
        made.append(digests(folder))
    path.write_text("5 2e-24\n5000 1e-24\n")
    simulator = Simulator.from_config(config.simulation)
    create_dataset(folder, describe_dataset(config, simulator), simulator.psd)
    made.append(digests(folder))
    assert made[0] == made[1] != made[2]
