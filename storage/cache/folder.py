"""A folder of items below a byte limit, shared by processes that may be killed at any time.

An item is a file that ends with its key and a checksum: one that is torn or altered is not found.
An index (SQLite, in WAL mode) counts each item before its first byte is written and until after its
file is gone, so no kill leaves bytes that nobody counts. Who finds an item asks no index: the
file's modification time is the time of its last use, and is looked at when room is needed.

Not `diskcache`: it writes before it counts, evicts after the limit was exceeded, and unpickles.
"""

import os
import secrets
import sqlite3
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from storage.cache.item import BLOCK, TRAILER, Item, ReservedItem, fits, room_of
from storage.cache.mounts import network_file_system
from storage.errors import InputError

WAIT_SECONDS = 0.5  # for other processes' transactions, which take less than a millisecond
PAUSE_SECONDS = 10.0  # without new items when that was in vain, as where one was stopped
UNFINISHED_SECONDS = 60.0  # after which who is to write an item, and has not, is taken for dead
_TABLES = (
    "CREATE TABLE IF NOT EXISTS item (key BLOB PRIMARY KEY, token TEXT, bytes INT, used INT)"
    " WITHOUT ROWID",
    "CREATE INDEX IF NOT EXISTS by_use ON item (used)",
    "CREATE TABLE IF NOT EXISTS total (bytes INT, boot TEXT)",
    "INSERT INTO total SELECT 0, '' WHERE NOT EXISTS (SELECT * FROM total)",
    "CREATE TRIGGER IF NOT EXISTS came AFTER INSERT ON item"
    " BEGIN UPDATE total SET bytes = bytes + new.bytes; END",
    "CREATE TRIGGER IF NOT EXISTS went AFTER DELETE ON item"
    " BEGIN UPDATE total SET bytes = bytes - old.bytes; END",
)


