"""Many reads in one call give what single reads give, and every trouble of theirs by itself."""

import errno
import os
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest
from streams import open_stream

from storage import kernel_reads, singles
from storage.encodings import ENCODINGS
from storage.kernel_reads import AT_ONCE, read_each

SIZE = 3 * AT_ONCE * 1000


@pytest.fixture
def file(tmp_path):
    """A file of random bytes: its descriptor and its content."""
    if not kernel_reads._Context().is_open:
        pytest.skip("this kernel has no io_submit")
    content = np.random.default_rng(3).integers(0, 256, SIZE).astype(np.uint8)
    path = tmp_path / "file"
    path.write_bytes(content.tobytes())
    descriptor = os.open(path, os.O_RDONLY)
    yield descriptor, content
    os.close(descriptor)


def read(descriptor, offsets, lengths):
    """Read parts; return what each call says, and the parts."""
    offsets, lengths = np.array(offsets), np.array(lengths)
    room = np.zeros((len(offsets), lengths.max()), np.uint8)
    addresses = room.ctypes.data + room.shape[1] * np.arange(len(offsets))
    done = read_each(np.full(len(offsets), descriptor), addresses, lengths, offsets)
    return done, room


@pytest.mark.parametrize("count", [1, AT_ONCE, 2 * AT_ONCE + 1])
def test_parts_of_a_file_are_read_each_to_its_place(file, count):
    descriptor, content = file
    draw = np.random.default_rng(count)
    lengths = draw.integers(1, 5000, count)
    offsets = draw.integers(0, SIZE - lengths)
    done, room = read(descriptor, offsets, lengths)
    assert np.array_equal(done, lengths)
    for offset, length, row in zip(offsets, lengths, room, strict=True):
        assert np.array_equal(row[:length], content[offset : offset + length])
        assert not row[length:].any()


def test_what_ends_early_or_cannot_be_read_says_so_and_the_others_are_read(file):
    descriptor, content = file
    offsets = np.array([100, SIZE - 10, 200, 300])
    room = np.zeros((4, 50), np.uint8)
    addresses = room.ctypes.data + 50 * np.arange(4)
    descriptors = np.array([descriptor, descriptor, 10**6, descriptor])
    done = read_each(descriptors, addresses, np.full(4, 50), offsets)
    assert done.tolist() == [50, 10, -1, 50]
    for number in (0, 3):
        assert np.array_equal(room[number], content[offsets[number] :][:50])


def test_memory_that_is_not_there_is_told_and_not_written_to(file):
    done = read_each(*(np.array([value]) for value in (file[0], 8, 50, 0)))
    assert done.tolist() == [-errno.EFAULT]


def test_threads_that_come_and_go_take_no_more_of_the_kernels_room(file, monkeypatch):
    monkeypatch.setattr(kernel_reads, "_free", [])
    for _ in range(5):
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda _: read(file[0], [5], [7]), range(64)))
    assert 1 <= len(kernel_reads._free) <= 4


def test_a_child_process_reads_with_a_room_of_its_own(file):
    read(file[0], [5], [7])
    with ProcessPoolExecutor(1, mp_context=get_context("fork")) as child:
        done, room = child.submit(read, file[0], [5], [7]).result()
    assert done.tolist() == [7]
    assert np.array_equal(room[0], file[1][5:12])


@pytest.mark.parametrize("encoding", ["float32", "int16+blosc"])
def test_where_the_kernel_refuses_events_are_read_all_the_same(build, monkeypatch, encoding):
    data = build(events=20, events_per_shard=5, encoding=ENCODINGS[encoding])
    refused = []

    def refusing(which, *_):
        refused.append(which)
        return -errno.ENOSYS

    monkeypatch.setattr(kernel_reads, "_call", refusing)
    monkeypatch.setattr(kernel_reads, "_free", [])
    assert singles.read_each is read_each
    stream = open_stream(data.folder, batch_size=4)
    for _ in range(2):
        for batch in stream:
            assert np.array_equal(batch.strain, data.codes[batch.event])
            assert np.array_equal(batch.parameters, data.parameters[batch.event])
    assert refused


@pytest.mark.parametrize("forbidden", ["io_submit", "io_getevents"])
def test_a_room_of_which_the_kernel_wants_no_more_is_given_up(file, monkeypatch, forbidden):
    numbers = {"io_submit": kernel_reads._SUBMIT, "io_getevents": kernel_reads._GET_EVENTS}
    made, call = [], kernel_reads._call

    def refusing(which, *arguments):
        made.append(which)
        return -errno.EPERM if which == numbers[forbidden] else call(which, *arguments)

    monkeypatch.setattr(kernel_reads, "_call", refusing)
    monkeypatch.setattr(kernel_reads, "_free", [])
    room = np.zeros(50, np.uint8)
    part = (file[0], room.ctypes.data, 50, 7)
    assert read_each(*(np.array([value]) for value in part)) is None
    assert made[-1] == kernel_reads._DESTROY, "what is under way is waited for"
    assert kernel_reads._free == []


def test_an_error_in_between_waits_for_the_kernel(file, monkeypatch):
    call = kernel_reads._call
    made = []

    def failing(which, *arguments):
        made.append(which)
        if which == kernel_reads._GET_EVENTS:
            raise MemoryError
        return call(which, *arguments)

    monkeypatch.setattr(kernel_reads, "_call", failing)
    monkeypatch.setattr(kernel_reads, "_free", [])
    room = np.zeros(50, np.uint8)
    with pytest.raises(MemoryError):
        read_each(*(np.array([value]) for value in (file[0], room.ctypes.data, 50, 7)))
    assert made[-1] == kernel_reads._DESTROY
    assert kernel_reads._free == []
