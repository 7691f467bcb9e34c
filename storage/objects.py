"""Object stores and whatever else fsspec reaches: `s3://`, `gs://`, `https://`, `memory://`, ...

One PUT, or a multipart upload that was completed, is what a rename is on a disk. Requests go out
many at a time; one whose connection is lost is repeated, a few times.
"""

import errno
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import blake3

from storage.errors import InputError
from storage.lease import current_holder, held
from storage.urls import Store

Answer = TypeVar("Answer")

TOGETHER = 128  # small files that are read at once
PART = 16 * 2**20  # of an upload
TRIES = 5
FIRST_PAUSE = 0.2  # seconds, doubled each time

# botocore and s3fs repeat requests, each five times over: for hours where a server is silent. That
# is left to `_retried` alone. And botocore's newer checksums are unknown to other servers than AWS.
_OPTIONS: dict[str, Any] = {
    "config_kwargs": {
        "connect_timeout": 10,
        "read_timeout": 30,
        "retries": {"total_max_attempts": 1},
        "request_checksum_calculation": "when_required",
        "response_checksum_validation": "when_required",
    }
}
_FILE_ANSWERS = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError)
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

        scheme = self.url.partition("://")[0]
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

    @cached_property
    def _place(self) -> tuple[Any, str]:
        """Fsspec's file system, and the root within it."""
        import fsspec

        is_s3 = self.url.startswith(("s3://", "s3a://"))
        # What others write has to be seen: listings are not kept.
        options = {"use_listings_cache": False, **(_OPTIONS if is_s3 else {})}
        files, root = fsspec.core.url_to_fs(self.url, **options)
        if is_s3:
            files.retries = 1
        return files, root.rstrip("/")

    def read(self, path: str) -> bytes:
        """Read a whole object."""
        content: bytes = self._ask("cat_file", self._full(path))
        return content

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
            return int(self._ask("info", self._full(path))["size"])
        except (FileNotFoundError, IsADirectoryError):
            return None

    def lengths(self) -> Callable[[str], int | None]:
        """List all objects once: a thousand of them are one request."""
        return self._listing("").get

    def files(self, folder: str = "") -> Iterator[str]:
        """All objects below a folder."""
        return iter(self._listing(folder))

    def names(self, folder: str) -> Iterator[str]:
        """The names in a folder."""
        try:
            found = self._ask("ls", self._full(folder), detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return iter(())
        return (name.rstrip("/").rsplit("/", 1)[-1] for name in found)

    def open(self, path: str) -> "ObjectFile":
        """Open an object for reading."""
        length = self.length(path)
        if length is None:
            raise FileNotFoundError(self.where(path))
        return ObjectFile(self, path, length)

    def create(self, path: str, contested: bool = False) -> "ObjectUpload":
        """Begin an object; whoever completes its upload last, stays."""
        return ObjectUpload(self, path)

    def remove(self, path: str) -> None:
        """Remove an object, if it is there."""
        try:
            self._ask("rm_file", self._full(path))
        except FileNotFoundError:
            pass

    def remove_partial_files(self) -> None:
        """Nothing: an upload that was not completed is no object."""

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

    def _full(self, path: str) -> str:
        root = self._place[1]
        return f"{root}/{path}" if path else root

    def _listing(self, folder: str) -> dict[str, int]:
        root = self._place[1]
        found = self._ask("find", self._full(folder), detail=True)
        return {name[len(root) :].lstrip("/"): int(facts["size"]) for name, facts in found.items()}

    def _ranges(
        self, wanted: Sequence[tuple[str, int, int | None]], missing_is_none: bool = False
    ) -> list[bytes | None]:
        """Read (path, start, end) at once, and again what failed."""
        found: dict[int, bytes | None] = {}
        missing = list(range(len(wanted)))

        def read_the_rest() -> None:
            nonlocal missing
            paths, starts, ends = zip(*(wanted[index] for index in missing), strict=True)
            # Not through `_ask`: each range has an answer of its own.
            answers = self._place[0].cat_ranges(
                [self._full(path) for path in paths], list(starts), list(ends), on_error="return"
            )
            failed: list[Exception] = []
            for index, answer in zip(missing, answers, strict=True):
                if _is_missing(answer) and missing_is_none:
                    found[index] = None
                elif isinstance(answer, Exception):
                    failed.append(answer)
                else:
                    found[index] = bytes(answer)
            missing = [index for index in missing if index not in found]
            if failed:
                raise failed[0]

        if wanted:
            self._retried(read_the_rest)
        return [found[index] for index in range(len(wanted))]

    def _ask(self, method: str, *arguments: Any, **options: Any) -> Any:  # noqa: ANN401  # fsspec's
        """Call a method of fsspec's file system, again where the connection was lost."""
        return self._retried(
            lambda: getattr(self._place[0], method)(*arguments, **options)  # made within the try
        )

    def _retried(self, call: Callable[[], Answer]) -> Answer:
        """Make a call, and repeat it when the connection was lost.

        Raises:
            InputError: Access is refused, or the server does not answer.
        """
        for attempt in range(1, TRIES + 1):
            try:
                return call()
            except _errors_of_clients() as error:
                if (refusal := _refusal(error)) is not None:
                    raise InputError(f"{self.url}: {refusal}") from None
                if isinstance(error, _FILE_ANSWERS):
                    raise
                if _code_of(error) == "PreconditionFailed":
                    raise FileExistsError(str(error)) from None
                if attempt == TRIES:
                    raise InputError(
                        f"{self.url}: no answer after {TRIES} attempts ({_words_of(error)}); see "
                        "whether the server can be reached, then run it again: what is finished "
                        "stays"
                    ) from None
            time.sleep(FIRST_PAUSE * 2 ** (attempt - 1))
        raise AssertionError("the last attempt returns or raises")


class ObjectFile:
    """An object that is read at any place."""

    piece = 4 * PART  # read at a time, so that some parts are under way at once

    def __init__(self, store: ObjectStore, path: str, length: int) -> None:
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

    def close(self) -> None:
        """Nothing is held."""


class ObjectUpload:
    """An object that is there when its upload is complete."""

    def __init__(self, store: ObjectStore, path: str) -> None:
        self._store, self._path = store, path
        self._digest = blake3.blake3()
        self._parts = bytearray()
        self._upload: Any = None  # fsspec's file, once there is more than one part
        self.length = 0

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes."""
        self._parts += data
        self._digest.update(data)
        self.length += len(data)
        if len(self._parts) >= 2 * PART:  # so that a last part is never empty
            self._send()

    def digest(self) -> str:
        """BLAKE3 of what was written."""
        return self._digest.hexdigest()

    def finish(self) -> None:
        """Complete the upload."""
        if self._upload is None:
            self._store._ask("pipe_file", self._store._full(self._path), bytes(self._parts))
        else:
            self._send()
            self._store._retried(self._upload.close)
        self._upload = None
        self._parts.clear()

    def discard(self) -> None:
        """Abort the upload, if it was not completed."""
        if self._upload is not None:
            upload, self._upload = self._upload, None
            try:
                self._store._retried(upload.discard)
            except InputError:  # it was never visible; the store forgets it in its own time
                pass
            upload.closed = True  # else it would be completed when Python forgets it
        self._parts.clear()

    def _send(self) -> None:
        if self._upload is None:
            self._upload = self._store._ask(
                "open", self._store._full(self._path), "wb", block_size=PART
            )
        # fsspec keeps what it could not send: a part whose connection was lost is sent once more.
        self._upload.write(bytes(self._parts))
        self._parts.clear()


@dataclass(frozen=True)
class _ObjectBeside:
    """The object that says who writes, beside the data set."""

    store: ObjectStore

    @property
    def _name(self) -> str:
        return self.store._full("").rstrip("/") + ".writer.json"

    def read(self) -> bytes | None:
        try:
            content: bytes = self.store._ask("cat_file", self._name)
        except FileNotFoundError:
            return None
        return content

    def create(self, content: bytes) -> bool:
        try:
            self.store._ask("pipe_file", self._name, content, mode="create")
        except FileExistsError:
            return self.read() == content  # an attempt whose answer was lost
        return True

    def replace(self, content: bytes) -> None:
        self.store._ask("pipe_file", self._name, content)

    def remove(self) -> None:
        try:
            self.store._ask("rm_file", self._name)
        except FileNotFoundError:
            pass


def _errors_of_clients() -> tuple[type[Exception], ...]:
    """What fsspec's file systems raise when a server cannot be asked; theirs only once loaded."""
    found: list[type[Exception]] = [OSError]
    for module, names in (
        ("botocore.exceptions", ("BotoCoreError", "ClientError")),
        ("aiohttp", ("ClientError",)),
    ):
        if module in sys.modules:
            found += [getattr(sys.modules[module], name) for name in names]
    return tuple(found)


def _is_missing(answer: object) -> bool:
    return isinstance(answer, FileNotFoundError) and _code_of(answer) != "NoSuchBucket"


def _refusal(error: Exception) -> str | None:
    """Say why there is no use in asking again, if there is none."""
    code = _code_of(error)
    if isinstance(error, PermissionError) or type(error).__name__ == "NoCredentialsError":
        return (
            f"access is refused ({code or _words_of(error)}); give the right credentials through "
            "the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL) or ~/.aws"
        )
    if code == "NoSuchBucket":
        return "there is no such bucket; create it first, or correct its name"
    if isinstance(error, OSError) and error.errno == errno.EINVAL and code != "PreconditionFailed":
        return f"the server refuses the request ({code or _words_of(error)})"
    return None


def _code_of(error: BaseException) -> str:
    """S3's word for what is wrong, which s3fs keeps in the cause."""
    response = getattr(error.__cause__ or error, "response", None)
    return str(response.get("Error", {}).get("Code", "")) if isinstance(response, dict) else ""


def _words_of(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
