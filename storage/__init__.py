"""Bytes: the data set's format, writing and reading it, streaming it, and posterior files."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from storage.blosc import decode_strain
    from storage.dataset import open_dataset
    from storage.errors import DamagedDataError, InputError
    from storage.order import Window
    from storage.posterior import Posterior
    from storage.results import read_results
    from storage.stream import Batch, EventStream
    from storage.stream_config import StreamConfig
    from storage.tars import TarStream

__all__ = [
    "Batch",
    "DamagedDataError",
    "EventStream",
    "InputError",
    "Posterior",
    "StreamConfig",
    "TarStream",
    "Window",
    "decode_strain",
    "open_dataset",
    "read_results",
]

# Resolved when asked for: the stream brings webdataset along, and that brings torch where it is
# installed, which a worker that simulates has no use for.
_HOMES = {
    "Batch": "storage.stream",
    "DamagedDataError": "storage.errors",
    "EventStream": "storage.stream",
    "InputError": "storage.errors",
    "Posterior": "storage.posterior",
    "StreamConfig": "storage.stream_config",
    "TarStream": "storage.tars",
    "Window": "storage.order",
    "decode_strain": "storage.blosc",
    "open_dataset": "storage.dataset",
    "read_results": "storage.results",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'storage' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
