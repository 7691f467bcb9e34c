"""What a power cut may not undo: a file that has its name has its bytes and its folders too.

No test can cut the power: these watch in which order the system is asked to make things durable.
That files are whole or not there is shown in `test_crashes.py`.
"""

import os
import random
import threading
from pathlib import Path

import blake3
import pytest
from descriptors import open_under

from storage import files
from storage.files import AtomicFile, write_atomically
from storage.pagecache import resident_share

PIECE = 4 * 4096


@pytest.fixture
def synced(monkeypatch):
    """The files and folders that are synced, in order, and still are."""
    paths, fsync = [], os.fsync

    def watched(descriptor):
        fsync(descriptor)
        paths.append(os.readlink(f"/proc/self/fd/{descriptor}"))

    monkeypatch.setattr(os, "fsync", watched)
    return paths


def test_a_file_is_synced_before_it_has_its_name_and_its_folder_after(tmp_path, synced):
    write_atomically(tmp_path / "x", b"abc")
    assert synced == [str(tmp_path / "x.partial"), str(tmp_path)]
    assert (tmp_path / "x").read_bytes() == b"abc"


def test_each_folder_that_a_file_needs_is_synced_in_the_one_above_it(tmp_path, synced):
    write_atomically(tmp_path / "a/b/c/x", b"abc")
    folders = [str(tmp_path / name) for name in ("", "a", "a/b", "a/b/c")]
    assert synced == [*folders[:3], f"{folders[3]}/x.partial", folders[3]]
    synced.clear()
    write_atomically(tmp_path / "a/b/c/y", b"abc")  # they are there by now
    assert synced == [f"{folders[3]}/y.partial", folders[3]]


def test_a_relative_path_needs_no_folder(tmp_path, synced, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_atomically(Path("x"), b"abc")
    write_atomically(Path("a/x"), b"abc")
    assert (tmp_path / "a/x").read_bytes() == (tmp_path / "x").read_bytes() == b"abc"


def test_what_is_discarded_is_gone_and_what_is_finished_stays(tmp_path):
    for _ in range(2):
        file = AtomicFile(tmp_path / "x", contested=True)
        file.write(b"abc")
        assert len(list(tmp_path.glob("x.*.partial"))) == 1
        file.discard()
        file.discard()
        assert list(tmp_path.iterdir()) == []
    file = AtomicFile(tmp_path / "x")
    file.finish()
    file.discard()
    assert list(tmp_path.iterdir()) == [tmp_path / "x"]


# Long files


@pytest.fixture
def short_pieces(monkeypatch):
    """Pieces of four pages."""
    monkeypatch.setattr(files, "PIECE", PIECE)


def write(path, content, longest=PIECE):
    """Write a file in parts of all lengths; return what it says before it has its name."""
    file, draw, start = AtomicFile(path), random.Random(1), 0
    while start < len(content):
        part = content[start : start + draw.randint(1, longest)]
        file.write(memoryview(part))
        start += len(part)
    said = file.length, file.digest()
    file.finish()
    assert (file.length, file.digest()) == said
    return said


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("strainflow")]


@pytest.mark.usefixtures("short_pieces")
@pytest.mark.parametrize("longest", [100, PIECE, 5 * PIECE])
@pytest.mark.parametrize("pieces", [0, 1, 2, 3, 9])
def test_a_file_has_the_bytes_length_and_digest_of_what_was_written(tmp_path, pieces, longest):
    for more in (-1, 0, 1):
        content = random.Random(pieces).randbytes(max(0, pieces * PIECE + more))
        said = write(tmp_path / "x", content, longest)
        assert (tmp_path / "x").read_bytes() == content
        assert said == (len(content), blake3.blake3(content).hexdigest())
    assert threads() == []


@pytest.mark.usefixtures("short_pieces")
def test_a_long_file_goes_past_the_page_cache_but_for_its_end(tmp_path):
    write(tmp_path / "x", bytes(20 * PIECE + 5000))
    if resident_share(tmp_path / "x") == 1:
        pytest.skip("this file system has no way past the page cache")
    assert resident_share(tmp_path / "x") == 1 / 82


@pytest.mark.usefixtures("short_pieces")
def test_what_the_disk_refuses_past_the_page_cache_goes_through_it(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_new_piece", lambda: memoryview(bytearray(PIECE + 1))[1:])
    content = random.Random(2).randbytes(20 * PIECE + 5000)
    write(tmp_path / "x", content)
    assert resident_share(tmp_path / "x") == 1
    assert (tmp_path / "x").read_bytes() == content


@pytest.mark.usefixtures("short_pieces")
def test_a_long_file_takes_the_memory_of_three_pieces_and_a_short_one_starts_no_thread(
    tmp_path, monkeypatch
):
    taken, new_piece = [], files._new_piece
    monkeypatch.setattr(files, "_new_piece", lambda: taken.append(1) or new_piece())
    write(tmp_path / "x", bytes(50 * PIECE))
    assert len(taken) == files.PIECES == 3
    file = AtomicFile(tmp_path / "y")
    file.write(bytes(PIECE - 1))
    assert threads() == []
    file.finish()


@pytest.mark.usefixtures("short_pieces")
def test_a_long_file_that_is_discarded_leaves_no_file_thread_or_descriptor(tmp_path):
    for pieces in (1, 2, 50):
        file = AtomicFile(tmp_path / "x")
        file.write(bytes(pieces * PIECE))
        assert len(threads()) == 2
        file.discard()
        file.discard()
        assert list(tmp_path.iterdir()) == []
        assert threads() == []
    assert open_under(tmp_path) == []


@pytest.mark.usefixtures("short_pieces")
def test_a_piece_that_cannot_be_written_is_told_and_the_file_never_gets_its_name(tmp_path):
    """The descriptor is taken away, as a disk that goes away would."""
    file = AtomicFile(tmp_path / "x")
    file.write(bytes(PIECE))
    file.digest()  # waits for the disk
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, file._file.fileno())
    os.close(full)
    with pytest.raises(OSError, match=f"No space left on device: '{tmp_path}/x'"):
        file.write(bytes(20 * PIECE))
    with pytest.raises(OSError, match=f"No space left on device: '{tmp_path}/x'"):
        file.finish()
    file.discard()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("short_pieces")
@pytest.mark.parametrize("pieces", [0, 3])
def test_a_file_that_cannot_have_its_name_is_discarded(tmp_path, pieces):
    file = AtomicFile(tmp_path / "x")
    file.write(bytes(pieces * PIECE + 1))
    (tmp_path / "x/y").mkdir(parents=True)
    with pytest.raises(IsADirectoryError):
        file.finish()
    file.discard()
    assert list(tmp_path.iterdir()) == [tmp_path / "x"]
    assert threads() == []
    assert open_under(tmp_path) == []
