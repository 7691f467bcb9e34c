"""Real crashes: a function runs in a forked child and is stopped, and killed, at a system call.

What is on a disk changes in system calls only. A process of one thread that is killed right before
each of its system calls, one after the other, has thus left every state that SIGKILL can leave. If
it starts threads, their calls count too, in the order in which they come; meanwhile the other
threads go on, so that each run leaves one of the states that are possible at this call.

The child is traced with ptrace: it stops where a system call starts and where it ends. Call the
function once before, in the parent, so that the child inherits what is imported or cached then:
the calls that are counted are those of the function alone. The counts of two runs may still differ
by a few, since memory is asked for with system calls too: go on until a run ends by itself.
"""

import ctypes
import gc
import mmap
import os
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from permitted import NotPermittedError

PATIENCE = 60  # seconds until a child is taken for hung
ROOM = 1 << 16  # bytes that child and parent share

# linux/ptrace.h, the same on all architectures
PTRACE_TRACEME, PTRACE_CONT, PTRACE_SYSCALL, PTRACE_SETOPTIONS = 0, 7, 24, 0x4200
PTRACE_O_TRACESYSGOOD, PTRACE_O_TRACECLONE, PTRACE_O_EXITKILL = 1, 1 << 3, 1 << 20
SYSTEM_CALL_STOP = signal.SIGTRAP | 0x80  # thanks to TRACESYSGOOD
WALL = 0x40000000  # linux/wait.h: threads too

STARTING, REFUSED, RUNNING, DONE, RAISED = range(5)

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.restype = ctypes.c_long
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]


class TracingNotPermittedError(NotPermittedError):
    """This machine, or its container, does not let a process trace its own child."""


class ChildError(RuntimeError):
    """The function raised in the child, or ended the child; the text holds the traceback."""


def system_calls(function: Callable[[], object]) -> int:
    """Count the system calls of a function.

    Raises:
        TracingNotPermittedError: ptrace is refused here.
        ChildError: The function raised.
    """
    with _traced(function) as child:
        count = 0
        while child.reach_next_call():
            count += 1
        child.go_on()
    return count


def run_until_system_call(function: Callable[[], object], n: int) -> bool:
    """Run a function in a child, and kill that right before its n-th system call, from 1.

    Returns:
        Whether it was killed; otherwise the function ended with fewer calls.

    Raises:
        TracingNotPermittedError: ptrace is refused here.
        ChildError: The function raised.
    """
    with _traced(function) as child:
        if child.reach_call(n):
            child.kill()
            return True
        child.go_on()
        return False


def act_before_system_call(
    function: Callable[[], object], n: int, action: Callable[[], object]
) -> bool:
    """Run a function in a child, and do something while it is held before its n-th system call.

    Args:
        function: What the child runs, to its end.
        n: Number of the system call, from 1.
        action: What the parent does meanwhile.

    Returns:
        Whether the action was done; otherwise the function ended with fewer calls.

    Raises:
        TracingNotPermittedError: ptrace is refused here.
        ChildError: The function raised.
    """
    with _traced(function) as child:
        if reached := child.reach_call(n):
            action()
        child.go_on()
        return reached


