"""The verbs of this package, as the front door calls them: what they print and their exit codes."""

import json as json_format
from dataclasses import asdict

from storage.bench import ReadBenchConfig
from storage.bench import bench_read as measure_reading
from storage.bench import summary as bench_summary
from storage.info import describe, summary


def info(data: str, /, *, json: bool = False) -> int:
    """Say what a data set is, from its metadata alone.

    Args:
        data: Folder of the data set.
        json: Print it as JSON.
    """
    facts = describe(data)
    print(json_format.dumps(asdict(facts)) if json else summary(facts))
    return 1 if facts.problems else 0


def bench_read(data: str, /, *, config: ReadBenchConfig, json: bool = False) -> int:
    """Measure reading a data set, against plain reads of the same files and stock webdataset.

    Args:
        data: Folder of the data set.
        config: What to measure.
        json: Print the result as JSON.
    """
    result = measure_reading(config, data)
    print(json_format.dumps(asdict(result)) if json else bench_summary(result))
    return 0
