"""The notebooks: they run, their claims hold, and what is committed is small and from one run."""

import ast
import base64
import io
import re
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbclient.exceptions import CellExecutionError
from PIL import Image
from run_notebooks import execute, shrink

import strainflow

FOLDER = Path(strainflow.__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
LARGEST = 200_000  # bytes

# A path from the root, after a space or a quote; or a drive's letter.
ABSOLUTE_PATH = re.compile(r"""(?:^|[\s"'`(=\[])(?:/[\w.+-]+/[\w.+-]|[A-Za-z]:\\)""", re.MULTILINE)
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs(notebook):
    return [output for cell in code_cells(notebook) for output in cell.outputs]


def texts(notebook):
    """All that can be read: sources, printed lines, tables."""
    yield from (cell.source for cell in notebook.cells)
    for output in outputs(notebook):
        yield output.get("text", "")
        yield from (text for kind, text in output.get("data", {}).items() if "text" in kind)


def definitions(notebook):
    trees = [ast.parse(cell.source) for cell in code_cells(notebook)]
    return [node for tree in trees for node in ast.walk(tree) if isinstance(node, DEFINITIONS)]


def pixels(cell):
    picture = base64.b64decode(cell.outputs[0].data["image/png"])
    return np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"))


def notebook_of(*sources):
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text) for text in sources])


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request):
    return request.param


@pytest.fixture
def committed(path):
    return nbformat.read(path, as_version=4)


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.mark.slow
def test_every_cell_runs_and_shows_nothing_but_results(committed, monkeypatch):
    monkeypatch.setenv("STRAINFLOW_NOTEBOOK_EVENTS", "64")  # where there are many
    kinds = [(output.output_type, output.get("name")) for output in outputs(committed)]
    for cell in code_cells(committed):
        cell.outputs, cell.execution_count = [], None
    execute(committed)
    again = [(output.output_type, output.get("name")) for output in outputs(committed)]
    assert ("stream", "stderr") not in again
    assert again == kinds, "run notebooks/run_notebooks.py and commit what it stores"


def test_it_is_committed_with_the_outputs_of_one_run(committed):
    cells = code_cells(committed)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert any("image/png" in output.get("data", {}) for output in outputs(committed))
    assert not [x for x in outputs(committed) if x.output_type == "error" or "stderr" in x.values()]


def test_it_is_small(path, committed):
    assert path.stat().st_size <= LARGEST
    assert set(committed.metadata) <= {"kernelspec", "language_info"}
    assert committed.metadata.kernelspec.name == "python3"
    assert not any(cell.metadata for cell in committed.cells)


def test_it_defines_nothing(committed):
    assert not definitions(committed)


def test_it_names_no_absolute_path(committed):
    assert not [text for text in texts(committed) if ABSOLUTE_PATH.search(text)]


@pytest.mark.parametrize(
    "source",
    ["def f():\n    pass", "class A: ...", "f = lambda x: x", "if 1:\n  async def f(): ..."],
)
def test_a_definition_is_found(source):
    assert definitions(notebook_of("x = 1", source))


@pytest.mark.parametrize("source", ['open("/data/x.txt")', "read C:\\x", "see /home/someone/x"])
def test_an_absolute_path_is_found(source):
    assert [text for text in texts(notebook_of(source)) if ABSOLUTE_PATH.search(text)]


def test_a_failing_cell_is_an_error():
    with pytest.raises(CellExecutionError, match="1 == 2"):
        execute(notebook_of("assert 1 == 2"))


def test_the_kernel_is_this_python_with_these_packages(tmp_path, monkeypatch):
    """Even where the user has registered another python3."""
    kernel = tmp_path / "kernels/python3/kernel.json"
    kernel.parent.mkdir(parents=True)
    kernel.write_text('{"argv": ["false"], "display_name": "x", "language": "python"}')
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    notebook = notebook_of("import sys, strainflow\nprint(sys.executable, strainflow.__file__)")
    execute(notebook)
    assert notebook.cells[0].outputs[0].text.split() == [sys.executable, strainflow.__file__]


def test_a_picture_of_few_colours_keeps_its_pixels_and_one_of_many_becomes_smaller():
    notebook = notebook_of(
        "import numpy as np\nfrom PIL import Image",
        "few = np.random.default_rng(0).integers(0, 3, (40, 60, 3), np.uint8) * 127\n"
        "Image.fromarray(few)",
        "Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8))",
    )
    execute(notebook)
    few, many = ([pixels(notebook.cells[cell]), notebook.cells[cell]] for cell in (1, 2))
    size = len(many[1].outputs[0].data["image/png"])
    shrink(notebook)
    assert np.array_equal(pixels(few[1]), few[0])
    assert len(many[1].outputs[0].data["image/png"]) < size / 2
