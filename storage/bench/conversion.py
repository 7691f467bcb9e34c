"""A data set's events one by one, for peers that need a format of their own."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from jaxtyping import Float64, Num

from storage.arrays import Array
from storage.dataset import dataset_digest
from storage.stream_config import StreamConfig

AT_ONCE = 16
ONE_THREAD = StreamConfig(threads=1, prefetch=1)  # in the order of the data set


def stored_events(
    folder: Path,
) -> Iterator[tuple[Num[Array, "detector time"], Float64[Array, "parameter"]]]:
    """Read strain, as stored but not compressed, and parameters of each event in order.

    Args:
        folder: The data set.

    Yields:
        Views of a buffer that is used again.

    Raises:
        DamagedDataError: The data set is not complete.
    """
    from storage.stream import EventStream  # brings webdataset along, and that torch

    for batch in EventStream(folder, batch_size=AT_ONCE, shuffle=False, config=ONE_THREAD):
        yield from zip(batch.strain, batch.parameters, strict=True)


def converted(place: Path, folder: Path, write: Callable[[], None]) -> int:
    """Convert a data set, unless its conversion is there already.

    Args:
        place: The folder of the converted events, which is empty when `write` is called. The digest
            of the data set that they are of stands in a file beside it.
        folder: The data set.
        write: Writes the converted events.

    Returns:
        Bytes of the converted events.
    """
    mark, digest = place.with_name(f"{place.name}.sha256"), dataset_digest(folder)
    if not mark.is_file() or mark.read_text() != digest:
        mark.unlink(missing_ok=True)
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        write()
        mark.write_text(digest)
    return sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
