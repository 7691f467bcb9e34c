"""The progress bar of everything that takes long: on a terminal lively, in a log file sparse."""

import sys
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

if TYPE_CHECKING:
    Bar = tqdm[Any]

SECONDS_BETWEEN_LOG_LINES = 10.0


def progress_bar(total: int, unit: str, done: int = 0) -> "Bar":
    """Make a bar on standard error.

    Args:
        total: When it is full.
        unit: Of what it counts.
        done: Where it starts: what an earlier run has done.
    """
    lively = sys.stderr.isatty()
    return tqdm(
        total=total,
        initial=done,
        unit=unit,
        mininterval=0.1 if lively else SECONDS_BETWEEN_LOG_LINES,
        maxinterval=10.0 if lively else 10 * SECONDS_BETWEEN_LOG_LINES,
        dynamic_ncols=lively,
        disable=done >= total,
    )
