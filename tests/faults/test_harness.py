"""The crashes and disks themselves: that they do what tests of the storage rely on."""

import ctypes
import errno
import itertools
import os
import signal
import struct
import threading
from functools import partial
from pathlib import Path

import crashes
import pytest
from crashes import (
    ChildError,
    TracingNotPermittedError,
    act_before_system_call,
    run_until_system_call,
    system_calls,
)
from permitted import NotPermittedError, skipped_where_not_permitted
from small_disks import MountingNotPermittedError, small_disk

PAGE = os.sysconf("SC_PAGE_SIZE")
NOBODY = 65534


def ask(times):
    for _ in range(times):
        os.getppid()


def in_thread(function):
    """Run a function in a thread, to its end."""
    thread = threading.Thread(target=function)
    thread.start()
    thread.join()


def in_child(function):
    """Run a function in an untraced child, which may give up its rights; its exit code."""
    process = os.fork()
    if process == 0:
        code = 99
        try:
            code = function()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


@pytest.fixture
def traced():
    """Skip where nothing can be traced."""
    with skipped_where_not_permitted():
        system_calls(partial(ask, 0))


@pytest.fixture
def disk(tmp_path):
    with skipped_where_not_permitted(), small_disk(tmp_path / "disk", 4 * PAGE) as disk:
        yield disk


@pytest.fixture
def written_byte_by_byte(tmp_path, traced):
    """A file, and a function that writes four bytes to it in four system calls."""
    path = tmp_path / "bytes"
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND)

    def write():
        for byte in (b"a", b"b", b"c", b"d"):
            os.write(descriptor, byte)

    yield path, write
    os.close(descriptor)


# Crashes


@pytest.mark.parametrize("times", [0, 1, 10, 200])
def test_exactly_the_system_calls_of_the_function_are_counted(traced, times):
    assert system_calls(partial(ask, times)) == times


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_a_run_that_is_killed_has_done_all_calls_before_and_no_other(written_byte_by_byte, n):
    path, write = written_byte_by_byte
    assert run_until_system_call(write, n)
    assert path.read_bytes() == b"abcd"[: n - 1]


def test_a_run_with_fewer_calls_ends_by_itself(written_byte_by_byte):
    path, write = written_byte_by_byte
    assert not run_until_system_call(write, 5)
    assert path.read_bytes() == b"abcd"


def test_the_calls_of_its_threads_count_too(traced):
    assert system_calls(partial(in_thread, partial(ask, 100))) > 100


def left_by(disturb, path, write):
    """What a thread has left that was disturbed at each call, until five states were seen."""
    left = set()
    for _ in range(20):  # the order of the calls of two threads varies
        for n in itertools.count(1):
            path.write_bytes(b"")
            reached = disturb(partial(in_thread, write), n)
            left.add(path.read_bytes())
            if not reached:
                break
        if len(left) == 5:
            break
    return left


def test_a_thread_is_killed_between_any_two_of_its_calls(written_byte_by_byte):
    left = left_by(run_until_system_call, *written_byte_by_byte)
    assert left == {b"", b"a", b"ab", b"abc", b"abcd"}


def test_something_can_be_done_between_any_two_calls_of_a_thread(written_byte_by_byte):
    path, write = written_byte_by_byte
    empty = partial(path.write_bytes, b"")
    left = left_by(partial(act_before_system_call, action=empty), path, write)
    assert left >= {b"abcd", b"bcd", b"cd", b"d"}


def test_something_can_be_done_between_two_calls(written_byte_by_byte):
    path, write = written_byte_by_byte
    assert act_before_system_call(write, 3, lambda: path.write_bytes(b""))
    assert path.read_bytes() == b"cd"
    assert not act_before_system_call(write, 5, lambda: path.write_bytes(b""))
    assert path.read_bytes() == b"cdabcd"


RUNS = [
    pytest.param(system_calls, id="counted"),
    pytest.param(lambda function: run_until_system_call(function, 1000), id="ended"),
    pytest.param(lambda function: act_before_system_call(function, 1, lambda: None), id="acted"),
]


@pytest.mark.parametrize("run", RUNS)
def test_what_the_function_raises_is_raised_with_its_traceback(traced, run):
    def fail():
        ask(1)
        raise KeyboardInterrupt("of the child")

    with pytest.raises(ChildError, match=r"in fail\n(.*\n)+KeyboardInterrupt: of the child"):
        run(fail)


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize(
    ("ending", "message"),
    [
        (lambda: os._exit(0), "before the function did: exit code 0"),
        (lambda: os.kill(os.getpid(), signal.SIGTERM), "before the function did: SIGTERM"),
    ],
)
def test_a_child_that_ends_early_is_no_success(traced, run, ending, message):
    with pytest.raises(ChildError, match=message):
        run(ending)


