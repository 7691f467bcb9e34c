"""One writer a place: who holds it is told, who died is forgotten. Real processes, real locks."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from permitted import skipped_where_not_permitted
from small_disks import small_disk

from storage import lease
from storage.errors import InputError
from storage.lease import STALE_SECONDS, Holder
from storage.local import LocalStore

HOLD = """
import sys
from storage.local import LocalStore
from pathlib import Path
with LocalStore(Path(sys.argv[1])).only_writer():
    print("holds", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def place(tmp_path):
    return LocalStore(tmp_path / "events.zarr")


@pytest.fixture
def elsewhere(place):
    """Another process that holds the place until its standard input ends."""
    command = [sys.executable, "-c", HOLD, str(place.folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"holds\n"
        yield process
        process.kill()


def paper(place):
    return place.folder.with_name(place.folder.name + ".log") / "writer.json"


def write_by_hand(place, **facts):
    """The document of some other holder."""
    holder = {"host": "elsewhere", "process": 4711, "renewed": time.time(), **facts}
    paper(place).parent.mkdir(parents=True, exist_ok=True)
    paper(place).write_text(json.dumps(holder))


def hold(place):
    """Hold the place for a moment; say that it could be held."""
    with place.only_writer():
        return True


def test_a_second_process_is_refused_with_the_first_ones_host_and_number(place, elsewhere):
    expected = f"process {elsewhere.pid} on {socket.gethostname()} is writing there"
    with pytest.raises(InputError, match=expected):
        hold(place)
    assert place.is_being_written()


def test_it_is_refused_too_while_the_first_one_sleeps_or_its_document_is_lost(place, elsewhere):
    elsewhere.send_signal(signal.SIGSTOP)
    with pytest.raises(InputError, match=f"process {elsewhere.pid} on"):
        hold(place)
    shutil.rmtree(paper(place).parent)
    with pytest.raises(InputError, match="another run is writing there"):
        hold(place)


def test_after_sigkill_of_the_first_the_second_goes_on_at_once(place, elsewhere):
    elsewhere.kill()
    elsewhere.wait()
    assert paper(place).exists()
    assert not place.is_being_written()
    start = time.monotonic()
    assert hold(place)
    assert time.monotonic() - start < 1


def test_after_the_end_of_the_first_nothing_is_left(place, elsewhere):
    elsewhere.communicate()
    assert elsewhere.returncode == 0
    assert not paper(place).parent.exists()
    paper(place).parent.mkdir()
    (paper(place).parent / "shards.jsonl").touch()
    assert hold(place)
    assert [path.name for path in paper(place).parent.iterdir()] == ["shards.jsonl"]


def test_it_is_told_from_another_path_to_the_same_place(place, elsewhere, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=f"process {elsewhere.pid} on"):
        hold(LocalStore(Path("events.zarr")))


def test_a_fresh_document_of_another_host_is_respected(place):
    write_by_hand(place, renewed=time.time() - STALE_SECONDS / 2)
    with pytest.raises(InputError, match="process 4711 on elsewhere is writing there"):
        hold(place)
    assert place.is_being_written()
    assert json.loads(paper(place).read_bytes())["process"] == 4711


def test_a_clock_that_is_ahead_there_is_no_sign_of_death(place):
    write_by_hand(place, renewed=time.time() + 30)
    with pytest.raises(InputError, match="on elsewhere"):
        hold(place)


@pytest.mark.parametrize("ahead", [3600, float("inf")])
def test_one_that_is_far_ahead_and_never_renewed_is_taken_over(place, ahead, monkeypatch):
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.1)
    write_by_hand(place, renewed=time.time() + ahead)
    assert hold(place)


def test_one_that_is_far_ahead_and_renewed_is_respected(place, monkeypatch):
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.3)
    write_by_hand(place, renewed=time.time() + 3600)
    renewal = threading.Timer(0.2, lambda: write_by_hand(place, renewed=time.time() + 3600))
    renewal.start()
    with pytest.raises(InputError, match="process 4711 on elsewhere is writing there"):
        hold(place)
    renewal.join()


def test_one_that_is_far_ahead_and_is_written_anew_by_a_process_that_died_is_taken_over(
    place, monkeypatch
):
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.3)
    write_by_hand(place, renewed=time.time() + 3600)
    stale = time.time() - STALE_SECONDS - 1
    death = threading.Timer(0.2, lambda: write_by_hand(place, renewed=stale))
    death.start()
    assert hold(place)
    death.join()


