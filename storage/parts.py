"""Which events each batch of a rank has, and where the stream stands after it."""

import itertools
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Int64

from storage.arrays import Array
from storage.order import Window, WindowedOrder, permuted
from storage.snapshot import Snapshot

AT_ONCE = 4096  # events whose order is found together: of one batch, numpy takes as long

# Which elements of an epoch stand at some positions, given those and the epoch's number.
Order = Callable[[Int64[Array, "n"], int], Int64[Array, "n"]]


class Later:
    """Something that the first thread to ask for it finds out, and others wait for."""

    def __init__(self, find: Callable[[], Int64[Array, "event"]]) -> None:
        self._find, self._lock = find, threading.Lock()
        self._found: Array | None = None

    def __call__(self) -> Int64[Array, "event"]:
        """What was found."""
        with self._lock:
            if self._found is None:
                self._found = self._find()
            return self._found


@dataclass(frozen=True)
class Part:
    """A batch that is to be read.

    Attributes:
        epoch: Of its events.
        count: How many.
        state: Epoch and position where the stream stands after it.
        found: The numbers of the events of some batches.
        first: Of its own among them.
    """

    epoch: int
    count: int
    state: tuple[int, int]
    found: Later
    first: int

    def events(self) -> Int64[Array, "event"]:
        """The numbers of its events."""
        return self.found()[self.first : self.first + self.count]


@dataclass(frozen=True)
class Parts:
    """The batches of a rank.

    Attributes:
        snapshot: Which events there are.
        order: In which they come.
        batch_size: Events a batch and rank.
        rank: Of this process.
        world_size: Processes.
    """

    snapshot: Snapshot
    order: Order
    batch_size: int
    rank: int
    world_size: int

    def since(self, epoch: int, position: int, stop: int | None) -> Iterator[Part]:
        """The batches from a position on, before an epoch or without end."""
        most = max(1, AT_ONCE // self.batch_size)
        stretches = self._stretches(epoch, position, stop)
        for number, of_epoch in itertools.groupby(stretches, lambda each: each[0]):
            while some := list(itertools.islice(of_epoch, most)):
                places = [np.arange(first, first + count) for _, first, count, _ in some]
                found = Later(partial(self.numbers, np.concatenate(places), number))
                ends = itertools.accumulate(count for _, _, count, _ in some)
                for (_, _, count, state), end in zip(some, ends, strict=True):
                    yield Part(number, count, state, found, end - count)

    def numbers(self, positions: Int64[Array, "n"], epoch: int) -> Int64[Array, "n"]:
        """The numbers of the events at some positions of an epoch."""
        return self.snapshot.numbers(self.order(positions, epoch))

    def _stretches(
        self, epoch: int, position: int, stop: int | None
    ) -> Iterator[tuple[int, int, int, tuple[int, int]]]:
        """Of each batch: epoch, this rank's first position, events, (epoch, position) after it."""
        events = self.snapshot.events
        while stop is None or epoch < stop:
            count = min(self.batch_size * self.world_size, events - position)
            first, last = (count * rank // self.world_size for rank in (self.rank, self.rank + 1))
            following = (epoch, position + count)
            if position + count == events:
                following = (epoch + 1, 0)
            yield epoch, position + first, last - first, following
            epoch, position = following


def order_of(snapshot: Snapshot, seed: int, shuffle: bool, window: Window | None) -> Order:
    """The order of the events of a snapshot: as stored, global or windowed."""
    if not shuffle:
        return lambda positions, _: positions
    if window is None:
        return lambda positions, epoch: permuted(positions, snapshot.events, seed, epoch)
    windowed = WindowedOrder(snapshot.counts, window)
    return lambda positions, epoch: windowed(positions, seed, epoch)
