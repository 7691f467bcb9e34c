"""What it costs to make events of polarisations: training steps beside those on stored strain.

python tests/bench/projection.py [TIMES] [BATCH]

Full-size events of recipes, their sources the same in both sets, and the network of
model/recipes/demo.yaml; steps in alternation, so that both have the same machine. Set
OMP_NUM_THREADS for the number of threads.
"""

import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from model.config import TrainConfig
from model.trainer import Trainer
from pipeline.config import DatasetConfig
from pipeline.description import describe_dataset
from pipeline.shard_task import simulate_shard
from pipeline.simulate import Simulator
from storage.dataset import create_dataset
from storage.info import describe
from strainflow import read_config

# The last has two different PSDs; at 8192 Hz its events are as large as the others'.
RECIPES = {"et-demo": (), "et-bbh": (), "hlv-bbh": ("--segment.sample_rate=8192",)}


def written(folder: Path, recipe: str, stored: str, events: int) -> Path:
    """A data set of signals, in this process."""
    flags = [f"--events={events}", "--noise=none", f"--stored={stored}"]
    flags += [f"--events_per_shard={events}", *RECIPES[recipe]]
    config = read_config(DatasetConfig, f"pipeline/recipes/{recipe}.yaml", *flags)
    simulator = Simulator.from_config(config.simulation)
    create_dataset(folder, describe_dataset(config, simulator), simulator.psd)
    simulate_shard(str(folder), 0)
    return folder


class Steps:
    """Training steps on one batch of a data set."""

    def __init__(self, data: Path, run: Path, batch: int) -> None:
        config = replace(
            read_config(TrainConfig, "model/recipes/demo.yaml"), batch_size=batch, validation=0.5
        )
        self.trainer = Trainer(config, data, run)
        self.batch = next(iter(self.trainer.training))
        self.trainer.learn(self.batch)  # memory

    def seconds(self) -> float:
        """How long a step takes."""
        start = time.perf_counter()
        self.trainer.learn(self.batch)
        return time.perf_counter() - start


def main(times: int, batch: int) -> None:
    print(f"{torch.get_num_threads()} threads, batches of {batch}, {times} pairs of steps")
    for recipe in RECIPES:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            steps, bytes_per_event = {}, {}
            for stored in ("strain", "polarisations"):
                data = written(folder / f"{stored}.zarr", recipe, stored, 2 * batch)
                bytes_per_event[stored] = describe(data).bytes_per_event
                steps[stored] = Steps(data, folder / stored, batch)
            pairs = [(steps["strain"].seconds(), steps["polarisations"].seconds())
                     for _ in range(times)]  # fmt: skip
        plain, projected = (statistics.median(column) for column in zip(*pairs, strict=True))
        more = sorted(1e3 * (second - first) / batch for first, second in pairs)
        print(
            f"{recipe:10} step {1e3 * plain / batch:6.2f} ms an event on strain "
            f"({bytes_per_event['strain']:,} bytes), {1e3 * projected / batch:6.2f} on "
            f"polarisations ({bytes_per_event['polarisations']:,} bytes): "
            f"{statistics.median(more):.2f} ms more ({more[0]:.2f} to {more[-1]:.2f}), "
            f"{projected / plain:.2f} times",
            flush=True,
        )


if __name__ == "__main__":
    numbers = [int(word) for word in sys.argv[1:3]]
    main(*(numbers + [10, 16][len(numbers) :]))
