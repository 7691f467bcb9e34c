# ruff: noqa: E501
"""Seeded mutations of valid inputs: of bytes, of JSON documents, of text with a dictionary."""

import json
import random
import struct
from collections.abc import Sequence
from copy import deepcopy

NUMBERS = (0, 1, 255, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53, 2**63 - 1, 2**63, 2**64 - 1)
ODD_VALUES = (
    None,
    True,
    False,
    0,
    -1,
    1,
    2,
    1.0,
    -0.0,
    0.5,
    1e308,
    1e-320,
    10**9,
    10**15,
    2**62 - 1,
    2**63,
    2**64,
    10**400,
    -(10**400),
    10**4299,
    float("inf"),  # as 1e999, which is JSON
    "",
    "x",
    "1",
    "NaN",
    "Infinity",
    "../../x",
    "/etc/passwd",
    "strain/c/0/0/0",
    "\ud800",
    "\0",
    "ü" * 300,
    [],
    {},
    [[]],
    [{}],
    {"": {}},
    [None],
    [10**15] * 3,
    {"passed": 1},
    {"bytes": 1, "blake3": ""},
)


def mutate_bytes(draw: random.Random, data: bytes, spare: Sequence[bytes] = ()) -> bytes:
    """Change one to four places."""
    found = bytearray(data)
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        size = len(found)
        at = draw.randrange(size + 1)
        kind = draw.randrange(8)
        if kind == 0 and size:
            found[at % size] ^= 1 << draw.randrange(8)
        elif kind == 1:
            found[at:at] = draw.randbytes(draw.randint(1, 16))
        elif kind == 2:
            del found[at : at + draw.randint(1, 64)]
        elif kind == 3:
            found[at:at] = found[at : at + draw.randint(1, 600)]
        elif kind == 4:
            other = draw.choice([*spare, data])
            start = draw.randrange(len(other) + 1)
            found[at : at + draw.randint(0, 64)] = other[start : start + draw.randint(1, 512)]
        elif kind == 5:
            del found[at:]
        elif kind == 6:
            number = draw.choice(NUMBERS)
            layout = draw.choice(("<I", "<Q", ">Q"))
            packed = struct.pack(layout, number % 2 ** (8 * struct.calcsize(layout)))
            found[at : at + len(packed)] = packed
        else:
            found[at : at + 8] = bytes([draw.choice((0, 32, 48, 255))]) * 8
    return bytes(found)


def _places(document: object, path: tuple = ()) -> list[tuple]:
    """The paths of all nodes below the root."""
    items = ()
    if isinstance(document, dict):
        items = document.items()
    elif isinstance(document, list):
        items = enumerate(document[:4])
    return [place for key, item in items for place in ((*path, key), *_places(item, (*path, key)))]


def _odd_value(draw: random.Random, old: object) -> object:
    kind = draw.randrange(6)
    if kind == 0 and type(old) in (int, float):
        return draw.choice((old + 1, -old, old * 10**9, str(old)[:99], [old]))
    if kind == 1:
        return draw.choice(([old], {"x": old}, [old, old]))
    if kind == 2 and isinstance(old, dict | list) and old:
        return list(old) if isinstance(old, dict) else dict.fromkeys(map(str, old), 1)
    if kind == 3:
        value: object = old
        for _ in range(draw.choice((5, 100))):
            value = [value] if draw.random() < 0.5 else {"x": value}
        return value
    return deepcopy(draw.choice(ODD_VALUES))


def mutate_document(draw: random.Random, document: object) -> object:
    """Change one to three nodes of a JSON document."""
    found = json.loads(json.dumps(document))
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        *way, last = draw.choice(_places(found) or [("x",)])
        parent = found
        for key in way:
            parent = parent[key]
        kind = draw.randrange(8)
        if kind == 0:
            parent.pop(last, None) if isinstance(parent, dict) else parent.pop(last)
        elif kind == 1 and isinstance(parent, dict):
            parent[draw.choice(("x", "", "attributes", "add_offset", "units", str(last) + "x"))] = (
                deepcopy(draw.choice(ODD_VALUES))
            )
        elif kind == 2 and isinstance(parent, list):
            parent.insert(last, deepcopy(draw.choice([*parent, *ODD_VALUES])))
        else:
            old = parent[last] if isinstance(parent, list) else parent.get(last)
            parent[last] = _odd_value(draw, old)
    return found


