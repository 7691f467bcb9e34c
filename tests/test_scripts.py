"""Scripts that no test runs, and notebooks: what they import from here is there."""

import ast
import importlib
from pathlib import Path

import nbformat
import pytest

import strainflow

HOME = Path(strainflow.__file__).parents[1]
SCRIPTS = [*HOME.glob("*.py"), *HOME.glob("docs/*.py"), *HOME.glob("tests/bench/*.py")]
NOTEBOOKS = [*HOME.glob("notebooks/*.ipynb")]
OURS = ("pipeline", "storage", "model", "strainflow")


def source(path):
    if path.suffix == ".py":
        return path.read_text()
    cells = nbformat.read(path, as_version=4).cells
    return "\n".join(cell.source for cell in cells if cell.cell_type == "code")


def imports(path):
    """Module and name of each import from our packages; no name for a whole module."""
    for node in ast.walk(ast.parse(source(path))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.module, alias.name) for alias in node.names)


def is_there(module, name):
    found = importlib.import_module(module)
    return name is None or hasattr(found, name) or importlib.util.find_spec(f"{module}.{name}")


@pytest.mark.parametrize("path", SCRIPTS + NOTEBOOKS, ids=lambda path: path.name)
def test_what_a_script_imports_from_here_is_there(path):
    for module, name in imports(path):
        if module.split(".")[0] in OURS:
            assert is_there(module, name), f"{module}: {name}"


def test_a_name_that_is_not_there_would_be_seen():
    assert not hasattr(importlib.import_module("storage.files"), "read_json")
    with pytest.raises(ModuleNotFoundError):
        is_there("storage.files", "read_json")
