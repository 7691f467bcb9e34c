"""The front door: `strainflow VERB`, one verb a line, each resolved only when it is called.

A verb is a function in the `commands` module of the package that does the work. Its signature is
its command line: positional-only parameters are arguments, the others flags, and a parameter
`config` stands for all the fields of its dataclass.
"""

import difflib
import errno
import inspect
import json
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from functools import partial
from importlib import import_module
from importlib.metadata import version
from itertools import takewhile
from pathlib import Path
from types import FrameType
from typing import TypeVar, get_args, get_type_hints

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace, set_parsing_settings

from storage.errors import DamagedDataError, InputError, printable

# A recipe names values, never code: jsonargparse would import what `class_path` names.
set_parsing_settings(
    import_path_denylist=["*"], import_path_allowlist=["pipeline", "storage", "model"]
)

Config = TypeVar("Config")

VERBS = {
    "plan": ("pipeline.commands:plan", "say what a data set will cost, from a calibration"),
    "simulate": ("pipeline.commands:simulate", "simulate a data set on Dask, or what is missing"),
    "verify": ("pipeline.commands:verify", "find every damaged or missing byte of a data set"),
    "repair": ("pipeline.commands:repair", "simulate damaged shards again, bit for bit"),
    "recode": ("pipeline.commands:recode", "write a data set once more in another encoding"),
    "cut": ("pipeline.commands:cut", "cut events out of frames, as a data set to sample"),
    "info": ("model.commands:info", "say what a data set is, or a run and how far it is"),
    "bench read": ("storage.commands:bench_read", "measure reading a data set against its limit"),
    "bench write": ("storage.commands:bench_write", "measure writing against the disk's limit"),
    "bench feed": ("model.commands:bench_feed", "see whether a training step is kept busy"),
    "bench compare": ("storage.commands:bench_compare", "measure other loaders beside ours"),
    "train": ("model.commands:train", "train a network on a data set, or go on training"),
    "sample": ("model.commands:sample", "draw posterior samples for events of a data set"),
    "reweight": ("pipeline.commands:reweight", "give posterior samples their exact likelihoods"),
    "diagnose": (
        "model.commands:diagnose",
        "check posterior samples: P-P, SBC, TARP, sky, verdict",
    ),
}

# Those that go on where an interruption ended them; the others begin anew.
GO_ON = ("simulate", "repair", "recode", "cut", "train", "sample", "reweight")

# Those that SIGTERM ends as Ctrl-C does; `train` saves its state, the others write whole files.
SIGTERM_INTERRUPTS = ("plan", "simulate", "verify", "repair", "recode", "cut", "reweight")

# The extra that brings what a package needs.
EXTRAS = {"pipeline": "[pipeline]", "model": "[model]", "storage": ""}

# The parameters of verbs that say where something lies or goes.
PLACES = ("data", "out", "like", "folder", "run", "results", "scratch")

LARGEST_RECIPE, DEEPEST_RECIPE = 10_000, 32
_LONG_NUMBER = re.compile(r"[-+]?[0-9a-fA-FxXoO_:.]{100,}")

DONE, ANSWER_IS_NO, WRONG_CALL, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143

# What a full disk answers, or one on which the user may keep no more.
_FULL = (errno.ENOSPC, errno.EDQUOT)
PATIENCE = 10.0  # seconds after a first SIGTERM for which others are not heeded


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; return the exit code (0 done, 1 the answer is no, 2 the call is wrong)."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview())
        return DONE
    if words[0] == "--version":
        print(f"strainflow {version('strainflow')}")
        return DONE
    verb = next((verb for verb in VERBS if words[: len(verb.split())] == verb.split()), None)
    if verb is None:
        return _complain("strainflow", f"{words[0]!r} is no verb; known are {', '.join(VERBS)}")
    with _interrupted_by_sigterm(verb) as terminated:
        code = _call(verb, words[len(verb.split()) :])
        return TERMINATED if terminated and code != DONE else code


