"""What a run is and how far it is, from its folder alone: `strainflow info RUN`."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.checkpoint import BEST, known, restore
from model.config import CONFIG
from model.folder import PICTURE, failures
from model.recipe import config_to_dict
from model.record import read_record
from model.schedule import epochs_done


@dataclass(frozen=True)
class RunInfo:
    """The answer of `strainflow info RUN`.

    Attributes:
        run: The folder.
        finished: Whether all epochs are done.
        data: The data set that it was last trained on; empty where that is not recorded.
        data_sha256: Of the data set's metadata.
        detectors: Their names.
        samples: Time samples of an event in each detector.
        sample_rate: [Hz].
        noisy: Whether the stored strain holds noise; if not, it is drawn in training.
        polarisations: Whether polarisations are stored, of which training makes the strain.
        parameters: That are inferred.
        embedding: Which front end.
        embedding_parameters: Weights in it.
        flow_parameters: Weights in the flow.
        steps: Steps done.
        epochs_done: Passes over the training events that are done.
        epochs: Of the whole run.
        events: Training events taken, counted each time.
        skipped: Damaged events that were left out, each counted once.
        train_loss: Of the last step, in nats; None before it.
        validation_loss: The last, in nats; None before the end of the first epoch.
        best_validation_loss: The lowest, in nats.
        best_step: Steps done when it was found.
        seconds: Wall time over all calls [s].
        data_wait: Share of it spent waiting for data.
        calls: When each call of `train` began, at which step, where, and with which versions.
        failures: Batches that ended it.
        picture: The loss curve; None where no call has ended yet.
        following: The command to go on with.
        configuration: All of it.
    """

    run: str
    finished: bool
    data: str
    data_sha256: str
    detectors: tuple[str, ...]
    samples: int
    sample_rate: float
    noisy: bool
    polarisations: bool
    parameters: tuple[str, ...]
    embedding: str
    embedding_parameters: int
    flow_parameters: int
    steps: int
    epochs_done: float
    epochs: int
    events: int
    skipped: int
    train_loss: float | None
    validation_loss: float | None
    best_validation_loss: float | None
    best_step: int | None
    seconds: float
    data_wait: float
    calls: list[Mapping[str, Any]]
    failures: list[str]
    picture: str | None
    following: str
    configuration: Mapping[str, Any]


def describe(run: str | Path) -> RunInfo:
    """Gather what is known of a run.

    Raises:
        InputError: It has no checkpoint yet, or one of another format version.
        DamagedDataError: Its checkpoint or its record is damaged.
    """
    folder = Path(run)
    state, record = restore(run), read_record(folder)
    config, tally = state.config, state.tally
    finished = state.stream["epoch"] >= config.epochs
    data = record.get("data", "")
    return RunInfo(
        run=str(run),
        finished=finished,
        data=data,
        data_sha256=state.data_digest,
        detectors=state.facts.detectors,
        samples=state.facts.samples,
        sample_rate=state.facts.sample_rate,
        noisy=state.facts.noisy,
        polarisations=state.facts.polarisations,
        parameters=state.theta.names,
        embedding=config.embedding.kind,
        embedding_parameters=_weights(state.network, "embedding."),
        flow_parameters=_weights(state.network, "flow."),
        steps=state.step,
        epochs_done=epochs_done(state.stream),
        epochs=config.epochs,
        events=tally.events,
        skipped=len(tally.skipped),
        train_loss=known(tally.train_loss),
        validation_loss=known(tally.validation_loss),
        best_validation_loss=known(tally.best_validation_loss),
        best_step=tally.best_step or None,
        seconds=tally.seconds,
        data_wait=tally.waited / tally.seconds if tally.seconds else 0.0,
        calls=list(record.get("calls", [])),
        failures=[str(path) for path in failures(folder)],
        picture=str(folder / PICTURE) if (folder / PICTURE).is_file() else None,
        following=_following(folder, data, finished),
        configuration=config_to_dict(config),
    )


def summary(facts: RunInfo) -> str:
    """Put it into words."""
    share = 100 * facts.epochs_done / facts.epochs
    optimiser = facts.configuration["optimiser"]
    versions = facts.calls[-1]["versions"] if facts.calls else {}
    best = f", best {_nats(facts.best_validation_loss)}"
    best += f" after step {facts.best_step:,} ({BEST})" if facts.best_step else ""
    lines = [
        f"{facts.run}: {'finished' if facts.finished else f'{share:.1f} % done'}",
        *(f"  problem     ended by the batch in {path}" for path in facts.failures),
        f"  data        {facts.data or 'not recorded'} (SHA-256 {facts.data_sha256[:12]}...), "
        f"{', '.join(facts.detectors)} x {facts.samples:,} samples at {facts.sample_rate:g} Hz, "
        f"{_content(facts)}",
        f"  infers      {', '.join(facts.parameters)}",
        f"  networks    embedding {facts.embedding} of {facts.embedding_parameters:,} parameters, "
        f"flow of {facts.flow_parameters:,}",
        f"  done        {facts.steps:,} steps, {facts.epochs_done:.2f} of {facts.epochs} epochs, "
        f"{facts.events:,} events, batches of {facts.configuration['batch_size']}, learning rate "
        f"up to {optimiser['learning_rate']:g}"
        + (f"; {facts.skipped:,} damaged events left out" if facts.skipped else ""),
        f"  loss        training {_nats(facts.train_loss)}, validation "
        f"{_nats(facts.validation_loss)}{best}",
        f"  time        {_duration(facts.seconds)} in {len(facts.calls)} calls, waiting for data "
        f"{100 * facts.data_wait:.1f} %",
        f"  runs on     {_machine(facts)}",
        f"  versions    {', '.join(f'{name} {number}' for name, number in versions.items())}",
        f"  loss curve  {facts.picture or 'when a call has ended'}",
        f"  next        {facts.following}",
    ]
    return "\n".join(lines)


def _content(facts: RunInfo) -> str:
    """What was trained on."""
    if facts.polarisations:
        return (
            "made of polarisations, in each step with new noise and what the prior leaves free of "
            "distance, direction and time"
        )
    return "signal and noise" if facts.noisy else "signals, with new noise in each step"


def _machine(facts: RunInfo) -> str:
    """Where the last call ran, and what made it faster there."""
    if not facts.calls:
        return "not recorded"
    call = facts.calls[-1]
    speed = call.get("speed", {})
    on = [name for name in ("channels_last", "fused", "compile") if speed.get(name)]
    ranks = f", {call['ranks']} processes" if call.get("ranks", 1) > 1 else ""
    flags = ", ".join([*([speed["precision"]] if "precision" in speed else []), *on])
    return f"{call['host']}, {call['device']}{ranks}" + (f": {flags}" if flags else "")


def _weights(network: Mapping[str, Any], prefix: str) -> int:
    return sum(value.numel() for name, value in network.items() if name.startswith(prefix))


def _following(folder: Path, data: str, finished: bool) -> str:
    run = shlex.quote(str(folder))
    if finished:
        return f"strainflow sample --run {run} --data TEST_DATA --out RESULTS"
    config = shlex.quote(str(folder / CONFIG))
    return f"strainflow train --config {config} --data {shlex.quote(data) or 'DATA'} --out {run}"


def _nats(loss: float | None) -> str:
    return "unknown yet" if loss is None else f"{loss:.3f} nats"


def _duration(seconds: float) -> str:
    """Seconds as hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