def test_a_child_that_hangs_is_ended(traced, monkeypatch):
    monkeypatch.setattr(crashes, "PATIENCE", 1)
    with pytest.raises(ChildError, match="SIGALRM"):
        system_calls(signal.pause)


def test_no_child_is_left_after_a_kill_an_end_or_an_error(traced):
    def fail():
        raise RuntimeError

    run_until_system_call(partial(ask, 3), 2)
    system_calls(partial(ask, 3))
    with pytest.raises(ChildError):
        system_calls(fail)
    with pytest.raises(ZeroDivisionError):
        act_before_system_call(partial(ask, 3), 2, lambda: 1 // 0)
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


# prctl.h, seccomp.h, audit.h: a filter that answers one system call with EPERM
PTRACE_CALL = {"x86_64": 101, "aarch64": 117}
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2


def refuse_ptrace():
    """Refuse ptrace to this process, as some containers do."""
    number = PTRACE_CALL[os.uname().machine]
    rules = ctypes.create_string_buffer(
        struct.pack("HBBI", 0x20, 0, 0, 0)  # load the number of the call
        + struct.pack("HBBI", 0x15, 0, 1, number)  # unless it is this one, skip the next rule
        + struct.pack("HBBI", 0x06, 0, 0, 0x00050000 | errno.EPERM)
        + struct.pack("HBBI", 0x06, 0, 0, 0x7FFF0000)  # allow
    )
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", 4, ctypes.addressof(rules)))
    prctl = ctypes.CDLL(None).prctl
    prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
    assert prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
    assert prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.addressof(program), 0, 0) == 0


@pytest.mark.skipif(os.uname().machine not in PTRACE_CALL, reason="number of ptrace unknown")
def test_a_machine_that_refuses_ptrace_is_told_from_a_failure():
    def refused():
        refuse_ptrace()
        try:
            system_calls(partial(ask, 1))
        except TracingNotPermittedError as error:
            return 42 if "ptrace: Operation not permitted; a container needs" in str(error) else 1
        return 0

    assert in_child(refused) == 42


def test_what_is_not_permitted_is_skipped_but_fails_in_ci(monkeypatch):
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="no"), skipped_where_not_permitted():
        raise NotPermittedError("no")
    monkeypatch.setenv("CI", "true")
    with pytest.raises(NotPermittedError, match="no"), skipped_where_not_permitted():
        raise NotPermittedError("no")


# Disks


def test_a_small_disk_holds_its_size_and_no_more(disk):
    (disk.folder / "a").write_bytes(bytes(4 * PAGE))
    with pytest.raises(OSError, match="No space left") as raised:
        (disk.folder / "b").write_bytes(b"b")
    assert raised.value.errno == errno.ENOSPC


def test_a_disk_can_be_filled_while_files_are_open_and_emptied_again(disk):
    with (disk.folder / "a").open("wb", buffering=0) as file:
        for _ in range(2):
            disk.fill()
            with pytest.raises(OSError, match="No space left"):
                file.write(b"a")
        disk.make_room()
        assert file.write(b"a") == 1


def test_a_disk_turns_read_only_under_an_open_file_and_writable_again(disk):
    path = disk.folder / "a"
    with path.open("wb") as file:
        file.write(b"a")
        disk.read_only()
        for change in (path.unlink, path.touch, lambda: path.rename(disk.folder / "b")):
            with pytest.raises(OSError, match="Read-only file system") as raised:
                change()
            assert raised.value.errno == errno.EROFS
    assert path.read_bytes() == b"a"
    disk.read_write()
    path.unlink()


@pytest.mark.parametrize("state", ["writable", "read-only", "open"])
def test_a_disk_is_unmounted_after_an_error_whatever_its_state(tmp_path, state):
    folder = tmp_path / "disk"

    def fail():
        with small_disk(folder, PAGE) as disk, (folder / "a").open("wb") as file:
            opened.append(os.dup(file.fileno()))
            if state != "open":
                os.close(opened.pop())
            if state == "read-only":
                disk.read_only()
            raise ZeroDivisionError

    opened = []
    with skipped_where_not_permitted(), pytest.raises(ZeroDivisionError):
        fail()
    assert not os.path.ismount(folder)
    assert list(folder.iterdir()) == []
    for descriptor in opened:
        os.close(descriptor)


def test_a_user_who_may_not_mount_is_told_from_a_failure(tmp_path, monkeypatch):
    tmp_path.chmod(0o777)
    monkeypatch.chdir(tmp_path)  # within a folder that only root can look up

    def refused():
        if os.geteuid() == 0:
            os.setuid(NOBODY)
        try:
            with small_disk(Path(), PAGE):
                return 0
        except MountingNotPermittedError as error:
            return 42 if "Operation not permitted" in str(error) else 1

    assert in_child(refused) == 42
