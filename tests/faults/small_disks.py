"""A disk that is really full, or really read-only: a tmpfs of a few pages."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from permitted import NotPermittedError

# linux/mount.h
MS_RDONLY, MS_REMOUNT, MS_BIND = 1, 32, 4096
MNT_DETACH = 2

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = [
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_ulong,
    ctypes.c_char_p,
]


class MountingNotPermittedError(NotPermittedError):
    """This user, or this container, may not mount."""


class SmallDisk:
    """A mounted disk.

    Attributes:
        folder: Where it is mounted.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._filler = folder / "filler"
        self._is_read_only = False

    def fill(self) -> None:
        """Take all the space that is left."""
        state = os.statvfs(self.folder)
        if state.f_bfree:
            with self._filler.open("ab") as file:
                length = state.f_bfree * state.f_frsize
                os.posix_fallocate(file.fileno(), file.tell(), length)

    def make_room(self) -> None:
        """Give the space back."""
        self._filler.unlink(missing_ok=True)

    def read_only(self) -> None:
        """Refuse changes from now on.

        The kernel makes no disk read-only on which a file is open for writing, so the disk is
        mounted over itself read-only: whoever has a file open may still write to that, but can
        neither open nor create, rename or remove any.
        """
        if not self._is_read_only:
            path = os.fsencode(self.folder)
            _mount(path, path, None, MS_BIND)
            self._is_read_only = True
            _mount(None, path, None, MS_BIND | MS_REMOUNT | MS_RDONLY)

    def read_write(self) -> None:
        """Allow changes again."""
        if self._is_read_only:
            _unmount(self.folder)
            self._is_read_only = False


@contextmanager
def small_disk(folder: Path, size_bytes: int) -> Iterator[SmallDisk]:
    """Mount a disk that holds so many bytes, in whole pages; it is gone at the end.

    Args:
        folder: Where; created if there is none.
        size_bytes: Space for the contents of files; folders and names take none of it.

    Raises:
        MountingNotPermittedError: Only root may mount, and not in every container.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, f"size={size_bytes}".encode())
    disk = SmallDisk(folder)
    try:
        yield disk
    finally:
        disk.read_write()
        _unmount(folder)


def _mount(
    source: bytes | None, target: bytes, kind: bytes | None, flags: int, options: bytes = b""
) -> None:
    if _libc.mount(source, target, kind, flags, options):
        _raise_for(target)


def _unmount(folder: Path) -> None:
    if _libc.umount2(os.fsencode(folder), MNT_DETACH):  # at once, even if a file is still open
        _raise_for(os.fsencode(folder))


def _raise_for(target: bytes) -> None:
    error = OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), os.fsdecode(target))
    if isinstance(error, PermissionError):
        raise MountingNotPermittedError(
            f"mount: {error}; root may, in a container with the capability SYS_ADMIN"
        ) from error
    raise error
