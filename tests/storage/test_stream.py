import itertools
import resource
import threading
from pathlib import Path

import numpy as np
import pytest
import webdataset as wds
from hypothesis import given, settings
from hypothesis import strategies as st

from storage import stream as stream_module
from storage.encodings import ENCODINGS
from storage.errors import DamagedDataError, InputError
from storage.order import permuted
from storage.stream import Batch, EventStream
from storage.urls import store_of

EVENTS = 23


@pytest.fixture(scope="session", params=["int16", "int16+blosc"])
def data(build, request):
    """23 events in five shards, the last one partial, not compressed and compressed."""
    return build(events=EVENTS, events_per_shard=5, encoding=ENCODINGS[request.param])


@pytest.fixture
def new_stream(data):
    """Make a stream of that data set."""

    def new_stream(**options: object) -> EventStream:
        return EventStream(data.folder, **{"batch_size": 4, **options})

    return new_stream


def kept(batch: Batch) -> Batch:
    """A copy that outlives the buffer."""
    return Batch(batch.strain.copy(), batch.parameters.copy(), batch.event.copy())


def numbers(batches) -> list[int]:
    return [number for batch in batches for number in batch.event.tolist()]


def as_bytes(batches: list[Batch]) -> list[tuple[bytes, bytes, bytes]]:
    return [(b.strain.tobytes(), b.parameters.tobytes(), b.event.tobytes()) for b in batches]


def reading_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("strainflow-read")]


def open_shards_of(folder: Path) -> int:
    links = list(Path("/proc/self/fd").iterdir())
    return sum(target(link).is_relative_to(folder / "strain") for link in links)


def target(link: Path) -> Path:
    try:
        return link.readlink()
    except FileNotFoundError:  # closed by another thread since it was listed
        return Path()


# What is delivered


@pytest.mark.parametrize("options", [{}, {"threads": 5, "prefetch": 0}, {"batch_size": 100}])
def test_values_and_parameters_are_those_of_the_event(data, new_stream, options):
    for batch in new_stream(**options):
        assert batch.strain.dtype == np.int16
        assert np.array_equal(batch.strain, data.codes[batch.event])
        assert np.array_equal(batch.parameters, data.parameters[batch.event])


def test_every_encoding_is_delivered_as_it_is_stored(build, encoding):
    data = build(encoding=ENCODINGS[encoding])
    for batch in EventStream(data.folder, batch_size=3):
        assert batch.strain.dtype == data.schema.encoding.dtype
        assert np.array_equal(batch.strain, data.codes[batch.event])


@given(
    batch_size=st.integers(1, 8),
    world_size=st.integers(1, 6),
    bounds=st.tuples(st.integers(0, EVENTS), st.integers(0, EVENTS)).filter(lambda b: b[0] != b[1]),
    shuffle=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_each_event_comes_exactly_once_an_epoch_over_all_ranks(
    data, batch_size, world_size, bounds, shuffle
):
    first, last = sorted(bounds)
    ranks = [
        EventStream(
            data.folder,
            batch_size=batch_size,
            rank=rank,
            world_size=world_size,
            start=first,
            stop=last,
            shuffle=shuffle,
        )
        for rank in range(world_size)
    ]
    for _ in range(2):
        delivered = [[batch.event.copy() for batch in stream] for stream in ranks]
        assert {len(batches) for batches in delivered} == {len(ranks[0])}
        assert all(len(batch) <= batch_size for batches in delivered for batch in batches)
        for step in zip(*delivered, strict=True):
            sizes = [len(batch) for batch in step]
            assert max(sizes) - min(sizes) <= 1
        together = np.concatenate([batch for batches in delivered for batch in batches])
        assert np.array_equal(np.sort(together), np.arange(first, last))


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


def assert_replays_from_every_state(new_stream, epochs: int = 2) -> None:
    """Compare what follows each state with what followed it the first time, bit for bit."""
    stream, states, batches = new_stream(), [], []
    for _ in range(epochs):
        states.append(stream.state_dict())  # before the epoch's first batch
        for batch in stream:
            batches.append(kept(batch))
            states.append(stream.state_dict())
        states.pop()  # the epoch's end is the next one's start
    assert len(states) == len(batches)
    for step, state in enumerate(states):
        resumed = new_stream()
        resumed.load_state_dict(state)
        passes = itertools.chain.from_iterable(resumed for _ in range(epochs))
        rest = [kept(batch) for batch in itertools.islice(passes, len(batches) - step)]
        assert as_bytes(rest) == as_bytes(batches[step:]), f"differs after state {state}"


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rank": 1, "world_size": 3},
        {"shuffle": False},
        {"prefetch": 0},
        {"start": 2, "stop": 13},
    ],
)
def test_a_stream_replays_the_same_bytes_from_every_state(new_stream, options):
    assert_replays_from_every_state(lambda: new_stream(**options))


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
        assert_replays_from_every_state(lambda: broken(data.folder, batch_size=4))


