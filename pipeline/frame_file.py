"""One file of frames: what it holds of which channel, and reading it.

Read are GWF files, through LAL's own reader, and HDF5 files of three layouts: gwpy's (one data set
a channel, with the attributes `x0` and `dx`), PyCBC's (`start_time` and `delta_t`) and GWOSC's
(`strain/Strain`, with `Xstart` and `Xspacing`; the file names a detector, so any channel of that
detector is it).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import blake3
import lal
import lalframe
import numpy as np
from jaxtyping import Float

from storage.arrays import Array
from storage.errors import DamagedDataError, InputError

if TYPE_CHECKING:
    import h5py

_SIGNATURES = {b"IGWD": "gwf", b"\x89HDF": "hdf5"}
_READERS = {lal.S_TYPE_CODE: "REAL4", lal.D_TYPE_CODE: "REAL8"}
# Attributes that hold the first sample's time [GPS s] and the step [s].
_LAYOUTS = (("x0", "dx"), ("start_time", "delta_t"), ("Xstart", "Xspacing"))


@dataclass(frozen=True)
class Span:
    """A stretch of time [GPS s], its end excluded."""

    start: float
    stop: float


@dataclass(frozen=True)
class Piece(Span):
    """What one file holds of one channel without a gap.

    Attributes:
        path: The file.
        number: Of the frame in it; 0 in HDF5.
        sample_rate: [Hz].
    """

    path: Path
    number: int
    sample_rate: float


@cache
def pieces_of(path: Path, channel: str) -> tuple[Piece, ...]:
    """What a file holds of a channel; nothing where it has none of that name.

    Raises:
        DamagedDataError: It cannot be read.
    """
    if _kind(path) == "hdf5":
        with _hdf5(path) as datasets:
            found = datasets.get(channel)
            if found is None:
                return ()
            start, step = _times(found)
            return (Piece(start, start + len(found) * step, path, 0, 1 / step),)
    if channel not in channels_of(path):
        return ()
    with _gwf(path) as file:
        pieces = []
        for number in range(lalframe.FrFileQueryNFrame(file)):
            start = lal.LIGOTimeGPS()
            lalframe.FrFileQueryGTime(start, file, number)
            duration = float(lalframe.FrFileQueryDt(file, number))
            samples = lalframe.FrFileQueryChanVectorLength(file, channel, number)
            begin, rate = float(start), samples / duration
            pieces.append(Piece(begin, begin + duration, path, number, rate))
    return tuple(pieces)


@cache
def channels_of(path: Path) -> tuple[str, ...]:
    """The names of the channels in a file.

    Raises:
        DamagedDataError: It cannot be read.
    """
    if _kind(path) == "hdf5":
        with _hdf5(path) as datasets:
            return tuple(sorted(datasets.names()))
    from lalframe.utils.frtools import get_channels

    with _gwf(path):  # which says what is wrong with it
        return tuple(get_channels(str(path)))


@lru_cache(maxsize=3)  # a frame is read as a whole: of three detectors, for the next event
def samples_of(piece: Piece, channel: str) -> Float[Array, "time"]:
    """All samples of a piece, in the type of the file.

    Raises:
        InputError: They are no real numbers.
        DamagedDataError: The file cannot be read.
    """
    if _kind(piece.path) == "hdf5":
        with _hdf5(piece.path) as datasets:
            values: Array = datasets.get(channel)[:]
            return values
    with _gwf(piece.path) as file:
        kind = lalframe.FrFileQueryChanType(file, channel, piece.number)
        if kind not in _READERS:
            raise InputError(
                f"frames: {channel} of {piece.path.name} is not of real numbers; name a channel "
                "of strain"
            )
        read = getattr(lalframe, f"FrFileRead{_READERS[kind]}TimeSeries")
        return np.array(read(file, channel, piece.number).data.data)  # LAL's own memory goes


def digest_of(path: Path) -> str:
    """BLAKE3 of a file."""
    return blake3.blake3().update_mmap(path).hexdigest()


@cache
def _kind(path: Path) -> str:
    """Which format a file has, by its first bytes.

    Raises:
        InputError: Neither, or it cannot be opened.
    """
    try:
        with path.open("rb") as file:
            kind = _SIGNATURES.get(file.read(4))
    except OSError as error:
        raise InputError(f"frames: {path} cannot be read ({error.strerror})") from None
    if kind is None:
        raise InputError(f"frames: {path} is neither GWF nor HDF5; name files of frames alone")
    return kind


@contextmanager
def _gwf(path: Path) -> Iterator[Any]:
    """Open a GWF file; what LAL prints of errors is left out, since we say it ourselves."""
    level = lal.GetDebugLevel()
    lal.ClobberDebugLevel(0)
    try:
        yield lalframe.FrFileOpenURL(str(path.absolute()))
    except RuntimeError:
        raise DamagedDataError(
            f"{path}: is cut or damaged (LAL cannot read it); get the file again"
        ) from None
    finally:
        lal.ClobberDebugLevel(level)


class _Datasets:
    """The time series in an open HDF5 file, by channel."""

    def __init__(self, file: "h5py.File") -> None:
        self._found: dict[str, Any] = {}
        file.visititems(self._look)
        self._detector = ""
        if "meta/Detector" in file:  # GWOSC
            self._detector = bytes(file["meta/Detector"][()]).decode(errors="replace")

    def _look(self, name: str, item: Any) -> None:  # noqa: ANN401  # a group or a data set
        if getattr(item, "ndim", None) == 1 and any(a in item.attrs for a, _ in _LAYOUTS):
            self._found[name] = item

    def names(self) -> list[str]:
        return [
            f"{self._detector}:{name}" if self._detector and name == "strain/Strain" else name
            for name in self._found
        ]

    def get(self, channel: str) -> Any:  # noqa: ANN401
        for name, item in self._found.items():
            if channel in (name, item.attrs.get("channel"), item.attrs.get("name")):
                return item
        if self._detector and channel.partition(":")[0] == self._detector:
            return self._found.get("strain/Strain")
        return None


@contextmanager
def _hdf5(path: Path) -> Iterator[_Datasets]:
    import h5py

    try:
        with h5py.File(path, "r") as file:
            yield _Datasets(file)
    except (OSError, KeyError, RuntimeError) as error:
        words = " ".join(str(error).split())
        raise DamagedDataError(f"{path}: is cut or damaged ({words}); get the file again") from None


def _times(dataset: Any) -> tuple[float, float]:  # noqa: ANN401
    """Time of the first sample and the step [s]."""
    first, step = next(pair for pair in _LAYOUTS if pair[0] in dataset.attrs)
    return float(dataset.attrs[first]), float(dataset.attrs[step])
