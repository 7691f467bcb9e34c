"""What a power cut may not undo: a file that has its name has its bytes and its folders too.

No test can cut the power: these watch in which order the system is asked to make things durable.
That files are whole or not there is shown in `test_crashes.py`.
"""

import os
from pathlib import Path

import pytest

from storage.files import AtomicFile, write_atomically


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
