"""A cache before a real S3 server: what it spares, and processes that share it and are killed."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import s3fs
from buckets import call, upload
from runs import ROOT

from storage import EventStream
from storage.cache.store import CachedStore
from storage.urls import store_of

pytestmark = [pytest.mark.services, pytest.mark.usefixtures("s3_environment")]

EVENTS, LIMIT = 48, 2**30
FLAGS = [
    f"--config={ROOT}/pipeline/recipes/et-bbh.yaml",
    f"--events={EVENTS}",
    "--events_per_shard=16",
    "--seed=5",
    "--cluster.workers=2",
    "--encoding=int16+blosc",
]
READER = """
import sys
from storage import EventStream
from storage.cache.store import CachedStore
from storage.urls import store_of
store = CachedStore(store_of(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
for seed in range(int(sys.argv[4])):
    for batch in EventStream(store, batch_size=4, seed=seed):  # each event is proved as it comes
        print(len(batch.event), flush=True)
"""


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory):
    folder = tmp_path_factory.mktemp("disk") / "events.zarr"
    code, _, errors = call("simulate", *FLAGS, f"--out={folder}")
    assert code == 0, errors
    return folder


def epoch(store, folder):
    """Compare an epoch with that from the disk; return how long it took."""
    begin = time.monotonic()
    streams = (EventStream(place, batch_size=7, seed=3) for place in (store, folder))
    for far, near in zip(*streams, strict=True):
        assert np.array_equal(far.event, near.event)
        assert np.array_equal(far.strain, near.strain)
        assert np.array_equal(far.parameters, near.parameters)
    return time.monotonic() - begin


def test_the_second_epoch_asks_the_server_for_metadata_alone(s3, proxy, on_disk, tmp_path):
    url = upload(s3, on_disk)
    passed = []
    for _ in range(2):
        before = proxy.passed
        store = CachedStore(store_of(url), tmp_path / "cache", LIMIT)
        epoch(store, on_disk)
        passed.append(proxy.passed - before)
    payload = sum(path.stat().st_size for path in on_disk.glob("strain/c/*/0/0"))
    assert passed[0] > 0.9 * payload
    assert passed[1] < 0.05 * payload
    assert store.misses == 0
    assert store.hits >= EVENTS + 2 * 3


def test_a_server_whose_connections_are_cut_leaves_nothing_wrong_in_the_cache(
    s3, proxy, on_disk, tmp_path
):
    url = upload(s3, on_disk)
    proxy.cut(after=300_000, times=3)
    epoch(CachedStore(store_of(url), tmp_path / "cache", LIMIT), on_disk)
    assert proxy.cuts >= 3
    store = CachedStore(store_of(url), tmp_path / "cache", LIMIT)
    epoch(store, on_disk)
    assert store.misses == 0


def test_an_object_that_was_damaged_and_mended_comes_as_it_is_now(s3, on_disk, tmp_path):
    url, files = upload(s3, on_disk), s3fs.S3FileSystem()
    name = url.removeprefix("s3://") + "/strain/c/1/0/0"
    sound = files.cat_file(name)
    damaged = bytearray(sound)
    damaged[len(sound) // 2] ^= 1
    files.pipe_file(name, bytes(damaged))
    with pytest.raises(RuntimeError, match="has not the checksum that was written"):
        epoch(CachedStore(store_of(url), tmp_path / "cache", LIMIT), on_disk)
    files.pipe_file(name, sound)
    epoch(CachedStore(store_of(url), tmp_path / "cache", LIMIT), on_disk)


def start_reader(url, folder, limit, epochs):
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", READER, url, str(folder), str(limit), str(epochs)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )


def test_readers_share_a_cache_below_its_limit_while_others_are_killed(s3, on_disk, tmp_path):
    url, folder, limit = upload(s3, on_disk), tmp_path / "cache", 3_000_000
    readers = [start_reader(url, folder, limit, 3) for _ in range(2)]
    for batches in (2, 5, 9):
        victim = start_reader(url, folder, limit, 99)
        for _ in range(batches):
            assert victim.stdout.readline()
        victim.send_signal(signal.SIGKILL)
        victim.communicate()
    for reader in readers:
        said, _ = reader.communicate(timeout=300)
        assert reader.returncode == 0
        assert sum(map(int, said.split())) == 3 * EVENTS
    store = CachedStore(store_of(url), folder, limit)
    epoch(store, on_disk)
    files = [path for path in folder.glob("items/*/*") if path.is_file()]
    assert 0 < sum(path.stat().st_size for path in files) <= store.bytes <= limit
