import errno
import itertools
import os
import resource
import shutil
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import psutil
import pytest
import webdataset as wds
from descriptors import open_under
from hypothesis import given, settings
from hypothesis import strategies as st
from streams import flip_in_event, open_stream
from unreadable import on_one_bad_sector

from storage import calibrate, proved, reading, singles, tables
from storage import stream as stream_module
from storage.audit import Audit
from storage.bench import limits
from storage.encodings import ENCODINGS
from storage.errors import DamagedDataError, InputError
from storage.local import LocalStore
from storage.order import Window, permuted
from storage.replay import assert_replays
from storage.schema import shard_files
from storage.shard_reader import ReplacedError
from storage.stream import Batch, EventStream

EVENTS = 23


@pytest.fixture(scope="session", params=["int16", "int16+blosc"])
def data(build, request):
    """23 events in five shards, the last one partial, not compressed and compressed."""
    return build(events=EVENTS, events_per_shard=5, encoding=ENCODINGS[request.param])


@pytest.fixture(scope="session")
def many_shards(build):
    """260 shards of two events."""
    return build(events=520, events_per_shard=2)


@pytest.fixture
def new_stream(data):
    """Make a stream of that data set."""

    def new_stream(**options: object) -> EventStream:
        return open_stream(data.folder, **{"batch_size": 4, **options})

    return new_stream


def kept(batch: Batch) -> Batch:
    """A copy that outlives the buffer."""
    return Batch(batch.strain.copy(), batch.parameters.copy(), batch.event.copy())


def numbers(batches) -> list[int]:
    return [number for batch in batches for number in batch.event.tolist()]


def where(state) -> tuple[int, int, int]:
    return state["seed"], state["epoch"], state["position"]


def soon_over(there: Callable[[], object]) -> None:
    """Threads of an iteration that is left end by themselves, once they have read what they had."""
    end = time.monotonic() + 10
    while there():
        assert time.monotonic() < end, there()
        time.sleep(0.001)


def reading_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("strainflow-read")]


def open_shards_of(folder: Path) -> int:
    return len(open_under(folder / "strain"))


# What is delivered


@pytest.mark.parametrize("options", [{}, {"threads": 5, "prefetch": 0}, {"batch_size": 100}])
def test_values_and_parameters_are_those_of_the_event(data, new_stream, options):
    for batch in new_stream(**options):
        assert batch.strain.dtype == np.int16
        assert np.array_equal(batch.strain, data.codes[batch.event])
        assert np.array_equal(batch.parameters, data.parameters[batch.event])


def test_every_encoding_is_delivered_as_it_is_stored(build, encoding):
    data = build(encoding=ENCODINGS[encoding])
    for batch in open_stream(data.folder, batch_size=3):
        assert batch.strain.dtype == data.schema.encoding.dtype
        assert np.array_equal(batch.strain, data.codes[batch.event])


@given(
    batch_size=st.integers(1, 8),
    world_size=st.integers(1, 6),
    bounds=st.tuples(st.integers(0, EVENTS), st.integers(0, EVENTS)).filter(lambda b: b[0] != b[1]),
    options=st.one_of(
        st.just({"shuffle": False}),
        st.just({}),
        st.builds(lambda *sizes: {"window": Window(*sizes)}, st.integers(1, 6), st.integers(1, 6)),
    ),
)
@settings(max_examples=60, deadline=None)
def test_each_event_comes_exactly_once_an_epoch_over_all_ranks(
    data, batch_size, world_size, bounds, options
):
    first, last = sorted(bounds)
    ranks = [
        open_stream(
            data.folder,
            batch_size=batch_size,
            rank=rank,
            world_size=world_size,
            start=first,
            stop=last,
            **options,
        )
        for rank in range(world_size)
    ]
    for epoch in range(2):
        delivered = [[batch.event.copy() for batch in stream] for stream in ranks]
        assert {len(batches) for batches in delivered} == {len(ranks[0])}
        assert all(len(batch) <= batch_size for batches in delivered for batch in batches)
        for step in zip(*delivered, strict=True):
            sizes = [len(batch) for batch in step]
            assert max(sizes) - min(sizes) <= 1
        together = np.concatenate([batch for batches in delivered for batch in batches])
        assert np.array_equal(np.sort(together), np.arange(first, last))
        audit = sum((stream.audit for stream in ranks), Audit(epoch))
        assert audit == Audit.of(np.arange(first, last), epoch)


def test_the_order_is_that_of_storage_order_and_changes_with_epoch_and_seed(new_stream):
    stream = new_stream(seed=3)
    epochs = [numbers(stream) for _ in range(3)]
    for epoch, order in enumerate(epochs):
        assert order == permuted(np.arange(EVENTS), EVENTS, 3, epoch).tolist()
    assert len(set(map(tuple, [*epochs, numbers(new_stream(seed=4))]))) == 4


def test_without_shuffle_the_order_is_that_of_the_data_set_in_every_epoch(new_stream):
    stream = new_stream(shuffle=False, start=3, stop=17)
    assert numbers(stream) == list(range(3, 17))
    assert numbers(stream) == list(range(3, 17))


def test_training_and_validation_ranges_share_no_event(new_stream):
    training, validation = new_stream(stop=20), new_stream(start=20)
    assert sorted(numbers(training)) == list(range(20))
    assert sorted(numbers(validation)) == [20, 21, 22]
    assert (training.events, validation.events) == (20, 3)
    assert (len(training), len(validation)) == (5, 1)


