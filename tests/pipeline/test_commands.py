"""What the verbs of the pipeline say, and their exit codes."""

import json

import pytest

from pipeline import commands
from pipeline.run import RunReport
from pipeline.runlog import ShardReport


def report(failed):
    """Of a run of two shards, where the second one may not pass a check."""
    run = RunReport("x.zarr", events=8, seconds=2.0, workers=1)
    for shard, checks in enumerate(((), failed)):
        run.add(ShardReport(shard, 4, 10**9, {"late": 1}, checks, 0.5, 1.0, "0", "here", 1))
    return run


def test_a_report_adds_up():
    run = report(())
    assert (run.simulated, run.rejected, run.bytes, run.core_seconds) == (8, 2, 2 * 10**9, 1.0)
    assert run.rates() == "0.1250 core-s/event, 2.00 GB"
    assert run.failed_checks == 0
    assert report(("null_stream",)).failed_checks == 1


@pytest.mark.parametrize(("failed", "code"), [((), 0), (("null_stream",), 1)])
def test_a_failed_check_is_exit_code_one(et_bbh, monkeypatch, capsys, failed, code):
    monkeypatch.setattr(commands, "simulate_dataset", lambda config, out: report(failed))
    assert commands.simulate(config=et_bbh(), out="x.zarr", json=True) == code
    said = capsys.readouterr()
    assert json.loads(said.out)["simulated"] == 8
    assert ("1 shards do not pass a check, `strainflow info x.zarr` names them" in said.err) == code
