"""A day of use in a minute: hundreds of epochs with interruptions leave nothing behind.

Measured after epoch 20 and after epoch 200, each time the most of five epochs. Growth of 1 MB
between them fails: 5.6 kB an epoch, as of one event of 196,608 bytes kept every 35th epoch, or of
700 bytes a batch. Found: 0.00 to 0.13 MB.
"""

import ctypes
import gc
import random
import threading
from pathlib import Path

import numpy as np
import psutil
import pytest
from streams import open_stream

from storage.audit import Audit
from storage.encodings import ENCODINGS
from storage.order import Window

EVENTS, BATCH = 64, 8
SETTLED, EPOCHS, LOOKS = 20, 200, 5
LARGEST_GROWTH = 1e6  # bytes, from epoch SETTLED to epoch EPOCHS

M_MMAP_THRESHOLD = -3  # malloc.h of glibc

_libc = ctypes.CDLL(None)


@pytest.fixture(scope="module", autouse=True)
def no_holes():
    """Give large blocks back as they are freed, or else compressed events leave holes of 10 MB."""
    if hasattr(_libc, "mallopt"):
        _libc.mallopt(M_MMAP_THRESHOLD, 65_536)


@pytest.fixture(scope="module", params=["int8", "int16+blosc"])
def data(build, request):
    """64 events of the usual size in 7 shards."""
    return build(
        events=EVENTS,
        events_per_shard=10,
        samples=65_536,
        sample_rate=8192.0,
        encoding=ENCODINGS[request.param],
    )


class Interruption(Exception):
    """What a consumer raises."""


class User:
    """Takes epochs of a stream and interrupts them at random places.

    Args:
        new_stream: Makes the stream.
        chance: Decides on interruptions.
        consume: What becomes of each batch.
    """

    def __init__(self, new_stream, chance, consume):
        self._new_stream, self._chance, self._consume = new_stream, chance, consume
        self.stream = new_stream()
        self._before = Audit()  # of the epoch, before the stream's own audit begins
        self.interruptions = 0

    def take_epoch(self):
        """Take all of an epoch; return the audit of what counts of it."""
        epoch = self.stream.state_dict()["epoch"]
        self._before = Audit(epoch)
        while self.stream.state_dict()["epoch"] == epoch:
            steps = self._chance.randint(0, 2 * EVENTS // BATCH)
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


def growth(user, folder, settled, epochs):
    """Take epochs, each proved; return by how much the memory grew, and sizes of it [bytes]."""
    sizes = {}
    for epoch in range(epochs):
        assert user.take_epoch() == Audit.of(np.arange(EVENTS), epoch)
        assert left_open(folder) == []
        if settled <= epoch < settled + LOOKS or epoch >= epochs - LOOKS or epoch % 20 == 0:
            sizes[epoch] = resident()
    before = [sizes[epoch] for epoch in range(settled, settled + LOOKS)]
    after = [sizes[epoch] for epoch in range(epochs - LOOKS, epochs)]
    return max(after) - max(before), list(sizes.values())


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"window": Window(3, 4), "checksums": "always"}])
def test_200_interrupted_epochs_leave_no_memory_files_or_threads(data, options):
    seed = random.randrange(10**6)

    def new_stream():
        return open_stream(data.folder, batch_size=BATCH, threads=3, prefetch=2, **options)

    user = User(new_stream, random.Random(seed), lambda batch: batch.strain.max())
    descriptors, threads = psutil.Process().num_fds(), psutil.Process().num_threads()
    grown, sizes = growth(user, data.folder, SETTLED, EPOCHS)
    assert user.interruptions > EPOCHS / 4
    assert psutil.Process().num_fds() <= descriptors
    assert psutil.Process().num_threads() <= threads + 2, "blosc keeps threads of its own"
    megabytes = [round(size / 1e6, 1) for size in sizes]
    print(f"grown by {grown / 1e6:.2f} MB, {user.interruptions} interruptions: {megabytes}")
    assert grown < LARGEST_GROWTH, f"seed {seed}: {megabytes} MB"


@pytest.mark.slow
def test_the_measurement_notices_one_event_kept_every_fifth_epoch(data):
    kept = []

    def keep(batch):
        if len(kept) < user.stream.state_dict()["epoch"] // 5:
            kept.append(batch.strain[0].copy())

    def new_stream():
        return open_stream(data.folder, batch_size=BATCH, threads=3, prefetch=2)

    user = User(new_stream, random.Random(1), keep)
    grown, _ = growth(user, data.folder, settled=SETTLED, epochs=70)
    assert grown > LARGEST_GROWTH
