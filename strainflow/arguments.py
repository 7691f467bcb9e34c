"""From the words after a verb to the call of its function, whose signature is the command line."""

import inspect
import json
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import fields
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import TypeVar, get_args, get_type_hints

from jsonargparse import ArgumentError, ArgumentParser, Namespace, set_parsing_settings

from storage.errors import InputError
from strainflow.recipe import refuse_nothing, refuse_unusable, refuse_unusable_file
from strainflow.sentence import explain, one_sentence

# A recipe names values, never code: jsonargparse would import what `class_path` names.
set_parsing_settings(
    import_path_denylist=["*"], import_path_allowlist=["pipeline", "storage", "model"]
)

Config = TypeVar("Config")

# The parameters of verbs that say where something lies or goes.
PLACES = ("data", "out", "like", "folder", "run", "results", "scratch")


def read_config(kind: type[Config], recipe: str, *overrides: str) -> Config:
    """Read a recipe as the command line does, for notebooks and scripts.

    Args:
        kind: The dataclass to read.
        recipe: Path of a YAML file.
        overrides: Flags, such as `--events=10`.

    Raises:
        InputError: Something in it cannot be used.
    """
    parser = _new_parser("read_config")
    parser.add_class_arguments(kind)
    return _build(kind, _read(parser, ["--config", recipe, *overrides]))


def call_of(verb: str, function: Callable[..., int], words: list[str]) -> Callable[[], int]:
    """Turn the words after a verb into the call of its function."""
    parser = _new_parser(f"strainflow {verb}", inspect.getdoc(function))
    parameters = inspect.signature(function).parameters.values()
    types = get_type_hints(function)
    positional = [item.name for item in parameters if item.kind is item.POSITIONAL_ONLY]
    switches = [item.name for item in parameters if types[item.name] is bool]
    config = types.get("config")
    for name in positional:
        parser.add_argument(name, type=types[name], help=_help(function, name))
    for name in switches:
        parser.add_argument(f"--{name}", action="store_true", help=_help(function, name))
    if config is not None:
        parser.add_class_arguments(config)
    parser.add_function_arguments(function, skip={*positional, *switches, "config"})
    lists = () if positional or config is None else _lists_of(config)
    values = _read(parser, _gathered(words, lists))
    for name in PLACES:
        if name in types and values[name] == "" != parser.get_default(name):
            raise InputError(
                f"{name}: is empty, as an unset variable of the shell is; give a path or a URL "
                "(`.` is the folder where you are)"
            )
    keywords = {
        item.name: values[item.name]
        for item in parameters
        if item.name != "config" and item.name not in positional
    }
    if config is not None:
        keywords["config"] = _build(config, values)
    return partial(function, *(values[name] for name in positional), **keywords)


def _new_parser(program: str, description: str | None = None) -> ArgumentParser:
    parser = ArgumentParser(
        prog=program, description=(description or "").split("\n")[0], exit_on_error=False
    )
    parser.add_argument("--config", action="config", help="a recipe: a YAML file with these keys")
    return parser


def _read(parser: ArgumentParser, words: Sequence[str]) -> Namespace:
    """Read flags and recipes.

    Raises:
        InputError: Something in them cannot be used.
    """
    found = _find_recipe(words)
    for flag, word in zip(["", *found], found, strict=False):
        if flag == "--config":
            refuse_unusable_file(word)
        elif word.startswith("--"):
            name, _, value = word.partition("=")
            refuse_unusable(value, name)
        else:
            refuse_unusable(word, flag)
    try:
        parsed = parser.parse_args(found)
        refuse_nothing(parsed, parser.get_defaults(skip_validation=True))
        values: Namespace = parser.instantiate(parsed)
    except ArgumentError as error:
        keys = list(parser.get_defaults(skip_validation=True).keys())
        raise InputError(explain(one_sentence(str(error)), keys)) from None
    except UnicodeDecodeError:
        raise InputError("config: the recipe is not text; give a YAML file") from None
    except ModuleNotFoundError:
        raise
    except ImportError as error:
        raise InputError(
            f"config: {str(error).partition(',')[0]}; a recipe names values, no code"
        ) from None
    return values


def _build(kind: type[Config], values: Namespace) -> Config:
    """Make a dataclass of the values that stand at the top level."""
    return kind(**{field.name: values[field.name] for field in fields(kind)})  # type: ignore[arg-type]


def _find_recipe(words: Sequence[str]) -> list[str]:
    """Let `--config pipeline/recipes/NAME.yaml` mean the installed one where no such file is.

    And `--max-snr-loss` mean `--max_snr_loss`.
    """
    found: list[str] = []
    for word in words:
        if re.match("--[a-z]", word):
            flag, equals, value = word.partition("=")
            word = "--" + flag[2:].replace("-", "_") + equals + value
        found += ["--config", word[9:]] if word.startswith("--config=") else [word]
    for index, word in enumerate(found[:-1]):
        installed = Path(__file__).parents[1] / found[index + 1]
        if word == "--config" and not Path(found[index + 1]).exists() and installed.is_file():
            found[index + 1] = str(installed)
    return found


def _lists_of(config: type) -> list[str]:
    """The fields of a dataclass that hold any number of values."""
    types = get_type_hints(config)
    return [name for name, kind in types.items() if get_args(kind)[1:] == (...,)]


def _gathered(words: Sequence[str], lists: Collection[str]) -> list[str]:
    """Let `--gps 1 2` mean `--gps "[1, 2]"`.

    Args:
        words: Of the command line.
        lists: Names of the flags that hold any number of values.
    """
    gathered: list[str] = []
    waiting = list(words)
    while waiting:
        gathered.append(word := waiting.pop(0))
        flag = word.removeprefix("--").replace("-", "_")
        if not word.startswith("--") or flag not in lists:
            continue
        values = list(takewhile(lambda value: not value.startswith("--"), waiting))
        del waiting[: len(values)]
        if len(values) == 1 and values[0].startswith("["):
            gathered += values
        elif values:
            numbers = all(map(_is_number, values))
            gathered.append(f"[{', '.join(values)}]" if numbers else json.dumps(values))
    return gathered


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _help(function: Callable[..., int], name: str) -> str:
    """The line of a docstring's Args section about one parameter."""
    match = re.search(rf"^ *{name}: (.*)$", inspect.getdoc(function) or "", re.MULTILINE)
    return match[1] if match else ""
