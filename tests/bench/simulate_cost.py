"""What a whole event costs, in units of its bare LALSimulation call, in one run.

    OPENBLAS_NUM_THREADS=1 python tests/bench/simulate_cost.py [EVENTS]

Shards of the default recipe are simulated and written by the task of a worker; then the waveforms
are generated again, with the same parameters, by bare calls of LALSimulation. Both in
CPU seconds of one process, in alternation, so that a machine that changes its speed changes both.
"""

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import lalsimulation
import numpy as np

from pipeline.config import DatasetConfig
from pipeline.description import describe_dataset
from pipeline.memory import keep_freed_memory
from pipeline.priors import PARAMETERS
from pipeline.shard_task import simulate_shard
from pipeline.simulate import Simulator
from pipeline.waveform import lal_arguments
from storage.dataset import create_dataset
from storage.schema import shard_files
from strainflow import read_config


def main(events: int) -> None:
    recipe = "pipeline/recipes/et-bbh.yaml"
    config = read_config(DatasetConfig, recipe, f"--events={events}", "--seed=7")
    keep_freed_memory()
    simulator = Simulator.from_config(config.simulation)
    schema = describe_dataset(config, simulator)
    simulator.event(0)  # imports and tables, once a worker
    whole, bare = [], []
    with tempfile.TemporaryDirectory(dir=".") as folder:
        root = Path(folder) / "cost.zarr"
        create_dataset(root, schema, simulator.psd)
        for shard in range(schema.shards):
            report = simulate_shard(str(root), shard)
            whole.append(report.core_seconds / report.events)
            table = np.fromfile(root / shard_files(shard)["parameters"])
            table = table.reshape(-1, len(PARAMETERS))[: report.events]
            thrown_away = sum(report.rejected.values())  # these took a waveform each, too
            start = time.process_time()
            for row in (*table, *table[:thrown_away]):
                parameters = dict(zip(PARAMETERS, row.tolist(), strict=True))
                arguments = lal_arguments(parameters, config.waveform, config.segment)
                lalsimulation.SimInspiralChooseFDWaveform(*arguments)
            bare.append((time.process_time() - start) / report.events)
    ratios = [a / b for a, b in zip(whole, bare, strict=True)]
    figures = {
        "events": events,
        "whole_event_ms": 1e3 * statistics.median(whole),
        "bare_lal_ms": 1e3 * statistics.median(bare),
        "whole_over_bare": statistics.median(ratios),
        "smallest_ratio": min(ratios),
        "largest_ratio": max(ratios),
    }
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 4096)
