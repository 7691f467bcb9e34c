"""SIGKILL at every system call, full and read-only disks: whole or not there, and the same bytes.

Everything goes through what the pipeline calls when it starts or resumes a run. `test_harness.py`
in tests/faults shows that a process is killed where it should be, and that disks are full.
"""

import errno
import itertools
import json
import mmap
import os
import shutil
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import blake3
import pytest
from crashes import act_before_system_call, run_until_system_call, system_calls
from permitted import skipped_where_not_permitted
from small_disks import small_disk

from storage import files
from storage.encodings import ENCODINGS
from storage.errors import DamagedDataError, InputError
from storage.local import LocalStore
from storage.manifest import finished_shards, require_complete
from storage.writer import write_shard

ROOM = 1 << 20  # bytes; the data set takes 100 kB of it
IN_MEMORY = Path("/dev/shm")  # on Linux; syncing is free there, and a kill the same
FULL, READ_ONLY = "No space left on device", "Read-only file system"


def every_call_or(some):
    """Every system call, which takes a minute or two, every third, or one of so many."""
    calls = [
        pytest.param(some, id="some"),
        pytest.param(3, id="third", marks=pytest.mark.slow),
        pytest.param(1, id="every", marks=pytest.mark.long),
    ]
    return pytest.mark.parametrize("every", calls)


@pytest.fixture(
    scope="module", params=["float32", pytest.param("int8+blosc", marks=pytest.mark.slow)]
)
def short(small, request):
    """The small data set, but for one of the two full shards that it has before the partial one."""
    return replace(small, events=4, encoding=ENCODINGS[request.param])


@pytest.fixture(scope="module")
def complete(short, start, finish):
    """Start or resume the run that writes the short data set into a folder."""

    def complete(folder):
        data = start(folder, short)
        LocalStore(folder).remove_partial_files()
        finish(data, [n for n in range(short.shards) if n not in finished_shards(folder, short)])

    return complete


@pytest.fixture(scope="module")
def undisturbed(complete, tmp_path_factory):
    """The bytes of a run that nothing happens to; what it needs is imported from here on."""
    folder = tmp_path_factory.mktemp("undisturbed") / "events.zarr"
    complete(folder)
    return content(folder)


@pytest.fixture(scope="module")
def traced():
    """Skip where nothing can be traced."""
    with skipped_where_not_permitted():
        system_calls(int)


@pytest.fixture
def pieces_of_a_page(monkeypatch):
    """Have threads write the files of the short data set, which one piece would hold otherwise."""
    monkeypatch.setattr(files, "PIECE", mmap.PAGESIZE)


@pytest.fixture
def disk(tmp_path):
    with skipped_where_not_permitted(), small_disk(tmp_path / "disk", ROOM) as disk:
        yield disk


@pytest.fixture
def out(tmp_path):
    """A folder to be created, on a fast disk if there is one."""
    within = IN_MEMORY if os.access(IN_MEMORY, os.W_OK) else tmp_path
    with tempfile.TemporaryDirectory(dir=within) as folder:
        yield Path(folder) / "events.zarr"