# Resume


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rank": 1, "world_size": 3},
        {"shuffle": False},
        {"prefetch": 0},
        {"start": 2, "stop": 13},
        {"window": Window(2, 3)},
        {"window": Window(3, 2), "rank": 1, "world_size": 2},
        {"past_cache": True},
        {"growing": True},
    ],
)
def test_a_stream_replays_the_same_bytes_from_every_state(new_stream, options):
    stream = new_stream(**options)
    assert assert_replays(lambda: new_stream(**options)) == 2 * len(stream)


class OneEventLate(EventStream):
    def load_state_dict(self, state):
        super().load_state_dict(state)
        self._position += self._position > 8


class OneBitWrong(EventStream):
    """Flips one bit of one batch, but only after a resume."""

    resumed = False

    def load_state_dict(self, state):
        super().load_state_dict(state)
        self.resumed = state["position"] == 8

    def __iter__(self):
        for step, batch in enumerate(super().__iter__()):
            batch.strain[-1, -1, -1] ^= self.resumed and step == 1
            yield batch


@pytest.mark.parametrize("broken", [OneEventLate, OneBitWrong])
def test_the_comparison_notices_a_stream_that_resumes_wrongly(data, broken):
    with pytest.raises(AssertionError, match="differs after state"):
        assert_replays(lambda: broken(data.folder, batch_size=4))


@pytest.mark.parametrize("done", [0, 1, 2])
@pytest.mark.parametrize(
    "changes",
    [{"world_size": 1}, {"world_size": 3}, {"batch_size": 5}, {"threads": 1}, {"prefetch": 4}],
)
@pytest.mark.parametrize("window", [None, Window(2, 3)])
def test_the_remaining_order_is_kept_with_other_ranks_batches_and_threads(
    new_stream, done, changes, window
):
    before = {"batch_size": 3, "world_size": 2, "threads": 3, "window": window}
    after = {**before, **changes}

    def resumed(state, steps: int | None, **options) -> tuple[list[int], list[dict[str, int]]]:
        """What all ranks together deliver, step by step, and where each of them stands then."""
        ranks = [new_stream(rank=rank, **options) for rank in range(options["world_size"])]
        if state:
            for stream in ranks:
                stream.load_state_dict(state)
        iterators = [iter(stream) for stream in ranks]
        steps_taken = zip(
            *(map(kept, itertools.islice(it, steps)) for it in iterators), strict=True
        )
        return numbers(batch for step in steps_taken for batch in step), [
            s.state_dict() for s in ranks
        ]

    first, states = resumed(None, done, **before)
    assert all(state == states[0] for state in states)
    rest, states = resumed(states[0], None, **after)
    if window is None:
        assert first + rest == permuted(np.arange(EVENTS), EVENTS, 0, 0).tolist()
    assert first + rest == numbers(new_stream(window=window))
    assert all(where(state) == (0, 1, 0) for state in states)


def test_the_state_is_that_of_the_batches_taken_not_of_those_read_ahead(new_stream):
    stream = new_stream(prefetch=3)
    iterator = iter(stream)
    for taken in range(1, 4):
        next(iterator)
        assert where(stream.state_dict()) == (0, 0, 4 * taken)
    iterator.close()
    assert stream.state_dict()["position"] == 12
    assert len(numbers(stream)) == EVENTS - 12


@pytest.mark.parametrize("position", [-1, EVENTS, 1000])
def test_a_state_of_another_data_set_is_refused(new_stream, position):
    with pytest.raises(
        InputError, match=f"position {position}, this stream has 23 events an epoch"
    ):
        new_stream().load_state_dict({"seed": 0, "epoch": 0, "position": position})


# From epoch to epoch


@pytest.mark.parametrize("prefetch", [0, 1, 3, 9])
@pytest.mark.parametrize("position", [0, 8, 20])
def test_epochs_in_one_go_have_the_batches_and_states_of_one_after_the_other(
    new_stream, prefetch, position
):
    one_by_one, in_one_go = new_stream(prefetch=prefetch), new_stream(prefetch=prefetch)
    for stream in (one_by_one, in_one_go):
        stream.load_state_dict({"seed": 3, "epoch": 1, "position": position})
    seen = [
        (batch.event.tolist(), where(one_by_one.state_dict()), one_by_one.audit)
        for _ in range(3)
        for batch in one_by_one
    ]
    batches = in_one_go.epochs(4)
    assert seen == [
        (batch.event.tolist(), where(in_one_go.state_dict()), in_one_go.audit) for batch in batches
    ]
    assert where(in_one_go.state_dict()) == (3, 4, 0)
    assert not reading_threads()


def test_the_next_epoch_is_read_while_the_last_batches_of_this_one_are_used(
    new_stream, monkeypatch
):
    begun = []
    filling = reading.Reading.filling
    monkeypatch.setattr(
        reading.Reading, "filling", lambda self, batch: begun.append(batch) or filling(self, batch)
    )
    stream = new_stream(prefetch=2, batch_size=8)
    batches = stream.epochs(2)
    for _ in range(len(stream)):  # one epoch
        next(batches)
    deadline = time.monotonic() + 30
    while len(begun) < len(stream) + 2:
        assert time.monotonic() < deadline, f"{len(begun)} batches were begun"
        time.sleep(0.001)
    batches.close()
    assert where(stream.state_dict()) == (0, 1, 0)


def test_without_a_last_epoch_there_is_always_another(new_stream):
    stream = new_stream()
    for _ in itertools.islice(stream.epochs(), 7 * len(stream)):
        pass
    assert stream.state_dict()["epoch"] == 7