def _call(verb: str, words: list[str]) -> int:
    """Run a verb; say in one sentence why it ends badly, where it does, and return its code."""
    program = f"strainflow {verb}"
    try:
        function = _resolve(VERBS[verb][0])
        return _parse(verb, function, words)()
    except InputError as error:
        return _complain(program, _one_sentence(str(error)))
    except ModuleNotFoundError as error:
        if not error.name or error.name.split(".")[0] in EXTRAS:
            raise
        extra = EXTRAS[VERBS[verb][0].split(".")[0]]
        return _complain(program, f"the package {error.name} is missing; install strainflow{extra}")
    except DamagedDataError as error:
        _complain(program, _one_sentence(str(error)))
        return ANSWER_IS_NO
    except OSError as error:
        if error.errno is None:  # not the system's answer about a file or a disk
            raise
        answer = _system_answer(error, _place_in(words), _end_of(verb))
        return _complain(program, _one_sentence(answer))
    except KeyboardInterrupt:
        _complain(program, f"interrupted; {_end_of(verb)}")
        return INTERRUPTED


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


def _parse(verb: str, function: Callable[..., int], words: list[str]) -> Callable[[], int]:
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
            _refuse_unusable_file(word)
        elif word.startswith("--"):
            name, _, value = word.partition("=")
            _refuse_unusable(value, name)
        else:
            _refuse_unusable(word, flag)
    try:
        parsed = parser.parse_args(found)
        _refuse_nothing(parsed, parser.get_defaults(skip_validation=True))
        values: Namespace = parser.instantiate(parsed)
    except ArgumentError as error:
        keys = list(parser.get_defaults(skip_validation=True).keys())
        raise InputError(_explain(_one_sentence(str(error)), keys)) from None
    except UnicodeDecodeError:
        raise InputError("config: the recipe is not text; give a YAML file") from None
    except ModuleNotFoundError:
        raise
    except ImportError as error:
        raise InputError(
            f"config: {str(error).partition(',')[0]}; a recipe names values, no code"
        ) from None
    return values


def _refuse_nothing(values: Namespace, defaults: Namespace, within: str = "") -> None:
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
            _refuse_nothing(value, default, f"{key}.")
        elif value is None and default is not None:
            raise InputError(f"{key}: holds nothing; give a value, or leave the key out")


def _refuse_unusable_file(recipe: str) -> None:
    """Refuse a recipe that would grow beyond all bounds when it is read, before it is.

    Raises:
        InputError: It is none that can be read, see `_refuse_unusable`.
    """
    try:
        content = Path(recipe).read_text("utf-8")
    except (OSError, UnicodeDecodeError):  # the parser of the command line says what is wrong
        return
    except ValueError:
        raise InputError(f"config: {recipe!r} is no name of a file; give a YAML file") from None
    _refuse_unusable(content, recipe)
    try:
        document = yaml.safe_load(content)
    except (yaml.YAMLError, ValueError):  # the parser of the command line says what is wrong
        return
    if isinstance(document, dict) and "config" in document:  # which nobody would have measured
        raise InputError(
            f"config: {recipe} names another recipe; give each of them with a --config of its own"
        )


def _refuse_unusable(content: str, source: str) -> None:
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


def _explain(message: str, keys: Sequence[str]) -> str:
    """Name the key that an unknown one was meant to be, and say what a recipe must hold."""
    unknown = re.match(
        r"Option '(?P<key>[^']+)' is not accepted"
        r"|Group '(?P<group>[^']+)' does not accept option '(?P<member>[^']+)'"
        r"|unrecognized arguments: --(?P<flag>[^ =]+)",
        message,
    )
    if unknown:
        key = unknown["key"] or unknown["flag"] or f"{unknown['group']}.{unknown['member']}"
        close = difflib.get_close_matches(key, keys, n=1)
        hint = f"did you mean {close[0]}?" if close else "--help lists what is"
        return f"{key!r} is no known key; {hint}"
    number = re.match(
        r'"(?P<key>[\w.]+)": Does not validate against any of the Union subtypes Subtypes: '
        r"\[float, NoneType\].*Given value: ?(?P<value>.*)$",
        message,
    )
    if number:
        return (
            f"{number['key']}: got {number['value']!r}, a finite number was wanted, such as 0.001; "
            "give one, or leave it out"
        )
    if message.startswith('"noise": Does not validate'):
        why = re.search(r"FrameNoise': (.*?) Given value", message)
        value = message.rpartition("Given value: ")[2]
        got = why[1].replace('"', "") if why else f"got {value}"
        return (
            f"noise: {got}; wanted is gaussian, none, or frames of detectors: "
            "{frames: [FILE, ...], channels: [one for each detector]}"
        )
    section = re.match(r'"(?P<key>[\w.]+)": Importing (?P<value>\S+) is not allowed', message)
    if section:
        return (
            f"{section['key']}: got {section['value']}, it is a section of keys and values; write "
            "them below it, or leave it out"
        )
    if message.startswith("Unexpected config:"):
        return "config: the recipe holds no keys and values; give a YAML file such as `events: 10`"
    return message


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
        installed = Path(__file__).parent / found[index + 1]
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


