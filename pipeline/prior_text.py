"""Priors as text: an entry of a bilby prior file, and such a file. Parsed, never evaluated."""

import ast
import inspect
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path

from pipeline.distributions import (
    DISTRIBUTIONS,
    DeltaFunction,
    Distribution,
    require_order,
)
from pipeline.gw_distributions import GW_DISTRIBUTIONS
from storage.errors import InputError


@dataclass(frozen=True)
class Constraint:
    """Bounds, themselves excluded, of a quantity that follows from the drawn parameters."""

    minimum: float
    maximum: float

    def __post_init__(self) -> None:
        require_order(self.minimum, self.maximum)

    def allows(self, value: float) -> bool:
        """Whether a value lies between the bounds."""
        return self.minimum < value < self.maximum


_KNOWN: dict[str, Callable[..., Distribution | Constraint]] = {
    **DISTRIBUTIONS,
    **GW_DISTRIBUTIONS,
    "Constraint": Constraint,
}

# bilby accepts these everywhere; they do not change a one-dimensional density.
LABELS = {"name", "latex_label", "unit", "boundary"}

LONGEST = 1000  # characters of an entry: Python's parser goes as deep as it is given


@lru_cache(maxsize=256)  # a constraint is read for every draw
def parse_constraint(text: str) -> Constraint:
    """Read `Constraint(minimum=5, maximum=100)`.

    Raises:
        InputError: It is not understood.
    """
    found = _parse(text)
    if not isinstance(found, Constraint):
        raise InputError(f"{text} is no constraint; write e.g. Constraint(minimum=5, maximum=100)")
    return found


def parse_prior(text: str | float) -> Distribution:
    """Read one entry of a bilby prior file, such as `PowerLaw(alpha=2, minimum=1, maximum=9)`.

    Args:
        text: A distribution by name, or a number for a fixed value.

    Raises:
        InputError: It is not understood.
    """
    found = _parse(text)
    if isinstance(found, Constraint):
        raise InputError(
            f"{text} is no distribution; write e.g. Uniform with that minimum and maximum"
        )
    return found


def is_constraint(text: str) -> bool:
    """Whether an entry of a prior file bounds a quantity that is not drawn."""
    return text.split("(")[0].rsplit(".", 1)[-1].strip() == Constraint.__name__


def _parse(text: str | float) -> Distribution | Constraint:
    if len(str(text)) > LONGEST:
        raise InputError(
            f"{str(text)[:60]!r}...: has {len(str(text)):,} characters; write at most {LONGEST:,}"
        )
    try:
        with warnings.catch_warnings(action="ignore"):  # Python's, of the backslash in $M_{\odot}$
            node = ast.parse(str(text), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # as Python says "too deep"
        raise InputError(
            f"{text!r} is not a prior; write e.g. Uniform(25, 100), or a number"
        ) from None
    try:
        return _call(node) if isinstance(node, ast.Call) else DeltaFunction(_number(node))
    except RecursionError:
        raise InputError(f"{text!r} is nested too deeply; write numbers out") from None
    except ArithmeticError as error:
        raise InputError(f"{text}: {error}; give numbers that can be worked with") from None


def _call(call: ast.Call) -> Distribution | Constraint:
    """Make the distribution that a call describes, without calling anything else."""
    name = ast.unparse(call.func)
    if all(part.isidentifier() for part in name.split(".")):
        name = name.rsplit(".", 1)[-1]  # bilby.core.prior.Uniform and the like
    if name not in _KNOWN:
        known = ", ".join((*DISTRIBUTIONS, *GW_DISTRIBUTIONS))
        raise InputError(f"{name} is not a known distribution; known are {known}")
    make = _KNOWN[name]
    takes = inspect.signature(make).parameters
    given = [item for item in call.keywords if item.arg in takes or item.arg not in LABELS]
    try:
        bound = inspect.signature(make).bind_partial(*call.args)
        for item in given:
            key = str(item.arg)
            if key not in takes or key in bound.arguments:
                raise TypeError
            bound.arguments[key] = item.value
        values = {
            key: _argument(node, takes[key].annotation) for key, node in bound.arguments.items()
        }
        arguments = {key: value for key, value in values.items() if value is not None}
        inspect.signature(make).bind(**arguments)
    except TypeError:
        raise InputError(
            f"{ast.unparse(call)}: {name} takes {', '.join(takes)}, each once"
        ) from None
    return make(**arguments)


def _argument(node: ast.expr, kind: type) -> str | bool | float | None:
    """The value of an argument; None stands for what is then left out, as bilby writes it."""
    if kind is float:
        return _number(node)
    if isinstance(node, ast.Constant) and isinstance(node.value, kind | None):
        return node.value  # type: ignore[return-value]  # the line above has looked
    wanted = "a text in quotes" if kind is str else "True or False"
    raise InputError(f"{ast.unparse(node)!r} is not {wanted}")


_OPERATORS: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.Div: lambda a, b: a / b,
}


def _number(node: ast.expr) -> float:
    """The value of a number, pi, or a sum or product of such."""
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return float(node.value)  # type: ignore[arg-type]  # the line above has looked
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_number(node.operand)
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_number(node.left), _number(node.right))
    if ast.unparse(node) in ("pi", "np.pi", "math.pi"):
        return math.pi
    if ast.unparse(node) in ("inf", "np.inf", "math.inf"):
        return math.inf
    raise InputError(f"{ast.unparse(node)!r} is not a number")


def describe(distribution: Distribution) -> str:
    """Write a distribution so that bilby reads it; the inverse of `parse_prior`."""
    if isinstance(distribution, DeltaFunction):
        return repr(distribution.peak)
    arguments = {field.name: getattr(distribution, field.name) for field in fields(distribution)}  # type: ignore[arg-type]  # all are dataclasses
    name = type(distribution).__name__
    if arguments.get("minimum") == -math.inf and arguments["maximum"] == math.inf:
        name = "Gaussian"
        del arguments["minimum"], arguments["maximum"]
    if name in GW_DISTRIBUTIONS:  # bilby looks for bare names in bilby.core.prior
        name = f"bilby.gw.prior.{name}"
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})"


def read_prior_file(file: str) -> dict[str, str]:
    """Read the text of each entry, by name; of two of a name the last counts, as in bilby.

    Raises:
        InputError: It cannot be read, or a line is no entry.
    """
    try:
        lines = Path(file).read_text("utf-8").splitlines()
    except (OSError, ValueError):  # no such file, no name of a file, no text
        raise InputError(f"prior.file: {file} cannot be read; give a bilby prior file") from None
    entries = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, equals, text = (part.strip() for part in line.partition("="))
        if not (name.isidentifier() and equals and text):
            raise InputError(
                f"prior.file: line {number} of {file} is {line.strip()!r}; write name = "
                "distribution"
            )
        entries[name] = text
    if not entries:
        raise InputError(f"prior.file: {file} holds no entries; write name = distribution in it")
    return entries
