"""Asking a server again: what passes and is worth another attempt, and what is an answer.

The bound is one of time and of attempts: a server that restarts is waited for, one that is silent
ends a run in minutes.
"""

import errno
import os
import sys
import time
from collections.abc import Callable
from typing import TypeVar

from storage.errors import InputError

Answer = TypeVar("Answer")

CONNECT_SECONDS = 10  # for a connection
SILENCE_SECONDS = 30  # without a byte
# After the first attempt it is tried again for so long, and so often at least.
PATIENCE = 30.0  # seconds
LEAST_TRIES = 3
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 5.0  # seconds; doubled each time

_FILE_ANSWERS = {
    FileNotFoundError: errno.ENOENT,
    FileExistsError: errno.EEXIST,
    IsADirectoryError: errno.EISDIR,
    NotADirectoryError: errno.ENOTDIR,
}
# Codes of S3 and statuses of HTTP that a later attempt may not meet.
_PASSING_CODES = {"RequestTimeout", "IncompleteBody", "BadDigest", "XAmzContentSHA256Mismatch"}
_PASSING_STATUS = {408, 409, 425, 429}
# botocore's errors of that kind; its others are about what it was given.
_PASSING_KINDS = {
    "ConnectionError",
    "HTTPClientError",
    "ResponseParserError",
    "IncompleteReadError",
    "CredentialRetrievalError",
    "MetadataRetrievalError",
}
_NO_CREDENTIALS = {"NoCredentialsError", "PartialCredentialsError", "TokenRetrievalError"}


def retried(call: Callable[[], Answer], url: str, name: str = "", once: bool = False) -> Answer:
    """Make a call of fsspec, and repeat it where the connection was lost.

    Args:
        call: Asks the server.
        url: Of the data set, for messages.
        name: Of the object that is asked for.
        once: Whether one attempt is enough, where nothing depends on it.

    Raises:
        FileNotFoundError: The object is not there.
        FileExistsError: It is there, and should not be.
        InputError: Access or the request is refused, or the server does not answer.
    """
    start, pause, attempt = time.monotonic(), FIRST_PAUSE, 1
    while True:
        try:
            return call()
        except InputError:
            raise
        except (NotImplementedError, ValueError) as error:  # as of places that are only read
            words = _words_of(error)
            raise InputError(f"{url}: its library cannot do that ({words})") from None
        except _errors_of_clients() as error:
            if (answer := _final(error, url, name or url)) is not None:
                raise answer from None
            spent = time.monotonic() - start
            if once or (attempt >= LEAST_TRIES and spent + pause > PATIENCE):
                raise InputError(
                    f"{url}: no answer after {attempt} attempts in {spent:.0f} s "
                    f"({_words_of(error)}); see whether the server can be reached, then run it "
                    "again: what is finished stays"
                ) from None
        time.sleep(pause)
        pause, attempt = min(2 * pause, LONGEST_PAUSE), attempt + 1


def code_of(error: object) -> str:
    """S3's word for what is wrong, which s3fs keeps in the cause."""
    found = _response(error).get("Error", {})
    return str(found.get("Code", "")) if isinstance(found, dict) else ""


def is_behind_the_end(error: object) -> bool:
    """Whether a range was asked for that begins where the object has ended."""
    return code_of(error) == "InvalidRange" or _status_of(error) == 416


def is_missing(error: object) -> bool:
    """Whether there is no such object, in a bucket that is there."""
    return isinstance(error, FileNotFoundError) and code_of(error) != "NoSuchBucket"


def _final(error: Exception, url: str, name: str) -> Exception | None:
    """What to raise, where there is no use in asking again."""
    code, status, kinds = code_of(error), _status_of(error), _kinds_of(error)
    words = code or _words_of(error)
    if isinstance(error, PermissionError) or status == 403 or kinds & _NO_CREDENTIALS:
        return InputError(
            f"{url}: access is refused ({words}); give the right credentials through the "
            "environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL) or ~/.aws"
        )
    if code == "NoSuchBucket":
        return InputError(f"{url}: there is no such bucket; create it first, or correct its name")
    if code == "PreconditionFailed":
        return FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name)
    for kind, number in _FILE_ANSWERS.items():
        if isinstance(error, kind):
            return kind(number, os.strerror(number), name)
    is_refused = 400 <= status < 500 and not (status in _PASSING_STATUS or code in _PASSING_CODES)
    if is_refused or ("BotoCoreError" in kinds and not kinds & _PASSING_KINDS):
        return InputError(f"{url}: the request is refused ({words}); correct the URL or ~/.aws")
    return None


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


def _response(error: object) -> dict[str, dict[str, object]]:
    cause = getattr(error, "__cause__", None)
    found = getattr(cause or error, "response", None)
    return found if isinstance(found, dict) else {}


def _status_of(error: object) -> int:
    """HTTP's status; 0 where there is none."""
    status = _response(error).get("ResponseMetadata", {}).get("HTTPStatusCode")
    return status if isinstance(status, int) else int(getattr(error, "status", 0) or 0)


def _kinds_of(error: Exception) -> set[str]:
    return {kind.__name__ for kind in type(error).__mro__}


def _words_of(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
