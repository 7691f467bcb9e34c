"""JSON documents in the one form that our files use, and the seal that proves one whole."""

import json
import math
import re
from typing import Any

import blake3

from storage.errors import DamagedDataError, Unreadable

SEAL = "digest"
_BLANK = "0" * 64
_DIGEST = re.compile("[0-9a-f]{64}")
# Far from what our documents hold, and near to what Python's floats and stack do.
_DEEPEST = 64
_LONG_NUMBER = re.compile(rb"\d{300}")


def canonical_json(document: object) -> bytes:
    """Write JSON in the one form that our files use, so that equal content has equal bytes."""
    return json.dumps(document, indent=1, sort_keys=True, allow_nan=False).encode() + b"\n"


def sealed_json(document: dict[str, Any]) -> bytes:
    """Write a document with a digest of its own bytes, for which zeros stand in its place."""
    blank = canonical_json({**document, SEAL: _BLANK})
    return canonical_json({**document, SEAL: blake3.blake3(blank).hexdigest()})


def seal_holds(content: bytes, digest: str) -> bool:
    """Whether a sealed document has the bytes that it was written with."""
    if not _DIGEST.fullmatch(digest):
        return False
    blank = content.replace(digest.encode(), _BLANK.encode())
    return blake3.blake3(blank).hexdigest() == digest


def sealed_document(content: bytes) -> dict[str, Any] | None:
    """What a sealed document says; None where its seal is broken, or it has none."""
    try:
        document = parse_json(content, "")
    except DamagedDataError:
        return None
    digest = document.get(SEAL)
    return document if isinstance(digest, str) and seal_holds(content, digest) else None


def parse_json(content: bytes | Unreadable | None, name: str) -> dict[str, Any]:
    """Read a JSON object that we wrote.

    Args:
        content: Of the file; None where there is none.
        name: Of the file, for the message.

    Raises:
        DamagedDataError: The file is missing, cannot be read, or holds something else.
    """
    if content is None:
        raise DamagedDataError(f"{name}: is missing")
    if isinstance(content, Unreadable):
        raise DamagedDataError(f"{name}: {content}")
    try:
        document = json.loads(content, parse_constant=_refuse_constant, parse_float=_finite)
        _refuse_unusable(document, content)
    except (ValueError, RecursionError):
        raise DamagedDataError(f"{name}: is not valid JSON, so it was altered") from None
    if not isinstance(document, dict):
        raise DamagedDataError(f"{name}: is not a JSON object, so it was altered")
    return document


def _refuse_constant(word: str) -> None:
    raise ValueError(f"{word} is no JSON")


def _finite(number: str) -> float:
    if math.isinf(value := float(number)):
        raise ValueError(f"{number} is too large")
    return value


def _refuse_unusable(document: object, content: bytes) -> None:
    """Refuse what we never write and cannot work with: deep nesting, huge numbers, half letters."""
    # Ours have a number a line: only in a longer one is it looked for.
    if max(map(len, content.split(b"\n"))) >= 300 and _LONG_NUMBER.search(content):
        raise ValueError("a number is too large")
    if b"\\u" in content:  # perhaps half of a surrogate pair, which cannot be printed
        json.dumps(document, ensure_ascii=False).encode()
    if content.count(b"[") + content.count(b"{") <= _DEEPEST:  # it cannot be deeper
        return
    level, depth = [document], 0
    while level := [
        inner
        for item in level
        if isinstance(item, dict | list)
        for inner in (item.values() if isinstance(item, dict) else item)
    ]:
        depth += 1
        if depth > _DEEPEST:
            raise ValueError("it is nested too deeply")
