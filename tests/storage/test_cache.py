"""What a cache before a store keeps, and what it must not."""

import itertools
import pickle
import sqlite3
from dataclasses import replace

import numpy as np
import pytest
from streams import open_stream

from storage.cache.store import CachedStore
from storage.dataset import create_dataset
from storage.documents import parse_json, sealed_json
from storage.encodings import ENCODINGS
from storage.errors import DamagedDataError, InputError
from storage.manifest import manifest_path, read_manifest
from storage.objects import ObjectStore
from storage.order import Window
from storage.schema import shard_files
from storage.urls import store_of

LIMIT = 10**9
NUMBERS = itertools.count()
INDEX = 3 * 16 + 4  # bytes


class CountingStore(ObjectStore):
    """Counts what is asked for."""

    def __init__(self, url):
        super().__init__(url)
        object.__setattr__(self, "asked", [])

    def ask(self, method, *arguments, **options):
        self.asked.append((method, arguments[0].rpartition("events.zarr/")[2]))
        return super().ask(method, *arguments, **options)

    def _ranges(self, wanted, missing_is_none=False):
        self.asked.extend(("range", path) for path, _, _ in wanted)
        return super()._ranges(wanted, missing_is_none)

    def of_shards(self):
        """The requests for the shards' files themselves, since this was asked last."""
        found = [path for _, path in self.asked if "/c/" in path and not path.startswith("psd")]
        self.asked.clear()
        return found


@pytest.fixture(params=["int16", "int16+blosc"])
def data(build, finish, request):
    """A data set in memory."""
    made = build(encoding=ENCODINGS[request.param], samples=4096)
    return upload(made, finish, f"memory://cache-{next(NUMBERS)}/events.zarr")


def upload(made, finish, url):
    create_dataset(url, made.schema, made.psd)
    there = type(made)(url, made.schema, made.psd, made.events)
    return finish(there)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def new_store(data, folder):
    """Make a store with that cache, as another process would."""

    def new_store(limit=LIMIT):
        return CachedStore(CountingStore(data.folder), folder, limit)

    return new_store


def epoch(store, data, **options):
    """Compare all that a stream delivers through a store with what was written.

    One batch after the other, since two at once may open the same shard twice.
    """
    options = {"batch_size": 2, "threads": 1, "prefetch": 0, **options}
    count = 0
    for batch in open_stream(store, **options):
        assert np.array_equal(batch.strain, data.codes[batch.event])
        assert np.array_equal(batch.parameters, data.parameters[batch.event])
        count += len(batch.event)
    return count


def payload(store, schema, shard, row):
    """Where the payload of an event lies."""
    path = shard_files(shard)["strain"]
    read_manifest(store, schema, shard)
    file = store.open(path)
    index = file.read(file.length - INDEX, INDEX)
    offset, length = np.frombuffer(index[:-4], "<u8").reshape(-1, 2)[row].tolist()
    return path, offset, length


# What is kept


def test_a_second_pass_asks_for_nothing_of_the_shards(data, new_store):
    first, schema = new_store(), data.schema
    assert epoch(first, data) == schema.events
    assert len(first.store.of_shards()) == first.misses == schema.events + 2 * schema.shards
    second = new_store()
    assert epoch(second, data) == schema.events
    assert second.store.of_shards() == []
    assert (second.hits, second.misses) == (first.misses, 0)
    assert first.bytes == second.bytes > 0


def test_a_cache_that_is_too_small_for_the_set_gives_the_right_bytes(data, new_store):
    store = new_store(limit=80_000)
    for seed in range(3):
        assert epoch(store, data, seed=seed) == data.schema.events
        assert store.bytes <= 80_000
    assert store.misses > 20


def test_ranges_that_begin_and_end_with_an_event_are_kept_and_no_others(data, new_store):
    store = new_store()
    path, first, _ = payload(store, data.schema, 0, 0)
    _, last, length = payload(store, data.schema, 0, 2)
    whole = (path, first, last + length - first)
    cut = [(path, first, whole[2] - 1), (path, first + 1, whole[2] - 1), (path, 0, whole[2])]
    for kept, wanted in ((True, whole), *((False, other) for other in cut)):
        content = ObjectStore(data.folder).read_ranges([wanted])
        assert store.read_ranges([wanted]) == content
        store.store.asked.clear()
        assert store.read_ranges([wanted]) == content
        assert (store.store.of_shards() == []) == kept


def test_an_event_is_found_however_it_was_read_before(data, new_store):
    store, direct = new_store(), ObjectStore(data.folder)
    places = [payload(store, data.schema, 0, row) for row in range(3)]
    path, (first, second, third) = places[0][0], [offset for _, offset, _ in places]
    end = third + places[2][2]
    middle_and_last = (path, second, end - second)
    store.store.asked.clear()
    assert store.read_ranges(places[1:2]) == direct.read_ranges(places[1:2])
    assert store.store.of_shards() == [path]
    everything = (path, first, end - first)
    assert store.read_ranges([everything]) == direct.read_ranges([everything])
    assert store.store.of_shards() == [path, path]  # what is before it, and what is behind it
    for wanted in (places, [middle_and_last, *places, everything], [everything] * 2):
        assert store.read_ranges(wanted) == direct.read_ranges(wanted)
    assert store.store.of_shards() == []


