"""The history of a run: one line of `history.csv` for each step."""

import csv
import io
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from storage.files import write_atomically

HISTORY = "history.csv"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What is known of a run after a batch.

    Attributes:
        step: Steps done.
        epoch: Passes over the training events that are done.
        train_loss: Of the step's batch, in nats; None where all of its events were skipped.
        validation_loss: At the end of an epoch, in nats.
        learning_rate: Of the step.
        events_per_second: Over the last steps.
        batches_per_second: Over the last steps.
        gigabytes_per_second: Of stored strain, decompressed, over the last steps.
        data_wait: Share of this step's time that it waited for data.
        gpu_memory: The most that PyTorch has taken so far [bytes]; None without a GPU.
        seconds: Of the run, over all its calls [s].
        skipped: Damaged events that were left out, each counted once.
        audit: At the end of an epoch: `Audit.digest` of the events that were delivered in it.
    """

    step: int
    epoch: float
    train_loss: float | None
    validation_loss: float | None
    learning_rate: float
    events_per_second: float
    batches_per_second: float
    gigabytes_per_second: float
    data_wait: float
    gpu_memory: int | None
    seconds: float
    skipped: int
    audit: str | None


NAMES = [field.name for field in fields(Entry)]


class History:
    """Appends to the history of a run.

    Lines of steps that the checkpoint does not know (the run died after them) are dropped.

    Args:
        run: The run's folder.
        epoch: Passes over the training events that the checkpoint knows of.
    """

    def __init__(self, run: Path, epoch: float) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, NAMES, lineterminator="\n")
        writer.writeheader()
        writer.writerows(row for row in iterate_history(run) if float(row["epoch"]) <= epoch)
        write_atomically(run / HISTORY, text.getvalue().encode())
        self._file = (run / HISTORY).open("a", newline="", buffering=1)
        self._writer = csv.DictWriter(self._file, NAMES, lineterminator="\n")

    def add(self, entry: Entry) -> None:
        """Append a line."""
        values = asdict(entry)
        self._writer.writerow(
            {name: "" if values[name] is None else values[name] for name in NAMES}
        )

    def sync(self) -> None:
        """Return when the lines are on the disk, as those that a checkpoint knows have to be."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def iterate_history(run: Path) -> Iterator[dict[str, str]]:
    """Read the lines of a run one by one, up to one that a crash of the machine cut off."""
    path = run / HISTORY
    if not path.is_file():
        return
    with path.open(newline="") as file:
        for row in csv.DictReader(line for line in file if line.endswith("\n")):
            if None in row or None in row.values():
                return
            yield row


def read_history(run: Path) -> list[dict[str, str]]:
    """Read the history of a run; empty where there is none."""
    return list(iterate_history(run))
