"""Real HTCondor: a vacated job changes no byte, and jobs that never run are explained."""

import pytest
from daemons import wait_until
from runs import SHARDS, Run, digests

pytestmark = pytest.mark.services


def start(htcondor, out, *flags):
    return Run(out, htcondor.environment, *htcondor.flags, "--cluster.workers=2", *flags)


def test_a_vacated_job_comes_back_and_the_bytes_are_the_same(
    htcondor, by_one_local_worker, tmp_path
):
    out = tmp_path / "x.zarr"
    with start(htcondor, out) as run:
        run.wait_for_shards(SHARDS // 2)
        job, state = htcondor.jobs()[0].split()
        assert state == "2"  # running
        htcondor.vacate(job)
        assert run.end()[0] == 0
    events = (tmp_path / f"x.zarr.log/worker-{job.split('.')[0]}.log").read_text()
    assert "Job was evicted" in events
    assert digests(out) == by_one_local_worker
    wait_until(lambda: not htcondor.jobs(), "empty queue", patience=10)


@pytest.mark.parametrize(
    ("flag", "patience", "words"),
    [
        ("--cluster.memory=100GB", 4, "2 jobs idle; Of 1 machines, 1 are rejected by your job's"),
        (
            "--cluster.directives=['hold = True']",
            4,
            "2 jobs held (submitted on hold at user's request",
        ),
        # A job has to come to its end, which takes longer on a machine that is busy.
        ("--cluster.python=/no/python", 15, "output: /bin/sh: 1: /no/python: not found"),
    ],
)
def test_workers_that_never_come_are_explained_in_one_sentence(
    htcondor, tmp_path, flag, patience, words
):
    with start(htcondor, tmp_path / "x.zarr", flag, f"--cluster.patience={patience}") as run:
        code, message = run.end()
    assert code == 2
    assert message.startswith("strainflow simulate: cluster: ")
    assert "HTCondor says: " in message
    assert words in message
    wait_until(lambda: not htcondor.jobs(), "empty queue", patience=10)
