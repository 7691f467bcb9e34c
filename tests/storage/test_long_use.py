"""A day of use in a minute: hundreds of epochs with interruptions leave nothing behind.

Measured after epoch 20 and after epoch 200, each time the most of five epochs. Growth of 1 MB
between them fails: 5.6 kB an epoch, as of one event of 196,608 bytes kept every 35th epoch, or of
700 bytes a batch. Found: 0.00 to 0.13 MB. In a process of its own, since what other tests have
freed lies there as holes, which take what is kept, or are given back, at any time.
"""

import random
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest
from long_use import use

from storage.encodings import ENCODINGS
from storage.order import Window

EVENTS, BATCH = 64, 8
SETTLED, EPOCHS = 20, 200
LARGEST_GROWTH = 1e6  # bytes, from epoch SETTLED to epoch EPOCHS


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


def use_alone(*args, **kwargs):
    """In a new process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as new_process:
        return new_process.submit(use, *args, **kwargs).result()


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"window": Window(3, 4), "checksums": "always"}])
def test_200_interrupted_epochs_leave_no_memory_files_or_threads(data, options):
    seed = random.randrange(10**6)
    found = use_alone(
        data.folder, EVENTS, BATCH, options, settled=SETTLED, epochs=EPOCHS, seed=seed
    )
    assert found.interruptions > EPOCHS / 4
    assert found.descriptors <= 0
    assert found.threads <= 2, "blosc keeps threads of its own"
    megabytes = [round(size / 1e6, 1) for size in found.sizes]
    print(f"grown by {found.grown / 1e6:.2f} MB, {found.interruptions} interruptions: {megabytes}")
    assert found.grown < LARGEST_GROWTH, f"seed {seed}: {megabytes} MB"


@pytest.mark.slow
def test_the_measurement_notices_one_event_kept_every_fifth_epoch(data):
    found = use_alone(data.folder, EVENTS, BATCH, {}, settled=SETTLED, epochs=70, keep_every=5)
    assert found.grown > LARGEST_GROWTH
