"""A run's folder: configuration, checkpoint, history of the loss.

    RUN/config.yaml      the resolved configuration
    RUN/checkpoint.pt    weights, optimiser, and where the run stands: tensors and plain values only
    RUN/history.csv      one line every few steps

The checkpoint is written whole or not at all, and everything random in a run is a function of
(seed, step): so it needs no state of a random number generator.
"""

import csv
import io
import math
import zipfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentParser, set_parsing_settings
from torch import Tensor

from model.config import TrainConfig
from model.estimator import DataFacts, Estimator
from model.parameters import ParameterMap
from storage.errors import DamagedDataError, InputError
from storage.files import write_atomically

# A recipe names values, never code: jsonargparse would import what `class_path` names.
set_parsing_settings(import_path_denylist=["*"], import_path_allowlist=["model"])

FORMAT_VERSION = 1
CONFIG, CHECKPOINT, HISTORY = "config.yaml", "checkpoint.pt", "history.csv"
DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True)
class Checkpoint:
    """Where a run stands.

    Attributes:
        config: Its configuration.
        facts: Of the data.
        theta: Between theta and the flow's space.
        data_digest: Of the data set's metadata.
        step: Steps done.
        stream: State of the loader.
        network: Weights.
        optimiser: State of the optimiser.
    """

    config: TrainConfig
    facts: DataFacts
    theta: ParameterMap
    data_digest: str
    step: int
    stream: dict[str, int]
    network: dict[str, Tensor]
    optimiser: dict[str, Any]


