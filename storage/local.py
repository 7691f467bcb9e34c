"""A folder on a local or mounted disk."""

import errno
import fcntl
import os
import socket
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from storage.errors import InputError, naming
from storage.files import AtomicFile
from storage.lease import Holder, current_holder, held, refuse_second, watch_silent
from storage.pagecache import resident_share
from storage.schema import is_partial_of_ours
from storage.urls import Entry, Store

WRITER = "writer.json"
# Of network file systems without locks, or with none for folders.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EBADF, errno.EINVAL)
PAST_CACHE = 8 * 2**20  # bytes that are best read at a time past the page cache, and at least
MOSTLY = 0.5  # of a file in the page cache, from which on it is read from there
# Of a name behind which no file can be: links in a circle, a socket.
_NO_FILE = (errno.ELOOP, errno.ENXIO)


@dataclass(frozen=True)
class LocalStore(Store):
    """Files below a folder.

    Attributes:
        folder: That folder; it need not be there yet.
        past_cache: Whether events are read past the page cache (O_DIRECT), where that can be done:
            less work for the processor, but a second read is as slow as the first.
    """

    folder: Path
    past_cache: bool = False

    @property
    def url(self) -> str:  # type: ignore[override]  # read-only is enough
        """The folder's path."""
        return str(self.folder)

    @property
    def address(self) -> str:
        """The folder's path from the root."""
        return str(self.folder.absolute())

    def read(self, path: str) -> bytes:
        """Read a whole file."""
        file = self.open(path)
        try:
            content = bytearray(file.length)
            return bytes(content[: file.read_into(0, memoryview(content))])
        finally:
            file.close()

    def read_each(self, paths: Sequence[str]) -> Iterator[bytes | None]:
        """Read small files one after the other."""
        for path in paths:
            try:
                yield self.read(path)
            except (FileNotFoundError, NotADirectoryError):
                yield None

    def read_ranges(self, ranges: Sequence[tuple[str, int, int]]) -> list[bytes]:
        """Read ranges of files."""
        found = []
        for path, offset, length in ranges:
            file = self.open(path)
            found.append(file.read(offset, length))
            file.close()
        return found

    def length(self, path: str) -> int | None:
        """Length of a file in bytes."""
        try:
            found = (self.folder / path).stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            if error.errno not in _NO_FILE:
                raise
            return None
        return found.st_size if stat.S_ISREG(found.st_mode) else None

    def lengths(self) -> Callable[[str], int | None]:
        """Look each file up when it is asked for."""
        return self.length

    def files(self, folder: str = "") -> Iterator[str]:
        """All files and links below a folder; links are not followed."""
        for parent, folders, names in os.walk(self.folder / folder):
            inside = os.path.relpath(parent, self.folder)
            links = [name for name in folders if os.path.islink(os.path.join(parent, name))]
            for name in (*names, *links):
                yield os.path.normpath(os.path.join(inside, name))

    def entries(self) -> Iterator[Entry]:
        """All that is there; links are not followed."""
        folders = [""]
        while folders:
            inside, empty = folders.pop(), True
            try:
                with os.scandir(self.folder / inside) as found:
                    for entry in found:
                        empty, path = False, os.path.join(inside, entry.name)
                        if entry.is_symlink():
                            yield Entry(path, "link")
                        elif entry.is_dir():
                            folders.append(path)
                        else:
                            yield Entry(path)
            except FileNotFoundError:  # meanwhile
                continue
            except OSError as error:
                yield Entry(inside, "closed folder", str(error.strerror))
                continue
            if empty and inside:
                yield Entry(inside, "empty folder")

    def link_above(self, path: str) -> str | None:
        """The link through which a path within the folder leads, if there is one."""
        above = (str(folder) for folder in reversed(PurePosixPath(path).parents))
        inside = (folder for folder in above if folder != ".")  # the place itself may be a link
        return next((folder for folder in inside if (self.folder / folder).is_symlink()), None)

    def names(self, folder: str) -> Iterator[str]:
        """The names in a folder."""
        try:
            with os.scandir(self.folder / folder) as entries:
                yield from (entry.name for entry in entries)
        except (FileNotFoundError, NotADirectoryError):
            return

    def open(self, path: str) -> "LocalFile":
        """Open a file for reading."""
        return LocalFile(self.folder / path, self.past_cache)

    def open_once(self, path: str) -> "LocalFile":
        """Open a file for reading: past the page cache, unless it is short or mostly in there."""
        file = self.folder / path
        past_cache = False
        with suppress(OSError, ValueError):  # what is no file, or cut off now, is told by opening
            found = file.stat()
            if stat.S_ISREG(found.st_mode) and found.st_size >= PAST_CACHE:  # a pipe would wait
                # Of a file that is another's, and that one may not write, the kernel tells nothing.
                told = found.st_uid == os.geteuid() or os.access(file, os.W_OK)
                past_cache = not (told and resident_share(file) >= MOSTLY)
        return LocalFile(file, past_cache)

    def create(self, path: str, contested: bool = False) -> AtomicFile:
        """Begin a file."""
        self._refuse_links_above(path)
        return AtomicFile(self.folder / path, contested)

    def remove(self, path: str) -> None:
        """Remove a file, if it is there."""
        self._refuse_links_above(path)
        (self.folder / path).unlink(missing_ok=True)

    def remove_partial_files(self) -> list[str]:
        """Remove what writers of a data set that died left behind, and nothing else."""
        left = sorted(filter(is_partial_of_ours, self.files()))
        for path in left:
            (self.folder / path).unlink(missing_ok=True)
        return left

    def _refuse_links_above(self, path: str) -> None:
        """Let nothing be changed where a link leads to.

        Raises:
            InputError: The path leads through one.
        """
        if link := self.link_above(path):
            raise InputError(
                f"{self.where(link)}: is a link, through which nothing is written; put the folder "
                "itself in its place"
            )

    @contextmanager
    def only_writer(self, inside: bool = False) -> Iterator[None]:
        """Hold the folder, which is created where there is none, against a second run.

        On this machine the kernel's lock decides, which goes with the process however it ends; the
        document tells who it is, and other machines that there is somebody.

        Args:
            inside: Whether the document lies in the folder, not beside it; a folder with nothing
                else in it goes with it. What was written by a process of another machine, which may
                have died and gone on here, is then watched until it is renewed or forgotten.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        paper = _Paper((self.folder if inside else self.beside) / WRITER)
        descriptor = os.open(self.folder, os.O_RDONLY)
        try:
            self._lock(descriptor, paper)
            if inside:
                watch_silent(paper)
            with held(paper, self.url):
                yield
        finally:
            os.close(descriptor)

    def _lock(self, descriptor: int, paper: "_Paper") -> None:
        """Take the kernel's lock.

        Raises:
            InputError: Another process has it.
        """
        holder = Holder.parse(paper.read())
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            refuse_second(holder, self.url)
            raise InputError(
                f"{self.url}: another run is writing there; wait for its end, or give another place"
            ) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            return
        if holder is not None and holder.host == socket.gethostname():
            paper.remove()  # it has died: whoever has its number now is somebody else

    def is_being_written(self) -> bool:
        """Whether a run holds the folder."""
        return current_holder(_Paper(self.beside / WRITER)) is not None

    @property
    def beside(self) -> Path:
        """`NAME.log`."""
        folder = self.folder.absolute()
        return folder.with_name(folder.name + ".log")


class LocalFile:
    """A file open for reading."""

    piece = 2**20  # stays in the processor's cache
    ahead = False  # the kernel does

    def __init__(self, path: Path, past_cache: bool = False) -> None:
        self._descriptor = self._direct = -1
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe would wait
        except OSError as error:
            if error.errno not in _NO_FILE:
                raise
            raise FileNotFoundError(errno.ENOENT, "Is no file", str(path)) from None
        found = os.fstat(self._descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise FileNotFoundError(errno.ENOENT, "Is no file", str(path))
        self.length = found.st_size
        self.identity = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
        if past_cache:
            with suppress(OSError):  # not every file system has it
                self._direct = os.open(path, os.O_RDONLY | os.O_DIRECT)
                self.piece, self.ahead = PAST_CACHE, True

    def read(self, offset: int, length: int) -> bytes:
        """Read bytes."""
        there = min(length, self.length - offset)  # for more, room would be taken in vain
        return os.pread(self._descriptor, there, offset) if there > 0 else b""

    def read_into(self, offset: int, buffer: memoryview) -> int:
        """Read bytes straight into a buffer."""
        done = 0
        while done < len(buffer):  # a read may return less than was asked for
            count = os.preadv(self._descriptor, [buffer[done:]], offset + done)
            if count == 0:
                break
            done += count
        return done

    def read_into_each(self, offset: int, buffers: Sequence[memoryview]) -> int:
        """Read bytes that follow each other into several buffers, in one call."""
        if self._direct >= 0:
            try:
                done = os.preadv(self._direct, buffers, offset)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                done = 0  # these bytes or buffers are not aligned as the disk wants them
            if done:
                return done + self._read_rest(offset, buffers, done)
        done = os.preadv(self._descriptor, buffers, offset)
        if done == sum(map(len, buffers)):
            return done
        return done + self._read_rest(offset, buffers, done)

    @property
    def descriptor(self) -> int:
        """To be read from by system calls: past the page cache, if so it shall be."""
        return self._descriptor if self._direct < 0 else self._direct

    @property
    def cached(self) -> int:
        """The descriptor that reads through the page cache."""
        return self._descriptor

    def _read_rest(self, offset: int, buffers: Sequence[memoryview], done: int) -> int:
        """Read what a call has left over, as it may; return how much that is."""
        more = before = 0
        for buffer in buffers:
            there = max(0, min(len(buffer), done - before))
            if there < len(buffer):
                more += self.read_into(offset + before + there, buffer[there:])
            before += len(buffer)
        return more

    def close(self) -> None:
        """Close the file."""
        for descriptor in (self._descriptor, self._direct):
            if descriptor >= 0:
                os.close(descriptor)
        self._descriptor = self._direct = -1

    def __del__(self) -> None:
        """Close the file with the last reference to it."""
        self.close()


@dataclass(frozen=True)
class _Paper:
    """The document that says who writes."""

    path: Path

    def read(self, once: bool = False) -> bytes | None:
        # By way of the store, which waits for no pipe that lies there.
        (content,) = LocalStore(self.path.parent).read_each([self.path.name])
        return content

    def create(self, content: bytes) -> bool:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with naming(self.path), self.path.open("xb") as file:
                file.write(content)
        except FileExistsError:
            return False
        except OSError:  # half a document says nothing
            self.remove()
            raise
        return True

    def replace(self, content: bytes) -> None:
        new = self.path.with_name(self.path.name + ".new")
        try:
            with naming(self.path):
                new.write_bytes(content)
                new.replace(self.path)
        except OSError:
            new.unlink(missing_ok=True)
            raise

    def remove(self, once: bool = False) -> None:
        self.path.unlink(missing_ok=True)
        with suppress(OSError):  # there may be a log
            self.path.parent.rmdir()
