"""Runs of the command line beside a batch system, and what they leave."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from daemons import wait_until

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "pipeline/recipes/et-demo.yaml"
EVENTS, EVENTS_PER_SHARD = 384, 8
SHARDS = EVENTS // EVENTS_PER_SHARD


def digests(folder):
    """SHA-256 of every file of a folder, by its path."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def finished(folder):
    """How many shards are finished."""
    return len(list(folder.glob("manifest/0*.json")))


class Run:
    """A run of `strainflow simulate`, in a session of its own; its end ends the process.

    Args:
        out: Folder of the data set.
        environment: Variables with which the batch system is found.
        flags: Further flags.
        events: Number of events.
    """

    def __init__(self, out, environment, *flags, events=EVENTS):
        words = ["simulate", f"--config={RECIPE}", f"--out={out}", f"--events={events}"]
        words += [f"--events_per_shard={EVENTS_PER_SHARD}", "--cluster.memory=1GB", *flags]
        # This checkout is tested, also where another one is installed.
        words.append(f"--cluster.setup=['export PYTHONPATH={ROOT}']")
        self.out = out
        self._process = subprocess.Popen(
            [sys.executable, "-m", "strainflow", *words],
            env={**environment, "PYTHONPATH": str(ROOT)},
            cwd=out.parent,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.kill()
        self._process.communicate()

    def wait_for_shards(self, count):
        """Wait until so many shards are finished, while the run goes on."""

        def are_there():
            assert self._process.poll() is None, self._process.communicate()[1]
            return finished(self.out) >= count

        wait_until(are_there, f"{count} shards in {self.out}", pause=0.005)

    def wait_for_workers(self, count):
        """Wait until so many workers have finished a shard each, while the run goes on."""
        wait_until(lambda: len(self.workers()) >= count, f"{count} workers", pause=0.005)
        assert self._process.poll() is None, "the run ended too soon"

    def workers(self):
        """The processes that have finished shards, from the run's log."""
        log = self.out.with_name(self.out.name + ".log") / "shards.jsonl"
        lines = log.read_text().splitlines() if log.exists() else []
        return {json.loads(line)["process"] for line in lines}

    def interrupt(self):
        """Press Ctrl-C: all processes of the terminal get it."""
        os.killpg(self._process.pid, signal.SIGINT)

    def kill(self):
        """End the client at once; jobs of a batch system are no processes of it."""
        self._process.kill()

    def end(self):
        """Wait for the end; return the exit code and the last line on standard error."""
        _, errors = self._process.communicate(timeout=180)
        assert "Traceback" not in errors, errors
        return self._process.returncode, errors.strip().splitlines()[-1]
