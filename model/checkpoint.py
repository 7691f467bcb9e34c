"""Checkpoints of a run: weights, optimiser, and where it stands; tensors and plain values only.

They are written whole or not at all. Everything random in a run is a function of (seed, step,
event), the learning rate is one of the stream's state, and nothing is scaled: so besides weights
and optimiser they need no state but that of the stream, whatever the number of ranks.
"""

import io
import math
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from model.config import TrainConfig
from model.estimator import DataFacts, Estimator
from model.parameters import ParameterMap
from model.ranks import ALONE, Ranks
from model.recipe import config_from_dict, config_to_dict
from storage.errors import DamagedDataError, InputError
from storage.files import write_atomically

FORMAT_VERSION = 2
CHECKPOINT, BEST = "checkpoint.pt", "best.pt"
Which = Literal["best", "newest"]
FILES: dict[Which, str] = {"best": BEST, "newest": CHECKPOINT}
COPIED = ("data_digest", "step", "stream", "network", "optimiser")  # as they are
DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True)
class Tally:
    """What a run has come to, over all its calls.

    Attributes:
        train_loss: Of the last step, in nats; NaN before it.
        validation_loss: The last, in nats; NaN before it.
        best_validation_loss: The lowest, in nats; infinite before it.
        best_step: Steps done when it was found.
        seconds: Wall time [s].
        waited: Of it, waiting for data [s].
        events: Training events, counted each time.
        skipped: Numbers of the damaged events that were left out.
        audit: Of the epoch under way, or over: epoch, events and sums of `storage.audit.Audit`.
    """

    train_loss: float = math.nan
    validation_loss: float = math.nan
    best_validation_loss: float = math.inf
    best_step: int = 0
    seconds: float = 0.0
    waited: float = 0.0
    events: int = 0
    skipped: tuple[int, ...] = ()
    audit: Mapping[str, Any] = field(default_factory=dict)


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
        tally: What it has come to.
    """

    config: TrainConfig
    facts: DataFacts
    theta: ParameterMap
    data_digest: str
    step: int
    stream: dict[str, Any]
    network: dict[str, Tensor]
    optimiser: dict[str, Any]
    tally: Tally


def save(run: Path, checkpoint: Checkpoint, which: Which = "newest") -> None:
    """Replace the run's newest checkpoint, or its best."""
    content = {
        "format_version": FORMAT_VERSION,
        **to_plain(checkpoint.config, checkpoint.facts, checkpoint.theta),
        "tally": asdict(checkpoint.tally),
        **{name: getattr(checkpoint, name) for name in COPIED},
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_atomically(run / FILES[which], buffer.getvalue())


def checkpoint_path(run: str | Path, which: Which = "best") -> Path:
    """The file of a checkpoint; that of the newest where no epoch is over and so none is best."""
    best = Path(run) / BEST
    return best if which == "best" and best.is_file() else Path(run) / CHECKPOINT


def restore(run: str | Path, device: str = "cpu", which: Which = "newest") -> Checkpoint:
    """Read a checkpoint of a run.

    Args:
        run: The run's folder.
        device: Where tensors go.
        which: `newest`: where the run goes on; `best`: see `checkpoint_path`.

    Raises:
        InputError: There is none, or it is of another format version.
        DamagedDataError: It cannot be read.
    """
    path = checkpoint_path(run, which)
    if not path.is_file():
        raise InputError(
            f"{run}: no trained run there (no {CHECKPOINT}); give a folder that "
            "`strainflow train` made"
        )
    content = read_archive(path, device, _advice(path))
    if content.pop("format_version", None) != FORMAT_VERSION:
        raise InputError(f"{path}: is of another format version; use the strainflow that wrote it")
    config, facts, theta = from_plain(content)
    return Checkpoint(
        config=config,
        facts=facts,
        theta=theta,
        tally=Tally(**content["tally"]),
        **{name: content[name] for name in COPIED},
    )


def _advice(path: Path) -> str:
    """What to do where a checkpoint is damaged."""
    best, newest = path.with_name(BEST), path.with_name(CHECKPOINT)
    if path == newest and best.is_file():
        return f"delete it, and the same `strainflow train` goes on from {BEST}"
    if path == best and newest.is_file():
        return "`--checkpoint newest` takes the weights of the last step"
    return "delete the folder and train again"


def read_archive(path: Path, device: str, advice: str = "delete it") -> dict[str, Any]:
    """Read a file of tensors and plain values.

    Args:
        path: The file.
        device: Where tensors go.
        advice: What to do where it is damaged.

    Raises:
        DamagedDataError: It cannot be read.
    """
    try:
        _refuse_altered_bytes(path)
        content = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged file
        raise DamagedDataError(
            f"{path}: cannot be read, the file is damaged ({type(error).__name__}); {advice}"
        ) from None
    return content if isinstance(content, dict) else {}


def to_plain(config: TrainConfig, facts: DataFacts, theta: ParameterMap) -> dict[str, Any]:
    """Plain values of what an estimator is made of."""
    return {
        "config": config_to_dict(config),
        "facts": asdict(facts),
        "theta": theta.to_dict(),
    }


def from_plain(content: Mapping[str, Any]) -> tuple[TrainConfig, DataFacts, ParameterMap]:
    """Read them back; the inverse of `to_plain`."""
    facts = DataFacts(**{**content["facts"], "detectors": tuple(content["facts"]["detectors"])})
    return (
        config_from_dict(content["config"]),
        facts,
        ParameterMap.from_dict(content["theta"]),
    )


def _refuse_altered_bytes(path: Path) -> None:
    """Compare the checksums in the archive that a checkpoint is; torch does not."""
    with zipfile.ZipFile(path) as archive:
        if name := archive.testzip():
            raise zipfile.BadZipFile(name)


def load(run: str | Path, device: str = "auto", which: Which = "best") -> Estimator:
    """Load a trained estimator.

    Args:
        run: The run's folder.
        device: auto: a GPU where there is one.
        which: `best`: that of the epoch with the lowest validation loss, where one is over;
            `newest`: where the run stands.

    Raises:
        InputError: There is no trained run.
        DamagedDataError: Its checkpoint cannot be read.
    """
    checkpoint = restore(run, which=which)
    estimator = Estimator(checkpoint.config, checkpoint.facts, checkpoint.theta)
    estimator.load_state_dict(checkpoint.network)
    return estimator.to(choose_device(device)).eval()


def choose_device(name: str, ranks: Ranks = ALONE) -> torch.device:
    """Resolve `auto`; refuse a GPU that is not there.

    Args:
        name: auto, cpu or cuda.
        ranks: Where there are several, each takes the GPU of its number on its machine, or the one
            that it sees where each was given its own.

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
    kind = ("cuda" if available else "cpu") if name == "auto" else name
    if kind == "cpu" or ranks.world_size == 1:
        return torch.device(kind)
    count = torch.cuda.device_count()
    if ranks.local_rank >= count > 1:
        raise InputError(
            f"LOCAL_RANK: got {ranks.local_rank}, this machine has {count} GPUs; start one process "
            "a GPU"
        )
    device = torch.device("cuda", ranks.local_rank if count > 1 else 0)
    torch.cuda.set_device(device)
    return device


def known(loss: float) -> float | None:
    """A loss; None where there was none yet."""
    return loss if math.isfinite(loss) else None
