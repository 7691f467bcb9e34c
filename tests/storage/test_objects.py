"""The path by way of fsspec, with the store that needs no server; tests/services has a real one."""

import errno
import gc
import itertools
import os
import socket
import subprocess
import sys
import time
import weakref
from threading import Thread

import fsspec
import numpy as np
import pytest
from streams import flip_in_event, open_stream

from storage.dataset import create_dataset, read_optimal_snr, read_parameters, read_psd, read_schema
from storage.encodings import ENCODINGS
from storage.errors import DamagedDataError, InputError
from storage.inventory import take_inventory
from storage.lease import SETTLE_SECONDS, STALE_SECONDS, Holder
from storage.local import LocalStore
from storage.manifest import manifest_path, require_complete
from storage.objects import ObjectStore
from storage.order import Window
from storage.retries import retried
from storage.schema import shard_files
from storage.shard_reader import ShardReader
from storage.tables import ShardTables
from storage.urls import local_folder, store_of
from storage.verify import look_at_lengths, verify_shard

SIZES = ({}, {"encoding": ENCODINGS["float32+blosc"], "samples": 4096})
NUMBERS = itertools.count()


@pytest.fixture
def url():
    """A place in memory that no other test uses."""
    return f"memory://test-{next(NUMBERS)}/events.zarr"


@pytest.fixture(params=SIZES, ids=["float32", "float32+blosc"])
def both(request, build, finish, url):
    """A data set in a folder, and the same one in memory."""
    data = build(**request.param)
    create_dataset(url, data.schema, data.psd)
    finish(type(data)(url, data.schema, data.psd, data.events))
    return data, store_of(url)


@pytest.fixture
def pair(build, finish, url):
    """The same, small and to be damaged."""
    data = build()
    create_dataset(url, data.schema, data.psd)
    finish(type(data)(url, data.schema, data.psd, data.events))
    return data, store_of(url)


def copy_to(folder, url):
    """The files of a folder as objects."""
    store, files = store_of(url), LocalStore(folder)
    for path in files.files():
        store.write(path, files.read(path))


def findings(store):
    """All that verify finds, as text."""
    inventory = take_inventory(store)
    found = list(inventory.findings)
    for shard in inventory.finished:
        found += verify_shard(store, inventory.group, shard).findings
    return [str(finding) for finding in found]


def quick_findings(store):
    inventory = take_inventory(store)
    verdicts = list(look_at_lengths(store, inventory))
    return [finding.file for verdict in verdicts for finding in verdict.findings]


# Writing and reading


def test_the_objects_are_the_files_of_a_folder(both):
    data, store = both
    folder = LocalStore(data.folder)
    assert sorted(store.files()) == sorted(folder.files())
    assert all(store.read(path) == folder.read(path) for path in folder.files())
    assert {path: store.length(path) for path in store.files()} == {
        path: folder.length(path) for path in folder.files()
    }
    assert sorted(store.names("manifest")) == sorted(folder.names("manifest"))


def test_a_data_set_is_read_back(both):
    data, store = both
    assert read_schema(store) == data.schema
    assert require_complete(store, data.schema) == list(range(data.schema.shards))
    assert np.array_equal(read_psd(store), data.psd)
    assert np.array_equal(read_parameters(store), data.parameters)
    assert np.array_equal(read_optimal_snr(store), data.optimal_snr)


def test_a_stream_delivers_what_it_does_from_a_folder_and_resumes_in_mid_epoch(both):
    data, store = both
    streams = [open_stream(place, batch_size=2, seed=4) for place in (data.folder, store)]
    for here, there in zip(*streams, strict=True):
        assert np.array_equal(here.event, there.event)
        assert np.array_equal(here.parameters, there.parameters)
        assert here.strain.tobytes() == there.strain.tobytes()
    batches = iter(streams[1])
    next(batches)
    state = streams[1].state_dict()
    rest = [batch.event.tolist() for batch in batches]
    resumed = open_stream(store.url, batch_size=2)
    resumed.load_state_dict(state)
    assert [batch.event.tolist() for batch in resumed] == rest


