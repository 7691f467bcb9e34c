"""The time and the signals of a training run."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from storage.stream import Batch, EventStream


class Clock:
    """How long the steps took, and how much of it was waiting for data."""

    def __init__(self) -> None:
        self._start = self._last_save = time.perf_counter()
        self._end: float | None = None
        self._waited = 0.0
        self.events = 0

    def timing_waits(self, stream: EventStream) -> Iterator[Batch]:
        """Hand the batches on and count the time until each is there."""
        batches = iter(stream)
        while True:
            start = time.perf_counter()
            batch = next(batches, None)
            self._waited += time.perf_counter() - start
            if batch is None:
                return
            yield batch

    def saved(self) -> None:
        """Note that the state was saved."""
        self._last_save = time.perf_counter()

    def stop(self) -> None:
        """Let the time stand still."""
        self._end = time.perf_counter()

    @property
    def since_save(self) -> float:
        """Time since the state was saved [s]."""
        return time.perf_counter() - self._last_save

    @property
    def seconds(self) -> float:
        """Time since the start [s]."""
        return (self._end or time.perf_counter()) - self._start

    @property
    def rate(self) -> float:
        """Events a second."""
        return self.events / self.seconds

    @property
    def data_wait(self) -> float:
        """Share of the time spent waiting for data."""
        return self._waited / self.seconds


@contextmanager
def noticing_signals() -> Iterator[list[int]]:
    """Collect SIGTERM and SIGINT in a list, so that the step under way is finished first."""
    noticed: list[int] = []

    def notice(number: int, frame: FrameType | None) -> None:
        noticed.append(number)

    before = {number: signal.signal(number, notice) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield noticed
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
