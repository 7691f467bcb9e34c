"""Feeds many inputs to a reader: each within seconds, within memory, and with our errors alone."""

import random
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from storage.errors import DamagedDataError, InputError

OURS = (InputError, DamagedDataError)
SECONDS = 5
ROOM = 2**30  # bytes of address space beyond what the process has
ALLOWED = 2**28  # bytes by which the resident memory may grow


class HungError(BaseException):
    """A reader took longer than it may; no Exception, so that no reader swallows it."""


def _address_space() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()


@contextmanager
def bounded_memory() -> Iterator[None]:
    """Refuse allocations beyond what the process has and some room."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    resource.setrlimit(resource.RLIMIT_AS, (_address_space() + ROOM, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - resident) * 1024
    assert grown < ALLOWED, f"memory grew by {grown:,} bytes"


def _ring(number: int, frame: object) -> None:
    raise HungError


@contextmanager
def alarm(seconds: float = SECONDS) -> Iterator[None]:
    """Raise HungError where this takes too long."""
    before = signal.signal(signal.SIGALRM, _ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def defect_of(read: Callable[[], object]) -> BaseException | None:
    """What a reader raises that is not ours; None where it gives a result or an error of ours."""
    try:
        with alarm():
            read()
    except OURS:
        return None
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        return error
    return None


def campaign(
    name: str, count: int, attempt: Callable[[random.Random], Callable[[], object]]
) -> None:
    """Run inputs 0 to `count`, each a function of the name and its number.

    Args:
        name: Of the campaign, the seed of its random numbers.
        count: How many inputs.
        attempt: Makes an input and returns what reads it; its attribute `shown` is printed.

    Raises:
        AssertionError: A defect; the message holds what replays it.
    """
    found: dict[str, str] = {}
    total = 0
    with bounded_memory():
        for number in range(count):
            reader = attempt(random.Random(f"{name} {number}"))
            error = defect_of(reader)
            if error is None:
                continue
            total += 1
            trace, where = error.__traceback__, []
            while trace is not None:
                code = trace.tb_frame.f_code
                where.append(f"{Path(code.co_filename).name}:{trace.tb_lineno} {code.co_name}")
                trace = trace.tb_next
            label = f"{type(error).__name__} at {' < '.join(where[:1:-1][:3])}"
            shown = repr(getattr(reader, "shown", ""))
            found.setdefault(
                label, f"{label}: {str(error)[:200]}\n  input {number} of {name!r}: {shown[:1500]}"
            )
    assert not found, f"{total} of {count} inputs end badly:\n" + "\n".join(found.values())
