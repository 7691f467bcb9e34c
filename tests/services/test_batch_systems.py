"""Whatever the batch system: walltime, Ctrl-C and a killed client cost time and nothing else."""

import re

import pytest
from daemons import wait_until
from runs import EVENTS, SHARDS, Run, digests, finished

pytestmark = pytest.mark.services

MANIFEST = re.compile(r"manifest/\d{6}\.json")


def start(system, out, *flags, **settings):
    return Run(out, system.environment, *system.flags, "--cluster.workers=2", *flags, **settings)


def test_ctrl_c_leaves_no_job_and_a_rerun_completes_the_same_bytes(
    batch_system, by_one_local_worker, tmp_path
):
    out = tmp_path / "x.zarr"
    with start(batch_system, out) as run:
        run.wait_for_shards(2)
        run.interrupt()
        code, message = run.end()
    assert code == 130
    assert "interrupted; what is finished stays" in message
    wait_until(lambda: not batch_system.jobs(), "empty queue", patience=10)
    # Besides, a job that was cancelled may have left a partial file; the rerun takes it away.
    kept = {name: left for name, left in digests(out).items() if MANIFEST.fullmatch(name)}
    assert 2 <= len(kept) < SHARDS
    assert kept.items() <= by_one_local_worker.items()
    modified = {name: (out / name).stat().st_mtime_ns for name in kept}
    with start(batch_system, out) as run:
        assert run.end()[0] == 0
    assert {name: (out / name).stat().st_mtime_ns for name in kept} == modified
    assert digests(out) == by_one_local_worker


def test_jobs_of_a_killed_client_end_by_themselves_and_a_rerun_leaves_the_same_bytes(
    batch_system, by_one_local_worker, tmp_path
):
    out = tmp_path / "x.zarr"
    with start(batch_system, out) as run:
        run.wait_for_workers(2)  # a worker that comes later waits 60 s for its scheduler
        run.kill()
    assert batch_system.jobs()
    took = wait_until(lambda: not batch_system.jobs(), "end of the jobs", patience=30)
    print(f"the jobs of a killed client ended after {took:.1f} s")
    assert finished(out) < SHARDS
    with start(batch_system, out) as run:
        assert run.end()[0] == 0
    assert digests(out) == by_one_local_worker


def test_jobs_that_reach_their_walltime_are_replaced(batch_system, by_one_local_worker, tmp_path):
    """A worker leaves at half of a walltime as short as this one."""
    out = tmp_path / "x.zarr"
    with start(batch_system, out, "--cluster.walltime=00:00:08", events=2 * EVENTS) as run:
        assert run.end()[0] == 0
    assert len(run.workers()) > 2
    left = digests(out)
    assert finished(out) == 2 * SHARDS
    assert not [name for name in left if name.endswith(".partial")]
    # The first shards are those of the smaller data set; its metadata is another, of which each
    # manifest holds the digest.
    ours = re.compile(r"(strain|parameters|optimal_snr)/c/.*")
    shards = {item for item in by_one_local_worker.items() if ours.fullmatch(item[0])}
    assert len(shards) > SHARDS
    assert shards <= left.items()