@pytest.mark.parametrize("done", [0, 1, 2])
@pytest.mark.parametrize(
    "changes",
    [{"world_size": 1}, {"world_size": 3}, {"batch_size": 5}, {"threads": 1}, {"prefetch": 4}],
)
def test_the_remaining_order_is_kept_with_other_ranks_batches_and_threads(
    new_stream, done, changes
):
    before = {"batch_size": 3, "world_size": 2, "threads": 3}
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
    assert first + rest == permuted(np.arange(EVENTS), EVENTS, 0, 0).tolist()
    assert all(state == {"seed": 0, "epoch": 1, "position": 0} for state in states)


def test_the_state_is_that_of_the_batches_taken_not_of_those_read_ahead(new_stream):
    stream = new_stream(prefetch=3)
    iterator = iter(stream)
    for taken in range(1, 4):
        next(iterator)
        assert stream.state_dict() == {"seed": 0, "epoch": 0, "position": 4 * taken}
    iterator.close()
    assert stream.state_dict()["position"] == 12
    assert len(numbers(stream)) == EVENTS - 12


@pytest.mark.parametrize("position", [-1, EVENTS, 1000])
def test_a_state_of_another_data_set_is_refused(new_stream, position):
    with pytest.raises(
        InputError, match=f"position {position}, this stream has 23 events an epoch"
    ):
        new_stream().load_state_dict({"seed": 0, "epoch": 0, "position": position})


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
    assert not reading_threads()
    assert not open_shards_of(data.folder)


def test_a_finished_iteration_leaves_no_threads_and_no_open_files(data, new_stream):
    list(new_stream())
    assert not reading_threads()
    assert not open_shards_of(data.folder)


def test_more_shards_than_file_descriptors_are_read_with_few_open(build, monkeypatch):
    data = build(events=60, events_per_shard=2)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (100, 100))
    most = 0
    for batch in EventStream(data.folder, batch_size=4, threads=4):
        most = max(most, open_shards_of(data.folder))
        assert np.array_equal(batch.strain, data.codes[batch.event])
    assert 10 < most <= 16 + 1 + 4  # kept, just opened, and dropped but still in use by a thread


def test_without_a_limit_on_file_descriptors_all_shards_stay_open(data, new_stream, monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _: 2 * (resource.RLIM_INFINITY,))
    shards = stream_module._OpenShards(store_of(data.folder), data.schema)
    assert shards._most > 10**6


def test_a_shard_that_is_damaged_while_training_ends_the_iteration_with_its_name(build):
    data = build(events=20, events_per_shard=5)
    stream = EventStream(data.folder, batch_size=4)
    path = data.folder / "strain/c/2/0/0"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(DamagedDataError, match=f"{path}: the index at its end is missing"):
        list(stream)
    assert not reading_threads()


def test_a_bit_that_flips_in_a_compressed_event_ends_the_iteration_with_its_number(build):
    """Blosc may crash on what it did not write: the checksum has to come first."""
    data = build(events=20, events_per_shard=5, encoding=ENCODINGS["int16+blosc"])
    path = data.folder / "strain/c/2/0/0"
    content = bytearray(path.read_bytes())
    offset, length = np.frombuffer(content[-84:-4], "<u8").reshape(5, 2)[3].tolist()
    content[offset + length // 2] ^= 8
    path.write_bytes(content)
    stream = EventStream(data.folder, batch_size=4)
    with pytest.raises(DamagedDataError, match=f"{path}: event 3 of this shard has not the check"):
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
    assert stream.state_dict() == {"seed": 0, "epoch": 2, "position": 0}


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
        EventStream(empty.folder, batch_size=2)


def test_two_iterators_of_one_stream_do_not_share_buffers(filled):
    stream = EventStream(filled.folder, batch_size=4, shuffle=False)
    first, second = iter(stream), iter(stream)
    batch = next(first)
    kept = batch.strain.copy()
    for other in second:
        assert not np.shares_memory(batch.strain, other.strain)
    np.testing.assert_array_equal(batch.strain, kept)
    first.close()
