"""Batches on the device: the same ones, and the state of the one that the consumer has."""

import itertools
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from late_copies import OneAhead, TooLateCopy
from streams import open_stream

from model.history import read_history
from model.preprocess import Preprocess
from model.train import train
from model.trainer import Trainer
from model.transfer import DeviceBatch, DeviceBatches, pinned
from storage.audit import Audit
from storage.encodings import ENCODINGS
from storage.errors import DamagedDataError
from storage.replay import assert_replays
from storage.stream import Batch

EVENTS = 47
CPU = torch.device("cpu")


class AsNumpy:
    """Batches as a stream has them, for those who compare streams."""

    def __init__(self, batches):
        self._batches = batches
        self.state_dict, self.load_state_dict = batches.state_dict, batches.load_state_dict

    def __iter__(self):
        for batch in self._batches:
            yield Batch(batch.strain.cpu().numpy(), batch.parameters.cpu().numpy(), batch.event)


class StateOfWhatWasCopied(OneAhead):
    def state_dict(self):
        return self.stream.state_dict()


def on_cpu(stream):
    return DeviceBatches(stream, CPU)


WAYS = pytest.mark.parametrize("way", [on_cpu, OneAhead])


@pytest.fixture
def new_stream(toy_data):
    """Make a stream of 47 events."""
    data = toy_data(events=EVENTS, events_per_shard=10, encoding=ENCODINGS["int16"])

    def new_stream(**options):
        return open_stream(data, **{"batch_size": 6, "prefetch": 1, "threads": 2, **options})

    return new_stream


def digests(batches):
    """Copies of what is in batches, wherever they are."""
    return [
        (*(torch.as_tensor(a).cpu().numpy().tobytes() for a in (b.strain, b.parameters)), *b.event)
        for b in batches
    ]


def events(batches):
    return [number for batch in batches for number in batch.event.tolist()]


@WAYS
@pytest.mark.parametrize("prefetch", [0, 1, 3])
def test_the_batches_are_those_of_the_stream_as_they_are_stored(new_stream, way, prefetch):
    batches, stream = way(new_stream(prefetch=prefetch)), new_stream()
    for _ in range(2):
        assert digests(batches) == digests(stream)
    assert len(batches) == len(stream)
    batch = next(iter(batches))
    assert (batch.strain.dtype, batch.parameters.dtype) == (torch.int16, torch.float64)


def test_a_loader_that_gets_its_buffer_before_it_is_copied_is_noticed(new_stream):
    late = OneAhead(new_stream(prefetch=0), copy=TooLateCopy)
    assert digests(late) != digests(new_stream())


def test_nothing_is_copied_on_the_cpu(new_stream):
    made = []

    def allocate(shape, dtype):
        made.append(np.empty(shape, dtype))
        return made[-1]

    for batch in on_cpu(new_stream(allocate=allocate)):
        assert any(np.shares_memory(batch.strain.numpy(), buffer) for buffer in made)


@WAYS
@pytest.mark.parametrize("options", [{}, {"growing": True}, {"rank": 1, "world_size": 3}])
def test_the_same_bytes_come_from_every_state(new_stream, way, options):
    tried = assert_replays(lambda: AsNumpy(way(new_stream(**options))))
    assert tried == 2 * len(new_stream(**options))


def test_the_state_of_what_was_copied_ahead_is_noticed(new_stream):
    with pytest.raises(AssertionError):
        assert_replays(lambda: AsNumpy(StateOfWhatWasCopied(new_stream())))


@WAYS
def test_state_and_audit_are_those_of_the_batches_taken(new_stream, way):
    batches, seen = way(new_stream()), []
    for taken, batch in enumerate(batches, start=1):
        seen += batch.event.tolist()
        place = batches.state_dict()
        expected = (0, 6 * taken) if 6 * taken < EVENTS else (1, 0)
        assert (place["epoch"], place["position"]) == expected
        assert batches.audit == Audit.of(np.array(seen))
    assert batches.state_dict() == batches.stream.state_dict()


@WAYS
@pytest.mark.parametrize("taken", range(1, 9))
def test_an_iteration_that_is_abandoned_anywhere_goes_on_with_the_next_batch(
    new_stream, way, taken
):
    batches = way(new_stream())
    seen = events(itertools.islice(batches, taken))
    assert batches.state_dict() == batches.stream.state_dict()
    assert batches.audit == batches.stream.audit == Audit.of(np.array(seen))
    if taken < len(batches):
        seen += events(batches)
    assert sorted(seen) == list(range(EVENTS))
    assert batches.audit == Audit.of(np.arange(EVENTS))
    assert batches.state_dict()["epoch"] == 1


@WAYS
def test_a_consumer_that_raises_loses_nothing(new_stream, way):
    batches, seen = way(new_stream()), []

    def consume():
        for batch in batches:
            seen.extend(batch.event.tolist())
            if len(seen) == 12:
                raise KeyError("mine")

    with pytest.raises(KeyError):
        consume()
    assert seen + events(batches) == events(new_stream())


@WAYS
def test_a_second_iterator_goes_on_after_what_the_first_one_handed_over(new_stream, way):
    batches = way(new_stream())
    first = iter(batches)
    seen = events(itertools.islice(first, 2))
    seen += events(itertools.islice(batches, 2))
    assert seen == events(itertools.islice(new_stream(), 4))