def test_epochs_of_a_growing_set_in_one_go_see_what_was_finished_meanwhile(
    small, start, finish, tmp_path
):
    data = start(tmp_path / "events.zarr", replace(small, events=21))
    finish(data, [0, 2])
    stream = open_stream(data.folder, batch_size=4, growing=True)
    batches = stream.epochs(2)
    first = numbers(next(batches) for _ in range(2))
    finish(data, [1, 3])
    assert sorted(first) == [0, 1, 2, 6, 7, 8]
    assert sorted(numbers(batches)) == list(range(12))


# Buffers, threads and files


@pytest.mark.parametrize("prefetch", [0, 1, 3])
def test_buffers_are_used_again_after_one_more_than_the_prefetched_batches(new_stream, prefetch):
    addresses = [batch.strain.ctypes.data for batch in new_stream(batch_size=2, prefetch=prefetch)]
    assert len(set(addresses)) == prefetch + 1
    assert all(a == b for a, b in zip(addresses, addresses[prefetch + 1 :], strict=False))


def test_strain_is_read_into_the_buffers_that_the_caller_allocates(new_stream):
    made = []

    def allocate(shape, dtype):
        made.append(np.empty(shape, dtype))
        return made[-1]

    for batch in new_stream(prefetch=2, allocate=allocate):
        assert any(np.shares_memory(batch.strain, buffer) for buffer in made)
    assert [(buffer.shape, buffer.dtype) for buffer in made] == 3 * [((4, 3, 50), np.int16)]


def test_a_batch_holds_until_the_next_one_is_taken_even_if_the_consumer_is_slow(data, new_stream):
    iterator = iter(new_stream(batch_size=2, prefetch=1))
    for batch in iterator:
        pause = threading.Event()
        pause.wait(0.005)  # time in which everything prefetched has been read
        assert np.array_equal(batch.strain, data.codes[batch.event])


def test_an_abandoned_iteration_leaves_no_threads_and_no_open_files(data, new_stream):
    for batch in new_stream(batch_size=1, threads=3):  # noqa: B007
        assert reading_threads()
        assert open_shards_of(data.folder)
        break
    assert len(batch.event) == 1
    soon_over(reading_threads)
    soon_over(lambda: open_shards_of(data.folder))


def test_an_iteration_that_the_garbage_collector_ends_waits_for_no_thread(new_stream):
    """It may come while a thread is starting, with a lock held that threads need to end."""
    stream = new_stream(batch_size=1, threads=2)
    iterator = iter(stream)
    next(iterator)
    with threading._shutdown_locks_lock:  # as `Thread._set_tstate_lock` holds it
        iterator.close()
    assert [batch.event.copy() for batch in stream]


def test_a_finished_iteration_leaves_no_threads_and_no_open_files(data, new_stream):
    list(new_stream())
    assert not reading_threads()
    assert not open_shards_of(data.folder)


@pytest.mark.parametrize("past_cache", [False, True])
def test_more_shards_than_file_descriptors_are_read_with_few_open(build, monkeypatch, past_cache):
    data = build(events=60, events_per_shard=2)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (100, 100))
    most, each = 0, 2 if past_cache else 1  # descriptors of a file
    for batch in open_stream(data.folder, batch_size=4, threads=4, past_cache=past_cache):
        most = max(most, open_shards_of(data.folder))
        assert np.array_equal(batch.strain, data.codes[batch.event])
    # Kept, just opened, and dropped but still in use by a thread.
    assert 10 < most <= 16 + each * (1 + 4)


@pytest.mark.parametrize("past_cache", [False, True])
def test_large_batches_of_many_shards_do_not_use_up_the_file_descriptors(many_shards, past_cache):
    data = many_shards
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    there = psutil.Process().num_fds()
    resource.setrlimit(resource.RLIMIT_NOFILE, (there + 300, before[1]))
    try:
        options = {"batch_size": 256, "threads": 4, "prefetch": 4, "past_cache": past_cache}
        stream = open_stream(data.folder, **options)
        for _ in range(3):
            for batch in stream:
                assert np.array_equal(batch.strain, data.codes[batch.event])
                assert np.array_equal(batch.parameters, data.parameters[batch.event])
                with (data.folder / "zarr.json").open():
                    assert psutil.Process().num_fds() < there + 290
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize("past_cache", [False, True])
def test_two_streams_together_do_not_use_up_the_file_descriptors(many_shards, past_cache):
    data = many_shards
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    there = psutil.Process().num_fds()
    resource.setrlimit(resource.RLIMIT_NOFILE, (there + 500, before[1]))
    try:
        options = {"threads": 4, "prefetch": 2, "past_cache": past_cache}
        training = open_stream(data.folder, batch_size=64, **options)
        for batch in training:  # alone, it may open all that there is
            assert np.array_equal(batch.strain, data.codes[batch.event])
        batches = iter(training)
        next(batches)
        validation = open_stream(data.folder, batch_size=32, shuffle=False, **options)
        for batch in itertools.chain.from_iterable(zip(batches, validation, strict=False)):
            assert np.array_equal(batch.strain, data.codes[batch.event])
            assert psutil.Process().num_fds() < there + 490
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_verb_may_open_as_many_files_as_the_system_allows():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(500, before[1]), before[1]))
        tables.allow_many_files()
        allowed = resource.getrlimit(resource.RLIMIT_NOFILE)
        at_most = before[1] if before[1] != resource.RLIM_INFINITY else tables.MANY_FILES
        assert allowed == (min(at_most, tables.MANY_FILES), before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_tables_close_files_when_others_come_and_open_more_when_those_are_gone(build, monkeypatch):
    data = build(events=60, events_per_shard=2)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (100, 100))
    monkeypatch.setattr(tables, "_sharing", weakref.WeakSet())
    store = LocalStore(data.folder)
    first = tables.ShardTables(store, data.schema, most=30)

    def left_open(kept):
        for shard in range(30):
            kept.reader(shard)
        return open_shards_of(data.folder)

    assert left_open(first) == 16
    second = tables.ShardTables(store, data.schema, most=30)
    assert open_shards_of(data.folder) == 16, "one that has nothing open takes nothing away"
    second.reader(0)
    assert open_shards_of(data.folder) == 8 + 1
    assert left_open(second) == left_open(first) == 16
    second.release()
    assert left_open(first) == 16
    assert first.files_at_once == tables.HELD
    del second
    assert left_open(first) == 16
    assert first.files_at_once == tables.HELD