class _Child:
    """A traced child, one thread of which is stopped; all is asked by the thread that forked it."""

    def __init__(self, process: int, shared: mmap.mmap) -> None:
        self._process = self._stopped = process
        self._shared = shared
        self._threads = {process}
        self._within_call = set[int]()  # those of its threads that are
        self._ended = False

    def start(self) -> None:
        """Wait until the function is about to be called."""
        stopped = self._next_stop() is not None
        if self._shared[0] == REFUSED:
            raise TracingNotPermittedError(
                f"ptrace: {self._text()}; a container needs the capability SYS_PTRACE, or a "
                "seccomp profile that lets ptrace pass"
            )
        if not stopped:
            self._raise_unless_done()
        options = PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACECLONE | PTRACE_O_EXITKILL
        if _ptrace(PTRACE_SETOPTIONS, self._process, options):
            raise TracingNotPermittedError(f"ptrace: {os.strerror(ctypes.get_errno())}")

    def reach_call(self, n: int) -> bool:
        """Go on to where the n-th system call is about to start; False: there are fewer."""
        return all(self.reach_next_call() for _ in range(n))

    def reach_next_call(self) -> bool:
        """Go on to where a system call is about to start; False: the function has ended."""
        passed_on = 0
        while True:
            _ptrace(PTRACE_SYSCALL, self._stopped, passed_on)
            stopped_by = self._next_stop()
            if stopped_by is None:
                self._raise_unless_done()
                return False
            passed_on = self._to_be_passed_on(stopped_by)
            if stopped_by == SYSTEM_CALL_STOP:
                self._within_call ^= {self._stopped}
                if self._stopped in self._within_call:
                    return self._shared[0] == RUNNING

    def go_on(self) -> None:
        """Let it run to its end, unobserved."""
        passed_on = 0
        while not self._ended:
            _ptrace(PTRACE_CONT, self._stopped, passed_on)
            passed_on = self._to_be_passed_on(self._next_stop() or 0)
        self._raise_unless_done()

    def kill(self) -> None:
        """Kill it, if it still is there, and wait until it is gone."""
        while not self._ended:
            os.kill(self._process, signal.SIGKILL)
            self._next_stop()

    def _next_stop(self) -> int | None:
        """Wait; the signal by which a thread is stopped now, or None when all have ended."""
        while True:
            thread, status = os.waitpid(-self._process, WALL)
            if os.WIFSTOPPED(status):
                self._stopped = thread
                return os.WSTOPSIG(status)
            self._threads -= {thread}  # another may get its number
            self._within_call -= {thread}
            if thread == self._process:  # reported after all its threads
                self._ended, self._code = True, os.waitstatus_to_exitcode(status)
                return None

    def _to_be_passed_on(self, stopped_by: int) -> int:
        """The signal that the stopped thread gets; none where it is the tracing that stopped it."""
        new = self._stopped not in self._threads
        self._threads.add(self._stopped)
        return 0 if new or stopped_by in (SYSTEM_CALL_STOP, signal.SIGTRAP) else stopped_by

    def _raise_unless_done(self) -> None:
        if self._shared[0] == RAISED:
            raise ChildError(f"raised in the child:\n{self._text()}")
        if self._shared[0] != DONE:
            how = f"exit code {self._code}" if self._code >= 0 else signal.Signals(-self._code).name
            raise ChildError(f"the child ended before the function did: {how}")

    def _text(self) -> str:
        return self._shared[1:].rstrip(b"\0").decode(errors="replace")


@contextmanager
def _traced(function: Callable[[], object]) -> Iterator[_Child]:
    """A child that is about to call the function; gone at the end, however that comes."""
    # Through which the child speaks without a system call.
    with mmap.mmap(-1, ROOM) as shared, _on_one_processor():
        process = os.fork()
        if process == 0:
            _be_traced(function, shared)
        os.setpgid(process, process)  # so that its threads can be waited for, and nobody else
        child = _Child(process, shared)
        try:
            child.start()
            yield child
        finally:
            child.kill()


@contextmanager
def _on_one_processor() -> Iterator[None]:
    """Keep this thread and its child together: they take turns, five times faster than apart."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def _be_traced(function: Callable[[], object], shared: mmap.mmap) -> None:
    """What the child does; it never returns."""
    try:
        gc.disable()  # an inherited object's finalizer may make system calls at any time
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(PATIENCE)
        if _ptrace(PTRACE_TRACEME, 0, 0):
            _say(shared, REFUSED, os.strerror(ctypes.get_errno()))
            os._exit(1)
        os.kill(os.getpid(), signal.SIGSTOP)
        shared[0] = RUNNING
        function()
        shared[0] = DONE
    except BaseException:  # whatever it is, the parent raises it and this copy of pytest must end
        _say(shared, RAISED, traceback.format_exc())
    finally:
        os._exit(0)


def _say(shared: mmap.mmap, state: int, text: str) -> None:
    encoded = text.encode()[-(ROOM - 1) :]
    shared[1 : 1 + len(encoded)] = encoded
    shared[0] = state


def _ptrace(request: int, process: int, data: int) -> int:
    return int(_libc.ptrace(request, process, None, data))