@WAYS
def test_a_state_loaded_while_an_iterator_is_open_counts(new_stream, way):
    batches = way(new_stream())
    start = batches.state_dict()
    iterator = iter(batches)
    first = events(itertools.islice(iterator, 3))
    batches.load_state_dict(start)
    iterator.close()
    assert batches.state_dict() == start
    assert events(batches)[:18] == first


@WAYS
def test_a_damaged_event_is_told_after_all_that_came_before_it(toy_data, flip_bit, tmp_path, way):
    data = tmp_path / "toy.zarr"
    shutil.copytree(toy_data(events=EVENTS, events_per_shard=10, encoding=ENCODINGS["int16"]), data)
    flip_bit(data, 25)
    batches = way(open_stream(data, batch_size=6, shuffle=False, prefetch=1, threads=1))
    iterator = iter(batches)
    assert events(itertools.islice(iterator, 4)) == list(range(24))
    with pytest.raises(DamagedDataError, match="event 25 "):
        next(iterator)
    assert batches.state_dict()["position"] == 24


def test_a_trainer_that_copies_ahead_learns_the_same(config, toy_data, tmp_path, monkeypatch):
    """Also with an interruption, and with validation between the epochs."""
    data = toy_data(events=120, noisy=False)
    quick = replace(config, epochs=2)

    def weights(run, stop_at):
        for last in (stop_at, None):
            trainer = Trainer(quick, data, run)
            for batch in itertools.chain(trainer.training, trainer.training):
                trainer.learn(batch)
                if trainer.step == last or trainer.finished:
                    break
            trainer.validate()
            trainer.save()
        return trainer.estimator.state_dict()

    expected = weights(tmp_path / "plain", stop_at=3)
    monkeypatch.setattr("model.split.DeviceBatches", lambda stream, device: OneAhead(stream))
    found = weights(tmp_path / "ahead", stop_at=4)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_a_run_that_copies_ahead_records_the_same_over_all_calls(
    config, toy_data, tmp_path, monkeypatch
):
    """Losses, rates, places and audits: what is copied ahead is not counted yet."""
    data, quick = toy_data(events=120, noisy=False), replace(config, epochs=3)
    names = ("step", "epoch", "train_loss", "validation_loss", "learning_rate", "audit")

    def rows(run):
        return [[row[name] for name in names] for row in read_history(run)]

    train(quick, data, tmp_path / "plain")
    monkeypatch.setattr("model.split.DeviceBatches", lambda stream, device: OneAhead(stream))
    assert not train(replace(quick, minutes=1e-6), data, tmp_path / "ahead").finished
    while not train(replace(quick, minutes=0.002), data, tmp_path / "ahead").finished:
        pass
    assert rows(tmp_path / "ahead") == rows(tmp_path / "plain")


# On a GPU


@pytest.fixture
def gpu():
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    return torch.device("cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize("allocate", [pinned, np.empty])
def test_a_gpu_gets_the_batches_that_the_cpu_gets(new_stream, gpu, prefetch, allocate):
    """The work that is queued before each look makes every copy and every reuse of memory early."""
    batches = DeviceBatches(new_stream(prefetch=prefetch, allocate=allocate), gpu)
    stream, load = new_stream(), torch.randn(4096, 4096, device=gpu)
    for _ in range(3):
        found = []
        for batch in batches:
            for _ in range(20):
                load @ load
            found.append(DeviceBatch(batch.strain + 0, batch.parameters + 0, batch.event))
            del batch  # its memory may be used again while the sum still waits its turn
        assert digests(found) == digests(stream)


@pytest.mark.gpu
def test_the_same_bytes_come_from_every_state_on_a_gpu(new_stream, gpu):
    assert_replays(lambda: AsNumpy(DeviceBatches(new_stream(allocate=pinned), gpu)))


@pytest.mark.gpu
def test_copies_to_a_gpu_hide_behind_the_step(toy_data, gpu):
    """Most of the time of copies falls into that of kernels, and they come from pinned memory."""
    data = toy_data(events=480, samples=65_536, encoding=ENCODINGS["int16"])
    batches = DeviceBatches(open_stream(data, batch_size=96, allocate=pinned), gpu)
    weights, preprocess = torch.randn(8192, 8192, device=gpu), Preprocess(0.01, 65_536, 1)
    list(batches)
    with torch.profiler.profile() as profile:
        for batch in batches:
            strain = preprocess(batch.strain).reshape(-1, 8192)
            for _ in range(10):
                strain = strain @ weights / 100
            torch.cuda.current_stream().synchronize()
    on_device = [e for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    spans = [(e.name, e.time_range.start, e.time_range.end) for e in on_device]
    spans.sort(key=lambda span: span[1])
    large = [s for s in spans if "HtoD" in s[0] and s[2] - s[1] > 100]  # us: 25 MB of strain
    kernels = [s for s in spans if "Mem" not in s[0]]
    assert large
    assert all("Pinned" in name for name, _, _ in large)
    hidden = [sum(overlap(copy, kernel) for kernel in kernels) for copy in large]
    copying = sum(end - start for _, start, end in large[1:])  # nothing to hide the first behind
    assert sum(hidden[1:]) > 0.5 * copying


def overlap(one, other):
    return max(0.0, min(one[2], other[2]) - max(one[1], other[1]))