def test_epochs_of_any_order_find_what_one_of_another_has_read(data, new_store):
    orders = [{"shuffle": False}, {"window": Window(shards=2, events=2)}, {"batch_size": 7}, {}]
    epoch(new_store(), data, seed=9, **orders[1])
    for options, seed in itertools.product(orders, range(3)):
        store = new_store()
        assert epoch(store, data, seed=seed, **options) == data.schema.events
        assert store.store.of_shards() == []


def test_a_file_that_ends_within_a_range_gives_what_is_there(data, new_store):
    store, direct = new_store(), ObjectStore(data.folder)
    places = [payload(store, data.schema, 0, row) for row in range(3)]
    path, begin, end = places[0][0], places[0][1], places[2][1] + places[2][2]
    store.read_ranges([places[2]])
    direct.write(path, direct.read(path)[: places[1][1] + 10])
    wanted = [(path, begin, end - begin), places[1]]
    assert store.read_ranges(wanted) == direct.read_ranges(wanted)


def test_tables_are_kept_and_metadata_are_not(data, new_store):
    first, paths = new_store(), [shard_files(shard)["optimal_snr"] for shard in (0, 1)]
    asked = [manifest_path(0), *paths, "psd/c/0/0", "zarr.json", "none"]
    read_manifest(first, data.schema, 0)
    read_manifest(first, data.schema, 1)
    contents = list(first.read_each(asked))
    assert contents == list(first.store.read_each(asked))
    first.store.asked.clear()
    assert list(first.read_each(asked)) == contents
    assert [path for _, path in first.store.asked] == [asked[0], *asked[3:]]


def test_ranges_of_files_that_no_manifest_names_go_through(data, new_store):
    store = new_store()
    wanted = [("zarr.json", 2, 9), (shard_files(0)["strain"], 0, 100)]
    assert store.read_ranges(wanted) == store.store.read_ranges(wanted)
    assert (store.hits, store.misses, store.bytes) == (0, 0, 0)


def test_a_copy_of_a_data_set_shares_what_is_kept(data, new_store, folder, finish):
    epoch(new_store(), data)
    there = upload(data, finish, f"memory://cache-{next(NUMBERS)}/events.zarr")
    store = CachedStore(CountingStore(there.folder), folder, LIMIT)
    assert epoch(store, data) == data.schema.events
    assert store.store.of_shards() == []


def test_a_folder_of_a_slow_disk_can_be_cached_too(build, folder):
    data = build(encoding=ENCODINGS["int16+blosc"])
    for misses in (data.schema.events + 2 * data.schema.shards, 0):
        store = CachedStore(store_of(data.folder), folder, LIMIT)
        assert epoch(store, data) == data.schema.events
        assert store.misses == misses


# What changes


def test_another_data_set_under_the_same_url_is_not_mixed_with_the_first(
    data, new_store, small, start, finish
):
    epoch(new_store(), data)
    store = ObjectStore(data.folder)
    for path in list(store.files()):
        store.remove(path)
    schema = replace(data.schema, provenance={"seed": 12})
    create_dataset(data.folder, schema, data.psd)
    events = [replace(event, strain=-event.strain) for event in data.events]
    again = finish(type(data)(data.folder, schema, data.psd, events))
    assert not np.array_equal(again.codes, data.codes)
    assert epoch(new_store(), again) == schema.events


def rewrite(data, finish, shard, strain):
    """Replace a shard in place by one of other events, as an accepted repair does."""
    events = [replace(event, strain=strain(event.strain)) for event in data.events]
    changed = type(data)(data.folder, data.schema, data.psd, events)
    return finish(changed, [shard])


def test_a_shard_that_was_replaced_is_read_anew_and_all_others_are_not(data, new_store, finish):
    epoch(new_store(), data)
    changed = rewrite(data, finish, 1, np.negative)
    mixed = [
        (changed if number in data.schema.events_of(1) else data).events[number]
        for number in range(data.schema.events)
    ]
    store = new_store()
    assert epoch(store, type(data)(data.folder, data.schema, data.psd, mixed)) == len(mixed)
    assert set(store.store.of_shards()) <= set(shard_files(1).values())
    assert store.misses >= 4


def test_bytes_of_a_shard_that_is_replaced_meanwhile_are_not_kept_for_the_old_one(
    data, new_store, finish
):
    """The old manifest was read, the new bytes come: a later repair brings the old ones back."""
    store = new_store()
    place = payload(store, data.schema, 1, 0)
    rewrite(data, finish, 1, lambda strain: np.roll(strain, 7, 1))
    there = store.read_ranges([place])
    assert there == store.store.read_ranges([place])
    finish(data, [1])
    assert epoch(new_store(), data) == data.schema.events


