"""A data set that is read while it grows: a snapshot of the finished shards, and nothing else."""

import os
import time
from dataclasses import replace

import numpy as np
import pytest
from streams import open_stream

from storage.dataset import open_dataset
from storage.encodings import ENCODINGS
from storage.errors import DamagedDataError
from storage.manifest import finished_shards
from storage.writer import write_shard

PATIENCE = 60.0  # seconds until a writer is taken for hung


@pytest.fixture(params=["int8+blosc", pytest.param("int16", marks=pytest.mark.slow)])
def growing(request, tmp_path, small, start):
    """A data set of seven shards without any yet."""
    schema = replace(small, events=20, encoding=ENCODINGS[request.param])
    return start(tmp_path / "events.zarr", schema)


def events_of(data, shards):
    return [number for shard in sorted(shards) for number in data.schema.events_of(shard)]


def decoded(data, events):
    """What should be read of some events [sigma]."""
    encoding = data.schema.encoding
    strain = [data.events[number].strain for number in events]
    return np.stack([encoding.decode(encoding.encode(item, 0)) for item in strain])


def wrong_in_dataset(data, dataset, events):
    """What differs between an opened data set and some events as they were written."""
    expected = {
        "event": np.array(events),
        "strain": decoded(data, events),
        "parameters": data.parameters[events],
        "optimal_snr": data.optimal_snr[events],
    }
    return [name for name, values in expected.items() if not np.array_equal(dataset[name], values)]


def taken(stream):
    """Copies of what one epoch of a stream delivers."""
    return [(b.event.copy(), b.strain.copy(), b.parameters.copy()) for b in stream]


def wrong_in_stream(data, stream, events):
    """The same for one epoch of a stream."""
    return wrong_in_batches(data, taken(stream), events)


def wrong_in_batches(data, batches, events):
    """The same for batches that were taken."""
    numbers, strain, parameters = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    strain = data.schema.encoding.decode(strain)
    order = np.argsort(numbers)
    expected = {
        "event": (numbers, np.array(events)),
        "strain": (strain, decoded(data, events)),
        "parameters": (parameters, data.parameters[events]),
    }
    return [
        name for name, (there, want) in expected.items() if not np.array_equal(there[order], want)
    ]


def stream_of(data, **options):
    return open_stream(data.folder, batch_size=4, growing=True, **options)


def test_the_comparisons_see_a_value_an_event_too_many_and_one_too_few(growing, finish):
    data = finish(growing, [0, 2])
    events = events_of(data, [0, 2])
    dataset = open_dataset(data.folder, growing=True)
    assert wrong_in_dataset(data, dataset, events) == []
    assert wrong_in_stream(data, stream_of(data), events) == []
    for other in (events[:-1], [*events, 9], [1, 1, 2, 6, 7, 8]):
        assert "event" in wrong_in_dataset(data, dataset, other)
        assert "event" in wrong_in_stream(data, stream_of(data), other)
    data.events[1] = replace(data.events[1], strain=data.events[1].strain + 1, parameters=[0] * 3)
    assert wrong_in_dataset(data, dataset, events) == ["strain", "parameters"]
    assert wrong_in_stream(data, stream_of(data), events) == ["strain", "parameters"]


def test_a_snapshot_during_a_write_holds_the_finished_shards_and_stays_so(growing, finish):
    """Taken between the events of a shard, before its files have their names, and before it ends.

    All are read only when the data set is complete.
    """
    data, snapshots = finish(growing, [1]), []

    def look():
        shards = list(finished)
        snapshots.append((shards, open_dataset(data.folder, growing=True), stream_of(data)))

    def watched(shard):
        for number in data.schema.events_of(shard):
            look()
            yield data.events[number]
        look()

    def check():
        look()
        return {}

    finished = [1]
    for shard in (4, 0, 6, 2, 3, 5):
        write_shard(data.folder, data.schema, shard, watched(shard), check)
        finished.append(shard)
    assert len(snapshots) == 6 * 5 - 1  # the last shard has one event less
    for shards, dataset, stream in snapshots:
        events = events_of(data, shards)
        assert wrong_in_dataset(data, dataset, events) == []
        assert stream.events == len(events)
        assert wrong_in_stream(data, stream, events) == []
        assert wrong_in_stream(data, stream, list(range(20))) == []  # the next epoch sees all


def test_an_epoch_that_has_begun_is_not_changed_by_shards_that_come(growing, finish):
    data = finish(growing, [3, 5])
    stream = stream_of(data, prefetch=0)
    epoch = iter(stream)
    numbers = [*next(epoch).event]
    finish(data, [0, 1, 2, 4, 6])
    for batch in epoch:
        numbers += [*batch.event]
    assert sorted(numbers) == events_of(data, [3, 5])


def test_a_snapshot_taken_while_another_process_writes_is_consistent(growing, finish):
    data = finish(growing, [0])
    process = os.fork()
    if process == 0:
        code = 1
        try:
            for shard in range(1, data.schema.shards):
                finish(data, [shard])
                time.sleep(0.05)
            code = 0
        finally:
            os._exit(code)
    seen, deadline = set(), time.monotonic() + PATIENCE
    try:
        while len(seen) == 0 or max(seen) < data.schema.shards:
            assert time.monotonic() < deadline, "the writer hangs"
            before = finished_shards(data.folder, data.schema)
            dataset, stream = open_dataset(data.folder, growing=True), stream_of(data)
            after = finished_shards(data.folder, data.schema)
            batches = taken(stream)
            delivered = sorted(n for events, *_ in batches for n in events)
            for numbers in (dataset.event.values, delivered):
                shards = sorted({int(number) // 3 for number in numbers})
                assert set(before) <= set(shards) <= set(after)
                assert list(numbers) == events_of(data, shards)
                seen.add(len(shards))
            assert wrong_in_dataset(data, dataset, list(dataset.event.values)) == []
            assert wrong_in_batches(data, batches, delivered) == []
    finally:
        assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
    assert len(seen) > 2, "it was not read while it grew"


def test_without_growing_it_is_refused_as_incomplete(growing, finish):
    data = finish(growing, [0, 1])
    for read in (open_dataset, lambda folder: open_stream(folder, batch_size=4)):
        with pytest.raises(DamagedDataError, match="5 of 7 shards are missing"):
            read(data.folder)


def test_without_any_shard_there_is_nothing_to_read_yet(growing):
    for read in (lambda: open_dataset(growing.folder, growing=True), lambda: stream_of(growing)):
        with pytest.raises(DamagedDataError, match="7 of 7 shards are missing"):
            read()


def test_growing_does_not_forgive_damage(growing, finish):
    data = finish(growing, [0, 2])
    os.truncate(data.folder / "strain/c/2/0/0", 1000)
    for read in (lambda: open_dataset(data.folder, growing=True), lambda: stream_of(data)):
        with pytest.raises(DamagedDataError, match="strain/c/2/0/0: has 1,000 bytes"):
            read()


def test_a_complete_set_read_as_growing_is_the_whole_set(growing, finish):
    data = finish(growing)
    events = list(range(20))
    assert wrong_in_dataset(data, open_dataset(data.folder, growing=True), events) == []
    assert wrong_in_stream(data, stream_of(data), events) == []