class CacheFolder:
    """Items of bytes by their keys, the least recently used of which go when room is needed.

    The files of all items, those that are being written too, take no more than the limit at any
    time (the largest limit, where processes give several), their lengths rounded up to 4096 bytes.
    Beside that: the index, 100 bytes an item and 4 MB, and what a reader has just opened when it is
    evicted. Where a process was killed, more may be counted than there is, never less.

    It has to lie on a disk of this machine. A folder that cannot be written, a full disk or a
    damaged index end the writing of this process with one warning; what is there is still found.

    Args:
        folder: Made when the first item comes.
        limit_bytes: What the items may take.

    Raises:
        InputError: The folder is a file or lies on a network file system, or the limit is none.
    """

    def __init__(self, folder: str | Path, limit_bytes: int) -> None:
        self.folder, self.limit = Path(folder).absolute(), int(limit_bytes)
        if limit_bytes < BLOCK:
            raise InputError(f"cache: a limit of {limit_bytes} bytes holds nothing; give more")
        there = next(path for path in (self.folder, *self.folder.parents) if path.exists())
        if not there.is_dir():
            raise InputError(f"cache: {there} is a file; give a folder")
        if kind := network_file_system(there.resolve()):
            raise InputError(
                f"cache: {self.folder} lies on a network file system ({kind}), where its index "
                "could be damaged; give a folder on a disk of this machine"
            )
        self._items, self._name = self.folder / "items", self.folder / "index.sqlite"
        self._process, self._lock = os.getpid(), threading.Lock()
        self._index: sqlite3.Connection | None = None
        self._inode = 0
        self._foreign: list[sqlite3.Connection] = []  # of the parent process: not to be closed
        self._writes, self._resumes = True, 0.0

    def total(self) -> int:
        """Bytes that are counted of all processes' items; 0 where there is no index yet."""
        if not self._name.exists():
            return 0
        try:
            with self._transaction() as index:
                return _total(index)
        except (sqlite3.Error, OSError):
            return 0

    def get(self, key: bytes, length: int, rest: int = 0, whole: bool = False) -> bytes | None:
        """Find an item.

        Args:
            key: 16 bytes.
            length: Of what it holds, but for its rest.
            rest: How many bytes its rest has.
            whole: Whether that is wanted too.

        Returns:
            What it holds; None where it is not there, or not as it was written.
        """
        taken = length + rest if whole else length
        try:
            descriptor = os.open(self._path(key), os.O_RDONLY | os.O_NONBLOCK)
        except OSError:
            return None
        try:
            content = os.pread(descriptor, taken, 0)
            trailer = os.pread(descriptor, TRAILER + 1, length + rest)
            if len(content) == taken and fits(trailer, key, content, length, whole):
                with suppress(OSError):  # where the folder is read-only
                    os.utime(descriptor)
                return content
        except OSError:  # a damaged disk
            pass
        finally:
            os.close(descriptor)
        self._discard(key)
        return None

    def put(self, items: Sequence[Item]) -> None:
        """Keep items, for as long as there is room for them.

        Args:
            items: The key of each, what it holds, and how many bytes of that are its rest, which
                need not be read with it.

        Raises:
            InputError: One of them is larger than the limit.
        """
        largest = max((room_of(item[1]) for item in items), default=0)
        if largest > self.limit:
            raise InputError(
                f"cache: its limit of {self.limit:,} bytes is less than one item of {largest:,} "
                "bytes; raise the limit"
            )
        if not items or not self._writes or time.monotonic() < self._resumes:
            return
        try:
            self._write(self._reserve(items))
        except (sqlite3.Error, OSError) as error:
            if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY:
                self._resumes = time.monotonic() + PAUSE_SECONDS
            else:
                self._give_up(error)

    def _reserve(self, items: Sequence[Item]) -> list[ReservedItem]:
        """Count items, make room for them, and begin their files."""
        reserved: list[ReservedItem] = []
        try:
            with self._transaction() as index:
                for key, content, *rest in items:
                    if not self._is_wanted(index, key):
                        continue
                    self._makeroom_of(index, room_of(content))
                    token = secrets.token_hex(4)
                    row = (key, token, room_of(content), time.time_ns())
                    index.execute("INSERT INTO item VALUES (?, ?, ?, ?)", row)
                    # Begun here, so that whoever evicts it removes it, however far it has come.
                    partial = self._partial(key, token)
                    file = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
                    reserved.append(ReservedItem(key, content, partial, file, *rest))
        except BaseException:
            for item in reserved:
                item.drop()
            raise
        return reserved

    def _write(self, reserved: list[ReservedItem]) -> None:
        """Write what was reserved; each file gets its name when it is whole."""
        try:
            for item in reserved:
                item.write()
                with suppress(FileNotFoundError):  # evicted meanwhile
                    item.partial.rename(self._path(item.key))
        except BaseException:
            with suppress(sqlite3.Error, OSError), self._transaction() as index:
                for item in reserved:
                    if item.partial.exists():
                        self._remove(index, item.key, item.partial.suffix[1:])
            raise
        finally:
            for item in reserved:
                item.drop()

    def _is_wanted(self, index: sqlite3.Connection, key: bytes) -> bool:
        """Whether an item has to be written; removes what is left of one that never was."""
        row = index.execute("SELECT token, used FROM item WHERE key = ?", (key,)).fetchone()
        if row is None:
            return True
        token, used = row
        if os.path.exists(self._path(key)) or 0 <= time.time_ns() - used < 1e9 * UNFINISHED_SECONDS:
            return False
        self._remove(index, key, token)
        return True

    def _makeroom_of(self, index: sqlite3.Connection, size: int) -> None:
        """Remove the items that were not used for longest, until so many bytes are free."""
        while _total(index) + size > self.limit:
            oldest = "SELECT key, token, used FROM item ORDER BY used LIMIT 1"
            if (row := index.execute(oldest).fetchone()) is None:
                raise sqlite3.DatabaseError("it counts bytes of no item")
            key, token, used = row
            try:
                last_use = os.stat(self._path(key)).st_mtime_ns
            except OSError:
                last_use = 0
            if last_use > used:
                index.execute("UPDATE item SET used = ? WHERE key = ?", (last_use, key))
            else:
                self._remove(index, key, token)

    def _remove(self, index: sqlite3.Connection, key: bytes, token: str) -> None:
        """Remove an item: its files, then its row, so that a kill in between counts too much."""
        # In this order: its writer may rename the first to the second meanwhile.
        for path in (self._partial(key, token), Path(self._path(key))):
            path.unlink(missing_ok=True)
        index.execute("DELETE FROM item WHERE key = ?", (key,))

    def _discard(self, key: bytes) -> None:
        """Remove an item that is not as it was written."""
        with suppress(sqlite3.Error, OSError), self._transaction() as index:
            row = index.execute("SELECT token FROM item WHERE key = ?", (key,)).fetchone()
            self._remove(index, key, row[0] if row else "")

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """The index, with no other process or thread writing to it."""
        if self._process != os.getpid():  # forked
            self._foreign += [self._index] if self._index is not None else []
            self._process, self._lock, self._index = os.getpid(), threading.Lock(), None
        with self._lock:
            index = self._open_index()
            with _committed(index):
                yield index

    def _open_index(self) -> sqlite3.Connection:
        with suppress(FileNotFoundError):
            if self._index is not None and self._name.stat().st_ino == self._inode:
                return self._index
        if not (self._items / "ff").is_dir():
            for first in range(256):
                (self._items / f"{first:02x}").mkdir(parents=True, exist_ok=True)
        index = sqlite3.connect(
            self._name, timeout=WAIT_SECONDS, isolation_level=None, check_same_thread=False
        )
        index.execute("PRAGMA journal_mode = WAL")
        index.execute("PRAGMA synchronous = NORMAL")
        with _committed(index):
            for statement in _TABLES:
                index.execute(statement)
            self._reconcile(index)
        self._index, self._inode = index, self._name.stat().st_ino
        return index

    def _reconcile(self, index: sqlite3.Connection) -> None:
        """Compare index and files where the machine was started since: one may lack the newest."""
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
        if index.execute("SELECT boot FROM total").fetchone()[0] == boot:
            return
        lost = {key.hex() for (key,) in index.execute("SELECT key FROM item")}
        for folder in self._items.iterdir():
            for path in folder.iterdir():
                if path.name in lost:
                    lost.remove(path.name)
                else:
                    path.unlink()
        keys = [(bytes.fromhex(name),) for name in lost]
        index.executemany("DELETE FROM item WHERE key = ?", keys)
        index.execute("UPDATE total SET boot = ?", (boot,))

    def _give_up(self, error: Exception) -> None:
        """Write nothing from now on, and say so."""
        if self._writes:
            self._writes = False
            words = error.strerror if isinstance(error, OSError) else str(error)
            warnings.warn(
                f"cache: {self.folder} cannot be written ({words}); going on without new items in "
                "it. Free its disk, or remove the folder",
                RuntimeWarning,
                stacklevel=2,
            )

    def _path(self, key: bytes) -> str:
        name = key.hex()
        return f"{self._items}/{name[:2]}/{name}"

    def _partial(self, key: bytes, token: str) -> Path:
        return Path(f"{self._path(key)}.{token}")


@contextmanager
def _committed(index: sqlite3.Connection) -> Iterator[None]:
    """A transaction that writes: all of it happens, or nothing."""
    index.execute("BEGIN IMMEDIATE")
    try:
        yield
        index.execute("COMMIT")
    except BaseException:
        with suppress(sqlite3.Error):
            index.execute("ROLLBACK")
        raise


def _total(index: sqlite3.Connection) -> int:
    (total,) = index.execute("SELECT bytes FROM total").fetchone()
    return int(total)