def test_what_was_damaged_in_the_store_is_read_anew_when_it_is_mended(data, new_store):
    store = ObjectStore(data.folder)
    path, offset, length = payload(new_store(), data.schema, 1, 1)
    sound = store.read(path)
    damaged = bytearray(sound)
    damaged[offset + length // 2] ^= 1
    store.write(path, bytes(damaged))
    with pytest.raises(DamagedDataError, match="has not the checksum that was written"):
        epoch(new_store(), data)
    store.write(path, sound)
    assert epoch(new_store(), data) == data.schema.events


@pytest.mark.parametrize("name", ["strain", "parameters"])
def test_a_cut_object_is_not_kept(data, new_store, name):
    store, path = ObjectStore(data.folder), shard_files(1)[name]
    sound = store.read(path)
    cached = new_store()
    place = payload(cached, data.schema, 1, 2)
    store.write(path, sound[: len(sound) // 3])
    assert cached.read(path) == sound[: len(sound) // 3]
    cached.read_ranges([place])
    store.write(path, sound)
    assert cached.read(path) == sound
    assert cached.read_ranges([place]) == store.read_ranges([place])


def test_a_set_that_grows_is_seen_to_grow(start, finish, data, folder):
    url = f"memory://cache-{next(NUMBERS)}/events.zarr"
    create_dataset(url, data.schema, data.psd)
    growing = type(data)(url, data.schema, data.psd, data.events)
    store = CachedStore(ObjectStore(url), folder, LIMIT)
    for shard in range(data.schema.shards):
        finish(growing, [shard])
        events = sum(len(data.schema.events_of(done)) for done in range(shard + 1))
        assert epoch(store, data, growing=True) == events


def test_a_manifest_that_was_altered_is_no_reason_to_end(data, new_store):
    store, path = ObjectStore(data.folder), manifest_path(1)
    document = parse_json(store.read(path), path)
    shapes = [{"files": []}, {"files": {"x": 3}}, {"crc32c": [-1]}, {"shard": []}, {"files": 7}]
    for wrong in [*shapes, {"files": {"strain/c/1/0/0": {"bytes": "9", "blake3": "0"}}}]:
        content = sealed_json({**document, **wrong})
        store.write(path, content)
        assert list(new_store().read_each([path])) == [content]
    store.write(path, b"{")
    assert new_store().read(path) == b"{"


def test_a_damaged_file_of_the_cache_is_read_anew(data, new_store, folder):
    epoch(new_store(), data)
    files = [path for path in folder.glob("items/*/*") if path.is_file()]
    for place, path in enumerate(files):
        content = bytearray(path.read_bytes())
        content[place % len(content)] ^= 4
        path.write_bytes(content)
    store = new_store()
    assert epoch(store, data) == data.schema.events
    assert (store.hits, store.misses) == (0, len(files))
    store = new_store()
    assert epoch(store, data) == data.schema.events
    assert (store.hits, store.misses) == (len(files), 0)


# The store before it


def test_everything_else_is_the_other_stores(data, new_store):
    store, other = new_store(), ObjectStore(data.folder)
    assert (store.url, store.address, store.beside) == (other.url, other.address, other.beside)
    assert store.where("x") == other.where("x")
    assert sorted(store.files()) == sorted(other.files())
    assert sorted(store.names("manifest")) == sorted(other.names("manifest"))
    assert store.lengths()("zarr.json") == store.length("zarr.json") == other.length("zarr.json")
    assert store.length("none") is None
    with store.only_writer():
        assert other.is_being_written()
        assert store.is_being_written()
    store.write("some/x", b"x")
    assert other.read("some/x") == store.read("some/x") == b"x"
    store.remove("some/x")
    store.remove_partial_files()
    for call in (store.read, store.open):
        with pytest.raises(FileNotFoundError):
            call("some/x")
    assert store_of(store) is store


def test_a_store_with_a_cache_goes_to_another_process(data, folder):
    epoch(CachedStore(ObjectStore(data.folder), folder, LIMIT), data)
    store = CachedStore(ObjectStore(data.folder), folder, LIMIT)
    store = pickle.loads(pickle.dumps(store))
    assert epoch(store, data) == data.schema.events
    assert store.misses == 0


def test_a_limit_below_an_event_is_refused_in_one_sentence(data, new_store):
    with pytest.raises(InputError, match=r"limit of 8,192 bytes is less than one item of \d+,"):
        epoch(new_store(limit=8192), data)


def test_a_folder_that_cannot_be_written_does_not_end_the_stream(data, new_store, folder):
    folder.mkdir()
    (folder / "index.sqlite").write_bytes(b"no index" * 1000)
    with pytest.warns(RuntimeWarning, match="cannot be written") as said:
        assert epoch(new_store(), data) == data.schema.events
    assert len(said) == 1


def test_threads_share_one_store(data, new_store, folder):
    store = new_store(limit=80_000)
    for seed in range(4):
        assert epoch(store, data, threads=8, prefetch=3, seed=seed) == data.schema.events
    index = sqlite3.connect(folder / "index.sqlite")
    counted = index.execute("SELECT SUM(bytes) FROM item").fetchone()[0]
    index.close()
    assert store.bytes == counted <= 80_000
