"""A day of use in a minute: a user who takes epochs and interrupts them at random places."""

import ctypes
import gc
import random
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
from streams import open_stream

from storage.audit import Audit
from storage.reading import Batch
from storage.stream import EventStream

LOOKS = 5  # epochs that are looked at, at both ends; the most of them counts

M_MMAP_THRESHOLD = -3  # malloc.h of glibc

_libc = ctypes.CDLL(None)


@dataclass(frozen=True)
class Use:
    """What many epochs left behind in a process that did nothing else.

    Attributes:
        grown: Memory, from epoch `settled` to the last [bytes].
        sizes: Memory on the way [bytes].
        interruptions: Interrupted iterations.
        descriptors: Open files more than before.
        threads: Threads more than before.
    """

    grown: int
    sizes: list[int]
    interruptions: int
    descriptors: int
    threads: int


class Interruption(Exception):
    """What a consumer raises."""


class User:
    """Takes epochs of a stream and interrupts them at random places.

    Args:
        new_stream: Makes the stream.
        chance: Decides on interruptions.
        batches: An epoch.
        consume: What becomes of each batch.
    """

    def __init__(
        self,
        new_stream: Callable[[], EventStream],
        chance: random.Random,
        batches: int,
        consume: Callable[[Batch], None],
    ):
        self._new_stream, self._chance, self._consume = new_stream, chance, consume
        self._batches = batches
        self.stream = new_stream()
        self._before = Audit()  # of the epoch, before the stream's own audit begins
        self.interruptions = 0

    def take_epoch(self):
        """Take all of an epoch; return the audit of what counts of it."""
        epoch = self.stream.state_dict()["epoch"]
        self._before = Audit(epoch)
        while self.stream.state_dict()["epoch"] == epoch:
            steps = self._chance.randint(0, 2 * self._batches)
            self._chance.choice((self._abandon, self._close, self._raise, self._go_back))(steps)
            if self._chance.random() < 0.1 and self.stream.state_dict()["epoch"] == epoch:
                self._start_anew()
        return self._before + self.stream.audit

    def _abandon(self, steps):
        for step, batch in enumerate(self.stream):
            self._consume(batch)
            if step == steps:
                self.interruptions += 1
                break

    def _close(self, steps):
        batches = iter(self.stream)
        for batch, _ in zip(batches, range(steps), strict=False):
            self._consume(batch)
        batches.close()

    def _raise(self, steps):
        try:
            for step, batch in enumerate(self.stream):
                self._consume(batch)
                if step == steps:
                    raise Interruption
        except Interruption:
            self.interruptions += 1

    def _go_back(self, steps):
        """Take some batches that do not count, since the state of before is loaded again."""
        state, audit = self.stream.state_dict(), self.stream.audit
        self._abandon(steps)
        self._load(state, audit)

    def _start_anew(self):
        state, audit = self.stream.state_dict(), self.stream.audit
        self.stream = self._new_stream()
        self._load(state, audit)

    def _load(self, state, audit):
        if audit.epoch == state["epoch"]:
            self._before += audit
        self.stream.load_state_dict(state)


def resident():
    """The memory that is in use: what was freed goes back to the system first, where it can."""
    gc.collect()
    if hasattr(_libc, "malloc_trim"):
        _libc.malloc_trim(0)
    return psutil.Process().memory_info().rss


def left_open(folder: Path):
    """Threads that read, and open files of a data set."""
    threads = [t.name for t in threading.enumerate() if t.name.startswith("strainflow-read")]
    files = [f.path for f in psutil.Process().open_files() if Path(f.path).is_relative_to(folder)]
    return threads + files


def use(
    folder: Path,
    events: int,
    batch_size: int,
    options: Mapping,
    *,
    settled: int,
    epochs: int,
    seed: int = 1,
    keep_every: int | None = None,
) -> Use:
    """Take epochs of a data set, each proved to hold each event once.

    Args:
        folder: The data set.
        events: In it.
        batch_size: Events a batch.
        options: Further ones of the stream.
        settled: Epoch from which on memory must not grow.
        epochs: In all.
        seed: Of the interruptions.
        keep_every: Keep an event every so many epochs: a leak.
    """
    if hasattr(_libc, "mallopt"):  # large blocks go back as they are freed, else they leave holes
        _libc.mallopt(M_MMAP_THRESHOLD, 65_536)
    process, kept, sizes = psutil.Process(), [], {}

    def consume(batch):
        if keep_every and len(kept) < user.stream.state_dict()["epoch"] // keep_every:
            kept.append(batch.strain[0].copy())
        batch.strain.max()

    def new_stream():
        return open_stream(folder, batch_size=batch_size, threads=3, prefetch=2, **options)

    user = User(new_stream, random.Random(seed), events // batch_size, consume)
    descriptors, threads = process.num_fds(), process.num_threads()
    for epoch in range(epochs):
        assert user.take_epoch() == Audit.of(np.arange(events), epoch), f"seed {seed}"
        assert left_open(folder) == [], f"seed {seed}"
        if settled <= epoch < settled + LOOKS or epoch >= epochs - LOOKS or epoch % 20 == 0:
            sizes[epoch] = resident()
    before = [sizes[epoch] for epoch in range(settled, settled + LOOKS)]
    after = [sizes[epoch] for epoch in range(epochs - LOOKS, epochs)]
    return Use(
        grown=max(after) - max(before),
        sizes=list(sizes.values()),
        interruptions=user.interruptions,
        descriptors=process.num_fds() - descriptors,
        threads=process.num_threads() - threads,
    )