def content(folder):
    """Every file of a folder with its bytes."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def half_written(folder, undisturbed):
    """What has its final name but not its final bytes."""
    return [
        f"{path} is half written"
        for path, data in content(folder).items()
        if not path.endswith(".partial") and data != undisturbed.get(path)
    ]


def finished_too_early(folder, schema):
    """What the manifest of a shard promises, but is not there."""
    faults = []
    for shard in finished_shards(folder, schema):
        manifest = (folder / f"manifest/{shard:06d}.json").read_bytes()
        promised = json.loads(manifest)["files"] if manifest else {"a manifest": {}}
        for path, facts in promised.items():
            data = (folder / path).read_bytes() if (folder / path).is_file() else b""
            if facts != {"bytes": len(data), "blake3": blake3.blake3(data).hexdigest()}:
                faults.append(f"shard {shard} is finished without {path}")
    return faults


@pytest.fixture(scope="module")
def faults_over_calls(short, complete, undisturbed):
    """Disturb runs at one system call after the other, and resume each; all faults found."""

    def faults_over_calls(folder, disturb, every):
        found, disturbed = {}, 0
        for call in itertools.count(1, every):
            reached = disturb(call)
            faults = finished_too_early(folder, short) + half_written(folder, undisturbed)
            disturbed += content(folder) != undisturbed
            try:
                complete(folder)
                require_complete(folder, short)
            except (DamagedDataError, InputError) as error:
                faults.append(f"the rerun refuses: {error}")
            else:
                if content(folder) != undisturbed:
                    faults.append("the rerun has other bytes")
            if faults:
                found[call] = faults
            shutil.rmtree(folder)
            if not reached:
                assert disturbed * every > 50, "most runs were not disturbed at all"
                return found

    return faults_over_calls


@pytest.fixture
def faults_of_killed(traced, out, faults_over_calls):
    """Kill a writer before each of its system calls, or every so many."""

    def faults_of_killed(write, every=1, prepare=lambda folder: None):
        def disturb(call):
            prepare(out)
            return run_until_system_call(partial(write, out), call)

        return faults_over_calls(out, disturb, every)

    return faults_of_killed


@pytest.fixture
def faults_of_full(traced, disk, faults_over_calls):
    """Fill the disk before each system call of a writer, or every so many."""

    def faults_of_full(write, every=1):
        return faults_over_calls(folder, partial(stop, write), every)

    def stop(write, call):
        with_error = partial(until_error, errno.ENOSPC, write, folder)
        reached = act_before_system_call(with_error, call, disk.fill)
        disk.make_room()
        return reached

    folder = disk.folder / "events.zarr"
    return faults_of_full


@pytest.fixture
def faults_of_read_only(traced, disk, faults_over_calls):
    """Turn the disk read-only before each system call of a writer, or every so many."""

    def faults_of_read_only(write, every=1):
        return faults_over_calls(folder, partial(stop, write), every)

    def stop(write, call):
        folder.mkdir()
        with_error = partial(until_error, errno.EROFS, write, folder)
        reached = act_before_system_call(with_error, call, disk.read_only)
        disk.read_write()
        return reached

    folder = disk.folder / "events.zarr"
    return faults_of_read_only


def until_error(code, write, folder):
    """Call a writer that may fail with one error of the operating system."""
    try:
        write(folder)
    except OSError as error:
        if error.errno != code:
            raise


def write_in_place(folder, files):
    """Write files as nobody should."""
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)


def write_and_rename(folder, files):
    """Write files so that each is whole or not there."""
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        partial_path = folder / f"{path}.partial"
        partial_path.write_bytes(data)
        partial_path.rename(folder / path)


def in_order(files, last=None):
    """Files as they may be written: the group's metadata first, manifests at the end."""
    return dict(
        sorted(
            files.items(),
            key=lambda item: (item[0] == last, "manifest" in item[0], item[0] != "zarr.json"),
        )
    )


@pytest.fixture(scope="module")
def early_manifest(undisturbed):
    """A writer whose last shard gets its strain after its manifest."""
    return partial(write_and_rename, files=in_order(undisturbed, last="strain/c/1/0/0"))


def every_fault(found):
    """The faults of all calls together."""
    return set(itertools.chain(*found.values()))


# Killed


@every_call_or(5)
def test_killed_at_any_system_call_nothing_is_half_written_and_a_rerun_gives_the_same_bytes(
    faults_of_killed, complete, every
):
    assert faults_of_killed(complete, every) == {}


@every_call_or(23)
@pytest.mark.usefixtures("pieces_of_a_page")
def test_killed_while_threads_write_nothing_is_half_written_and_a_rerun_gives_the_same_bytes(
    faults_of_killed, complete, every
):
    assert faults_of_killed(complete, every) == {}


@every_call_or(13)
@pytest.mark.parametrize(("share", "finished"), [(0.6, []), (0.9, [0])])
def test_killed_again_while_it_is_resumed_a_run_is_completed_by_the_next(
    faults_of_killed, complete, undisturbed, short, tmp_path, share, finished, every
):
    calls = system_calls(partial(complete, tmp_path / "counted.zarr"))

    def prepare(folder):
        assert run_until_system_call(partial(complete, folder), int(share * calls))
        assert finished_shards(folder, short) == finished

    assert faults_of_killed(complete, every, prepare) == {}


@pytest.mark.slow
def test_kills_catch_a_writer_that_gives_files_their_final_name_at_once(
    faults_of_killed, undisturbed
):
    write = partial(write_in_place, files=in_order(undisturbed))
    faults = every_fault(faults_of_killed(write, every=2))
    assert {f"{path} is half written" for path in undisturbed} <= faults
    assert "shard 1 is finished without a manifest" in faults


@pytest.mark.slow
def test_kills_catch_a_manifest_that_is_there_before_its_shard(faults_of_killed, early_manifest):
    faults = every_fault(faults_of_killed(early_manifest, every=2))
    assert "shard 1 is finished without strain/c/1/0/0" in faults
    assert not any("half written" in fault for fault in faults)


@pytest.mark.slow
def test_kills_catch_what_a_rerun_does_not_clear_away(faults_of_killed, undisturbed):
    def write(folder):
        write_and_rename(folder, in_order(undisturbed))
        (folder / "strain/journal").touch()
        (folder / "strain/journal").unlink()

    faults = every_fault(faults_of_killed(write, every=2))
    assert faults == {"strain/journal is half written", "the rerun has other bytes"}