def test_a_sound_data_set_has_no_findings(both):
    assert findings(both[1]) == []
    assert quick_findings(both[1]) == []


def test_creating_it_again_changes_nothing_and_another_one_is_refused(pair, small):
    data, store = pair
    before = {path: store.read(path) for path in store.files()}
    create_dataset(store, data.schema, data.psd)
    assert {path: store.read(path) for path in store.files()} == before
    with pytest.raises(InputError, match="another configuration"):
        create_dataset(store, data.schema, 2 * data.psd)


# Damage


@pytest.mark.parametrize("name", ["strain", "parameters", "optimal_snr"])
def test_a_flipped_byte_is_found(pair, name):
    _, store = pair
    path = shard_files(1)[name]
    content = bytearray(store.read(path))
    content[len(content) // 3] ^= 1
    store.write(path, bytes(content))
    (found,) = findings(store)
    assert found.startswith(f"{path}: ")
    assert quick_findings(store) == []


@pytest.mark.parametrize("left", [0, 1, 500])
@pytest.mark.parametrize("name", ["strain", "parameters", "optimal_snr"])
def test_a_truncated_object_is_found(pair, name, left):
    data, store = pair
    path = shard_files(1)[name]
    content = store.read(path)
    store.write(path, content[: min(left, len(content) - 1)])
    (found,) = findings(store)
    assert found.startswith(f"{path}: ")
    assert quick_findings(store) == [path]
    with pytest.raises(DamagedDataError, match=path):
        require_complete(store, data.schema)


@pytest.mark.parametrize("name", ["strain", "parameters", "optimal_snr"])
def test_a_deleted_object_is_found(pair, name):
    data, store = pair
    path = shard_files(1)[name]
    store.remove(path)
    store.remove(path)  # gone already
    (found,) = findings(store)
    assert found.startswith(f"{path}: is missing")
    assert quick_findings(store) == [path]
    with pytest.raises(DamagedDataError, match="is missing"):
        open_stream(store, batch_size=2)


def test_a_manifest_without_a_byte_is_damage(pair):
    data, store = pair
    store.write(manifest_path(1), b"")
    assert len(findings(store)) == 1
    with pytest.raises(DamagedDataError):
        require_complete(store, data.schema)


# What a store answers


def test_what_is_not_there_has_no_length_no_content_and_no_names(url):
    store = store_of(url)
    assert store.length("x") is None
    assert not store.exists("x")
    assert list(store.read_each(["x", "y"])) == [None, None]
    assert list(store.names("")) == list(store.files()) == []
    assert store.read_ranges([]) == []
    for call in (store.read, store.open):
        with pytest.raises(FileNotFoundError) as refusal:
            call("x")
        # The front door makes a sentence of these.
        assert refusal.value.errno == errno.ENOENT
        assert refusal.value.filename == f"{url}/x"


def test_a_folder_is_no_file(pair):
    _, store = pair
    assert store.length("strain") is None


def test_ranges_end_where_the_object_ends(url):
    store = store_of(url)
    store.write("x", b"0123456789")
    ranges = [("x", 0, 3), ("x", 8, 5), ("x", 20, 5), ("x", 4, 0)]
    assert store.read_ranges(ranges) == [b"012", b"89", b"", b""]
    file = store.open("x")
    assert file.length == 10
    assert (file.read(8, 9), file.read(20, 1)) == (b"89", b"")
    buffer = bytearray(4)
    assert file.read_into(8, memoryview(buffer)) == 2
    assert buffer == b"89\0\0"


def test_an_object_is_there_when_it_is_finished_and_not_before(url):
    store = store_of(url)
    file = store.create("a/x")
    file.write(b"some")
    assert not store.exists("a/x")
    file.write(b" bytes")
    file.finish()
    assert store.read("a/x") == b"some bytes"
    assert file.length == 10
    file.discard()  # as a context does at its end
    assert store.exists("a/x")
    file = store.create("a/y")
    file.write(b"x")
    file.discard()
    assert not store.exists("a/y")


def test_the_log_lies_in_the_folder_of_the_call(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert store_of("memory://bucket/some/events.zarr/").beside == tmp_path / "events.zarr.log"


# Who writes


def test_a_second_writer_is_refused_with_the_first_ones_host_and_process(pair):
    _, store = pair
    mine = f"process {os.getpid()} on {socket.gethostname()} is writing there"
    assert not store.is_being_written()
    with store.only_writer():
        assert store.is_being_written()
        with pytest.raises(InputError, match=mine), store_of(store.url).only_writer():
            pass
        assert store.is_being_written()
    assert not store.is_being_written()
    assert findings(store) == []  # nothing of it is within the data set


def write_lease(store, holder):
    fsspec.filesystem("memory").pipe_file(store.full("") + ".writer.json", holder.to_bytes())


def test_a_dead_writer_of_this_machine_is_followed_at_once(url):
    store = store_of(url)
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    here = Holder.here()
    write_lease(store, Holder(here.host, child.pid, time.time(), here.numbering))
    assert not store.is_being_written()
    with store.only_writer():
        assert store.is_being_written()


@pytest.mark.parametrize("host", ["another", socket.gethostname()])
def test_a_writer_that_cannot_be_seen_from_here_is_followed_when_it_has_been_silent(url, host):
    """On another machine; in another container, or before this machine was started again."""
    store = store_of(url)
    there = Holder(host, os.getpid(), time.time() - STALE_SECONDS + 10, "another")
    write_lease(store, there)
    with pytest.raises(InputError, match=f"process {os.getpid()} on {host}"), store.only_writer():
        pass
    write_lease(store, Holder(host, os.getpid(), time.time() - STALE_SECONDS - 1, "another"))
    with store.only_writer():
        assert store.is_being_written()


def test_of_two_that_follow_a_dead_writer_at_once_one_is_refused(url):
    store = store_of(url)
    write_lease(store, Holder("another", 1, 0.0))
    outcomes = []

    def follow():
        try:
            with store_of(url).only_writer():
                time.sleep(2 * SETTLE_SECONDS)
            outcomes.append("wrote")
        except InputError as error:
            outcomes.append(str(error))

    threads = [Thread(target=follow) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(outcome == "wrote" for outcome in outcomes) == 1, outcomes


# Asking again


def test_a_lost_connection_is_asked_again_and_a_loss_for_good_is_one_sentence(monkeypatch):
    left = [ConnectionResetError(errno.ECONNRESET, "reset")] * 4

    def call():
        if left:
            raise left.pop()
        return 7

    assert retried(call, "s3://b/x") == 7
    monkeypatch.setattr("storage.retries.PATIENCE", 0.5)
    left[:] = [ConnectionResetError(errno.ECONNRESET, "reset")] * 99
    start = time.monotonic()
    with pytest.raises(InputError, match=r"no answer after \d+ attempts in"):
        retried(call, "s3://b/x")
    assert time.monotonic() - start < 5
    before = len(left)
    with pytest.raises(InputError, match="no answer after 1 attempts"):
        retried(call, "s3://b/x", once=True)
    assert len(left) == before - 1


def test_an_answer_is_not_asked_for_again():
    calls = []

    def call():
        calls.append(1)
        raise FileNotFoundError("x")

    with pytest.raises(FileNotFoundError):
        retried(call, "s3://b/x")
    assert len(calls) == 1


# URLs


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("nonsense://bucket/x", "scheme nonsense:// is not known"),
        ("simplecache::s3://bucket/x", "is not known"),
        ("s3://key:secret@bucket/x", "holds a secret"),
        ("s3://key:se/c/ret@bucket/x", "holds a secret"),
        ("https://host/x.zarr?X-Amz-Signature=secret", "holds a secret"),
        ("s3://", "names no place"),
        ("s3://bucket", "names no place"),
        ("s3://bucket/", "names no place"),
        ("s3:///events.zarr", "names no place"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused_and_no_secret_is_repeated(url, words):
    with pytest.raises(InputError, match=words) as refusal:
        store_of(url)
    assert "se/c/ret" not in str(refusal.value)
    assert "secret@" not in str(refusal.value)
    assert "=secret" not in str(refusal.value)


@pytest.mark.parametrize("scheme", ["file", "local"])
def test_a_url_of_a_local_folder_is_that_folder(tmp_path, scheme):
    store = store_of(f"{scheme}://{tmp_path}/x.zarr")
    assert isinstance(store, LocalStore)
    assert store.folder == tmp_path / "x.zarr"


def test_what_needs_a_folder_says_so(url):
    with pytest.raises(InputError, match="needs a folder on a local or mounted disk"):
        local_folder(url, "this")


def test_a_store_is_itself(url):
    store = ObjectStore(url)
    assert store_of(store) is store
    assert store_of(url + "/") == store


def test_a_place_that_cannot_be_written_is_one_sentence():
    store = store_of("data://bucket/events.zarr")
    with pytest.raises(InputError, match="cannot"):
        store.write("x", b"x")


@pytest.mark.parametrize("encoding", ["float32", "int16+blosc"])
@pytest.mark.parametrize("window", [None, Window(2, 3)])
def test_runs_of_neighbours_come_from_an_object_store_as_from_a_disk(
    build, url, encoding, window, monkeypatch
):
    """A windowed order has fewer and larger requests than a global one."""
    data = build(events=60, events_per_shard=12, encoding=ENCODINGS[encoding])
    copy_to(data.folder, url)
    asked = []
    read_ranges = ObjectStore.read_ranges

    def counted(store, ranges):
        asked.extend(ranges)
        return read_ranges(store, ranges)

    monkeypatch.setattr(ObjectStore, "read_ranges", counted)
    here = open_stream(data.folder, batch_size=12, window=window)
    there = open_stream(url, batch_size=12, window=window)
    asked.clear()
    for mine, theirs in zip(here, there, strict=True):
        assert np.array_equal(mine.strain, theirs.strain)
        assert np.array_equal(mine.parameters, theirs.parameters)
        assert np.array_equal(mine.event, theirs.event)
    of_strain = [item for item in asked if item[0].startswith("strain/")]
    assert len(of_strain) > 40 if window is None else len(of_strain) < 35


def test_a_damaged_event_of_an_object_store_is_left_out_on_request(build, url):
    data = build(events=20, events_per_shard=5)
    flip_in_event(data.folder, 13)
    copy_to(data.folder, url)
    stream = open_stream(url, batch_size=4, damaged="skip", window=Window(2, 4))
    seen = sorted(number for batch in stream for number in batch.event.tolist())
    assert seen == [number for number in range(20) if number != 13]
    assert list(stream.damaged) == [13]
    with pytest.raises(DamagedDataError, match="event 13 has not the checksum"):
        list(open_stream(url, batch_size=4))


def test_an_event_that_an_object_store_damages_later_is_noticed_in_the_next_epoch(build, url):
    data = build(events=20, events_per_shard=5)
    copy_to(data.folder, url)
    stream = open_stream(url, batch_size=4, damaged="skip")
    assert len(list(stream)) == 5
    flip_in_event(data.folder, 13)
    copy_to(data.folder, url)
    list(stream)
    assert list(stream.damaged) == [13]


@pytest.mark.slow
def test_epochs_from_an_object_store_keep_no_reader_of_a_shard_that_was_let_go(
    build, url, monkeypatch
):
    data = build(events=60, events_per_shard=2)
    copy_to(data.folder, url)
    stream = open_stream(url, batch_size=6)
    few = ShardTables(stream._store, data.schema, most=4)
    monkeypatch.setattr(stream._reading, "_tables", few)
    alive = weakref.WeakSet()
    made = ShardReader.__init__

    def noted(reader, *arguments):
        made(reader, *arguments)
        alive.add(reader)

    monkeypatch.setattr(ShardReader, "__init__", noted)
    for _ in stream.epochs(3):
        gc.collect()
        assert len(alive) <= 4 + 3 * 6  # kept, and of the batches that are read
