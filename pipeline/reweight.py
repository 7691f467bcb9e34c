"""Posterior samples reweighted to the exact likelihood, on Dask: one result file an event.

A task is some samples of an event. They are cut the same way whatever the number of workers, and
what is found for a sample is a function of the sample and the data set. A result file is written
whole when the last of its event's tasks is done; a rerun passes over what is there.
"""

import hashlib
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.cluster import ClusterConfig, connect
from pipeline.evaluate import Samples, evaluate
from pipeline.reweight_event import STAGE, Gathered, Target
from pipeline.reweight_report import EventReport, ReweightReport
from pipeline.window import map_window
from storage.errors import InputError
from storage.posterior import Posterior
from storage.progress import progress_bar
from storage.results import REWEIGHTED, read_posterior, result_files, write_posterior
from storage.schema import GROUP_METADATA
from storage.urls import store_of


@dataclass(frozen=True)
class ReweightConfig:
    """What to reweight.

    Args:
        results: Folder that `strainflow sample` made.
        data: The data set; where None, the one that the result files name.
        out: Folder of the reweighted results; where None, the folder `reweighted` in `results`.
        cluster: Where the work is done.
    """

    results: str
    data: str | None = None
    out: str | None = None
    cluster: ClusterConfig = field(default_factory=ClusterConfig)

    @property
    def folder(self) -> Path:
        """Where reweighted results go."""
        return Path(self.results) / REWEIGHTED if self.out is None else Path(self.out)


def reweight_results(config: ReweightConfig) -> ReweightReport:
    """Reweight every event of a folder of results; those that are there are passed over.

    Args:
        config: What, and where.

    Raises:
        InputError: The results do not fit the data, or have no exact likelihood.
        DamagedDataError: A result file or the data set is damaged.
        KeyboardInterrupt: After everything was stopped; finished events stay.
    """
    files = result_files(config.results)
    first = read_posterior(files[0])
    _refuse_reweighted(first, files[0])
    data = config.data or _recorded_data(first, files[0])
    target = Target.of(data)
    target.require(first, files[0])
    target.prior.needs_phase(first.names)
    report = ReweightReport(str(config.folder), data, prior_share=target.prior.share)
    missing = []
    for path in files:
        there = _finished(config.folder, path)
        if there is None:
            missing.append(path)
        else:
            report.events.append(EventReport.of(there))
    if missing:
        _reweight(config, target, missing, len(first.samples), report)
    report.events.sort(key=lambda event: event.event)
    return report


def _recorded_data(posterior: Posterior, path: Path) -> str:
    """The data set that a result file names.

    Raises:
        InputError: It names none, or none is there.
    """
    data = posterior.data
    if not data:
        raise InputError(f"{path}: does not say which data set it is of; give it with --data")
    if not store_of(data).exists(GROUP_METADATA):
        raise InputError(
            f"{path}: names {data} as its data set, but there is none (looked up from "
            f"{Path.cwd()}); say with --data where it is now"
        )
    return data


def _refuse_reweighted(posterior: Posterior, path: Path) -> None:
    """Refuse what `reweight` made itself.

    Raises:
        InputError: It is that.
    """
    if posterior.exact is not None:
        raise InputError(
            f"{path}: is reweighted already; give the folder that `strainflow sample` made"
        )


def _finished(folder: Path, source: Path) -> Posterior | None:
    """The reweighted posterior of a file, if it is there.

    Raises:
        InputError: What is there was made from another file.
    """
    path = folder / source.name
    if not path.exists():
        return None
    posterior = read_posterior(path)
    recorded = posterior.provenance.get(STAGE)
    source_there = recorded.get("source_sha256") if isinstance(recorded, dict) else None
    if posterior.exact is None or source_there != _digest(source):
        raise InputError(
            f"{path}: was not made from {source} as that is now; delete the folder, or give "
            "another --out"
        )
    return posterior


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _reweight(
    config: ReweightConfig, target: Target, files: list[Path], samples: int, report: ReweightReport
) -> None:
    """Compute what is missing on Dask, and write each event when it is complete."""
    folder = config.folder
    events: dict[int, Gathered] = {}

    def pieces() -> Iterator[Samples]:
        for path in files:
            posterior = read_posterior(path)
            _refuse_reweighted(posterior, path)
            target.require(posterior, path)
            gathered = Gathered(posterior, _digest(path), target)
            events[posterior.event] = gathered
            yield from gathered.pieces()

    logs = folder.absolute().with_name(folder.name + ".log")
    with (
        connect(config.cluster, logs) as cluster,
        progress_bar(len(files) * samples, "sample") as bar,
    ):
        print(f"Dask dashboard: {cluster.client.dashboard_link}", file=sys.stderr)
        start = time.perf_counter()
        for done in map_window(cluster, evaluate, pieces(), config.cluster.patience):
            events[done.event].add(done)
            report.likelihoods += len(done.rows)
            report.core_seconds += done.core_seconds
            if events[done.event].complete:
                posterior = events.pop(done.event).reweighted()
                write_posterior(folder, posterior)
                report.events.append(EventReport.of(posterior))
                report.reweighted += 1
            report.seconds = time.perf_counter() - start
            bar.set_postfix_str(f"{report.microseconds:.0f} us/likelihood", refresh=False)
            bar.update(len(done.rows))
