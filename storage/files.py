"""Files of a local disk that are whole or not there."""

import io
import os
import secrets
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import blake3

AHEAD = 32 * 2**20  # bytes after which the disk is asked to begin, while more are made

LARGE = 2**18  # bytes, from which on a second thread digests what this one writes

_digesting = ThreadPoolExecutor(1, "strainflow-digest")
_syncing = ThreadPoolExecutor(1, "strainflow-sync")  # each starts with its first work


class AtomicFile:
    """A file that is whole or not there: written as `NAME.partial`, synced, then renamed.

    Args:
        path: The file.
        contested: Whether another process may write the same file at the same time, as when a
            worker that was given up works on. Each then has a partial file of its own,
            `NAME.TOKEN.partial`; the last one that is renamed stays.
    """

    def __init__(self, path: Path, contested: bool = False) -> None:
        _make_folder(path.parent)
        token = f".{secrets.token_hex(6)}" if contested else ""
        self._path = path
        self._partial = path.with_name(f"{path.name}{token}.partial")
        self._file: io.BufferedWriter | None = self._partial.open("wb")
        self._digest = blake3.blake3()
        self._ahead: Future[None] | None = None
        self._asked = 0
        self.length = 0

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes."""
        assert self._file is not None, "written to after its end"
        if len(data) < LARGE:
            self._file.write(data)
            self._digest.update(data)
        else:  # both release Python's lock, and take as long as each other
            digested = _digesting.submit(self._digest.update, data)
            self._file.write(data)
            digested.result()
        self.length += len(data)
        if self.length - self._asked >= AHEAD and (self._ahead is None or self._ahead.done()):
            self._wait_for_disk()
            self._asked = self.length
            self._ahead = _syncing.submit(os.fdatasync, self._file.fileno())

    def digest(self) -> str:
        """BLAKE3 of what was written."""
        return self._digest.hexdigest()

    def finish(self) -> None:
        """Give the file its name, when all its bytes are on the disk."""
        assert self._file is not None, "finished twice"
        self._wait_for_disk()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._partial.replace(self._path)
        self._file = None
        _sync_folder(self._path.parent)

    def discard(self) -> None:
        """Remove the partial file, if there still is one."""
        if self._file is not None:
            self._partial.unlink(missing_ok=True)
            for end in (self._wait_for_disk, self._file.close):
                with suppress(OSError):  # what is left in its buffer finds no room either
                    end()
            self._file = None

    def _wait_for_disk(self) -> None:
        """Wait for what the disk was asked for; the kernel tells an error only once."""
        if self._ahead is not None:
            ahead, self._ahead = self._ahead, None
            ahead.result()


def write_atomically(path: Path, data: bytes, contested: bool = False) -> None:
    """Write a small file whole, as `AtomicFile`."""
    file = AtomicFile(path, contested)
    try:
        file.write(data)
        file.finish()
    finally:
        file.discard()


def _make_folder(folder: Path) -> None:
    """Make a folder and those above it, as durable as the files in them."""
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