def _resolve(location: str) -> Callable[..., int]:
    module, name = location.split(":")
    function: Callable[..., int] = getattr(import_module(module), name)
    return function


def _help(function: Callable[..., int], name: str) -> str:
    """The line of a docstring's Args section about one parameter."""
    match = re.search(rf"^ *{name}: (.*)$", inspect.getdoc(function) or "", re.MULTILINE)
    return match[1] if match else ""


def _one_sentence(message: str) -> str:
    """Put the message of a parser or of ours on one line, in the words of the user."""
    text = " ".join(message.split())
    text = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", text)
    text = text.replace("a typing.Literal", "one of ").replace("a int.", "an integer.")
    return text.replace("Parser key ", "")


@contextmanager
def _interrupted_by_sigterm(verb: str) -> Iterator[list[float]]:
    """Let SIGTERM, as of a batch system or `timeout`, interrupt a verb as Ctrl-C does.

    Processes that are started do not inherit that. Those that follow a first one soon change
    nothing: what that began is not left half done.

    Args:
        verb: Which; of `SIGTERM_INTERRUPTS`, or nothing is done.

    Yields:
        When the signal came.
    """
    came = list[float]()

    def interrupt(number: int, frame: FrameType | None) -> None:
        soon = bool(came) and time.monotonic() - came[-1] < PATIENCE
        came.append(time.monotonic())
        if not soon:
            raise KeyboardInterrupt

    here = threading.current_thread() is threading.main_thread()
    ours = here and verb in SIGTERM_INTERRUPTS
    if not ours or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:  # somebody else's
        yield came
        return
    signal.signal(signal.SIGTERM, interrupt)
    try:
        yield came
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _system_answer(error: OSError, place: str, end: str) -> str:
    """Put what the system says of a file or a disk into a sentence.

    Args:
        error: It.
        place: The place that the call names, where the system names no file.
        end: What becomes of the call.
    """
    if isinstance(error, BrokenPipeError):  # as of `| head`
        place = "the output"
    sentence = f"{error.filename or place}: {error.strerror or 'the system refuses'}"
    return f"{sentence}; make room, {end}" if error.errno in _FULL else sentence


def _place_in(words: Sequence[str]) -> str:
    """The place that a call writes to, or else reads."""
    flags = [word.partition("=") for word in words]
    for name in ("--out", "--data"):
        for (flag, equals, value), following in zip(flags, [*words[1:], ""], strict=False):
            if flag == name and (equals or following):
                return value if equals else following
    return next((word for word in words if not word.startswith("-")), "the disk")


def _end_of(verb: str) -> str:
    """What becomes of a call that was ended."""
    if verb in GO_ON:
        return "what is finished stays, run it again to go on"
    return "run it again from the start"


def _complain(program: str, sentence: str) -> int:
    print(f"{program}: {printable(sentence)}", file=sys.stderr)
    return WRONG_CALL


def _overview() -> str:
    lines = [f"  {verb:<12} {summary}" for verb, (_, summary) in VERBS.items()]
    return "\n".join(
        ["usage: strainflow VERB [--config RECIPE] [flags]", "", *lines, ""]
        + ["strainflow VERB --help lists the flags of a verb; --print_config what it would use."]
    )


if __name__ == "__main__":
    sys.exit(main())
