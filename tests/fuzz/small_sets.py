"""Small complete data sets, made as `tests/storage/conftest.py` makes them."""

import importlib.util
from dataclasses import replace
from pathlib import Path

from storage.encodings import ENCODINGS

_PATH = Path(__file__).parents[1] / "storage" / "conftest.py"
_SPEC = importlib.util.spec_from_file_location("storage_builders", _PATH)
assert _SPEC is not None
assert _SPEC.loader is not None
builders = importlib.util.module_from_spec(_SPEC)
import sys  # noqa: E402

sys.modules["storage_builders"] = builders  # dataclasses look their module up
_SPEC.loader.exec_module(builders)


def small_set(folder: Path, encoding: str):
    """A complete data set of seven events in three shards."""
    schema = replace(builders.SMALL, encoding=ENCODINGS[encoding])
    return builders.fill(builders.prepare(folder, schema))
