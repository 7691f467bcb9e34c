"""What a whole event costs, in units of its bare LALSimulation call, in one run.

    python tests/bench/simulate_cost.py [EVENTS]

Events of the default recipe are simulated and written; then the waveform is generated again with
the same parameters by bare calls of `SimInspiralChooseFDWaveform`. Both in CPU seconds of one
process, in alternation by blocks, so that a machine that changes its speed changes both.
"""

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import lalsimulation

from pipeline.config import DatasetConfig
from pipeline.memory import keep_freed_memory
from pipeline.priors import PARAMETERS
from pipeline.run import describe_dataset
from pipeline.simulate import Simulator
from pipeline.waveform import lal_arguments
from storage.dataset import create_dataset
from storage.writer import write_shard
from strainflow import read_config

BLOCK = 64


def main(events: int) -> None:
    recipe = "pipeline/recipes/et-bbh.yaml"
    flags = (f"--events={events}", f"--events_per_shard={BLOCK}", "--seed=7")
    config = read_config(DatasetConfig, recipe, *flags)
    keep_freed_memory()
    simulator = Simulator.from_config(config.simulation)
    schema = describe_dataset(config, simulator)
    simulator.event(0)  # imports and tables, once a worker
    simulate, write, bare = [], [], []
    with tempfile.TemporaryDirectory(dir=".") as folder:
        root = create_dataset(Path(folder) / "cost.zarr", schema, simulator.psd)
        for shard in range(schema.shards):
            start = time.process_time()
            made = [simulator.event(number) for number in schema.events_of(shard)]
            simulated = time.process_time()
            write_shard(root, schema, shard, iter(made))
            written = time.process_time()
            for event in made:
                parameters = dict(zip(PARAMETERS, event.parameters, strict=True))
                arguments = lal_arguments(parameters, config.waveform, config.segment)
                for _ in range(1 + sum(event.rejected.values())):
                    lalsimulation.SimInspiralChooseFDWaveform(*arguments)
            ended = time.process_time()
            simulate.append((simulated - start) / len(made))
            write.append((written - simulated) / len(made))
            bare.append((ended - written) / len(made))
    whole = [a + b for a, b in zip(simulate, write, strict=True)]
    ratios = [a / b for a, b in zip(whole, bare, strict=True)]
    figures = {
        "events": events,
        "bare_lal_ms": 1e3 * statistics.median(bare),
        "simulate_ms": 1e3 * statistics.median(simulate),
        "write_ms": 1e3 * statistics.median(write),
        "whole_over_bare": statistics.median(ratios),
        "smallest_ratio": min(ratios),
        "largest_ratio": max(ratios),
    }
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 512)
