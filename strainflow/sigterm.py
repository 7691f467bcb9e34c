"""SIGTERM, by which batch systems, and `timeout`, end a program."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

PATIENCE = 10.0  # seconds after a first SIGTERM for which others are not heeded


@contextmanager
def interrupted_by_sigterm(ours: bool) -> Iterator[list[float]]:
    """Let SIGTERM, as of a batch system or `timeout`, interrupt a verb as Ctrl-C does.

    Processes that are started do not inherit that. Those that follow a first one soon change
    nothing: what that began is not left half done.

    Args:
        ours: Whether it shall be so with this verb; else nothing is done.

    Yields:
        When the signal came.
    """
    came = list[float]()

    def interrupt(number: int, frame: FrameType | None) -> None:
        soon = bool(came) and time.monotonic() - came[-1] < PATIENCE
        came.append(time.monotonic())
        if not soon:
            raise KeyboardInterrupt

    here = threading.current_thread() is threading.main_thread()
    if not (ours and here) or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:  # somebody else's
        yield came
        return
    signal.signal(signal.SIGTERM, interrupt)
    try:
        yield came
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