def test_a_shard_that_fails_to_be_kept_takes_no_slot_of_another(build, monkeypatch):
    data = build(events=20, events_per_shard=5)
    kept = tables.ShardTables(LocalStore(data.folder), data.schema, most=2)
    parameters = np.empty((20, len(data.schema.parameters)))
    for shard in (0, 1):
        kept.reader(shard)
    with monkeypatch.context() as patch:
        patch.setattr(tables.ShardReader, "possible", Mock(side_effect=MemoryError))
        with pytest.raises(MemoryError):
            kept.reader(2)
    for shard in (3, 2, 1, 0, 3):
        events = np.arange(5 * shard, 5 * shard + 5)
        kept.reader(shard)
        found, left = kept.find(events, np.arange(5), parameters)
        assert not len(left)
        assert np.array_equal(parameters[:5], data.parameters[events])
        for place, offset, file in zip(found.places, found.offsets, found.files, strict=True):
            strain = file.read(int(offset), data.schema.event_bytes)
            assert strain == data.codes[events[place]].tobytes()


def test_a_shard_that_was_replaced_by_other_bytes_is_read_as_it_is_now(build, finish):
    data = build(events=20, events_per_shard=5)
    stream = open_stream(data.folder, batch_size=4)
    numbers(stream)
    events = [
        replace(event, strain=-event.strain, parameters=event.parameters + 1)
        for event in data.events
    ]
    other = finish(replace(data, events=events), [2])
    for batch in stream:
        of_other = batch.event // 5 == 2
        strain = np.where(
            of_other[:, None, None], other.codes[batch.event], data.codes[batch.event]
        )
        assert np.array_equal(batch.strain, strain)
        assert np.array_equal(batch.parameters, data.parameters[batch.event] + of_other[:, None])


def replace_file(path: Path) -> None:
    """Put another file with the same bytes in its place."""
    before = path.with_name("before")
    path.rename(before)
    path.write_bytes(before.read_bytes())
    before.unlink()


def test_a_file_that_was_closed_is_not_opened_again_if_it_is_another_one(build):
    data = build(events=20, events_per_shard=5)
    kept = tables.ShardTables(LocalStore(data.folder), data.schema, most=16)
    reader, room = kept.reader(2), bytearray(data.schema.event_bytes)
    kept.release()
    reader.open()
    kept.release()
    path = data.folder / "strain/c/2/0/0"
    replace_file(path)
    with pytest.raises(ReplacedError, match=f"{path}: was replaced by another file while it was"):
        reader.read(0, [memoryview(room)])
    assert not reader.is_open
    other = kept.reader(2)
    assert other is not reader
    other.read(0, [memoryview(room)])
    assert bytes(room) == data.codes[10].tobytes()


@pytest.mark.parametrize("options", [{}, {"window": Window(2, 4)}])
def test_a_shard_that_is_replaced_when_it_is_about_to_be_read_is_opened_as_a_new_one(
    build, monkeypatch, options
):
    """Each time that a reader is handed out, its file is closed, as for others, and replaced."""
    data = build(events=20, events_per_shard=5)
    reader_of, count = tables.ShardTables.reader, itertools.count()

    def reader(self, shard):
        found = reader_of(self, shard)
        if next(count) % 2:
            found.release()
            replace_file(data.folder / f"strain/c/{shard}/0/0")
        return found

    monkeypatch.setattr(tables.ShardTables, "reader", reader)
    seen = []
    for batch in open_stream(data.folder, batch_size=4, threads=1, prefetch=0, **options):
        assert np.array_equal(batch.strain, data.codes[batch.event])
        assert np.array_equal(batch.parameters, data.parameters[batch.event])
        seen += batch.event.tolist()
    assert sorted(seen) == list(range(20))


def test_what_is_left_of_a_shard_that_was_cut_off_is_proved_and_a_repair_is_seen(build):
    data = build(events=20, events_per_shard=5)
    stream = open_stream(data.folder, batch_size=4, damaged="skip")
    assert len(numbers(stream)) == 20
    path = data.folder / "strain/c/2/0/0"
    sound = path.read_bytes()
    flip_in_event(data.folder, 11)
    os.truncate(path, sound.find(data.codes[14].tobytes()) + 7)
    for _ in range(2):
        stream.damaged.clear()
        assert sorted(numbers(stream)) == [*range(11), 12, 13, *range(15, 20)]
        assert sorted(stream.damaged) == [11, 14]
    path.write_bytes(sound)
    assert sorted(numbers(stream)) == list(range(20))


@pytest.mark.parametrize("options", [{}, {"window": Window(2, 4)}, {"memory": 30_000.0}])
def test_the_events_of_a_shard_that_was_replaced_are_proved_again(build, options):
    data = build(events=200, events_per_shard=5)
    stream = open_stream(data.folder, batch_size=4, **options)
    assert len(numbers(stream)) == 200
    replace_file(data.folder / "strain/c/2/0/0")
    flip_in_event(data.folder, 13)
    with pytest.raises(DamagedDataError, match="strain/c/2/0/0: event 13 has not the checksum"):
        list(stream)


