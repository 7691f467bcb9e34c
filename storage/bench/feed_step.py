"""A training step that is fed, and the clock by which it is: waits here, steps there."""

import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from storage.arrays import Array, aligned_empty
from storage.bench.measure import Rate
from storage.stream_config import StreamConfig

if TYPE_CHECKING:
    from storage.stream import EventStream  # brings webdataset along, and that torch


class Batches(Protocol):
    """What a step is fed from: a stream, or batches of one on a device."""

    def state_dict(self) -> dict[str, Any]:
        """Where it stands."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state."""
        ...

    def epochs(self, stop: int | None = None) -> Generator[Any, None, None]:
        """Deliver the batches of this epoch and of those after it; `event` numbers their events."""
        ...


def _as_they_are(stream: "EventStream") -> Batches:
    return stream


@dataclass(frozen=True, kw_only=True)
class FedStep:
    """A real training step, and how batches come to it.

    Attributes:
        step: Given a batch, returns when the accelerator is done with it.
        stream: How the data set is streamed.
        allocate: Makes the stream's buffers, from shape and type.
        deliver: Brings a stream's batches to where the step takes them. What it has to wait for
            counts as waiting, not as the step.
        to_device: Measures copies of a batch to the accelerator, and then those of one large
            buffer; None where nothing is copied.
    """

    step: Callable[[Any], object]
    stream: StreamConfig = StreamConfig()
    allocate: Callable[[tuple[int, ...], np.dtype[Any]], Array] = aligned_empty
    deliver: Callable[["EventStream"], Batches] = _as_they_are
    to_device: Callable[[], tuple[Rate, Rate]] | None = None


@dataclass(frozen=True)
class FeedRound:
    """What one round found.

    Attributes:
        utilisation: Time in steps over all time, but for the first batch of each pass.
        first_batches: Seconds until the first batch of each pass; there is one pass, from a cold
            disk one an epoch.
        waits: Seconds that each later batch was waited for.
        step: The mean length of a step [s].
    """

    utilisation: float
    first_batches: tuple[float, ...]
    waits: tuple[float, ...]
    step: float


class Wait:
    """A step that takes as long as one on the accelerator, and no work of the processor.

    Args:
        seconds: How long.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def __call__(self, batch: object) -> None:
        """Wait."""
        time.sleep(self._seconds)


def take(batch: object) -> None:
    """A step that does nothing."""


class Clock:
    """Waits and steps of the passes of a round."""

    def __init__(self) -> None:
        self.waits = list[float]()
        self._firsts, self._computing = list[float](), 0.0

    def time(self, step: Callable[[Any], object], batches: Iterator[Any], wanted: int) -> None:
        """Take steps until a pass is over, or so many waits were counted; its first is not."""
        asked = time.perf_counter()
        for number, batch in enumerate(batches):
            came = time.perf_counter()
            step(batch)
            done = time.perf_counter()
            if number:
                self.waits.append(came - asked)
                self._computing += done - came
            else:
                self._firsts.append(came - asked)
            if len(self.waits) == wanted:
                return
            asked = time.perf_counter()

    def round(self) -> FeedRound:
        """What was found."""
        return FeedRound(
            utilisation=self._computing / (self._computing + sum(self.waits)),
            first_batches=tuple(self._firsts),
            waits=tuple(self.waits),
            step=self._computing / len(self.waits),
        )
