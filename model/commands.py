"""The verbs of this package, as the front door calls them: what they print and their exit codes."""

import json as json_format
import os
import signal
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from model.config import CONFIG, TrainConfig
from storage.bench.feed import BUSY, FeedBenchConfig
from storage.errors import InputError

if TYPE_CHECKING:
    from model.train import TrainReport

RUN_ME_AGAIN = 85  # what HTCondor's manual takes for `checkpoint_exit_code`
NO_FURTHER = 1  # a process was lost before a step was saved: the next call would lose it as well


def train(*, config: TrainConfig, data: str, out: str, json: bool = False) -> int:
    """Train a network on a data set, or go on where a run stopped.

    Exit code 85 says that it wants to be run again: `--minutes` are over and the state is saved, or
    another rank is gone, but the run came further than it was.

    Args:
        config: The run.
        data: Folder of the data set.
        out: Folder of the run.
        json: Print the report as JSON.
    """
    from model.ranks import EndedElsewhereError, LostRankError
    from model.train import joined_ranks
    from model.train import train as train_network
    from storage.tables import allow_many_files

    allow_many_files()
    try:
        with joined_ranks(config) as ranks:
            report = train_network(config, data, out, ranks)
            if ranks.is_first:
                _say(report, config, json)
    except EndedElsewhereError as error:
        return error.code
    except LostRankError as error:
        print(f"strainflow train: {error}", file=sys.stderr)
        return RUN_ME_AGAIN if error.moved else NO_FURTHER
    finally:
        _leave_in_peace()
    if report.signal:
        return 128 + report.signal
    return RUN_ME_AGAIN if report.time_is_up else 0


def _say(report: "TrainReport", config: TrainConfig, json: bool) -> None:
    """Tell what a call of `train` did."""
    reason = f"signal {report.signal}" if report.signal else f"--minutes {config.minutes}"
    if json:
        print(json_format.dumps(asdict(report)))
    elif not report.finished:
        print(
            f"{report.run}: stopped by {reason} after step {report.steps} of "
            f"{report.total_steps}, the state is saved; run the same command again to go on",
            file=sys.stderr,
        )
    else:
        speed = f"{report.events / report.seconds:.0f} events/s, " if report.events else ""
        skipped = f"; {report.skipped:,} damaged events left out" if report.skipped else ""
        print(
            f"{report.run}: trained, {report.total_steps} steps ({speed}validation loss "
            f"{report.validation_loss:.3f} nats), embedding of "
            f"{report.embedding_parameters:,} parameters, on {report.device}; "
            f"loss curve in {report.picture}{skipped}"
        )


def _leave_in_peace() -> None:
    """Let no other rank's end change this one's exit code or cut its last sentence off.

    torchrun sends SIGTERM to all ranks when one has ended with another code than 0.
    """
    if os.environ.get("WORLD_SIZE", "1") != "1":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def info(data: str, /, *, json: bool = False) -> int:
    """Say what a data set or a run is, and how far, or what a folder of result files holds.

    Args:
        data: Folder of the data set, of the run, or of result files.
        json: Print it as JSON.
    """
    try:
        is_run = (Path(data) / CONFIG).is_file()
    except PermissionError as error:
        raise InputError(
            f"{data}: cannot be read ({error.strerror}); give yourself the right to read the folder"
        ) from None
    if not is_run:
        from storage.commands import info as info_of_data

        return info_of_data(data, json=json)
    from model.info import describe, summary

    facts = describe(data)
    print(json_format.dumps(asdict(facts)) if json else summary(facts))
    return 0


def sample(
    *,
    run: str,
    data: str,
    out: str,
    events: str = "",
    samples: int = 10000,
    seed: int = 0,
    device: str = "auto",
    checkpoint: Literal["best", "newest"] = "best",
    compile: bool | None = None,
    json: bool = False,
) -> int:
    """Draw posterior samples for events of a data set, one bilby result file an event.

    Args:
        run: Folder of the trained run.
        data: Folder of the data set.
        out: Folder of the result files.
        events: A range of events, such as 0:32; all by default.
        samples: Posterior samples an event.
        seed: Of the samples, and of the noise where the data set holds none.
        device: auto, cpu or cuda.
        checkpoint: best: of the epoch with the lowest validation loss; newest: of the last step.
        compile: Whether the flow's splines are compiled; by default on a GPU.
        json: Print the report as JSON.
    """
    from model.sample import SampleConfig, sample_dataset

    config = SampleConfig(
        events=events,
        samples=samples,
        seed=seed,
        device=device,
        checkpoint=checkpoint,
        compile=compile,
    )
    report = sample_dataset(config, run, data, out)
    if json:
        print(json_format.dumps(asdict(report)))
    elif report.sampled:
        print(
            f"{report.out}: {report.samples:,} samples for each of {report.sampled} events in "
            f"{report.seconds:.1f} s ({report.microseconds:.1f} us a sample an event)"
        )
    else:
        print(f"{report.out}: all {report.events} events were there")
    return 0


def diagnose(
    results: str, /, *, out: str, level: float = 0.05, corners: int = 3, json: bool = False
) -> int:
    """Check posterior samples against the truth; exit code 1 if they are not calibrated.

    Nor is it 0 where too few reweighted events have samples enough to tell.

    Args:
        results: Folder of the posterior files, before or after reweighting.
        out: Folder of the pictures and of the page that shows all.
        level: Of the verdict: good posteriors fail it with this probability.
        corners: How many corner plots to draw.
        json: Print the verdict as JSON.
    """
    from model.diagnose import diagnose as check
    from model.findings import summary

    diagnosis = check(results, out, level, corners)
    print(json_format.dumps(asdict(diagnosis)) if json else summary(diagnosis))
    return 0 if diagnosis.calibrated else 1


def bench_feed(
    data: str,
    /,
    *,
    config: FeedBenchConfig,
    run: str = "",
    make: float = 0.0,
    encoding: str = "",
    out: str = "bench",
    json: bool = False,
) -> int:
    """Feed a training step of known length, or a real one, and see whether it is kept busy.

    Args:
        data: The data set.
        config: What to measure.
        run: Folder of a run whose training step is fed, with its batch size and its way to stream;
            one that waits if not.
        make: GB of noise, as delivered, that are written to DATA first, a new folder, and removed.
        encoding: Encoding of the noise that --make writes; by default that of a simulation.
        out: Folder for the figures.
        json: Print the result as JSON.
    """
    from storage.bench import feed
    from storage.bench.report import publish
    from storage.bench.sets import there_or_made
    from storage.tables import allow_many_files

    allow_many_files()
    if run:
        from model.feed import step_of_run

        if make or encoding:
            raise InputError(
                "make: a run takes events as it was trained on; leave --run out, or --make and "
                "--encoding"
            )
        with step_of_run(run, data) as (batch_size, real):
            result = feed.bench_feed(replace(config, batch_size=batch_size), data, real)
    else:
        with there_or_made(data, make, encoding) as place:
            result = feed.bench_feed(config, place)
    publish(result, feed.summary(result), {}, "", out, "feed", json)
    return 0 if result.utilisation >= BUSY else 1
