"""A file's digest is of all its bytes, past the page cache and through it."""

import os
import random

import blake3
import pytest

from storage import local
from storage.bench.limits import drop_from_cache, resident_share
from storage.digests import file_digest
from storage.local import LocalStore

PAGE = 4096


@pytest.fixture
def short_pieces(monkeypatch):
    """Pieces of two pages, so that a short file has many."""
    monkeypatch.setattr(local, "PAST_CACHE", 2 * PAGE)


@pytest.mark.usefixtures("short_pieces")
@pytest.mark.parametrize("length", [1, 2 * PAGE - 1, 2 * PAGE, 3 * PAGE, 4 * PAGE, 20 * PAGE + 1])
@pytest.mark.parametrize("state", ["cold", "warm"])
def test_a_digest_is_of_all_bytes_whether_they_are_in_memory_or_not(tmp_path, state, length):
    path, content = tmp_path / "x", random.Random(length).randbytes(length)
    path.write_bytes(content)
    drop_from_cache([path])
    if state == "warm":
        assert path.read_bytes() == content
    wanted = length, blake3.blake3(content).hexdigest()
    assert file_digest(LocalStore(tmp_path), "x") == wanted
    changed = bytes([content[0] ^ 1]) + content[1:]
    path.write_bytes(changed)  # not synced: the disk does not have it yet
    assert file_digest(LocalStore(tmp_path), "x") == (length, blake3.blake3(changed).hexdigest())


@pytest.mark.usefixtures("short_pieces")
def test_a_file_that_is_not_in_memory_is_proved_by_what_the_disk_gives(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(bytes(20 * PAGE))
    drop_from_cache([path])
    with path.open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        file.read(4 * PAGE)  # a part of it is
    assert resident_share(path) == 4 / 20
    file_digest(LocalStore(tmp_path), "x")
    assert resident_share(path) == 4 / 20


@pytest.mark.usefixtures("short_pieces")
def test_a_file_that_is_mostly_in_memory_is_read_from_there(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(bytes(20 * PAGE))
    file = LocalStore(tmp_path).open_once("x")
    assert not file.ahead
    assert file.piece > 2 * PAGE
    drop_from_cache([path])
    file = LocalStore(tmp_path).open_once("x")
    assert file.ahead
    assert file.piece == 2 * PAGE
