"""Who writes to a data set: a small document that its writer renews for as long as it lives."""

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Protocol, Self

from storage.errors import InputError

RENEW_SECONDS = 10.0
STALE_SECONDS = 60.0  # without renewal; clocks of machines may differ by some seconds
WATCH_SECONDS = 1.0  # between two looks at a document that may be left over
SETTLE_SECONDS = 1.0  # after which two that take over at the same moment see who was the last


class Paper(Protocol):
    """Where the document lies. With `once` one attempt to ask a server is enough."""

    def read(self, once: bool = False) -> bytes | None:
        """What is there, None for nothing."""

    def create(self, content: bytes) -> bool:
        """Write it where there is none yet; say whether there was none."""

    def replace(self, content: bytes) -> None:
        """Write it over what is there."""

    def remove(self, once: bool = False) -> None:
        """Remove it, if it is there."""


@dataclass(frozen=True)
class Holder:
    """A process that writes.

    Attributes:
        host: Its machine.
        process: Its number there.
        renewed: When it last said that it lives [s since 1970].
        numbering: Among which processes it has that number: those of this start of the machine, and
            of this container. Empty where that cannot be told.
    """

    host: str
    process: int
    renewed: float
    numbering: str = ""

    @classmethod
    def here(cls) -> Self:
        """This process, now."""
        return cls(socket.gethostname(), os.getpid(), time.time(), _numbering())

    @classmethod
    def parse(cls, content: bytes | None) -> Self | None:
        """Read it back; None for something else, as for nothing."""
        try:
            found = json.loads(content or b"")
            return cls(
                str(found["host"]),
                int(found["process"]),
                float(found["renewed"]),
                str(found.get("numbering", "")),
            )
        except (ValueError, KeyError, TypeError, RecursionError, OverflowError):
            return None

    def to_bytes(self) -> bytes:
        """Write it down."""
        return json.dumps(asdict(self)).encode()

    @property
    def lives(self) -> bool:
        """Whether it is at work, as far as can be seen from here."""
        if self.host == socket.gethostname() and self.numbering == _numbering():
            return _is_running(self.process)
        return time.time() - self.renewed < STALE_SECONDS

    @property
    def is_of_the_future(self) -> bool:
        """Whether it is of another machine, and was renewed at a time that has not come yet."""
        here = self.host == socket.gethostname() and self.numbering == _numbering()
        return not here and self.renewed - time.time() > STALE_SECONDS

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}"


def current_holder(paper: Paper) -> Holder | None:
    """The process that holds the document and is at work; None where there is none."""
    holder = Holder.parse(paper.read())
    if holder is None or not holder.lives:
        return None
    if holder.is_of_the_future:  # by a wrong clock: only a renewal shows that it lives
        time.sleep(6 * RENEW_SECONDS)
        later = Holder.parse(paper.read())
        return later if later is not None and later != holder and later.lives else None
    return holder


def watch_silent(paper: Paper) -> None:
    """Return when the holder of a document has shown that it lives, or is forgotten.

    A job that died on another machine, and was queued again at once, would else be refused for as
    long as nobody can tell.

    Args:
        paper: The document.
    """
    first = holder = current_holder(paper)
    while holder is not None and holder == first:
        time.sleep(WATCH_SECONDS)
        holder = current_holder(paper)


@contextmanager
def held(paper: Paper, place: str) -> Iterator[None]:
    """Hold a document, and renew it until the end.

    Args:
        paper: The document.
        place: What it stands for, for the message.

    Raises:
        InputError: Another process holds it.
    """
    if not paper.create(content := Holder.here().to_bytes()):
        _take_over(paper, content, place)
    done = threading.Event()
    renewal = threading.Thread(target=_renew, args=(paper, done), daemon=True)
    renewal.start()
    once = True  # where the server may be what failed
    try:
        yield
        once = False
    finally:
        done.set()
        renewal.join()
        try:
            if not _is_of_another(paper, once):
                paper.remove(once)
        except InputError:  # the server is gone; this process soon is, too
            pass


def _take_over(paper: Paper, content: bytes, place: str) -> None:
    """Take the document of a process that died.

    Raises:
        InputError: It lives, or another process has taken it.
    """
    refuse_second(current_holder(paper), place)
    paper.replace(content)
    time.sleep(SETTLE_SECONDS)
    if (found := paper.read()) != content:
        refuse_second(Holder.parse(found), place)
        raise InputError(f"{place}: another run took it at this moment; run it again")


def refuse_second(holder: Holder | None, place: str) -> None:
    """Say who writes there.

    Raises:
        InputError: Somebody does.
    """
    if holder is not None:
        raise InputError(
            f"{place}: {holder} is writing there; wait for its end, or give another place (a "
            f"process that died on another machine is forgotten after {STALE_SECONDS:g} s)"
        )


def _is_of_another(paper: Paper, once: bool) -> bool:
    """Whether somebody took the document over, since this process slept for too long."""
    holder, ours = Holder.parse(paper.read(once)), Holder.here()
    return holder is not None and (holder.host, holder.process) != (ours.host, ours.process)


def _renew(paper: Paper, done: threading.Event) -> None:
    while not done.wait(RENEW_SECONDS):
        try:
            if _is_of_another(paper, once=True):
                return
            paper.replace(Holder.here().to_bytes())
        except (OSError, InputError):  # a full disk, a lost connection: the next time, perhaps
            continue


@cache
def _numbering() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # somebody else's
        return True
    return True
