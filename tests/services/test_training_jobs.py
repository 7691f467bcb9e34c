"""The job scripts of docs/training.md: a run that stops early is queued again until it is done."""

import json
import re
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace

import pytest
from daemons import wait_until
from runs import ROOT
from toy import SMALL_NETWORK, TOY, write_shards

from model.recipe import config_to_bytes

pytestmark = pytest.mark.services

EPOCHS, STEPS_AN_EPOCH = 40, 11
MINUTES = 0.1


@pytest.fixture
def job(tmp_path):
    """A folder with a recipe, a data set and a `strainflow` that is this checkout."""
    write_shards(tmp_path / "events.zarr", TOY, range(TOY.shards))
    recipe = replace(SMALL_NETWORK, epochs=EPOCHS)
    (tmp_path / "recipe.yaml").write_bytes(config_to_bytes(recipe))
    program = tmp_path / "strainflow"
    program.write_text(
        f'#!/bin/sh\nPYTHONPATH={ROOT} OMP_NUM_THREADS=1 exec {sys.executable} -m strainflow "$@"\n'
    )
    program.chmod(0o755)
    return tmp_path


def script(system, **replacements):
    """The script of the page for a batch system, with words replaced that have to be there."""
    page = (ROOT / "docs/training.md").read_text()
    text = re.search(rf"^### {system}\n+```\w*\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)[1]
    for old, new in replacements.items():
        assert old in text
        text = text.replace(old, new)
    return text


def calls(job):
    """The steps at which the calls of the run began, once it is done."""
    words = [job / "strainflow", "info", job / "run", "--json"]
    facts = json.loads(subprocess.run(words, check=True, capture_output=True).stdout)
    assert facts["finished"]
    assert facts["steps"] == EPOCHS * STEPS_AN_EPOCH
    return [call["step"] for call in facts["calls"]]


def is_over(slurm, output):
    """Whether the run is done; a job that waits two minutes to be queued again need not."""
    for line in slurm.jobs():
        number, state = line.split()[:2]
        if state == "PENDING":
            with suppress(subprocess.CalledProcessError):  # it has started meanwhile
                slurm.command("scontrol", "update", f"jobid={number}", "starttime=now")
    return output.is_file() and "run: trained" in output.read_text()


def test_slurm_queues_a_run_again_that_a_signal_stopped(slurm, job):
    text = script(
        "Slurm",
        **{" --gres=gpu:1": "", "strainflow train": "./strainflow train", " --minutes 225": ""},
    )
    (job / "job.sh").write_text(text)
    number = slurm.command("sbatch", "--parsable", f"--chdir={job}", str(job / "job.sh")).strip()
    wait_until((job / "run/best.pt").exists, "an epoch", patience=60)
    slurm.command("scancel", "--batch", "--signal=TERM", number)
    path = job / f"slurm-{number}.out"
    wait_until(lambda: is_over(slurm, path), "end of the run", patience=120, pause=0.5)
    output = path.read_text()
    assert "stopped by signal 15" in output
    steps = calls(job)
    assert len(steps) > 1
    assert steps == sorted(set(steps))


def test_htcondor_starts_a_run_again_that_stopped_early(htcondor, job):
    text = script(
        "HTCondor",
        **{
            "/path/to/.venv/bin/strainflow": str(job / "strainflow"),
            "/shared/events.zarr": str(job / "events.zarr"),
            "--minutes 60": f"--minutes {MINUTES}",
            "request_gpus            = 1\n": "",
            "= train.log\n": f"= {job}/train.log\ninitialdir = {job}\n",
        },
    )
    (job / "job.sub").write_text(text)
    htcondor.command("condor_submit", str(job / "job.sub"))
    wait_until(lambda: not htcondor.jobs(), "end of the job", patience=120)
    assert "return value 0" in (job / "train.log").read_text()
    steps = calls(job)
    assert len(steps) > 1
    assert steps == sorted(set(steps))
