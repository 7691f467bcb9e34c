"""Toy events whose strain depends on two parameters, and a network trained on them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from model.checkpoint import config_to_bytes
from model.config import EmbeddingConfig, FlowConfig, OptimiserConfig, TrainConfig
from model.train import TrainReport, train
from storage.dataset import create_dataset
from storage.encodings import ENCODINGS
from storage.schema import Event, Parameter, Schema
from storage.writer import write_shard

torch.set_num_threads(1)  # as in the subprocesses below: sums are then made in the same order

START = 1126259642.3
TOY = Schema(
    events=240,
    events_per_shard=100,
    detectors=("E1", "E2"),
    samples=1024,
    sample_rate=1024.0,
    encoding=ENCODINGS["float32"],
    noisy=True,
    parameters=(
        Parameter("chirp_mass", "Msun", "Uniform(25, 100)", 25.0, 100.0),
        Parameter("phase", "rad", "0.5", 0.5, 0.5),
        Parameter("geocent_time", "s", f"Uniform({START}, {START + 0.2})", START, START + 0.2),
    ),
    frequencies=513,
    frequency_step=1.0,
    provenance={"band": [16.0, 512.0], "seed": 1},
)
SMALL_NETWORK = TrainConfig(
    embedding=EmbeddingConfig(patch=(4, 8), channels=(8, 16), condition=16),
    flow=FlowConfig(transforms=4, hidden=16, blocks=1, bins=4),
    optimiser=OptimiserConfig(learning_rate=5e-3),
    epochs=5,
    batch_size=20,
    validation=0.1,
    device="cpu",
)


def draw_event(schema: Schema, number: int) -> Event:
    """A burst: chirp_mass is its frequency, geocent_time its place; a function of the number."""
    draw = np.random.default_rng((number, schema.provenance["seed"]))
    mass, moment = draw.uniform(25, 100), draw.uniform(START, START + 0.2)
    time = np.arange(schema.samples) / schema.sample_rate - 0.1 - 4 * (moment - START)
    burst = np.sin(2 * np.pi * (20 + mass) * time) * np.exp(-((time / 0.03) ** 2))
    strain = np.outer(np.linspace(4, 3, len(schema.detectors)), burst)
    snr = np.linalg.norm(strain, axis=1)
    if schema.noisy:
        strain = strain + draw.standard_normal(strain.shape)
    return Event(number, strain.astype(np.float32), np.array([mass, 0.5, moment]), snr, {})


@pytest.fixture(scope="session")
def toy_data(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Write a toy data set with some facts changed; return its folder."""

    @cache
    def write(**changes: object) -> Path:
        schema = replace(TOY, **changes)
        folder = tmp_path_factory.mktemp("data") / "toy.zarr"
        create_dataset(folder, schema, np.ones((len(schema.detectors), schema.frequencies)))
        for shard in range(schema.shards):
            events = (draw_event(schema, number) for number in schema.events_of(shard))
            write_shard(folder, schema, shard, events)
        return folder

    return write


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
