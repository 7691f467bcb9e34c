"""The folder of a cache, with processes that are killed, stopped and in each other's way."""

import errno
import itertools
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import blake3
import pytest
from crashes import act_before_system_call, run_until_system_call, system_calls
from permitted import skipped_where_not_permitted
from small_disks import small_disk

from storage.cache import folder as cachefolder
from storage.cache import mounts
from storage.cache.folder import CacheFolder
from storage.cache.item import BLOCK, KEY_BYTES, TRAILER
from storage.errors import InputError

IN_MEMORY = Path("/dev/shm")
SIZE = 3 * BLOCK - TRAILER  # bytes of an item that counts for three blocks
ROOM = 3 * BLOCK


@pytest.fixture
def folder(tmp_path):
    """A folder to be made, on a fast disk if there is one."""
    within = IN_MEMORY if os.access(IN_MEMORY, os.W_OK) else tmp_path
    with tempfile.TemporaryDirectory(dir=within) as scratch:
        yield Path(scratch) / "cache"


@pytest.fixture
def disk(tmp_path):
    with skipped_where_not_permitted(), small_disk(tmp_path / "disk", 2**20) as disk:
        yield disk


def key(number):
    return blake3.blake3(str(number).encode()).digest(KEY_BYTES)


def content(number, size=SIZE):
    return blake3.blake3(f"content {number}".encode()).digest(size)


def put(cache, *numbers):
    cache.put([(key(number), content(number)) for number in numbers])


def there(cache, numbers):
    """Which items are found; none may be wrong."""
    found = {number: cache.get(key(number), SIZE) for number in numbers}
    assert all(item in (None, content(number)) for number, item in found.items())
    return [number for number, item in found.items() if item is not None]


def files(folder):
    return [path for path in folder.glob("items/*/*") if path.is_file()]


