"""A run's folder: what may lie in it, and whether a run may begin or go on there.

RUN/config.yaml      the resolved configuration
RUN/run.json         the data set with its digest, and each call with its versions
RUN/checkpoint.pt    where the run stands (`model.checkpoint`)
RUN/best.pt          the same, of the epoch with the lowest validation loss
RUN/history.csv      one line a step (`model.history`)
RUN/failed-*.pt      batches that ended it (`model.failure`)
RUN/tensorboard/     for TensorBoard, if it was asked for
RUN/loss.png         the loss curve
RUN/writer.json      who trains into it now
"""

import sys
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import yaml

from model.checkpoint import BEST, CHECKPOINT, Checkpoint, restore
from model.config import CONFIG, SpeedConfig, TrainConfig
from model.history import HISTORY
from model.recipe import config_from_dict, config_to_bytes
from storage.errors import InputError
from storage.files import write_atomically
from storage.local import WRITER, LocalStore
from storage.schema import GROUP_METADATA
from storage.stream_config import StreamConfig

RECORD, PICTURE, TENSORBOARD, FAILURES = "run.json", "loss.png", "tensorboard", "failed-*.pt"


def require_place(folder: Path) -> None:
    """Refuse a place that results or pictures would spoil.

    Raises:
        InputError: It is a file, or holds a data set or a run.
    """
    _refuse_file(folder)
    for name, what in ((GROUP_METADATA, "data set"), (CONFIG, "run")):
        if (folder / name).exists():
            raise InputError(f"{folder}: holds a {what} ({name}); give another --out")


def restore_if_there(
    config: TrainConfig, data: str | Path, run: Path, data_digest: str
) -> Checkpoint | None:
    """The checkpoint to go on from, None for a new run.

    Args:
        config: What the run has to be configured as.
        data: The data set, for messages.
        run: The run's folder.
        data_digest: Of the data set's metadata.

    Raises:
        InputError: The folder holds a run of another configuration or data set, or something else.
        DamagedDataError: The checkpoint cannot be read.
    """
    newest = (run / CHECKPOINT).exists()
    if not newest and not (run / BEST).exists():
        _refuse_file(run)
        _refuse_foreign_folder(config, run)
        return None
    checkpoint = restore(run, which="newest" if newest else "best")
    if _what_decides(checkpoint.config) != _what_decides(config):
        raise InputError(
            f"{run}: holds a run of another configuration; give another --out, or "
            f"--config {run / CONFIG}"
        )
    if checkpoint.data_digest != data_digest:
        raise InputError(
            f"{run}: was trained on another data set than {data}; give that one, or another --out"
        )
    if not newest:  # as when it was damaged and deleted: the best is a state like any other
        write_atomically(run / CHECKPOINT, (run / BEST).read_bytes())
        print(
            f"strainflow train: {run} has no {CHECKPOINT}; it goes on from {BEST}, step "
            f"{checkpoint.step:,}",
            file=sys.stderr,
        )
    return checkpoint


def only_training(run: Path) -> AbstractContextManager[None]:
    """Hold a run's folder against a second process that would train into it.

    Raises:
        InputError: Another process holds it, or it is a file.
    """
    _refuse_file(run)
    return LocalStore(run).only_writer(inside=True)


def write_config(run: Path, config: TrainConfig) -> None:
    """Write the resolved configuration beside the weights."""
    write_atomically(run / CONFIG, config_to_bytes(config))


def failures(run: Path) -> list[Path]:
    """The batches that ended a run, in the order of their steps."""
    return sorted(run.glob(FAILURES))


def _what_decides(config: TrainConfig) -> TrainConfig:
    """The configuration without what changes nothing but the speed."""
    stream = StreamConfig(
        window=config.stream.window, damaged=config.stream.damaged, growing=config.stream.growing
    )
    return replace(
        config,
        stream=stream,
        accumulate=1,
        checkpoint_minutes=1.0,
        minutes=None,
        tensorboard=False,
        speed=SpeedConfig(),
        device="auto",
    )


def _refuse_file(run: Path) -> None:
    if run.is_file():
        raise InputError(f"{run}: is a file; give the name of a folder to create")


def _refuse_foreign_folder(config: TrainConfig, run: Path) -> None:
    """Accept what a run of this configuration that died before its first checkpoint left."""
    files = {CONFIG, RECORD, HISTORY, BEST, PICTURE, WRITER, f"{WRITER}.new"}
    ours = files | {TENSORBOARD} | {path.name for path in failures(run)}
    partial = {f"{name}.partial" for name in (*files, CHECKPOINT)}
    entries = {path.name for path in run.iterdir()} if run.is_dir() else set()
    if foreign := sorted(entries - ours - partial):
        raise InputError(f"{run}: is no run but holds {foreign[0]}; give a new or an empty folder")
    path = run / CONFIG
    if path.exists() and not _holds(path, config):
        raise InputError(
            f"{run}: holds the {CONFIG} of something else; give a new or an empty folder"
        )


def _holds(path: Path, config: TrainConfig) -> bool:
    """Whether a file holds this configuration, but for what changes only the speed."""
    try:
        there = config_from_dict(yaml.safe_load(path.read_bytes()))
    except Exception:  # whatever else it holds, it is not ours
        return False
    return _what_decides(there) == _what_decides(config)