def test_a_stale_document_of_another_host_is_taken_over(place):
    write_by_hand(place, renewed=time.time() - STALE_SECONDS - 1)
    assert not place.is_being_written()
    with place.only_writer():
        assert json.loads(paper(place).read_bytes())["process"] == os.getpid()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'{"host": "a"}', b"\xff"])
def test_a_document_that_says_nothing_holds_nothing(place, content):
    paper(place).parent.mkdir(parents=True)
    paper(place).write_bytes(content)
    assert hold(place)


def test_a_pipe_in_place_of_the_document_holds_nothing_and_nobody_waits_for_it(place):
    paper(place).parent.mkdir(parents=True)
    os.mkfifo(paper(place))
    answers = []
    asking = threading.Thread(
        target=lambda: answers.append((place.is_being_written(), hold(place))), daemon=True
    )
    asking.start()
    asking.join(20)
    assert answers == [(False, True)]


def test_a_process_here_that_merely_has_the_number_of_a_dead_writer_holds_nothing(place):
    write_by_hand(place, host=socket.gethostname(), process=os.getppid())
    assert hold(place)


def test_a_holder_renews_its_document(place, monkeypatch):
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.02)
    with place.only_writer():
        first = Holder.parse(paper(place).read_bytes())
        deadline = time.monotonic() + 10
        while Holder.parse(paper(place).read_bytes()).renewed <= first.renewed:
            assert time.monotonic() < deadline, "it is not renewed"
            time.sleep(0.01)
        while paper(place).parent.exists():  # the log may be deleted at any time
            shutil.rmtree(paper(place).parent, ignore_errors=True)  # while a renewal fills it
        time.sleep(0.1)
    assert not paper(place).exists()


def test_who_was_taken_for_dead_leaves_the_document_of_the_next_one_alone(place, monkeypatch):
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.02)
    with place.only_writer():
        write_by_hand(place)
        time.sleep(0.2)
        assert Holder.parse(paper(place).read_bytes()).host == "elsewhere"
    assert Holder.parse(paper(place).read_bytes()).host == "elsewhere"


def test_a_hold_within_the_same_process_is_refused(place):
    with place.only_writer(), pytest.raises(InputError, match=f"process {os.getpid()} on"):
        hold(place)


def inside(place):
    return place.folder / "writer.json"


def test_a_document_inside_the_folder_of_another_host_is_watched_until_it_is_renewed(
    place, monkeypatch
):
    monkeypatch.setattr(lease, "WATCH_SECONDS", 0.02)
    place.folder.mkdir()
    left = {"host": "elsewhere", "process": 4711, "renewed": time.time() - 5}
    inside(place).write_text(json.dumps(left))
    renewal = threading.Timer(
        0.3, lambda: inside(place).write_text(json.dumps({**left, "renewed": time.time()}))
    )
    renewal.start()
    with pytest.raises(InputError, match="process 4711 on elsewhere"), place.only_writer(True):
        pass
    renewal.join()


def test_a_document_inside_the_folder_that_a_dead_host_left_is_taken_over_once_it_is_old(
    place, monkeypatch
):
    monkeypatch.setattr(lease, "WATCH_SECONDS", 0.02)
    monkeypatch.setattr(lease, "STALE_SECONDS", 1.0)
    place.folder.mkdir()
    left = {"host": "elsewhere", "process": 4711, "renewed": time.time()}
    inside(place).write_text(json.dumps(left))
    start = time.monotonic()
    with place.only_writer(inside=True):
        assert time.monotonic() - start > 0.5
        assert json.loads(inside(place).read_bytes())["process"] == os.getpid()
    assert not place.folder.exists(), "nothing else was in it"


def test_a_disk_too_full_for_the_document_is_named_and_nothing_is_left(tmp_path):
    with skipped_where_not_permitted(), small_disk(tmp_path / "disk", 8 * 4096) as disk:
        disk.fill()
        store = LocalStore(disk.folder / "x.zarr")
        with pytest.raises(OSError, match="No space left") as told, store.only_writer():
            pass
        assert told.value.filename == str(store.beside / "writer.json")
        assert not store.beside.exists()
