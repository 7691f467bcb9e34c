"""The verbs of this package, as the front door calls them: what they print and their exit codes."""

import json as json_format
import sys
from dataclasses import asdict

from pipeline.cluster import ClusterConfig
from pipeline.config import DatasetConfig
from pipeline.cut import CutConfig, cut_dataset
from pipeline.plan import make_plan
from pipeline.plan import summary as plan_summary
from pipeline.recode import RecodeConfig, recode_dataset
from pipeline.repair import repair_dataset
from pipeline.repair import summary as repair_summary
from pipeline.reweight import ReweightConfig, reweight_results
from pipeline.reweight_report import summary as reweight_summary
from pipeline.run import RunReport, simulate_dataset
from pipeline.verify import summary as verify_summary
from pipeline.verify import verify_dataset
from storage.info import words_on_sources


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
    _say(json_format.dumps(asdict(result)) if json else plan_summary(result))
    return 0


def simulate(*, config: DatasetConfig, out: str, json: bool = False) -> int:
    """Simulate a data set on Dask, or what is missing of it.

    Args:
        config: What to simulate, and where.
        out: The data set: a folder, or a URL such as s3://bucket/events.zarr.
        json: Print the report as JSON.
    """
    report = simulate_dataset(config, out)
    rejected = (
        f"{report.rejected} draws outside the SNR window or a constraint, or without a waveform"
    )
    return _after_writing(report, json, "simulate", "simulated", f", {rejected}")


def recode(data: str, /, *, config: RecodeConfig, out: str, json: bool = False) -> int:
    """Write the events of a data set once more, in another encoding.

    Args:
        data: The data set to read.
        config: Into what, and where the work is done.
        out: The new data set.
        json: Print the report as JSON.
    """
    report = recode_dataset(config, data, out)
    code = _after_writing(report, json, "recode", "recoded", "")
    if not json:
        loss = f"largest SNR loss {report.largest_snr_loss:.2g} against its source"
        sources = words_on_sources(report.recoded_from) or "which had lost nothing"
        _say(f"{report.out}: {report.encoding}, {loss}, {sources}")
    return code


def cut(*, config: CutConfig, like: str, out: str, json: bool = False) -> int:
    """Cut events out of frames, whitened as simulated events are, as a data set.

    Args:
        config: What, and out of which frames.
        like: The data set whose configuration they are to fit: that the network was trained on.
        out: The new data set.
        json: Print the report as JSON.
    """
    return _after_writing(cut_dataset(config, like, out), json, "cut", "cut", "")


def verify(
    data: str,
    /,
    *,
    cluster: ClusterConfig = ClusterConfig(),  # noqa: B008  # frozen
    quick: bool = False,
    json: bool = False,
) -> int:
    """Find every byte of a data set that is damaged or missing.

    Args:
        data: The data set.
        cluster: Where its shards are read.
        quick: Look only at the presence and length of files.
        json: Print the findings as JSON.
    """
    report = verify_dataset(data, cluster, quick)
    _say(json_format.dumps(asdict(report)) if json else verify_summary(report))
    return 1 if report.findings else 0


def repair(
    data: str,
    /,
    *,
    cluster: ClusterConfig = ClusterConfig(),  # noqa: B008  # frozen
    accept: bool = False,
    json: bool = False,
) -> int:
    """Simulate damaged or missing shards again, bit for bit, and restore metadata.

    Args:
        data: The data set.
        cluster: Where shards are simulated.
        accept: Take shards whose bytes differ from the recorded ones, and record that.
        json: Print the report as JSON.
    """
    report = repair_dataset(data, cluster, accept)
    _say(json_format.dumps(asdict(report)) if json else repair_summary(report))
    return 1 if report.remaining else 0


def reweight(
    results: str,
    /,
    *,
    cluster: ClusterConfig = ClusterConfig(),  # noqa: B008  # frozen
    data: str | None = None,
    out: str | None = None,
    json: bool = False,
) -> int:
    """Give posterior samples their exact likelihoods: weights, efficiency, evidence.

    Exit code 1 if the samples of an event miss its posterior.

    Args:
        results: Folder that `strainflow sample` made.
        cluster: Where likelihoods are computed.
        data: The data set; by default the one that the result files name.
        out: Folder of the reweighted result files; by default `reweighted` in that of the results.
        json: Print what was found for each event as JSON.
    """
    report = reweight_results(ReweightConfig(results, data, out, cluster))
    _say(json_format.dumps(asdict(report)) if json else reweight_summary(report))
    return 1 if report.failed else 0


def _after_writing(report: RunReport, json: bool, verb: str, done: str, rest: str) -> int:
    """Say what a run wrote; the exit code says whether its shards pass their checks."""
    if json:
        _say(json_format.dumps(asdict(report)))
    elif report.simulated == 0:
        _say(f"{report.out}: complete, all {report.events:,} events were there")
    else:
        _say(
            f"{report.out}: complete, {report.simulated:,} of {report.events:,} events {done} "
            f"in {report.seconds:.1f} s by {report.workers} workers "
            f"({report.simulated / report.seconds:.1f} events/s, "
            f"{report.core_seconds / report.simulated:.4f} core-seconds an event, "
            f"{report.bytes / report.simulated / 1e3:.1f} kB an event){rest}"
        )
    if report.failed_checks:
        print(
            f"strainflow {verb}: {report.failed_checks} shards do not pass a check, "
            f"`strainflow info {report.out}` names them",
            file=sys.stderr,
        )
        return 1
    return 0


def _say(text: str) -> None:
    print(text)
    sys.stdout.flush()
