"""The log of a run: which worker did which shard, when, and at what cost.

It lies beside the data set, in `NAME.log/`, because the data set itself holds nothing that differs
from one run to the next. Runs append to it; it may be deleted at any time.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from storage.errors import naming

LOG = "shards.jsonl"


@dataclass(frozen=True)
class ShardReport:
    """What a worker says of a shard that it has written.

    Attributes:
        shard: Its number.
        events: How many it holds.
        bytes: Of all its files.
        rejected: Draws thrown away, counted by reason.
        failed_checks: Names of the checks that it does not pass.
        core_seconds: CPU time it took [s].
        seconds: Wall time it took [s].
        worker: Dask's name of the worker.
        host: On which machine it ran.
        process: Its process there.
    """

    shard: int
    events: int
    bytes: int
    rejected: Mapping[str, int]
    failed_checks: tuple[str, ...]
    core_seconds: float
    seconds: float
    worker: str
    host: str
    process: int


@dataclass(frozen=True)
class RunLog:
    """Appends one line of JSON for each finished shard.

    Attributes:
        folder: Of the log; batch jobs leave there what they print, too.
    """

    folder: Path

    def add(self, report: ShardReport) -> None:
        """Append what became of a shard."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        self.folder.mkdir(parents=True, exist_ok=True)
        with naming(self.folder / LOG), (self.folder / LOG).open("a") as file:
            file.write(json.dumps({"finished": now, **asdict(report)}) + "\n")