def test_a_proof_that_was_begun_before_a_shard_was_replaced_is_not_noted(small):
    known = proved.Proved(replace(small, events=20, events_per_shard=5))
    events = np.arange(20)
    known.note(events, known.replaced)
    assert known.has(events)
    before = known.replaced
    known.forget(2)
    assert known.has(np.delete(events, range(10, 15)))
    assert not any(known.has(events[number : number + 1]) for number in range(10, 15))
    known.note(events, before)
    assert not known.has(events)
    known.note(events, known.replaced)
    assert known.has(events)


def test_a_shard_that_the_disk_cannot_open_any_more_costs_its_events_only(build, monkeypatch):
    data = build(events=20, events_per_shard=5)
    stream = open_stream(data.folder, batch_size=4, damaged="skip")
    assert len(numbers(stream)) == 20
    open_it = LocalStore.open

    def open_or_not(store, path):
        if path == shard_files(2)["strain"]:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return open_it(store, path)

    monkeypatch.setattr(LocalStore, "open", open_or_not)
    assert sorted(numbers(stream)) == [*range(10), *range(15, 20)]
    assert sorted(stream.damaged) == list(range(10, 15))


def test_a_file_that_a_late_read_opens_again_is_closed_with_the_others(build):
    data = build(events=20, events_per_shard=5)
    kept = tables.ShardTables(LocalStore(data.folder), data.schema, most=16)
    reader = kept.reader(2)
    kept.release()
    reader.read(0, [memoryview(bytearray(data.schema.event_bytes))])
    assert open_shards_of(data.folder) == 1
    kept.release()
    assert open_shards_of(data.folder) == 0


def test_a_batch_of_small_events_has_work_for_more_than_one_thread(new_stream, monkeypatch):
    counts = []
    tasks = reading.Reading.tasks

    def counted(self, *arguments):
        found = list(tasks(self, *arguments))
        counts.append(len(found))
        return iter(found)

    monkeypatch.setattr(reading.Reading, "tasks", counted)
    list(new_stream(batch_size=23, threads=4))
    assert counts[0] >= 3, "runs of neighbours stay together"


def test_without_a_limit_on_file_descriptors_all_shards_stay_open(monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _: 2 * (resource.RLIM_INFINITY,))
    assert tables.most_open_files() > 10**6


def test_a_shard_that_is_damaged_while_training_ends_the_iteration_with_its_name(build):
    data = build(events=20, events_per_shard=5)
    stream = open_stream(data.folder, batch_size=4)
    path = data.folder / "strain/c/2/0/0"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(DamagedDataError, match=f"{path}: the index at its end is missing"):
        list(stream)
    assert not reading_threads()


def test_a_bit_that_flips_in_a_compressed_event_ends_the_iteration_with_its_number(build):
    """Blosc may crash on what it did not write: the checksum has to come first."""
    data = build(events=20, events_per_shard=5, encoding=ENCODINGS["int16+blosc"])
    flip_in_event(data.folder, 13)
    path = data.folder / "strain/c/2/0/0"
    stream = open_stream(data.folder, batch_size=4)
    with pytest.raises(DamagedDataError, match=f"{path}: event 13 has not the check"):
        list(stream)
    assert not reading_threads()


# With webdataset and PyTorch


def test_it_is_the_source_of_a_webdataset_pipeline(new_stream):
    def numbers_of(source):
        for batch in source:
            yield from batch.event.tolist()

    pipeline = wds.DataPipeline(new_stream(), numbers_of, wds.map(lambda number: -number))
    assert sorted(pipeline) == [-number for number in reversed(range(EVENTS))]


@pytest.mark.filterwarnings("ignore:.*pin_memory.*")
def test_it_feeds_webdatasets_loader_without_a_copy(data, new_stream):
    pytest.importorskip("torch")
    stream = new_stream()
    loader = wds.WebLoader(stream, batch_size=None, num_workers=0)
    for epoch in range(2):
        seen = []
        for batch in loader:
            assert np.array_equal(batch.strain, data.codes[batch.event])
            seen += batch.event.tolist()
        assert seen == permuted(np.arange(EVENTS), EVENTS, 0, epoch).tolist()
    assert where(stream.state_dict()) == (0, 2, 0)


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_of_a_dataloader_are_refused(new_stream, workers):
    """One worker, too: it reuses buffers that still wait to be sent, and keeps the state."""
    torch_data = pytest.importorskip("torch.utils.data")
    batches = iter(torch_data.DataLoader(new_stream(), batch_size=None, num_workers=workers))
    with pytest.raises(InputError, match="use num_workers=0"):
        next(batches)
    batches._shutdown_workers()


# Refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size: got 0, at least 1 is needed"),
        ({"threads": 0}, "threads: got 0, at least 1 is needed"),
        ({"prefetch": -1}, "prefetch: got -1, at least 0 is needed"),
        ({"seed": -1}, "seed: got -1, at least 0 is needed"),
        ({"world_size": 0}, "world_size: got 0, at least 1 is needed"),
        ({"rank": 2, "world_size": 2}, r"rank: got 2, must lie in \[0, 2\)"),
        ({"rank": -1}, r"rank: got -1, must lie in \[0, 1\)"),
        ({"start": -1}, "events -1:23: the data set has events 0:23"),
        ({"stop": 24}, "events 0:24: the data set has events 0:23"),
        ({"start": 5, "stop": 5}, "events 5:5: the data set has events 0:23"),
    ],
)
def test_impossible_arguments_are_refused(new_stream, options, message):
    with pytest.raises(InputError, match=message):
        new_stream(**options)


