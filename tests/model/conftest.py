"""Toy events whose strain depends on two parameters, and a network trained on them."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import training_ranks
from toy import SMALL_NETWORK, TOY, write_shards
from training_ranks import Group, Outcome

from model.config import TrainConfig
from model.recipe import config_to_bytes
from model.train import TrainReport, train
from storage.dataset import read_schema
from storage.schema import Schema

torch.set_num_threads(1)  # as in the subprocesses below: sums are then made in the same order


@pytest.fixture(scope="session")
def toy_data(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Write a toy data set with some facts changed; return its folder."""

    @cache
    def write(**changes: object) -> Path:
        schema = replace(TOY, **changes)
        folder = tmp_path_factory.mktemp("data") / "toy.zarr"
        write_shards(folder, schema, range(schema.shards))
        return folder

    return write


@pytest.fixture(scope="session")
def flip_bit() -> Callable[..., None]:
    """Flip a bit of an event's strain; a second call puts it right again."""

    def flip(folder: Path, event: int) -> None:
        per_shard = read_schema(folder).events_per_shard
        path = folder / f"strain/c/{event // per_shard}/0/0"
        content = bytearray(path.read_bytes())
        index = np.frombuffer(content[-16 * per_shard - 4 : -4], "<u8").reshape(per_shard, 2)
        offset, length = index[event % per_shard].tolist()
        content[offset + length // 2] ^= 8
        path.write_bytes(content)

    return flip


@pytest.fixture(scope="session")
def schema() -> Schema:
    """What the toy data set is."""
    return TOY


@pytest.fixture(scope="session")
def config() -> TrainConfig:
    """A small network, trained for seconds."""
    return SMALL_NETWORK


@pytest.fixture(scope="session")
def trained(
    toy_data: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, TrainReport]:
    """A network trained on signals without noise, and its report. Not to be written to."""
    run = tmp_path_factory.mktemp("run") / "toy"
    return run, train(SMALL_NETWORK, toy_data(noisy=False), run)


@pytest.fixture
def shell(tmp_path: Path) -> Callable[..., subprocess.Popen]:
    """Start `strainflow train` in a process of its own; ended at the test's end if need be."""
    processes = []

    def start(config: TrainConfig, data: Path, run: Path) -> subprocess.Popen:
        recipe = tmp_path / "recipe.yaml"
        recipe.write_bytes(config_to_bytes(config))
        words = [sys.executable, "-m", "strainflow", "train", "--config", str(recipe)]
        words += ["--data", str(data), "--out", str(run)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        processes.append(
            subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True)
        )
        return processes[-1]

    yield start
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.fixture(scope="session")
def interrupt() -> Callable[..., int]:
    """Send a signal some time after a run's first checkpoint; return the exit code."""

    def interrupt(process: subprocess.Popen, run: Path, number: signal.Signals, delay: float):
        deadline = time.monotonic() + 60
        while not (run / "checkpoint.pt").exists():
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline, "no checkpoint within a minute"
            time.sleep(0.01)
        time.sleep(delay)
        process.send_signal(number)
        return process.wait(60)

    return interrupt


@pytest.fixture(scope="session")
def launcher() -> subprocess.Popen:
    """Starts groups of ranks without importing each time."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    words = [sys.executable, training_ranks.__file__]
    with subprocess.Popen(
        words, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        process.stdin.close()


@pytest.fixture
def start_ranks(
    launcher: subprocess.Popen, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Outcome]:
    """Let some ranks train; return what became of them."""

    def start(ranks: int, config: TrainConfig, data: Path, run: Path, **options: object) -> Outcome:
        folder = tmp_path_factory.mktemp("ranks")
        (folder / "recipe.yaml").write_bytes(config_to_bytes(config))
        words = ["train", "--config", str(folder / "recipe.yaml"), "--data", str(data)]
        group = Group(str(folder), ranks, [*words, "--out", str(run)], **options)
        launcher.stdin.write(json.dumps(asdict(group)) + "\n")
        launcher.stdin.flush()
        outcome = Outcome(*json.loads(launcher.stdout.readline()))
        for rank in range(ranks):
            outcome.said.append((folder / f"{rank}.said").read_text())
            for line in (folder / f"{rank}.events").read_text().splitlines():
                step, events = json.loads(line)
                outcome.steps.setdefault(step, []).append(events)
        return outcome

    return start