def bytes_there(folder):
    """What the files take, as they are counted; they may go while one looks."""
    total = 0
    for parent, _, names in os.walk(folder / "items"):
        for name in names:
            try:
                length = os.stat(f"{parent}/{name}").st_size
            except FileNotFoundError:
                continue
            total += -(-length // BLOCK) * BLOCK
    return total


def rows(folder):
    index = sqlite3.connect(folder / "index.sqlite")
    found = index.execute("SELECT key, token, bytes FROM item").fetchall()
    (total,) = index.execute("SELECT bytes FROM total").fetchone()
    index.close()
    assert total == sum(row[2] for row in found)
    return {key.hex(): (token, size) for key, token, size in found}


def faults(folder, limit):
    """Where the index counts less than there is, or more than the limit."""
    counted = rows(folder)
    found = []
    for path in files(folder):
        name, _, token = path.name.partition(".")
        row_token, size = counted.get(name, ("", 0))
        if path.stat().st_size > (size if token in ("", row_token) else 0):
            found.append(f"{path.name} is not counted")
    if sum(size for _, size in counted.values()) > limit:
        found.append("the limit is exceeded")
    return found


def test_what_is_put_is_found_by_every_process(folder):
    put(CacheFolder(folder, 10 * ROOM), 1, 2)
    other = CacheFolder(folder, 10 * ROOM)
    assert there(other, range(4)) == [1, 2]
    assert other.total() == 2 * ROOM == bytes_there(folder)
    script = f"""if True:
        from storage.cache.folder import CacheFolder
        found = CacheFolder({str(folder)!r}, 10**6).get({key(1)!r}, {SIZE})
        print(len(found))
    """
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert int(said.stdout) == SIZE


def test_the_least_recently_used_goes_and_the_limit_holds(folder):
    cache = CacheFolder(folder, 4 * ROOM + BLOCK)
    for number in range(4):
        put(cache, number)
        time.sleep(0.02)  # the kernel's clock of files is coarse
    assert there(cache, [0, 2]) == [0, 2]
    time.sleep(0.02)
    put(cache, 4)
    assert there(cache, [1]) == []
    put(cache, 5)
    assert there(CacheFolder(folder, 4 * ROOM), range(6)) == [0, 2, 4, 5]
    assert cache.total() == 4 * ROOM == bytes_there(folder)


def test_a_use_by_one_process_keeps_it_from_anothers_eviction(folder):
    first, second = (CacheFolder(folder, 2 * ROOM) for _ in range(2))
    put(first, 0)
    time.sleep(0.02)
    put(first, 1)
    time.sleep(0.02)
    assert there(second, [0]) == [0]
    put(first, 2)
    assert there(first, [0, 1, 2]) == [0, 2]


def test_more_than_the_limit_at_once_leaves_the_last(folder):
    cache = CacheFolder(folder, 2 * ROOM)
    put(cache, *range(5))
    assert there(cache, range(5)) == [3, 4]
    assert len(files(folder)) == 2


@pytest.mark.parametrize("place", [0, 1, SIZE // 2, SIZE - 1, SIZE, SIZE + 15, SIZE + 19])
def test_a_flipped_bit_is_a_miss_and_the_item_can_come_again(folder, place):
    cache = CacheFolder(folder, 10 * ROOM)
    put(cache, 1)
    (path,) = files(folder)
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    assert there(cache, [1]) == []
    assert (cache.total(), files(folder)) == (0, [])
    put(cache, 1)
    assert there(cache, [1]) == [1]


@pytest.mark.parametrize("length", [0, 1, SIZE - 1, SIZE, SIZE + TRAILER - 1, SIZE + TRAILER + 1])
def test_a_file_of_another_length_is_a_miss(folder, length):
    cache = CacheFolder(folder, 10 * ROOM)
    put(cache, 1)
    (path,) = files(folder)
    os.truncate(path, length)
    assert there(cache, [1]) == []


@pytest.mark.parametrize(("place", "there"), [(0, ""), (SIZE - 101, ""), (SIZE - 100, "first")])
def test_the_rest_of_an_item_is_read_and_proved_where_it_is_wanted(folder, place, there):
    cache, whole = CacheFolder(folder, 10 * ROOM), content(1)
    cache.put([(key(1), whole, 100)])
    assert cache.get(key(1), SIZE - 100, 100) == whole[:-100]
    assert cache.get(key(1), SIZE - 100, 100, whole=True) == whole
    (path,) = files(folder)
    damaged = bytearray(path.read_bytes())
    damaged[place] ^= 1
    path.write_bytes(damaged)
    assert (cache.get(key(1), SIZE - 100, 100) is not None) == (there == "first")
    assert cache.get(key(1), SIZE - 100, 100, whole=True) is None
    assert files(folder) == []


def test_the_file_of_another_item_is_a_miss(folder):
    cache = CacheFolder(folder, 10 * ROOM)
    put(cache, 1, 2)
    shutil.copy(cache._path(key(2)), cache._path(key(1)))
    assert there(cache, [1, 2]) == [2]


def test_a_kill_at_any_system_call_leaves_nothing_uncounted(folder):
    """Of a process that evicts, writes, and takes over what another one never wrote."""
    limit = 4 * ROOM

    def prepare():
        shutil.rmtree(folder, ignore_errors=True)
        cache = CacheFolder(folder, limit)
        put(cache, 0, 1, 2)
        cache._reserve([(key(3), content(3))])[0].drop()

    def work():
        cachefolder.UNFINISHED_SECONDS = 0.0
        put(CacheFolder(folder, limit), 3, 4, 5)

    with skipped_where_not_permitted():
        system_calls(int)
    found, killed = {}, 0
    for call in itertools.count(1, 2):
        prepare()
        reached = run_until_system_call(work, call)
        wrong = faults(folder, limit)
        cache = CacheFolder(folder, limit)
        there(cache, range(8))
        put(cache, 6, 7)
        if there(cache, [6, 7]) != [6, 7]:
            wrong.append("nothing can be put any more")
        wrong += faults(folder, limit)
        if wrong:
            found[call] = wrong
        killed += reached
        if not reached:
            break
    assert found == {}
    assert killed > 30


HAMMER = """
import random, sys
from pathlib import Path
import blake3
from storage.cache.folder import CacheFolder
cache, draw = CacheFolder(sys.argv[1], int(sys.argv[2])), random.Random(int(sys.argv[3]))
for _ in range(int(sys.argv[4])):
    numbers = [draw.randrange(60) for _ in range(6)]
    for number in numbers:
        key = blake3.blake3(str(number).encode()).digest(16)
        found = cache.get(key, int(sys.argv[5]))
        content = blake3.blake3(f"content {number}".encode()).digest(int(sys.argv[5]))
        assert found in (None, content), "wrong bytes"
        if found is None:
            cache.put([(key, content)])
"""


def hammer(folder, limit, seed, rounds):
    words = [str(word) for word in (folder, limit, seed, rounds, SIZE)]
    return subprocess.Popen([sys.executable, "-W", "error", "-c", HAMMER, *words])


def bytes_at_one_time(folder):
    """What the files take while nobody can evict or begin one."""
    index = sqlite3.connect(folder / "index.sqlite", isolation_level=None, timeout=60)
    index.execute("BEGIN IMMEDIATE")
    try:
        return bytes_there(folder)
    finally:
        index.execute("ROLLBACK")
        index.close()


def test_processes_that_evict_from_each_other_and_are_killed_keep_the_limit(folder):
    limit, draw = 10 * ROOM, random.Random(1)
    put(CacheFolder(folder, limit), 0)
    workers = [hammer(folder, limit, seed, 500) for seed in range(2)]
    victims, most = 0, 0
    try:
        while any(worker.poll() is None for worker in workers):
            victim = hammer(folder, limit, 100 + victims, 10**9)
            end = time.monotonic() + draw.uniform(0.3, 0.8)
            while time.monotonic() < end:
                most = max(most, bytes_at_one_time(folder))
                time.sleep(0.02)
            victim.send_signal(signal.SIGKILL)
            assert victim.wait() == -signal.SIGKILL
            victims += 1
    finally:
        for worker in workers:
            worker.kill()
    assert [worker.wait() for worker in workers] == [0, 0]
    assert victims > 1
    assert limit - ROOM < most <= limit
    assert faults(folder, limit) == []
    cache = CacheFolder(folder, limit)
    put(cache, *range(100, 110))  # what was counted for the dead is free again
    assert there(cache, range(100, 110)) == list(range(100, 110))


def test_what_a_dead_writer_began_is_written_by_another_after_a_while(folder, monkeypatch):
    cache = CacheFolder(folder, 10 * ROOM)
    for item in cache._reserve([(key(1), content(1))]):
        os.close(item.file)
    put(cache, 1)
    assert there(cache, [1]) == []  # it may be alive
    monkeypatch.setattr(cachefolder, "UNFINISHED_SECONDS", 0.0)
    put(cache, 1)
    assert there(cache, [1]) == [1]
    assert len(files(folder)) == 1
    assert faults(folder, 10 * ROOM) == []


def test_a_writer_that_was_evicted_meanwhile_leaves_nothing(folder):
    cache = CacheFolder(folder, 2 * ROOM)
    reserved = cache._reserve([(key(1), content(1))])
    put(CacheFolder(folder, 2 * ROOM), 2, 3)
    cache._write(reserved)
    assert there(cache, [1, 2, 3]) == [2, 3]
    assert len(files(folder)) == 2


def test_a_process_that_is_stopped_does_not_stop_the_others(folder, monkeypatch):
    monkeypatch.setattr(cachefolder, "WAIT_SECONDS", 0.05)
    cache = CacheFolder(folder, 10 * ROOM)
    put(cache, 1)
    holder = sqlite3.connect(folder / "index.sqlite", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    other = CacheFolder(folder, 10 * ROOM)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        start = time.monotonic()
        for number in range(2, 50):
            put(other, number)
            assert there(other, [1]) == [1]
        assert time.monotonic() - start < 1
        holder.execute("ROLLBACK")
        other._resumes = 0.0
        put(other, 2)
    assert there(other, [2]) == [2]


def test_a_forked_process_has_an_index_of_its_own(folder):
    cache = CacheFolder(folder, 10 * ROOM)
    put(cache, 1)
    cache._lock.acquire()  # as another thread may have
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        put(cache, 2)
        os._exit(0 if there(cache, [1, 2]) == [1, 2] else 1)
    cache._lock.release()
    assert os.waitpid(child, 0)[1] == 0
    put(cache, 3)
    assert cache.total() == 3 * ROOM
    assert faults(folder, 10 * ROOM) == []


def test_a_folder_that_is_removed_and_made_again_is_counted_anew(folder):
    cache = CacheFolder(folder, 10 * ROOM)
    put(cache, 1)
    shutil.rmtree(folder)
    put(CacheFolder(folder, 10 * ROOM), 2, 3)
    put(cache, 4)
    assert cache.total() == 3 * ROOM == bytes_there(folder)


def test_after_a_start_of_the_machine_index_and_files_are_compared(folder):
    cache = CacheFolder(folder, 10 * ROOM)
    put(cache, 1, 2)
    os.remove(cache._path(key(1)))
    uncounted = [Path(cache._path(key(9))), Path(cache._path(key(2)) + ".0badcafe")]
    for path in uncounted:
        path.write_bytes(bytes(SIZE))
    index = sqlite3.connect(folder / "index.sqlite")
    index.execute("UPDATE total SET boot = 'of yesterday'")
    index.commit()
    index.close()
    cache = CacheFolder(folder, 10 * ROOM)
    put(cache, 3)
    assert there(cache, [1, 2, 3]) == [2, 3]
    assert cache.total() == 2 * ROOM == bytes_there(folder)


# Disks that cannot be written


def one_warning(work):
    """Call it twice; what it warned of the first time, and nothing the second."""
    with pytest.warns(RuntimeWarning, match="going on without new items") as said:
        [work() for _ in range(2)]
    assert len(said) == 1
    return str(said[0].message)


def test_a_full_disk_ends_the_writing_and_not_the_reading(disk):
    cache = CacheFolder(disk.folder / "cache", 2**30)
    put(cache, 1)
    disk.fill()
    assert "full" in one_warning(lambda: put(cache, 2, 3))
    assert there(cache, [1, 2, 3]) == [1]
    assert faults(disk.folder / "cache", 2**30) == []


def test_what_finds_no_room_on_the_disk_is_no_longer_counted(folder, monkeypatch):
    cache = CacheFolder(folder, 10 * ROOM)
    put(cache, 1)

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "writev", fail)
    assert "No space left" in one_warning(lambda: put(cache, 2, 3))
    assert there(cache, [1, 2, 3]) == [1]
    assert cache.total() == ROOM == bytes_there(folder)
    assert len(files(folder)) == 1


def test_a_disk_that_is_full_at_any_system_call_leaves_nothing_uncounted(disk):
    folder, limit = disk.folder / "cache", 4 * ROOM

    def work():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            put(CacheFolder(folder, limit), 3, 4, 5)

    found = {}
    for call in itertools.count(1, 5):
        put(CacheFolder(folder, limit), 0, 1, 2)
        reached = act_before_system_call(work, call, disk.fill)
        disk.make_room()
        if wrong := faults(folder, limit):
            found[call] = wrong
        put(CacheFolder(folder, limit), 6)
        assert there(CacheFolder(folder, limit), [6]) == [6]
        shutil.rmtree(folder)
        if not reached:
            break
    assert found == {}
    assert call > 30


def test_a_read_only_folder_is_read(disk):
    folder = disk.folder / "cache"
    put(CacheFolder(folder, 2**30), 1)
    disk.read_only()
    cache = CacheFolder(folder, 2**30)
    assert there(cache, [1]) == [1]
    one_warning(lambda: put(cache, 2))
    assert there(cache, [1, 2]) == [1]
    another = CacheFolder(disk.folder / "another", 2**30)
    assert there(another, [1]) == []
    one_warning(lambda: put(another, 1))


def test_a_damaged_index_ends_the_writing(folder):
    put(CacheFolder(folder, 2**30), 1)
    for name in ("index.sqlite-wal", "index.sqlite-shm"):
        (folder / name).unlink(missing_ok=True)
    (folder / "index.sqlite").write_bytes(b"no index" * 1000)
    cache = CacheFolder(folder, 2**30)
    assert "not a database" in one_warning(lambda: put(cache, 2))
    assert there(cache, [1, 2]) == [1]
    assert cache.total() == 0


def test_an_error_of_the_disk_is_a_miss(folder, monkeypatch):
    cache = CacheFolder(folder, 2**30)
    put(cache, 1)

    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "pread", fail)
    assert cache.get(key(1), SIZE) is None


# What is refused


def test_what_cannot_be_a_cache_is_refused_in_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match="file is a file; give a folder"):
            CacheFolder(place, 2**30)
    for limit in (-1, 0, 100):
        with pytest.raises(InputError, match=f"a limit of {limit} bytes holds nothing"):
            CacheFolder(tmp_path / "cache", limit)
    cache = CacheFolder(tmp_path / "cache", ROOM)
    put(cache, 1)
    with pytest.raises(InputError, match="less than one item of 16,384 bytes; raise the limit"):
        cache.put([(key(2), content(2, SIZE + 1))])
    listed = tmp_path / "mounts"
    listed.write_text(
        f"server:/home {tmp_path / 'home of'} nfs4 rw 0 0\n".replace(" of", "\\040of")
    )
    monkeypatch.setattr(mounts, "MOUNTS", listed)
    (tmp_path / "home of").mkdir()
    with pytest.raises(InputError, match=r"lies on a network file system \(nfs4\)"):
        CacheFolder(tmp_path / "home of" / "me" / "cache", 2**30)
    CacheFolder(tmp_path / "cache", 2**30)
