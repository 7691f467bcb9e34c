"""The verbs of this package, as the front door calls them: what they print and their exit codes."""

import json as json_format
from dataclasses import asdict

from storage.bench import compare, read, write
from storage.bench.compare import CompareBenchConfig
from storage.bench.read import ReadBenchConfig
from storage.bench.report import publish
from storage.bench.sets import there_or_made
from storage.bench.write import WriteBenchConfig
from storage.info import describe, summary
from storage.results_info import describe_results, holds_results, summary_of_results
from storage.tables import allow_many_files


def info(data: str, /, *, json: bool = False) -> int:
    """Say what a data set is, from its metadata alone, or what a folder of result files holds.

    Args:
        data: Folder of the data set, or of result files.
        json: Print it as JSON.
    """
    if holds_results(data):
        found = describe_results(data)
        print(json_format.dumps(asdict(found)) if json else summary_of_results(found))
        return 0
    facts = describe(data)
    print(json_format.dumps(asdict(facts)) if json else summary(facts))
    return 1 if facts.problems else 0


def bench_read(
    data: str,
    /,
    *,
    config: ReadBenchConfig,
    make: float = 0.0,
    encoding: str = "",
    out: str = "bench",
    json: bool = False,
) -> int:
    """Measure reading a data set against the disk, the page cache and the codec.

    Args:
        data: Folder of the data set.
        config: What to measure.
        make: GB of noise, as delivered, that are written to DATA first, a new folder, and removed.
        encoding: Encoding of the noise that --make writes; by default that of a simulation.
        out: Folder for the figures and the picture.
        json: Print the result as JSON.
    """
    allow_many_files()
    with there_or_made(data, make, encoding) as place:
        result = read.bench_read(config, place)
    panels = {"from the page cache": result.warm, "from the disk": result.cold}
    title = f"Reading {result.gigabytes:.1f} GB of {result.encoding}"
    publish(result, read.summary(result), panels, title, out, "read", json)
    return 0


def bench_write(
    *, folder: str, config: WriteBenchConfig, out: str = "bench", json: bool = False
) -> int:
    """Measure writing shards of every encoding, against plain writes of as many bytes.

    Args:
        folder: On the disk to be measured; what is written there is removed.
        config: What to measure.
        out: Folder for the figures and the picture.
        json: Print the result as JSON.
    """
    result = write.bench_write(config, folder)
    publish(
        result,
        write.summary(result),
        {"": result.rates},
        "Writing, one process",
        out,
        "write",
        json,
    )
    return 0


def bench_compare(
    data: str,
    /,
    *,
    config: CompareBenchConfig,
    make: float = 0.0,
    encoding: str = "",
    out: str = "bench",
    json: bool = False,
) -> int:
    """Measure other loaders on the same events, each at its best, in alternation.

    Args:
        data: Folder of the data set.
        config: What to measure.
        make: GB of noise, as delivered, that are written to DATA first, a new folder, and removed.
        encoding: Encoding of the noise that --make writes; by default that of a simulation.
        out: Folder for the figures and the picture.
        json: Print the result as JSON.
    """
    allow_many_files()
    with there_or_made(data, make, encoding) as place:
        result = compare.bench_compare(config, place)
    title = f"{result.gigabytes:.1f} GB of {result.encoding} from the page cache"
    publish(result, compare.summary(result), {"": result.rates}, title, out, "compare", json)
    return 0