def save(run: Path, checkpoint: Checkpoint) -> None:
    """Replace the run's checkpoint."""
    content = {
        "format_version": FORMAT_VERSION,
        "config": config_to_dict(checkpoint.config),
        "facts": asdict(checkpoint.facts),
        "theta": checkpoint.theta.to_dict(),
        **{
            name: getattr(checkpoint, name)
            for name in ("data_digest", "step", "stream", "network", "optimiser")
        },
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_atomically(run / CHECKPOINT, buffer.getvalue())


def restore(run: str | Path, device: str = "cpu") -> Checkpoint:
    """Read the run's checkpoint.

    Raises:
        InputError: There is none, or it is of another format version.
        DamagedDataError: It cannot be read.
    """
    path = Path(run) / CHECKPOINT
    if not path.is_file():
        raise InputError(
            f"{run}: no trained run there (no {CHECKPOINT}); give a folder that "
            "`strainflow train` made"
        )
    try:
        _refuse_altered_bytes(path)
        content = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged file
        raise DamagedDataError(
            f"{path}: cannot be read, the file is damaged ({type(error).__name__}); delete the "
            "folder and train again"
        ) from None
    if not isinstance(content, dict) or content.pop("format_version", None) != FORMAT_VERSION:
        raise InputError(f"{path}: is of another format version; use the strainflow that wrote it")
    facts = content.pop("facts")
    facts["detectors"] = tuple(facts["detectors"])
    return Checkpoint(
        config=config_from_dict(content.pop("config")),
        facts=DataFacts(**facts),
        theta=ParameterMap.from_dict(content.pop("theta")),
        **content,
    )


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
    if not (run / CHECKPOINT).exists():
        if run.is_file():
            raise InputError(f"{run}: is a file; give the name of a folder to create")
        _refuse_foreign_folder(config, run)
        return None
    checkpoint = restore(run)
    if _what_decides(checkpoint.config) != _what_decides(config):
        raise InputError(
            f"{run}: holds a run of another configuration; give another --out, or "
            f"--config {run / CONFIG}"
        )
    if checkpoint.data_digest != data_digest:
        raise InputError(
            f"{run}: was trained on another data set than {data}; give that one, or another --out"
        )
    return checkpoint


def _what_decides(config: TrainConfig) -> TrainConfig:
    """The configuration without what changes nothing but the speed."""
    return replace(config, threads=1, checkpoint_minutes=1.0, device="auto")


def _refuse_altered_bytes(path: Path) -> None:
    """Compare the checksums in the archive that a checkpoint is; torch does not."""
    with zipfile.ZipFile(path) as archive:
        if name := archive.testzip():
            raise zipfile.BadZipFile(name)


def load(run: str | Path, device: str = "auto") -> Estimator:
    """Load a trained estimator.

    Args:
        run: The run's folder.
        device: auto: a GPU where there is one.

    Raises:
        InputError: There is no trained run.
        DamagedDataError: Its checkpoint cannot be read.
    """
    checkpoint = restore(run)
    estimator = Estimator(checkpoint.config, checkpoint.facts, checkpoint.theta)
    estimator.load_state_dict(checkpoint.network)
    return estimator.to(choose_device(device)).eval()


def choose_device(name: str) -> torch.device:
    """Resolve `auto`; refuse a GPU that is not there.

    Raises:
        InputError: It is no device, or CUDA was asked for and is not available.
    """
    available = torch.cuda.is_available()
    if name not in DEVICES:
        raise InputError(f"device: got {name!r}, known are {', '.join(DEVICES)}")
    if name == "cuda" and not available:
        raise InputError(
            "device: cuda was asked for, but this PyTorch sees no GPU; use cpu or auto"
        )
    return torch.device(("cuda" if available else "cpu") if name == "auto" else name)


class History:
    """The loss over the steps, one line in a CSV file for each entry.

    Entries of steps that the checkpoint does not know (the run died after them) are dropped.
    """

    FIELDS = ("step", "epoch", "train_loss", "validation_loss", "learning_rate",
              "events_per_second", "data_wait")  # fmt: skip

    def __init__(self, run: Path, step: int) -> None:
        self._path = run / HISTORY
        self.rows = [row for row in read_history(run) if int(row["step"]) <= step]
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self.FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        write_atomically(self._path, text.getvalue().encode())

    def add(self, **values: float | str) -> None:
        """Append an entry."""
        row = {name: str(values.get(name, "")) for name in self.FIELDS}
        self.rows.append(row)
        with self._path.open("a", newline="") as file:
            csv.DictWriter(file, self.FIELDS, lineterminator="\n").writerow(row)

    def last(self, name: str) -> float:
        """The last entry of a column that has one; NaN where there is none."""
        values = [row[name] for row in self.rows if row[name]]
        return float(values[-1]) if values else math.nan


def read_history(run: Path) -> list[dict[str, str]]:
    """Read the history of a run; empty where there is none."""
    path = run / HISTORY
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def config_to_dict(config: TrainConfig) -> dict[str, Any]:
    """Plain values of a configuration."""
    document = asdict(config)
    document["parameters"] = list(config.parameters)
    document["embedding"]["channels"] = list(config.embedding.channels)
    document["embedding"]["patch"] = list(config.embedding.patch)
    return document


def config_from_dict(document: dict[str, Any]) -> TrainConfig:
    """Read a configuration back; the inverse of `config_to_dict`."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", type=TrainConfig)
    return parser.instantiate(parser.parse_object({"config": document})).config  # type: ignore[no-any-return]


def config_to_bytes(config: TrainConfig) -> bytes:
    """The content of a run's configuration file."""
    return yaml.safe_dump(config_to_dict(config), sort_keys=False).encode()


def write_config(run: Path, config: TrainConfig) -> None:
    """Write the resolved configuration beside the weights."""
    write_atomically(run / CONFIG, config_to_bytes(config))


def _refuse_foreign_folder(config: TrainConfig, run: Path) -> None:
    """Accept what a run of this configuration that died before its first checkpoint left."""
    ours = {CONFIG, HISTORY}
    partial = {f"{name}.partial" for name in (*ours, CHECKPOINT)}
    entries = {path.name for path in run.iterdir()} if run.is_dir() else set()
    if foreign := sorted(entries - ours - partial):
        raise InputError(f"{run}: is no run but holds {foreign[0]}; give a new or an empty folder")
    path = run / CONFIG
    if path.exists() and path.read_bytes() != config_to_bytes(config):
        raise InputError(
            f"{run}: holds the {CONFIG} of something else; give a new or an empty folder"
        )
