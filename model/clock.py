"""The time and the signals of a training run."""

import signal
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import TypeVar

Item = TypeVar("Item")

LAST_STEPS = 50  # that the rates are of


@dataclass(frozen=True)
class Lap:
    """One step.

    Attributes:
        waited: Until its batch was there [s].
        seconds: From asking for its batch to its end [s].
        events: In the batch.
    """

    waited: float
    seconds: float
    events: int


class Clock:
    """How long the steps of this call took, and how much of it was waiting for data."""

    def __init__(self) -> None:
        self._start = self._last_save = self._asked = time.perf_counter()
        self._end: float | None = None
        self._there = self._asked
        self._laps = deque[Lap](maxlen=LAST_STEPS)
        self.waited, self.events = 0.0, 0

    def timing_waits(self, stream: Iterable[Item]) -> Iterator[Item]:
        """Hand the batches on and count the time until each is there."""
        batches = iter(stream)
        while True:
            self._asked = time.perf_counter()
            batch = next(batches, None)
            self._there = time.perf_counter()
            self.waited += self._there - self._asked
            if batch is None:
                return
            yield batch

    def step_is_done(self, events: int) -> None:
        """Note the end of a step on a batch of so many events."""
        now = time.perf_counter()
        self._laps.append(Lap(self._there - self._asked, now - self._asked, events))
        self.events += events

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
    def data_wait(self) -> float:
        """Share of the time spent waiting for data."""
        return self.waited / self.seconds

    @property
    def data_wait_of_step(self) -> float:
        """Share of the last step's time spent waiting for data."""
        return self._laps[-1].waited / self._laps[-1].seconds

    @property
    def events_per_second(self) -> float:
        """Over the last steps, validation and saving left out."""
        return sum(lap.events for lap in self._laps) / sum(lap.seconds for lap in self._laps)

    @property
    def batches_per_second(self) -> float:
        """Over the last steps, validation and saving left out."""
        return len(self._laps) / sum(lap.seconds for lap in self._laps)


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
