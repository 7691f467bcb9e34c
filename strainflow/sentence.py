"""What goes wrong, in one sentence and in the words of the user."""

import difflib
import errno
import re
from collections.abc import Sequence

# What a full disk answers, or one on which the user may keep no more.
_FULL = (errno.ENOSPC, errno.EDQUOT)


def explain(message: str, keys: Sequence[str]) -> str:
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


def one_sentence(message: str) -> str:
    """Put the message of a parser or of ours on one line, in the words of the user."""
    text = " ".join(message.split())
    text = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", text)
    text = text.replace("a typing.Literal", "one of ").replace("a int.", "an integer.")
    return text.replace("Parser key ", "")


def system_answer(error: OSError, place: str, end: str) -> str:
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


def place_in(words: Sequence[str]) -> str:
    """The place that a call writes to, or else reads."""
    flags = [word.partition("=") for word in words]
    for name in ("--out", "--data"):
        for (flag, equals, value), following in zip(flags, [*words[1:], ""], strict=False):
            if flag == name and (equals or following):
                return value if equals else following
    return next((word for word in words if not word.startswith("-")), "the disk")
