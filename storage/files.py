"""Files of a local disk that are whole or not there."""

import io
import os
import secrets
from pathlib import Path

import blake3


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
        self.length = 0

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes."""
        assert self._file is not None, "written to after its end"
        self._file.write(data)
        self._digest.update(data)
        self.length += len(data)

    def digest(self) -> str:
        """BLAKE3 of what was written."""
        return self._digest.hexdigest()

    def finish(self) -> None:
        """Give the file its name, when all its bytes are on the disk."""
        assert self._file is not None, "finished twice"
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
            try:
                self._file.close()
            except OSError:  # what is left in its buffer finds no room either
                pass
            self._file = None


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
