"""What a recipe must not hold: it is refused before a parser would grow beyond all bounds on it."""

import re
from pathlib import Path

import yaml
from jsonargparse import Namespace

from storage.errors import InputError

LARGEST_RECIPE, DEEPEST_RECIPE = 10_000, 32
_LONG_NUMBER = re.compile(r"[-+]?[0-9a-fA-FxXoO_:.]{100,}")


def refuse_nothing(values: Namespace, defaults: Namespace, within: str = "") -> None:
    """Refuse keys with nothing behind them, such as `seed:`, and values in place of a section.

    Raises:
        InputError: There is one.
    """
    for name, default in vars(defaults).items():
        value, key = vars(values).get(name), within + name
        if isinstance(default, Namespace):
            if not isinstance(value, Namespace):
                raise InputError(
                    f"{key}: got {value!r}, it is a section of keys and values; write them below "
                    "it, or leave it out"
                )
            refuse_nothing(value, default, f"{key}.")
        elif value is None and default is not None:
            raise InputError(f"{key}: holds nothing; give a value, or leave the key out")


def refuse_unusable_file(recipe: str) -> None:
    """Refuse a recipe that would grow beyond all bounds when it is read, before it is.

    Raises:
        InputError: It is none that can be read, see `refuse_unusable`.
    """
    try:
        content = Path(recipe).read_text("utf-8")
    except (OSError, UnicodeDecodeError):  # the parser of the command line says what is wrong
        return
    except ValueError:
        raise InputError(f"config: {recipe!r} is no name of a file; give a YAML file") from None
    refuse_unusable(content, recipe)
    try:
        document = yaml.safe_load(content)
    except (yaml.YAMLError, ValueError):  # the parser of the command line says what is wrong
        return
    if isinstance(document, dict) and "config" in document:  # which nobody would have measured
        raise InputError(
            f"config: {recipe} names another recipe; give each of them with a --config of its own"
        )


def refuse_unusable(content: str, source: str) -> None:
    """Do the same for YAML that is there already.

    Raises:
        InputError: Its anchors multiply it or hold themselves, it is nested deeply, or holds what
            is no number or no character.
    """
    try:
        _measure(content, source)
    except InputError:
        raise
    except yaml.YAMLError:  # the parser of the command line says what is wrong
        pass
    except (ValueError, OverflowError):
        raise InputError(
            f"config: {source} holds an escape that is no character; write the character itself"
        ) from None


def _measure(content: str, recipe: str) -> None:
    """Count the nodes of a YAML document, those that an alias repeats each time.

    Raises:
        InputError: They are too many, too deep, or numbers too long.
    """
    sizes: dict[str, int] = {}
    open_nodes: list[tuple[str | None, int]] = [(None, 0)]
    for event in yaml.parse(content, yaml.SafeLoader):
        size = 0
        if isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append((event.anchor, 0))
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, size = open_nodes.pop()
            size += 1
            sizes |= {} if anchor is None else {anchor: size}
        elif isinstance(event, yaml.ScalarEvent):
            size = 1
            sizes |= {} if event.anchor is None else {event.anchor: size}
            if "\0" in event.value:
                raise InputError(f"config: {recipe} holds a zero character; take it out")
            if _LONG_NUMBER.fullmatch(event.value):
                raise InputError(
                    f"config: {recipe} holds the number {event.value[:20]}... of "
                    f"{len(event.value):,} digits; write it shorter"
                )
        elif isinstance(event, yaml.AliasEvent):
            size = sizes.get(
                event.anchor or "", LARGEST_RECIPE + 1
            )  # one that is not closed: a loop
        anchor, before = open_nodes[-1]
        open_nodes[-1] = anchor, before + size
        if before + size > LARGEST_RECIPE or len(open_nodes) > DEEPEST_RECIPE:
            raise InputError(
                f"config: {recipe} holds more than {LARGEST_RECIPE:,} values, or is nested more "
                f"than {DEEPEST_RECIPE} deep (an alias counts as what it stands for); write "
                "a plain recipe"
            )
