"""The verbs of this package, as the front door calls them: what they print and their exit codes."""

import json as json_format
import sys
from dataclasses import asdict

from pipeline.config import DatasetConfig
from pipeline.plan import make_plan, summary
from pipeline.run import simulate_dataset


def plan(
    *,
    config: DatasetConfig,
    seconds: float = 60.0,
    train_events_per_second: float = 256.0,
    scratch: str | None = None,
    json: bool = False,
) -> int:
    """Say what a data set would cost, from a short calibration on this machine.

    Args:
        config: What would be simulated, and where.
        seconds: For how long to calibrate [s].
        train_events_per_second: The rate of training to plan for.
        scratch: Folder for the calibration's events, which are removed at once.
        json: Print the plan as JSON.
    """
    result = make_plan(config, seconds, train_events_per_second, scratch)
    print(json_format.dumps(asdict(result)) if json else summary(result))
    sys.stdout.flush()
    return 0


def simulate(*, config: DatasetConfig, out: str, json: bool = False) -> int:
    """Simulate a data set on Dask, or what is missing of it.

    Args:
        config: What to simulate, and where.
        out: Folder of the data set.
        json: Print the report as JSON.
    """
    report = simulate_dataset(config, out)
    if json:
        print(json_format.dumps(asdict(report)))
    elif report.simulated == 0:
        print(f"{report.out}: complete, all {report.events:,} events were there")
    else:
        print(
            f"{report.out}: complete, {report.simulated:,} of {report.events:,} events simulated "
            f"in {report.seconds:.1f} s by {report.workers} workers "
            f"({report.simulated / report.seconds:.1f} events/s, "
            f"{report.core_seconds / report.simulated:.4f} core-seconds an event), "
            f"{report.rejected} draws outside the SNR window or a constraint, or without a waveform"
        )
    sys.stdout.flush()
    if report.failed_checks:
        print(
            f"strainflow simulate: {report.failed_checks} shards do not pass a check, "
            f"`strainflow info {report.out}` names them",
            file=sys.stderr,
        )
        return 1
    return 0
