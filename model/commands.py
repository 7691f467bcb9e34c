"""The verbs of this package, as the front door calls them: what they print and their exit codes."""

import json as json_format
import sys
from dataclasses import asdict

from model.config import TrainConfig


def train(*, config: TrainConfig, data: str, out: str, json: bool = False) -> int:
    """Train a network on a data set, or go on where a run stopped.

    Args:
        config: The run.
        data: Folder of the data set.
        out: Folder of the run.
        json: Print the report as JSON.
    """
    from model.train import train as train_network

    report = train_network(config, data, out)
    if json:
        print(json_format.dumps(asdict(report)))
    elif report.signal:
        print(
            f"{report.run}: stopped by signal {report.signal} after step {report.steps} of "
            f"{report.total_steps}, the state is saved; run the same command again to go on",
            file=sys.stderr,
        )
    else:
        speed = f"{report.events / report.seconds:.0f} events/s, " if report.events else ""
        print(
            f"{report.run}: trained, {report.total_steps} steps ({speed}validation loss "
            f"{report.validation_loss:.3f} nats), embedding of "
            f"{report.embedding_parameters:,} parameters, on {report.device}; "
            f"loss curve in {report.picture}"
        )
    return 128 + report.signal if report.signal else 0


def sample(
    *,
    run: str,
    data: str,
    out: str,
    events: str = "",
    samples: int = 10000,
    seed: int = 0,
    device: str = "auto",
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
        json: Print the report as JSON.
    """
    from model.sample import SampleConfig, sample_dataset

    config = SampleConfig(events=events, samples=samples, seed=seed, device=device)
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

    Args:
        results: Folder of the posterior files.
        out: Folder of the pictures.
        level: Of the test: good posteriors fail it with this probability.
        corners: How many corner plots to draw.
        json: Print the verdict as JSON.
    """
    from model.diagnose import diagnose as check
    from model.diagnose import summary

    diagnosis = check(results, out, level, corners)
    print(json_format.dumps(asdict(diagnosis)) if json else summary(diagnosis))
    return 0 if diagnosis.calibrated else 1
