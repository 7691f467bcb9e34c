"""Object stores and whatever else fsspec reaches: `s3://`, `gs://`, `https://`, `memory://`, ...

One PUT, or a multipart upload that was completed, is what a rename is on a disk. Requests go out
many at a time; one whose connection is lost is repeated, as `storage.retries` says.
"""

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from storage.errors import InputError
from storage.lease import current_holder, held
from storage.retries import (
    CONNECT_SECONDS,
    SILENCE_SECONDS,
    is_behind_the_end,
    is_missing,
    retried,
    upload_seconds,
)
from storage.uploads import PART, PartsUpload, WholeUpload, abort_uploads
from storage.urls import OutputFile, Store

TOGETHER = 64  # requests that are under way at once

# botocore and s3fs repeat requests, each five times over: for hours where a server is silent. That
# is left to `storage.retries` alone. And botocore's newer checksums are unknown to other servers
# than AWS.
_OPTIONS: dict[str, Any] = {
    "config_kwargs": {
        "connect_timeout": CONNECT_SECONDS,
        "read_timeout": SILENCE_SECONDS,
        "max_pool_connections": TOGETHER,
        "retries": {"total_max_attempts": 1},
        "request_checksum_calculation": "when_required",
        "response_checksum_validation": "when_required",
    }
}
# What brings the library of a scheme.
_EXTRAS = {"s3": "strainflow[s3]", "s3a": "strainflow[s3]"}


@dataclass(frozen=True)
class ObjectStore(Store):
    """Files below a URL.

    Attributes:
        url: That URL.
    """

    url: str

    def __post_init__(self) -> None:
        import fsspec

        scheme, _, rest = self.url.partition("://")
        try:
            fsspec.get_filesystem_class(scheme)
        except ValueError:
            raise InputError(
                f"{self.url}: the scheme {scheme}:// is not known; give a path, or a URL of "
                "fsspec's, such as s3://bucket/events.zarr"
            ) from None
        except ImportError as error:
            install = _EXTRAS.get(scheme, "it")
            raise InputError(
                f"{self.url}: {scheme}:// needs a library that is missing ({error}); install "
                f"{install}"
            ) from None
        bucket, _, key = rest.partition("/")
        if self._is_s3 and not (bucket and key):
            raise InputError(f"{self.url}: names no place; give one, as s3://bucket/events.zarr")

    @property
    def _is_s3(self) -> bool:
        return self.url.startswith(("s3://", "s3a://"))

    @cached_property
    def _place(self) -> tuple[Any, str]:
        """Fsspec's file system, and the root within it."""
        import fsspec

        # What others write has to be seen: listings are not kept.
        options = {"use_listings_cache": False, **(_OPTIONS if self._is_s3 else {})}
        try:
            files, root = fsspec.core.url_to_fs(self.url, **options)
        except (ImportError, TypeError, ValueError) as error:
            words = " ".join(str(error).split())
            raise InputError(f"{self.url}: cannot be used ({words}); correct the URL") from None
        if self._is_s3:
            files.retries = 1
        return files, root.rstrip("/")

    def read(self, path: str) -> bytes:
        """Read a whole object."""
        (content,) = self._ranges([(path, 0, None)])
        return content or b""

    def read_each(self, paths: Sequence[str]) -> Iterator[bytes | None]:
        """Read small objects, many at a time."""
        for start in range(0, len(paths), TOGETHER):
            wanted = [(path, 0, None) for path in paths[start : start + TOGETHER]]
            yield from self._ranges(wanted, missing_is_none=True)

    def read_ranges(self, ranges: Sequence[tuple[str, int, int]]) -> list[bytes]:
        """Read ranges of objects at once."""
        wanted = [(path, offset, offset + length) for path, offset, length in ranges]
        return [content or b"" for content in self._ranges(wanted)]

    def length(self, path: str) -> int | None:
        """Length of an object in bytes."""
        try:
            facts = self.ask("info", self.full(path))
        except (FileNotFoundError, IsADirectoryError):
            return None
        return None if facts["type"] == "directory" else int(facts["size"])

    def lengths(self) -> Callable[[str], int | None]:
        """List all objects once: a thousand of them are one request."""
        return self._listing("").get

    def files(self, folder: str = "") -> Iterator[str]:
        """All objects below a folder."""
        return iter(self._listing(folder))

    def names(self, folder: str) -> Iterator[str]:
        """The names in a folder."""
        try:
            found = self.ask("ls", self.full(folder), detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return iter(())
        return (name.rstrip("/").rsplit("/", 1)[-1] for name in found)

    def open(self, path: str) -> "ObjectFile":
        """Open an object for reading."""
        length = self.length(path)
        if length is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self.where(path))
        return ObjectFile(self, path, length)

    def create(self, path: str, contested: bool = False) -> OutputFile:
        """Begin an object; whoever completes its upload last, stays."""
        return PartsUpload(self, path) if self._is_s3 else WholeUpload(self, path)

    def remove(self, path: str) -> None:
        """Remove an object, if it is there."""
        try:
            self.ask("rm_file", self.full(path))
        except FileNotFoundError:
            pass

    def remove_partial_files(self) -> list[str]:
        """Abort the uploads that were not completed: no objects, but they take room."""
        if self._is_s3:
            abort_uploads(self)
        return []

    def only_writer(self) -> AbstractContextManager[None]:
        """Hold the place by an object beside it."""
        return held(_ObjectBeside(self), self.url)

    def is_being_written(self) -> bool:
        """Whether a run holds the place."""
        return current_holder(_ObjectBeside(self)) is not None

    @property
    def beside(self) -> Path:
        """`NAME.log` in the folder where the command was called."""
        return Path(self.url.rsplit("/", 1)[-1] + ".log").absolute()

    def full(self, path: str) -> str:
        """The name of an object in fsspec's file system."""
        root = self._place[1]
        return f"{root}/{path}" if path else root

    def send(self, name: str, content: bytes, mode: str = "overwrite", once: bool = False) -> None:
        """Write an object as a whole, by its name in fsspec's file system."""
        bound = self.within(len(content))
        self.ask("pipe_file", name, content, once=once, mode=mode, **bound)

    def within(self, length: int) -> dict[str, float]:
        """The option of fsspec's methods that bounds the time of sending so many bytes."""
        return {"timeout": upload_seconds(length)} if self._place[0].async_impl else {}

    def ask(self, method: str, *arguments: Any, once: bool = False, **options: Any) -> Any:  # noqa: ANN401  # fsspec's
        """Call a method of fsspec's file system, again where the connection was lost.

        Args:
            method: Its name.
            arguments: Its own, the first one the name of an object.
            once: Whether one attempt is enough.
            options: Its own.

        Raises:
            FileNotFoundError: The object is not there.
            InputError: Access is refused, or the server does not answer.
        """
        name = f"{self.url.partition('://')[0]}://{arguments[0]}"
        return retried(
            lambda: getattr(self._place[0], method)(*arguments, **options), self.url, name, once
        )

    def _listing(self, folder: str) -> dict[str, int]:
        root = self._place[1]
        found = self.ask("find", self.full(folder), detail=True)
        return {name[len(root) :].lstrip("/"): int(facts["size"]) for name, facts in found.items()}

    def _ranges(
        self, wanted: Sequence[tuple[str, int, int | None]], missing_is_none: bool = False
    ) -> list[bytes | None]:
        """Read (path, start, end) at once, and again what failed."""
        found: dict[int, bytes | None] = {
            index: b"" for index, (_, start, end) in enumerate(wanted) if start == end
        }

        def read_the_rest() -> None:
            missing = [index for index in range(len(wanted)) if index not in found]
            answers = self._place[0].cat_ranges(
                [self.full(wanted[index][0]) for index in missing],
                [wanted[index][1] for index in missing],
                [wanted[index][2] for index in missing],
                on_error="return",
            )
            failed: list[Exception] = []
            for index, answer in zip(missing, answers, strict=True):
                if is_missing(answer) and missing_is_none:
                    found[index] = None
                elif is_behind_the_end(answer):
                    found[index] = b""
                elif isinstance(answer, Exception):
                    failed.append(answer)
                else:
                    found[index] = bytes(answer)
            if failed:
                raise failed[0]

        if len(found) < len(wanted):
            name = self.where(wanted[0][0]) if len(wanted) == 1 else self.url
            retried(read_the_rest, self.url, name)
        return [found[index] for index in range(len(wanted))]


