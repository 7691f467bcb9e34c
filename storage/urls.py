"""The one door to where data lie: a folder on a disk, or whatever else fsspec reaches.

Everything that reads or writes a data set goes through a `Store`. `storage.local` and
`storage.objects` are the two kinds.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from storage.errors import FORBIDDEN, UNREADABLE, InputError, Unreadable


class OutputFile(Protocol):
    """A file that is whole or not there: it has its name only from `finish` on."""

    length: int

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes."""

    def digest(self) -> str:
        """BLAKE3 of what was written."""

    def finish(self) -> None:
        """Give the file its name, when all its bytes are safe."""

    def discard(self) -> None:
        """Remove what was written, unless it has its name already."""


class InputFile(Protocol):
    """A file open for reading at any place.

    Attributes:
        length: In bytes.
        piece: How many bytes are best read at a time.
        ahead: Whether the next piece is best read while one is worked on.
    """

    length: int
    piece: int
    ahead: bool

    def read(self, offset: int, length: int) -> bytes:
        """Read bytes; fewer where the file ends."""

    def read_into(self, offset: int, buffer: memoryview) -> int:
        """Read bytes into a buffer; return how many, fewer where the file ends."""

    def read_into_each(self, offset: int, buffers: Sequence[memoryview]) -> int:
        """Read bytes that follow each other into several buffers, as `read_into`."""

    def close(self) -> None:
        """Close it."""


@dataclass(frozen=True)
class Entry:
    """Something below a place.

    Attributes:
        path: Within it.
        kind: What it is; folders are listed by what is in them, so only these two kinds are told.
        why: What the system says of a folder that cannot be looked into.
    """

    path: str
    kind: Literal["file", "link", "empty folder", "closed folder"] = "file"
    why: str = ""


class Store(ABC):
    """Files below one URL, by their paths within it.

    Attributes:
        url: Where it is, as a string that `store_of` takes.
    """

    url: str

    @property
    def address(self) -> str:
        """The URL by which other processes find the same place."""
        return self.url

    def where(self, path: str = "") -> str:
        """The full name of a file, for people."""
        return f"{self.url}/{path}" if path else self.url

    @abstractmethod
    def read(self, path: str) -> bytes:
        """Read a whole file.

        Raises:
            FileNotFoundError: It is not there.
        """

    @abstractmethod
    def read_each(self, paths: Sequence[str]) -> Iterator[bytes | None]:
        """Read small files one after the other, in order; None where one is not there."""

    def contents(
        self, paths: Sequence[str], forbidden: bool = False
    ) -> Iterator[bytes | Unreadable | None]:
        """As `read_each`; but what the disk cannot read is told, and does not stop the others.

        Args:
            paths: Of the files.
            forbidden: Whether that goes also for files that this user has no right to read.
        """
        told, done = (*UNREADABLE, *(FORBIDDEN if forbidden else ())), 0
        try:
            for content in self.read_each(paths):
                done += 1
                yield content
        except OSError as error:
            if error.errno not in told:
                raise
        for path in paths[done:]:  # by itself, since many may have been asked for at once
            try:
                yield next(iter(self.read_each([path])))
            except OSError as error:
                if error.errno not in told:
                    raise
                yield Unreadable.of(error)

    @abstractmethod
    def read_ranges(self, ranges: Sequence[tuple[str, int, int]]) -> list[bytes]:
        """Read (path, offset, length) at once; shorter where a file ends."""

    @abstractmethod
    def length(self, path: str) -> int | None:
        """Length of a file in bytes; None where there is none."""

    @abstractmethod
    def lengths(self) -> Callable[[str], int | None]:
        """As `length`, for many files: where each would be a request, they are listed once."""

    @abstractmethod
    def files(self, folder: str = "") -> Iterator[str]:
        """The paths of all files below a folder, in no order."""

    def entries(self) -> Iterator[Entry]:
        """All that is there, in no order; links are not followed."""
        yield from map(Entry, self.files())

    def link_above(self, path: str) -> str | None:
        """The link through which a path within the place leads, if there is one."""
        return None

    @abstractmethod
    def names(self, folder: str) -> Iterator[str]:
        """The names in a folder, in no order; none where there is no such folder."""

    @abstractmethod
    def open(self, path: str) -> InputFile:
        """Open a file for reading.

        Raises:
            FileNotFoundError: It is not there.
        """

    def open_once(self, path: str) -> InputFile:
        """Open a file that is read once, from front to back.

        Raises:
            FileNotFoundError: It is not there.
        """
        return self.open(path)

    @abstractmethod
    def create(self, path: str, contested: bool = False) -> OutputFile:
        """Begin a file.

        Args:
            path: Of the file.
            contested: Whether another process may write the same file at the same time.
        """

    @abstractmethod
    def remove(self, path: str) -> None:
        """Remove a file, if it is there."""

    @abstractmethod
    def remove_partial_files(self) -> list[str]:
        """Remove what writers that died left behind. Only while nothing else writes.

        Returns:
            The files that are gone; uploads that were aborted are none.
        """

    @abstractmethod
    def only_writer(self) -> AbstractContextManager[None]:
        """Hold the place against a second run.

        Raises:
            InputError: Another run holds it; the message says which.
        """

    @abstractmethod
    def is_being_written(self) -> bool:
        """Whether a run holds the place."""

    @property
    @abstractmethod
    def beside(self) -> Path:
        """The local folder for what is said of the data set and is no part of it."""

    def exists(self, path: str) -> bool:
        """Whether a file is there."""
        return self.length(path) is not None

    def write(self, path: str, data: bytes, contested: bool = False) -> tuple[int, str]:
        """Write a small file whole; return its length and its BLAKE3 digest."""
        file = self.create(path, contested)
        try:
            file.write(data)
            file.finish()
            return file.length, file.digest()
        finally:
            file.discard()


def store_of(url: "str | Path | Store") -> Store:
    """Find the store behind a URL or path.

    Args:
        url: A path, `file://...`, or any URL that fsspec knows, such as `s3://bucket/events.zarr`.

    Raises:
        InputError: The URL's scheme is not known, its library is missing, or it holds a secret.
    """
    if isinstance(url, Store):
        return url
    text = str(url)
    if not text.removeprefix("file://").removeprefix("local://"):
        raise InputError(
            f"got {text!r} for the place of a data set, which names none; give a path or a URL "
            "(`.` is the folder where you are)"
        )
    scheme, separator, rest = text.partition("://")
    if not separator or scheme in ("file", "local"):
        from storage.local import LocalStore

        return LocalStore(Path(rest if separator else text))
    if re.search(r":.*@|[?#]", rest):  # a secret of AWS may hold slashes
        raise InputError(
            f"{scheme}://...: the URL holds a secret or a query, which would be recorded; give "
            "credentials through the environment (AWS_ACCESS_KEY_ID and the like) or ~/.aws, and "
            "the URL without `:`, `@`, `?` and `#`"
        )
    from storage.objects import ObjectStore

    return ObjectStore(f"{scheme}://{rest.rstrip('/')}")


def local_folder(url: "str | Path | Store", purpose: str) -> Path:
    """Where a data set lies on this machine's disks.

    Raises:
        InputError: It lies elsewhere.
    """
    from storage.local import LocalStore

    store = store_of(url)
    if not isinstance(store, LocalStore):
        raise InputError(f"{store.url}: {purpose} needs a folder on a local or mounted disk")
    return store.folder
