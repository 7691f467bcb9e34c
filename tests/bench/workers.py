"""How much faster two local workers are than one, in alternation.

python tests/bench/workers.py [EVENTS] [TIMES]
"""

import json
import statistics
import sys
import tempfile
from pathlib import Path

from pipeline.config import DatasetConfig
from pipeline.run import simulate_dataset
from strainflow import read_config


def main(events: int, times: int) -> None:
    recipe = "pipeline/recipes/et-bbh.yaml"
    rates: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(times):
        for workers, found in rates.items():
            flags = (f"--events={events}", "--events_per_shard=64", f"--cluster.workers={workers}")
            config = read_config(DatasetConfig, recipe, *flags)
            with tempfile.TemporaryDirectory(dir=".") as folder:
                report = simulate_dataset(config, Path(folder) / "x.zarr")
            found.append(report.simulated / report.seconds)
    ratios = [two / one for one, two in zip(rates[1], rates[2], strict=True)]
    figures = {
        "events_per_second": {f"{count} workers": found for count, found in rates.items()},
        "two_over_one": statistics.median(ratios),
        "smallest": min(ratios),
        "largest": max(ratios),
    }
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    numbers = [int(word) for word in sys.argv[1:]]
    main(*(numbers + [1536, 5][len(numbers) :]))
