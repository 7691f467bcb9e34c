"""Files that are whole or not there."""

import fcntl
import io
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import blake3

from storage.errors import DamagedDataError, InputError


class AtomicFile:
    """A file that is whole or not there: written as `NAME.partial`, synced, then renamed.

    Args:
        path: The file.
        contested: Whether another process may write the same file at the same time, as when a
            worker that was given up works on. Each then has a partial file of its own,
            `NAME.TOKEN.partial`; the last one that is renamed stays.
    """

    def __init__(self, path: Path, contested: bool = False) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        token = f".{secrets.token_hex(6)}" if contested else ""
        self._path = path
        self._partial = path.with_name(f"{path.name}{token}.partial")
        self._file: io.BufferedWriter | None = self._partial.open("wb")
        self._digest = blake3.blake3()
        self._length = 0

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes."""
        assert self._file is not None, "written to after its end"
        self._file.write(data)
        self._digest.update(data)
        self._length += len(data)

    def finish(self) -> tuple[int, str]:
        """Give the file its name; return its length in bytes and its BLAKE3 digest."""
        assert self._file is not None, "finished twice"
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._file = None
        self._partial.replace(self._path)
        _sync_folder(self._path.parent)
        return self._length, self._digest.hexdigest()

    def discard(self) -> None:
        """Remove the partial file, if there still is one."""
        if self._file is not None:
            self._file.close()
            self._file = None
            self._partial.unlink(missing_ok=True)


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Hold a folder, which is created where there is none, against a second run.

    The lock belongs to the process: it goes with it, however it ends, and leaves no file.

    Raises:
        InputError: Another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise InputError(
            f"{folder}: another run is writing there; wait for its end, or give another --out"
        ) from None
    try:
        yield
    finally:
        os.close(descriptor)


def write_atomically(path: Path, data: bytes, contested: bool = False) -> tuple[int, str]:
    """Write a small file whole, as `AtomicFile`; return its length and its BLAKE3 digest."""
    file = AtomicFile(path, contested)
    try:
        file.write(data)
        return file.finish()
    finally:
        file.discard()


def remove_partial_files(folder: Path) -> None:
    """Remove what writers that died left behind. Only while nothing else writes to the folder."""
    for path in folder.rglob("*.partial"):
        path.unlink(missing_ok=True)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object that we wrote.

    Raises:
        DamagedDataError: The file is missing, or holds something else.
    """
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DamagedDataError(f"{path}: is missing") from None
    except ValueError:
        raise DamagedDataError(f"{path}: is not valid JSON, so it was altered") from None
    if not isinstance(content, dict):
        raise DamagedDataError(f"{path}: is not a JSON object, so it was altered")
    return content


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
