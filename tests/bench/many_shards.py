"""What a run of very many shards costs the client: tasks a second, and its memory.

    python tests/bench/many_shards.py [SHARDS]

Empty shards (tasks that do nothing) go through the window and the progress report of a real run, on
two local workers.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

import psutil

from pipeline.cluster import ClusterConfig, connect
from pipeline.run import RunReport
from pipeline.runlog import RunLog, ShardReport
from pipeline.window import map_window
from storage.progress import progress_bar

EVENTS_PER_SHARD = 512


def empty_shard(shard: int) -> ShardReport:
    """What a worker sends back, without the work."""
    return ShardReport(shard, EVENTS_PER_SHARD, 0, {}, (), 1e-9, 0.0, "worker", "host", 1)


def main(shards: int) -> None:
    process = psutil.Process()
    figures: dict[str, float] = {"shards": shards, "events": shards * EVENTS_PER_SHARD}
    with tempfile.TemporaryDirectory() as folder:
        log = RunLog(Path(folder) / "x.zarr.log")
        report = RunReport("x.zarr", shards * EVENTS_PER_SHARD)
        memory = []
        with (
            connect(ClusterConfig(workers=2), Path(folder)) as cluster,
            progress_bar(shards * EVENTS_PER_SHARD, "event") as bar,
        ):
            start = time.perf_counter()
            for done, shard in enumerate(map_window(cluster, empty_shard, range(shards), 60)):
                report.add(shard)
                log.add(shard)
                bar.set_postfix_str(report.rates(), refresh=False)
                bar.update(shard.events)
                if done in (shards // 10, shards // 2, shards - 1):
                    memory.append(process.memory_info().rss / 1e6)
            figures["tasks_per_second"] = shards / (time.perf_counter() - start)
        figures |= dict(zip(("MB_at_10_percent", "MB_at_half", "MB_at_end"), memory, strict=True))
    figures["hours_for_1e9_events"] = 1e9 / EVENTS_PER_SHARD / figures["tasks_per_second"] / 3600
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000)
