"""Peers that stream: each worker reads shards front to back, and PyTorch's DataLoader gathers them.

All of them return tensors from their workers through shared memory, as their documentation has it.
storage does not import torch. What is needed of it is the DataLoader, which webdataset hands on and
the other peers bring; the peers turn arrays into tensors themselves.
"""

import importlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from storage.bench.conversion import converted, stored_events
from storage.blosc import decode_strain
from storage.schema import Schema, shard_files

CHUNK = 64_000_000  # bytes: the size that litData and MosaicML recommend


@dataclass
class Webdataset:
    """Stock webdataset on our own shards.

    It mixes no events of different shards: that takes a buffer of events, and makes it slower.
    """

    name: str = "webdataset"
    order: str = "shards in random order, events in theirs"
    workers: tuple[int, ...] = (0, 1, 2, 4)
    files: tuple[str, ...] = ()

    def prepare(self, folder: Path, schema: Schema, scratch: Path) -> int:
        """Take the shards as they are."""
        self.files = tuple(
            str(folder / shard_files(shard)["strain"]) for shard in range(schema.shards)
        )
        return 0

    def read(self, batch_size: int, workers: int, seed: int) -> Iterator[Any]:
        """Read all events once."""
        import webdataset

        batches = (
            webdataset.WebDataset(
                list(self.files),
                shardshuffle=len(self.files),
                seed=seed,
                empty_check=False,
                workersplitter=webdataset.split_by_worker,
            )
            .decode()
            .map(decode_strain)
            .to_tuple("strain.npy", "json")
            .batched(batch_size)
        )
        for strain, _ in webdataset.WebLoader(batches, batch_size=None, num_workers=workers):
            yield strain


@dataclass
class LitData:
    """litData on chunks of its own, uncompressed.

    What `litdata.optimize` calls writes them: `optimize` itself would set the way in which this
    process starts others to `spawn`, for everybody, and leave files under the system's temporary
    folder.
    """

    name: str = "litData"
    order: str = "chunks in random order, events of a chunk in random order"
    workers: tuple[int, ...] = (0, 1, 2, 4)
    folder: Path = Path()

    def prepare(self, folder: Path, schema: Schema, scratch: Path) -> int:
        """Write chunks."""
        self.folder = scratch / "litdata"
        return converted(self.folder, folder, lambda: self._convert(folder))

    def read(self, batch_size: int, workers: int, seed: int) -> Iterator[Any]:
        """Read all events once."""
        import litdata

        dataset = litdata.StreamingDataset(
            str(self.folder), shuffle=True, seed=seed, drop_last=False
        )
        loader = litdata.StreamingDataLoader(dataset, batch_size=batch_size, num_workers=workers)
        for batch in loader:
            yield batch["strain"]

    def _convert(self, folder: Path) -> None:
        import litdata
        from litdata.streaming import Cache

        cache = Cache(str(self.folder), chunk_bytes=CHUNK)
        for number, (strain, parameters) in enumerate(stored_events(folder)):
            # As a tensor, which it reads without a copy; an array it would copy.
            cache[number] = {
                "strain": litdata.Tensor(array=strain.copy()),
                "parameters": parameters.copy(),
            }
        cache.done()
        cache.merge(1)


@dataclass
class MosaicML:
    """MosaicML streaming on shards of its own, uncompressed and without hashes."""

    name: str = "MosaicML streaming"
    order: str = "random within blocks of shards (py1e)"
    workers: tuple[int, ...] = (0, 1, 2, 4)
    folder: Path = Path()

    def prepare(self, folder: Path, schema: Schema, scratch: Path) -> int:
        """Write shards."""
        self.folder = scratch / "mosaicml"
        return converted(self.folder, folder, lambda: self._convert(folder, schema))

    def read(self, batch_size: int, workers: int, seed: int) -> Iterator[Any]:
        """Read all events once."""
        streaming = _mosaicml()
        dataset = streaming.StreamingDataset(
            local=str(self.folder), batch_size=batch_size, shuffle=True, shuffle_seed=seed
        )
        loader = streaming.StreamingDataLoader(dataset, batch_size=batch_size, num_workers=workers)
        for batch in loader:
            yield batch["strain"]

    def _convert(self, folder: Path, schema: Schema) -> None:
        shape = ",".join(str(length) for length in schema.strain_shape)
        columns = {
            "strain": f"ndarray:{schema.encoding.type}:{shape}",
            "parameters": f"ndarray:float64:{len(schema.parameters)}",
        }
        write = _mosaicml().MDSWriter
        with write(columns=columns, out=str(self.folder), size_limit=CHUNK) as writer:
            for strain, parameters in stored_events(folder):
                writer.write({"strain": strain, "parameters": parameters})


def _mosaicml() -> Any:  # noqa: ANN401
    """MosaicML's readers and writers without its examples.

    Its package imports examples of vision and text, and with them torchvision, which fails where it
    is not of the very build of torch, and transformers, seconds of work. Neither has to do with
    reading: a package with the same path and an empty `__init__` gives the rest.
    """
    if "streaming" not in sys.modules:
        spec = PathFinder.find_spec("streaming")
        assert spec is not None, "contestants() has looked"
        package = ModuleType("streaming")
        package.__path__ = list(spec.submodule_search_locations or ())
        package.__spec__ = spec
        sys.modules["streaming"] = package
    return importlib.import_module("streaming.base")