def test_an_incomplete_data_set_is_refused(empty, finish):
    finish(empty, [0, 1])
    with pytest.raises(DamagedDataError, match="1 of 3 shards are missing"):
        open_stream(empty.folder, batch_size=2)


def test_two_iterators_of_one_stream_do_not_share_buffers(filled):
    stream = open_stream(filled.folder, batch_size=4, shuffle=False)
    first, second = iter(stream), iter(stream)
    batch = next(first)
    kept = batch.strain.copy()
    for other in second:
        assert not np.shares_memory(batch.strain, other.strain)
    np.testing.assert_array_equal(batch.strain, kept)
    first.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"memory": 1000.0},
            r"memory: got 1e\+03 bytes, 2 batches of .* bytes and tables of .* do not fit",
        ),
        ({"growing": True, "world_size": 2}, "growing: several ranks may see different shards"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(new_stream, options, message):
    with pytest.raises(InputError, match=message):
        new_stream(**options)


def test_an_empty_window_is_refused():
    with pytest.raises(InputError, match=r"window\.shards: got 0, at least 1 is needed"):
        Window(0, 3)


def test_a_state_of_another_order_is_refused_except_at_the_start_of_an_epoch(new_stream):
    stream = new_stream()
    next(iter(stream))
    state = stream.state_dict()
    for options in ({"window": Window(2, 3)}, {"shuffle": False}):
        with pytest.raises(InputError, match="got one of the order 'global', this stream's is"):
            new_stream(**options).load_state_dict(state)
        new_stream(**options).load_state_dict({**state, "position": 0})


def test_a_state_of_the_windowed_order_that_shuffled_single_events_is_refused(new_stream):
    stream = new_stream(window=Window(2, 3))
    next(iter(stream))
    state = {**stream.state_dict(), "order": "windowed, 2 shards by 3 events"}
    with pytest.raises(InputError, match="got one of the order 'windowed, 2 shards by 3 events', "):
        new_stream(window=Window(2, 3)).load_state_dict(state)


def test_a_state_of_a_range_of_another_length_is_refused(new_stream):
    stream = new_stream()
    next(iter(stream))
    with pytest.raises(InputError, match="position 4, this stream has 20 events an epoch"):
        new_stream(stop=20).load_state_dict(stream.state_dict())


def test_a_state_of_another_range_of_as_many_events_is_refused(new_stream):
    stream = new_stream(start=3)
    next(iter(stream))
    state = stream.state_dict()
    with pytest.raises(InputError, match="got one of the events 3:23, this stream's are 0:20"):
        new_stream(stop=20).load_state_dict(state)
    new_stream(stop=20).load_state_dict({**state, "position": 0})
    new_stream(start=3).load_state_dict(state)
    new_stream(start=3, stop=23).load_state_dict(state)


@pytest.mark.parametrize("taken", [0, 1])
def test_a_state_of_another_data_set_of_as_many_events_is_refused(build, tmp_path, taken):
    one, other = (build(provenance={"seed": seed}).folder for seed in (1, 2))
    stream = open_stream(one, batch_size=4)
    list(itertools.islice(stream, taken))
    state = stream.state_dict()
    with pytest.raises(InputError, match="got one of another data set"):
        open_stream(other, batch_size=4).load_state_dict(state)
    shutil.copytree(one, tmp_path / "elsewhere.zarr")
    open_stream(tmp_path / "elsewhere.zarr", batch_size=4).load_state_dict(state)


def test_a_state_in_mid_epoch_of_a_growing_set_names_its_range(small, start, finish, tmp_path):
    data = start(tmp_path / "events.zarr", replace(small, events=21))
    finish(data, [0, 2])
    stream = open_stream(data.folder, batch_size=2, growing=True, start=1)
    next(iter(stream))
    state = stream.state_dict()
    finish(data, [1])
    open_stream(data.folder, batch_size=2, growing=True, start=1).load_state_dict(state)
    with pytest.raises(InputError, match="got one of the events 1:6, this stream's are 0:5"):
        open_stream(data.folder, batch_size=2, growing=True, stop=5).load_state_dict(state)


def test_a_state_of_before_this_version_is_still_taken(new_stream):
    stream = new_stream()
    stream.load_state_dict({"seed": 3, "epoch": 1, "position": 20})
    assert numbers(stream) == permuted(np.arange(20, EVENTS), EVENTS, 3, 1).tolist()


# Windows


def test_a_windowed_order_reads_runs_of_neighbours_from_several_shards(build, monkeypatch):
    data = build(events=200, events_per_shard=40)
    found = []
    pieces = reading.ShardReader.pieces

    def noted(reader, row, count, size):
        for piece in pieces(reader, row, count, size):
            found.append((reader.path, piece.count))
            yield piece

    monkeypatch.setattr(reading.ShardReader, "pieces", noted)
    stream = open_stream(data.folder, batch_size=32, window=Window(4, 8))
    batch = next(iter(stream))
    assert len(np.unique(batch.event // 40)) == 4
    assert np.sum(np.diff(batch.event) == 1) >= 32 - 4 - 4  # some go round the ends of their shards
    list(stream)
    assert np.mean([count for _, count in found]) > 5  # the global order's are 1.2


# Past the page cache


@pytest.mark.parametrize("options", [{}, {"window": Window(2, 2)}])
def test_what_is_read_past_the_page_cache_is_the_same_and_is_not_kept(full_size, options):
    data = full_size("int8")
    files = limits.strain_files(data.folder, range(data.schema.shards))
    limits.drop_from_cache(files)
    stream = open_stream(data.folder, batch_size=2, past_cache=True, **options)
    for batch in stream:
        assert np.array_equal(batch.strain, data.codes[batch.event])
    # The index at the end is read in the usual way, and brings pages around it along.
    assert all(limits.resident_share(path) < 0.8 for path in files)
    for _ in open_stream(data.folder, batch_size=2, past_cache=False, **options):
        pass
    assert all(limits.resident_share(path) > 0.8 for path in files)


def test_a_set_that_does_not_fit_into_memory_is_read_past_the_page_cache_if_not_compressed(
    data, monkeypatch
):
    for available, past in ((10**12, False), (1000, True)):
        monkeypatch.setattr(
            stream_module.psutil, "virtual_memory", lambda a=available: SimpleNamespace(available=a)
        )
        past = past and not data.schema.encoding.compressed
        assert open_stream(data.folder, batch_size=4)._store.past_cache == past


def test_compressed_events_are_read_through_the_page_cache_with_one_descriptor_a_file(build):
    for name, descriptors in (("int16", 2), ("int16+blosc", 1)):
        folder = build(encoding=ENCODINGS[name]).folder
        stream = open_stream(folder, batch_size=6, shuffle=False, past_cache=True, prefetch=0)
        batches = iter(stream)
        next(batches)  # all events of two shards of three
        assert open_shards_of(folder) == 2 * descriptors


# Damage


@pytest.fixture(params=["int16", "int16+blosc"])
def damaged(build, request):
    """A set of 20 events of which the thirteenth has a flipped bit."""
    data = build(events=20, events_per_shard=5, encoding=ENCODINGS[request.param])
    flip_in_event(data.folder, 13)
    return data


@pytest.mark.parametrize("options", [{}, {"window": Window(2, 4)}, {"shuffle": False}])
def test_a_damaged_event_stops_the_iteration_with_its_name(damaged, options):
    stream = open_stream(damaged.folder, batch_size=4, **options)
    with pytest.raises(DamagedDataError, match="strain/c/2/0/0: event 13 has not the checksum"):
        list(stream)
    assert not reading_threads()


@pytest.mark.parametrize("options", [{}, {"window": Window(2, 4)}, {"shuffle": False}])
def test_a_damaged_event_is_left_out_and_counted_on_request(damaged, options, capsys):
    stream = open_stream(damaged.folder, batch_size=4, damaged="skip", **options)
    seen = []
    for batch in stream:
        assert np.array_equal(batch.strain, damaged.codes[batch.event])
        assert np.array_equal(batch.parameters, damaged.parameters[batch.event])
        seen += batch.event.tolist()
    assert sorted(seen) == [number for number in range(20) if number != 13]
    assert list(stream.damaged) == [13]
    assert "skipped" in capsys.readouterr().err
    assert stream.audit == Audit.of(np.array(seen))


def test_a_shard_that_cannot_be_opened_costs_its_events_only(build):
    data = build(events=20, events_per_shard=5)
    stream = open_stream(data.folder, batch_size=4, damaged="skip")
    path = data.folder / "strain/c/2/0/0"
    path.write_bytes(path.read_bytes()[:5000])
    assert sorted(numbers(stream)) == [*range(10), *range(15, 20)]
    assert sorted(stream.damaged) == list(range(10, 15))


def test_altered_parameters_are_noticed_too(build):
    data = build(events=20, events_per_shard=5)
    path = data.folder / "parameters/c/1/0"
    content = bytearray(path.read_bytes())
    content[9] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedDataError, match=f"{path}: is missing or not as it was written"):
        list(open_stream(data.folder, batch_size=4))


def test_an_event_is_proved_when_it_is_first_read_or_always(build):
    """What the disk loses later, of a file that nobody wrote, is noticed only on request."""
    for checksums, noticed in (("first", False), ("always", True)):
        data = build(events=20, events_per_shard=5)
        stream = open_stream(data.folder, batch_size=4, checksums=checksums)
        first = iter(stream)
        seen = [number for _ in range(5) for number in next(first).event.tolist()]
        assert len(seen) == 20
        written = os.stat(data.folder / "strain/c/2/0/0").st_mtime_ns
        flip_in_event(data.folder, 13)
        os.utime(data.folder / "strain/c/2/0/0", ns=(written, written))
        if noticed:
            with pytest.raises(DamagedDataError, match="event 13 has not the checksum"):
                list(stream)
        else:
            assert len(numbers(stream)) == 20


@pytest.mark.parametrize("has_kernel_reads", [True, False])
@pytest.mark.parametrize("kind", ["cut off", "cannot be read"])
def test_damage_that_comes_after_the_first_epoch_is_named_and_costs_its_events_only(
    build, monkeypatch, kind, has_kernel_reads
):
    if not has_kernel_reads:
        monkeypatch.setattr(singles, "read_each", lambda *_: None)
    data = build(events=20, events_per_shard=5)
    # One by one, and others before those: a shard's first event opens its file, the slower way.
    options = {"batch_size": 1, "seed": 3, "threads": 1, "prefetch": 1}
    stream = open_stream(data.folder, damaged="skip", **options)
    at_once = []

    def read(self, *arguments):
        done = read_singles(self, *arguments)
        at_once.extend(done.tolist())
        return done

    read_singles = singles.Singles.read
    monkeypatch.setattr(singles.Singles, "read", read)
    assert len(numbers(stream)) == 20
    at_once.clear()
    path = data.folder / "strain/c/2/0/0"
    offset = path.read_bytes().find(data.codes[13].tobytes())
    if kind == "cut off":
        os.truncate(path, offset + 7)
    else:
        on_one_bad_sector(monkeypatch, path, offset)
    for batch in stream:
        assert np.array_equal(batch.strain, data.codes[batch.event])
        assert np.array_equal(batch.parameters, data.parameters[batch.event])
    assert at_once.count(True) > 8
    assert at_once.count(False) == len(stream.damaged)
    assert sorted(stream.damaged) == ([13, 14] if kind == "cut off" else [13])
    assert all(kind in text for text in stream.damaged.values())


# Growing sets


def test_each_epoch_of_a_growing_set_has_what_was_finished_at_its_start(
    small, start, finish, tmp_path
):
    data = start(tmp_path / "events.zarr", replace(small, events=21))
    finish(data, [0, 2])
    stream = open_stream(data.folder, batch_size=4, growing=True)
    epoch = iter(stream)
    first = [*next(epoch).event.tolist()]
    state = stream.state_dict()
    assert state["shards"] == "0,2"
    finish(data, [1, 3])
    first += numbers(epoch)
    assert sorted(first) == [0, 1, 2, 6, 7, 8]
    assert sorted(numbers(stream)) == list(range(12))
    resumed = open_stream(data.folder, batch_size=4, growing=True)
    resumed.load_state_dict(state)
    assert numbers(resumed) == first[4:]
    assert sorted(numbers(resumed)) == list(range(12))


def test_a_growing_set_refuses_the_state_of_one_that_does_not_grow(build):
    data = build(events=20)
    whole = open_stream(data.folder, batch_size=4)
    next(iter(whole))
    growing = open_stream(data.folder, batch_size=4, growing=True)
    with pytest.raises(InputError, match="got one of a set that does not grow; give the data set"):
        growing.load_state_dict(whole.state_dict())


def test_an_epoch_that_has_begun_keeps_its_shards_when_a_state_of_fewer_is_loaded(
    small, start, finish, tmp_path
):
    data = start(tmp_path / "events.zarr", replace(small, events=21))
    finish(data, [0, 2])
    stream = open_stream(data.folder, batch_size=2, growing=True, prefetch=0)
    next(iter(stream))
    fewer = stream.state_dict()
    finish(data, [1, 3])
    stream = open_stream(data.folder, batch_size=2, growing=True, prefetch=0)
    epoch = iter(stream)
    seen = next(epoch).event.tolist()
    stream.load_state_dict(fewer)
    assert sorted(seen + numbers(epoch)) == list(range(12))


def test_ranks_of_a_growing_set_see_what_the_first_one_saw(small, start, finish, tmp_path):
    data = start(tmp_path / "events.zarr", replace(small, events=21))
    finish(data, [0])
    told = []

    def agree(text):
        told.append(text)
        return told[0]

    options = {"batch_size": 4, "growing": True, "world_size": 2, "agree": agree}
    first = open_stream(data.folder, rank=0, **options)
    finish(data, [1])
    second = open_stream(data.folder, rank=1, **options)
    assert told == ["0", "0-1"]
    assert (len(first), first.events) == (len(second), second.events) == (1, 3)


# Calibration and memory


def test_threads_and_depth_are_calibrated_said_and_can_be_given(full_size, monkeypatch, capsys):
    monkeypatch.setattr(calibrate, "LEAST_BYTES", 0)
    data = full_size("float32")
    stream = open_stream(data.folder, batch_size=2)
    assert sorted(numbers(stream)) == list(range(5))
    said = capsys.readouterr().err
    assert "strainflow: reading with" in said
    assert stream.memory >= 3 * 2 * data.schema.event_bytes
    next(iter(open_stream(data.folder, batch_size=2, threads=3, prefetch=1)))
    assert not capsys.readouterr().err
    given = open_stream(data.folder, batch_size=2, threads=3)
    next(iter(given))
    assert given.threads == 3
    assert "reading with 3 threads" in capsys.readouterr().err


def test_the_first_of_several_ranks_calibrates_for_all(full_size, monkeypatch, capsys):
    monkeypatch.setattr(calibrate, "LEAST_BYTES", 0)
    told = []

    def agree(text):
        told.append(text)
        return told[0]

    options = {"batch_size": 2, "world_size": 2, "agree": agree}
    streams = [open_stream(full_size("float32").folder, rank=rank, **options) for rank in (0, 1)]
    assert sorted(number for stream in streams for number in numbers(stream)) == list(range(5))
    assert capsys.readouterr().err.count("strainflow: reading with") == 1
    assert told[1:] == [""]
    assert streams[0].threads == streams[1].threads == int(told[0].split()[0])


def test_batches_ahead_keep_within_the_memory_that_is_given(full_size, monkeypatch):
    data = full_size("float32")
    room = 2.5 * 2 * data.schema.event_bytes
    stream = open_stream(data.folder, batch_size=2, memory=room)
    list(stream)
    assert stream.memory <= room


@pytest.mark.parametrize("encoding", ["float32", "int16+blosc"])
def test_where_the_disk_is_waited_for_the_kernel_is_told_of_events_before(
    build, monkeypatch, encoding
):
    data = build(events=20, events_per_shard=5, encoding=ENCODINGS[encoding])
    told, tell = [], os.posix_fadvise

    def advise(descriptor, offset, length, advice):
        told.append(advice)
        tell(descriptor, offset, length, advice)

    monkeypatch.setattr(os, "posix_fadvise", advise)
    for slow, most in ((0.0, 0), (1e18, 20)):
        monkeypatch.setattr(singles, "SLOW", slow)
        stream = open_stream(data.folder, batch_size=4)
        for _ in range(2):
            told.clear()
            for batch in stream:
                assert np.array_equal(batch.strain, data.codes[batch.event])
        assert len(told) == told.count(os.POSIX_FADV_WILLNEED)
        assert most / 2 <= len(told) <= most  # pairs of neighbours are read as runs