class ObjectFile:
    """An object that is read at any place."""

    piece = 4 * PART  # read at a time, so that some parts are under way at once
    ahead = False

    def __init__(self, store: Store, path: str, length: int) -> None:
        self._store, self._path, self.length = store, path, length

    def read(self, offset: int, length: int) -> bytes:
        """Read bytes, in parts at once."""
        end = min(offset + length, self.length)
        ranges = [(self._path, start, min(PART, end - start)) for start in range(offset, end, PART)]
        return b"".join(self._store.read_ranges(ranges))

    def read_into(self, offset: int, buffer: memoryview) -> int:
        """Read bytes into a buffer."""
        content = self.read(offset, len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def read_into_each(self, offset: int, buffers: Sequence[memoryview]) -> int:
        """Read bytes that follow each other into several buffers."""
        content, start = memoryview(self.read(offset, sum(map(len, buffers)))), 0
        for buffer in buffers:
            part = content[start : start + len(buffer)]
            buffer[: len(part)] = part
            start += len(part)
        return start

    def close(self) -> None:
        """Nothing is held."""


@dataclass(frozen=True)
class _ObjectBeside:
    """The object that says who writes, beside the data set."""

    store: ObjectStore

    @property
    def _name(self) -> str:
        return self.store.full("") + ".writer.json"

    def read(self, once: bool = False) -> bytes | None:
        try:
            content: bytes = self.store.ask("cat_file", self._name, once=once)
        except FileNotFoundError:
            return None
        return content

    def create(self, content: bytes) -> bool:
        try:
            self.store.send(self._name, content, mode="create")
        except FileExistsError:
            return self.read() == content  # an attempt whose answer was lost
        return True

    def replace(self, content: bytes) -> None:
        self.store.send(self._name, content, once=True)

    def remove(self, once: bool = False) -> None:
        try:
            self.store.ask("rm_file", self._name, once=once)
        except FileNotFoundError:
            pass
