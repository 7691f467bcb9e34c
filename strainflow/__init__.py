"""The front door: `strainflow VERB`, one verb a line, each resolved only when it is called.

A verb is a function in the `commands` module of the package that does the work. Its signature is
its command line: positional-only parameters are arguments, the others flags, and a parameter
`config` stands for all the fields of its dataclass.
"""

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.metadata import version

from storage.errors import DamagedDataError, InputError, printable
from strainflow.arguments import call_of, read_config
from strainflow.sentence import one_sentence, place_in, system_answer
from strainflow.sigterm import interrupted_by_sigterm

__all__ = ["main", "read_config"]

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
SIGTERM_INTERRUPTS = (
    *("plan", "simulate", "verify", "repair", "recode", "cut", "reweight"),
    *("bench read", "bench write", "bench feed", "bench compare"),
)

# The extra that brings what a package needs.
EXTRAS = {"pipeline": "[pipeline]", "model": "[model]", "storage": ""}

DONE, ANSWER_IS_NO, WRONG_CALL, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143


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
    with interrupted_by_sigterm(verb in SIGTERM_INTERRUPTS) as terminated:
        code = _call(verb, words[len(verb.split()) :])
        return TERMINATED if terminated and code != DONE else code


def _call(verb: str, words: list[str]) -> int:
    """Run a verb; say in one sentence why it ends badly, where it does, and return its code."""
    program = f"strainflow {verb}"
    try:
        function = _resolve(VERBS[verb][0])
        return call_of(verb, function, words)()
    except InputError as error:
        return _complain(program, one_sentence(str(error)))
    except ModuleNotFoundError as error:
        if not error.name or error.name.split(".")[0] in EXTRAS:
            raise
        extra = EXTRAS[VERBS[verb][0].split(".")[0]]
        return _complain(program, f"the package {error.name} is missing; install strainflow{extra}")
    except DamagedDataError as error:
        _complain(program, one_sentence(str(error)))
        return ANSWER_IS_NO
    except OSError as error:
        if error.errno is None:  # not the system's answer about a file or a disk
            raise
        answer = system_answer(error, place_in(words), _end_of(verb))
        return _complain(program, one_sentence(answer))
    except KeyboardInterrupt:
        _complain(program, f"interrupted; {_end_of(verb)}")
        return INTERRUPTED


def _resolve(location: str) -> Callable[..., int]:
    module, name = location.split(":")
    function: Callable[..., int] = getattr(import_module(module), name)
    return function


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
