"""Values of parsed JSON as they have to be, or a ValueError that says which is not."""

from collections.abc import Mapping
from typing import Any, TypeVar

Number = TypeVar("Number", int, float)


def names(section: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """The value of a key as names, at least one.

    Raises:
        ValueError: It is no such list.
    """
    found = section[key]
    if not (isinstance(found, list) and found and all(isinstance(name, str) for name in found)):
        raise ValueError(key)
    return tuple(found)


def number(value: object) -> float:
    """A value as a number.

    Raises:
        ValueError: It is none.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"the number {value!r}")
    return float(value)


def positive(value: object, kind: type[Number]) -> Number:
    """A value as a positive number of a kind, below what lengths of files can be.

    Raises:
        ValueError: It is none.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 2**62:
        raise ValueError(f"the number {value!r}")
    if kind is int and not isinstance(value, int):
        raise ValueError(f"the number {value!r}")
    return kind(value)