def mutate_json(draw: random.Random, content: bytes) -> bytes:
    """Mutate the document, more rarely its bytes."""
    kind = draw.randrange(12)
    if kind == 0:
        return mutate_bytes(draw, content)
    if kind == 1:
        return draw.choice(
            (b"", b"[]", b"null", b"0", b"{}", b"[" * 100_000, b'{"x":' * 50_000, b"9" * 5000)
        )
    document = mutate_document(draw, json.loads(content))
    text = json.dumps(document, indent=draw.choice((None, 1)), sort_keys=draw.random() < 0.7)
    if draw.random() < 0.03:
        text = text.replace("0", "[" * 900 + "]" * 900, 1)
    return text.replace("Infinity", "1e999").encode()


COMMON = (
    "9e999", "-1", "0", "1e-320", "1e308", "nan", "inf", "\\", "\0", "ü", "\u2028", "\ud7ff", "'", '"',
    "(" * 300, ")" * 300, "[" * 3000, "-" * 5000, "9" * 5000, "1+" * 3000 + "1", "0x10", "1j", "_", " ",
    "\n", "\t", "\r", "#", "=", ",", "True", "None", "...",
)  # fmt: skip
PRIOR_TOKENS = (
    *COMMON, "**", "10**10**10", "2**2", "1/0", "pi", "np.pi", "np.inf", "__import__('os')", "lambda: 0",
    "Uniform", "Uniform(0, 1)", "PowerLaw", "LogUniform", "Sine", "Cosine", "Gaussian", "TruncatedGaussian",
    "DeltaFunction", "Constraint", "UniformInComponentsChirpMass", "UniformInComponentsMassRatio",
    "UniformComovingVolume", "UniformSourceFrame", "minimum=", "maximum=", "alpha=", "sigma=", "mu=",
    "peak=", "cosmology='Planck15'", "cosmology='no'", "cosmology='available'", "name='x'", "*a", "**k",
    "boundary=", "f'{1}'", "1 if 1 else 2", "a.b.", "x[0]", "(y:=1)", "b'x'", "latex_label='$M_{\\odot}$'",
    "unit=None", "equal_mass=1",
)  # fmt: skip
YAML_TOKENS = (
    *COMMON, "&a", "*a", "<<: *a", "!!python/object/apply:os.system [x]", "!!python/object:os.x {}", "!!x",
    "!!binary x", "!!set {a}", "!!timestamp 2001-01-01", "2001-01-01", "2001-99-99", "1:2:3", "- ", ": ", "? ",
    "| ", "> ", "---", "...", "{", "}", "[", "]", "{}", "[]", "~", "null", "[{a: " * 60, "%YAML 9.9", "@", "`",
    "a: &a [x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a]\nc: [*b,*b,*b,*b,*b,*b]\n", "class_path: os.system",
    "1e400", ".inf", "-.inf", ".nan", "0o7", "1_0", "events: ", "prior: ", "segment: ", "detectors: ",
    "cluster: ", "config: ", "walltime: ", "file: /", "file: .", "constraints: ", "psd_of: ", "phenomx: ",
)  # fmt: skip


def mutate_text(draw: random.Random, text: str, tokens: Sequence[str]) -> str:
    """Insert tokens, delete, repeat and exchange parts, one to four times."""
    for _ in range(draw.choice((1, 1, 2, 2, 4))):
        at = draw.randrange(len(text) + 1)
        end = min(len(text), at + draw.choice((0, 1, 3, 8, 40)))
        kind = draw.randrange(6)
        if kind <= 2:
            text = text[:at] + draw.choice(tokens) + text[end if kind else at :]
        elif kind == 3:
            text = text[:at] + text[end:]
        elif kind == 4:
            text = text[:end] + text[at:]
        else:
            character = chr(draw.choice((draw.randrange(128), draw.randrange(0xD800))))
            text = text[:at] + character + text[at + 1 :]
    return text
