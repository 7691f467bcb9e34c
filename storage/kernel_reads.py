"""Many reads by two system calls (`io_submit`, `io_getevents` of Linux).

From the page cache the kernel does them one after the other before the first call returns, past it
all at once; in either case the caller lets go of Python's lock once, and not for each read. Threads
that do so every 20 us spend half of their time waiting for it: one that wants it back is woken only
after the other has taken it again, until 5 ms have passed.
"""

import ctypes
import errno
import os
import platform
import sys
from typing import Any

import numpy as np
from jaxtyping import Int64

from storage.arrays import Array

AT_ONCE = 64  # reads; the kernel has 65,536 places for the whole machine by default
_SETUP, _DESTROY, _SUBMIT, _GET_EVENTS = range(4)
_NUMBERS = {"x86_64": (206, 207, 209, 208), "aarch64": (0, 1, 2, 4)}  # of those calls
_NEVER = (-errno.ENOSYS, -errno.EPERM)  # of a kernel, or a container, that forbids the call
_PREAD = 0
_REQUEST = np.dtype(  # struct iocb of linux/aio_abi.h, little-endian
    [
        ("data", "<u8"),
        ("key", "<u4"),
        ("flags_of_read", "<u4"),
        ("operation", "<u2"),
        ("priority", "<i2"),
        ("descriptor", "<u4"),
        ("address", "<u8"),
        ("length", "<u8"),
        ("offset", "<i8"),
        ("reserved", "<u8"),
        ("flags", "<u4"),
        ("descriptor_of_event", "<u4"),
    ]
)
_EVENT = np.dtype([("data", "<u8"), ("request", "<u8"), ("result", "<i8"), ("more", "<i8")])


def read_each(
    descriptors: Int64[Array, "n"],
    addresses: Int64[Array, "n"],
    lengths: Int64[Array, "n"],
    offsets: Int64[Array, "n"],
) -> Int64[Array, "n"] | None:
    """Read parts of files into memory.

    Args:
        descriptors: Of the files.
        addresses: Where each part goes; the memory has to stay.
        lengths: Of the parts [bytes].
        offsets: In the files [bytes].

    Returns:
        The bytes that were read of each part, negative where it could not be read; nothing where
        the kernel has no such calls, or no room for them.
    """
    try:
        context = _free.pop()
    except IndexError:
        context = _Context()
    if not context.is_open:
        return None
    count = len(descriptors)
    results = np.full(count, -1, np.int64)
    requests = np.zeros(count, _REQUEST)
    requests["data"], requests["descriptor"] = np.arange(count), descriptors
    requests["operation"], requests["address"] = _PREAD, addresses
    requests["length"], requests["offset"] = lengths, offsets
    for first in range(0, count, AT_ONCE):
        if not context.read(requests[first : first + AT_ONCE], results):
            return None
    _free.append(context)
    return results


class _Context:
    """The kernel's room for requests, of one caller at a time.

    Kept for the next one as long as the process lives: to give it back takes the kernel 20 ms.
    """

    def __init__(self) -> None:
        number = ctypes.c_ulong(0)
        self.is_open = _call is not None and _call(_SETUP, AT_ONCE, ctypes.addressof(number)) == 0
        self._number = number.value

    def read(self, requests: Array, results: Int64[Array, "n"]) -> bool:
        """Make some requests, and wait for all that the kernel has taken.

        Returns:
            Whether the kernel does so at all; if not, this room is closed.
        """
        assert _call is not None
        count = len(requests)
        pointers = requests.ctypes.data + _REQUEST.itemsize * np.arange(count)
        events = np.empty(count, _EVENT)
        begun = under_way = 0
        try:
            while begun < count or under_way:
                taken = 0
                if begun < count:
                    rest = pointers.ctypes.data + 8 * begun
                    taken = _call(_SUBMIT, self._number, count - begun, rest)
                if taken > 0:
                    begun, under_way = begun + taken, under_way + taken
                elif begun < count and not (under_way and taken == -errno.EAGAIN):
                    if taken in _NEVER:
                        return False
                    begun += 1  # refused, which its result tells
                else:
                    least = 1 if begun < count else under_way
                    came = _call(_GET_EVENTS, self._number, least, under_way, events.ctypes.data, 0)
                    if came < 0 and came != -errno.EINTR:
                        return False
                    done = events[: max(0, came)]
                    results[done["data"].astype(np.int64)] = done["result"]
                    under_way -= len(done)
            return True
        finally:
            if begun < count or under_way:  # an error: no byte may come when nobody waits any more
                self.is_open = False
                _call(_DESTROY, self._number)  # waits for what is under way


def _system_call() -> Any:  # noqa: ANN401
    """What makes the calls by number, and returns a negative error as they do; or nothing."""
    numbers = _NUMBERS.get(platform.machine())
    is_known = sys.platform.startswith("linux") and sys.byteorder == "little"
    if numbers is None or not is_known or sys.maxsize < 2**32:
        return None
    call = ctypes.CDLL(None, use_errno=True).syscall
    call.restype = ctypes.c_long

    def made(which: int, *arguments: int) -> int:
        found: int = call(ctypes.c_long(numbers[which]), *map(ctypes.c_long, arguments))
        return found if found >= 0 else -ctypes.get_errno()

    return made


_call = _system_call()
_free = list[_Context]()  # taken and put back by one step of Python each
os.register_at_fork(after_in_child=_free.clear)  # which has the numbers, but not what is behind
