"""Real Slurm: a lost node changes no byte, and jobs that never run are explained."""

import pytest
from daemons import wait_until
from runs import SHARDS, Run, digests

pytestmark = pytest.mark.services


def start(slurm, out, *flags):
    return Run(out, slurm.environment, *slurm.flags, "--cluster.workers=2", *flags)


def test_a_node_that_is_set_down_changes_no_byte(slurm, by_one_local_worker, tmp_path):
    out = tmp_path / "x.zarr"
    with start(slurm, out) as run:
        run.wait_for_shards(SHARDS // 2)
        assert {line.split(maxsplit=1)[1] for line in slurm.jobs()} == {"RUNNING n1", "RUNNING n2"}
        slurm.lose_node("n2")
        assert "n2" not in "".join(slurm.jobs())
        assert run.end()[0] == 0
    assert digests(out) == by_one_local_worker
    wait_until(lambda: not slurm.jobs(), "empty queue", patience=10)


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--cluster.queue=none", "Slurm refuses the job: sbatch: error: invalid partition"),
        ("--cluster.memory=100GB", "Requested node configuration is not available"),
        ("--cluster.directives=['--hold']", "Slurm says: 2 jobs PENDING (JobHeldUser)"),
        ("--cluster.python=/no/python", "/no/python: No such file or directory"),
    ],
)
def test_workers_that_never_come_are_explained_in_one_sentence(slurm, tmp_path, flag, words):
    with start(slurm, tmp_path / "x.zarr", flag, "--cluster.patience=4") as run:
        code, message = run.end()
    assert code == 2
    assert message.startswith("strainflow simulate: cluster: ")
    assert words in message
    wait_until(lambda: not slurm.jobs(), "empty queue", patience=10)
