"""Executes the notebooks and stores what they show, small enough to be committed.

.venv/bin/python notebooks/run_notebooks.py [NAME ...]
"""

import base64
import io
import os
import sys
import tempfile
from pathlib import Path

import matplotlib.font_manager  # noqa: F401  # builds its cache here: a notebook would print that it does
import nbformat
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpecManager
from nbclient import NotebookClient
from PIL import Image

import strainflow

TIMEOUT = 3600  # of a cell [s]: one trains
COLOURS = 32  # of a picture: a third of the bytes, and the eye sees no difference
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


class ThisPython(AsyncKernelManager):
    """Starts the kernel python3 with the interpreter of this process, whatever is registered."""

    def _kernel_spec_manager_default(self) -> KernelSpecManager:
        # Without folders to look into, Jupyter takes ipykernel's own: sys.executable.
        return KernelSpecManager(kernel_dirs=[])


def execute(notebook: nbformat.NotebookNode) -> None:
    """Run all cells in an empty folder and keep their outputs.

    The packages are those that this process imports. Neither folders nor settings of the user play
    a part.

    Raises:
        nbclient.exceptions.CellExecutionError: A cell failed.
    """
    packages = str(Path(strainflow.__file__).parents[1])
    with tempfile.TemporaryDirectory() as empty:
        environment = {
            **{name: value for name, value in os.environ.items() if name != "MPLBACKEND"},
            "PYTHONPATH": os.pathsep.join(filter(None, [packages, os.environ.get("PYTHONPATH")])),
            "IPYTHONDIR": empty,
        }
        client = NotebookClient(
            notebook,
            kernel_name="python3",
            kernel_manager_class=ThisPython,
            record_timing=False,
            timeout=TIMEOUT,
            resources={"metadata": {"path": empty}},
        )
        client.execute(env=environment)


def shrink(notebook: nbformat.NotebookNode) -> None:
    """Reduce the pictures to a few colours and the metadata to the kernel's name."""
    notebook.metadata = nbformat.from_dict(METADATA)
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            picture = output.get("data", {}).get("image/png")
            if picture is not None:
                image = Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB")
                file = io.BytesIO()
                few = image.quantize(COLOURS, kmeans=1, dither=Image.Dither.NONE)
                few.save(file, "png", optimize=True)
                output.data["image/png"] = base64.b64encode(file.getvalue()).decode()


def main() -> None:
    """Execute the notebooks beside this file that are named, or all, and write them back."""
    for path in sorted(Path(__file__).parent.glob("*.ipynb")):
        if sys.argv[1:] and path.stem not in sys.argv[1:]:
            continue
        notebook = nbformat.read(path, as_version=4)
        execute(notebook)
        shrink(notebook)
        nbformat.write(notebook, path)
        print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
