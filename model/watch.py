"""What shows a run while it trains: a progress bar, `history.csv` and, if wanted, TensorBoard."""

from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from model.folder import TENSORBOARD
from model.history import Entry, History
from storage.errors import InputError
from storage.progress import progress_bar

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

TAGS = {
    "train_loss": "loss/training",
    "validation_loss": "loss/validation",
    "learning_rate": "learning_rate",
    "events_per_second": "rate/events_per_second",
    "batches_per_second": "rate/batches_per_second",
    "gigabytes_per_second": "rate/gigabytes_per_second",
    "data_wait": "rate/data_wait",
    "gpu_memory": "gpu_memory",
    "epoch": "epoch",
}


class Watch:
    """Shows each step of a run, and records it.

    Args:
        run: The run's folder.
        history: To append to.
        done: Steps done.
        left: Steps left, as far as it is known.
        tensorboard: Whether to write for TensorBoard, into RUN/tensorboard.
    """

    def __init__(
        self, run: Path, history: History, done: int, left: int, tensorboard: bool
    ) -> None:
        self._history = history
        self._bar = progress_bar(done + left, "batch", done)
        self._writer: SummaryWriter | None = None
        self._validation: float | None = None
        if tensorboard:
            from torch.utils import tensorboard as board  # takes seconds

            # What a call wrote that died is dropped from here on, as in the history.
            self._writer = board.SummaryWriter(str(run / TENSORBOARD), purge_step=done + 1)

    def add(self, entry: Entry, left: int) -> None:
        """Show and record the state after a batch.

        Args:
            entry: What is known of it.
            left: Steps left; a set that grows changes that.
        """
        self._history.add(entry)
        if self._writer is not None:
            for name, tag in TAGS.items():
                if (value := getattr(entry, name)) is not None:
                    self._writer.add_scalar(tag, value, entry.step)
        if entry.validation_loss is not None:
            self._validation = entry.validation_loss
        self._bar.total = entry.step + left
        self._bar.set_postfix_str(in_words(entry, self._validation), refresh=False)
        self._bar.update(entry.step - self._bar.n)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.close()
        self._history.close()
        if self._writer is not None:
            self._writer.close()


def in_words(entry: Entry, validation: float | None) -> str:
    """What the progress bar says.

    Args:
        entry: Of the last batch.
        validation: The last loss of validation, in nats.
    """
    words = [
        f"{entry.events_per_second:.0f} events/s",
        f"{entry.batches_per_second:.1f} batches/s",
        f"{entry.gigabytes_per_second:.3g} GB/s",
        f"waiting {100 * entry.data_wait:.0f} %",
    ]
    if entry.train_loss is not None:
        words.append(f"loss {entry.train_loss:.3f}")
    if validation is not None:
        words.append(f"validation {validation:.3f}")
    words.append(f"rate {entry.learning_rate:.2g}")
    if entry.gpu_memory is not None:
        words.append(f"GPU {entry.gpu_memory / 1e9:.1f} GB")
    if entry.skipped:
        words.append(f"{entry.skipped} skipped")
    return ", ".join(words)


def refuse_missing_tensorboard(wanted: bool) -> None:
    """Refuse to write for TensorBoard where its package is missing.

    Raises:
        InputError: It is.
    """
    if wanted and find_spec("tensorboard") is None:
        raise InputError(
            "tensorboard: the package tensorboard is missing; install strainflow[tensorboard], or "
            "leave the key out"
        )