# Full and read-only disks


@every_call_or(7)
def test_a_disk_full_at_any_system_call_leaves_nothing_half_written_and_a_rerun_the_same_bytes(
    faults_of_full, complete, undisturbed, every
):
    assert faults_of_full(complete, every) == {}


@every_call_or(23)
@pytest.mark.usefixtures("pieces_of_a_page")
def test_a_disk_full_while_threads_write_leaves_nothing_half_written_and_a_rerun_the_same_bytes(
    faults_of_full, complete, every
):
    assert faults_of_full(complete, every) == {}


@every_call_or(7)
def test_a_disk_read_only_at_any_system_call_leaves_nothing_half_written_and_a_rerun_the_same_bytes(
    faults_of_read_only, complete, undisturbed, every
):
    assert faults_of_read_only(complete, every) == {}


@every_call_or(23)
@pytest.mark.usefixtures("pieces_of_a_page")
def test_a_disk_read_only_while_threads_write_leaves_nothing_half_written_and_the_same_bytes(
    faults_of_read_only, complete, every
):
    assert faults_of_read_only(complete, every) == {}


@pytest.mark.slow
def test_full_disks_catch_a_writer_that_gives_files_their_final_name_at_once(
    faults_of_full, undisturbed
):
    write = partial(write_in_place, files=in_order(undisturbed))
    faults = every_fault(faults_of_full(write, every=2))
    assert {f"{path} is half written" for path in undisturbed} <= faults


@pytest.mark.slow
def test_read_only_disks_catch_a_manifest_that_is_there_before_its_shard(
    faults_of_read_only, early_manifest
):
    faults = every_fault(faults_of_read_only(early_manifest, every=2))
    assert "shard 1 is finished without strain/c/1/0/0" in faults
    assert not any("half written" in fault for fault in faults)


@pytest.fixture
def on_disk(disk, start, short, undisturbed):
    """A data set without a shard, on a small disk."""
    return start(disk.folder / "events.zarr", short)


def before(row, action, events):
    """Events, with an action before one of them, or after the last."""
    yield from events[:row]
    action()
    yield from events[row:]


@pytest.mark.parametrize("row", range(4))
@pytest.mark.parametrize("message", [FULL, READ_ONLY])
def test_a_shard_that_the_disk_refuses_has_no_manifest_and_can_be_written_later(
    disk, on_disk, complete, undisturbed, message, row
):
    action = disk.fill if message == FULL else disk.read_only
    events = before(row, action, on_disk.events[:3])
    with pytest.raises(OSError, match=message):
        write_shard(on_disk.folder, on_disk.schema, 0, events)
    assert finished_shards(on_disk.folder, on_disk.schema) == []
    disk.read_write()
    disk.make_room()
    complete(on_disk.folder)
    assert content(on_disk.folder) == undisturbed


@pytest.mark.parametrize("message", [FULL, READ_ONLY])
def test_a_shard_whose_manifest_the_disk_refuses_is_not_finished(
    disk, on_disk, complete, undisturbed, message
):
    def refuse():
        (disk.fill if message == FULL else disk.read_only)()
        return {}

    with pytest.raises(OSError, match=message):
        write_shard(on_disk.folder, on_disk.schema, 0, on_disk.events[:3], refuse)
    assert finished_shards(on_disk.folder, on_disk.schema) == []
    disk.read_write()
    disk.make_room()
    complete(on_disk.folder)
    assert content(on_disk.folder) == undisturbed


@pytest.mark.parametrize("row", range(4))
def test_a_shard_that_fills_the_disk_gives_the_space_back(disk, on_disk, row):
    names = set(content(on_disk.folder))
    events = before(row, disk.fill, on_disk.events[:3])
    with pytest.raises(OSError, match=FULL):
        write_shard(on_disk.folder, on_disk.schema, 0, events)
    assert set(content(on_disk.folder)) == names


@pytest.mark.usefixtures("pieces_of_a_page")
@pytest.mark.parametrize("row", range(4))
def test_a_shard_in_pieces_that_fills_the_disk_gives_the_space_back(disk, on_disk, row):
    test_a_shard_that_fills_the_disk_gives_the_space_back(disk, on_disk, row)


@pytest.mark.usefixtures("pieces_of_a_page")
def test_a_piece_that_finds_no_room_is_told_by_each_call_that_waits_for_it(disk):
    file = files.AtomicFile(disk.folder / "x")
    with pytest.raises(OSError, match=FULL):
        file.write(bytes(2 * ROOM))
    for late in (file.digest, file.finish, file.finish):
        with pytest.raises(OSError, match=FULL):
            late()
    file.discard()
    assert list(disk.folder.iterdir()) == []
    files.write_atomically(disk.folder / "x", bytes(ROOM - mmap.PAGESIZE))  # the room is back
