"""How well `plan` predicts a run: 60 s of calibration against 2,048 events, one after the other.

python tests/bench/plan_accuracy.py [EVENTS]
"""

import json
import sys
import tempfile
from pathlib import Path

from pipeline.config import DatasetConfig
from pipeline.plan import make_plan
from pipeline.run import simulate_dataset
from strainflow import read_config


def main(events: int) -> None:
    flags = (f"--events={events}", "--events_per_shard=64")
    config = read_config(DatasetConfig, "pipeline/recipes/et-bbh.yaml", *flags)
    plan = make_plan(config, 60.0, 256.0, None)
    with tempfile.TemporaryDirectory(dir=".") as folder:
        out = Path(folder) / "x.zarr"
        run = simulate_dataset(config, out)
        files = [path for path in out.rglob("*") if path.is_file()]
        size = sum(path.stat().st_size for path in files)
    figures = {
        "events": events,
        "core_seconds_per_event": run.core_seconds / events,
        "predicted_over_measured": {
            "core_hours": plan.core_hours * 3600 / run.core_seconds,
            "wall_time": plan.hours * 3600 / run.seconds,
            "bytes": plan.bytes / size,
            "files": plan.files / len(files),
            "draws": events / plan.accepted / (events + run.rejected),
        },
    }
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2048)
