"""Frames: which files hold a channel at which time, and reading a stretch over several of them.

A file whose name follows LIGO-T050017, `E-E1-1577491200-2048.gwf`, is opened only where its name
says that it is needed. How one is read, see `pipeline/frame_file.py`.
"""

import glob
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from pipeline.frame_file import Piece, Span, channels_of, pieces_of, samples_of
from storage.arrays import Array
from storage.errors import InputError

CACHES = (".lcf", ".cache")  # LAL's caches: observatory, description, GPS, duration, URL
_NAMED = re.compile(r"-(\d{3,12})-(\d{1,6})\.(?:gwf|hdf5|hdf|h5)$")
MOST_SPANS = 5  # in a message
_ROUNDING = 1e-3  # of a sample: what two floats of GPS seconds may differ by


@dataclass(frozen=True)
class Stretch:
    """Samples of one channel.

    Attributes:
        values: Strain, double.
        start: Of the first sample [GPS s].
        sample_rate: [Hz].
    """

    values: Float[Array, "time"]
    start: float
    sample_rate: float


@dataclass(frozen=True)
class Frames:
    """Files of frames.

    Attributes:
        files: Theirs, by name; each with the span that its name tells, or None.
    """

    files: tuple[tuple[Path, Span | None], ...]

    @classmethod
    def find(cls, patterns: Sequence[str]) -> "Frames":
        """Expand file names, globs and LAL caches.

        Raises:
            InputError: One of them names no file.
        """
        paths: set[Path] = set()
        for pattern in patterns:
            if pattern.endswith(CACHES):
                paths.update(_in_cache(Path(pattern)))
                continue
            found = [Path(name) for name in glob.glob(str(Path(pattern).expanduser()))]
            if not any(path.is_file() for path in found):
                raise InputError(
                    f"frames: no file is called {pattern}; give GWF or HDF5 files, a glob in "
                    "quotes, or a LAL cache (.lcf)"
                )
            paths.update(path for path in found if path.is_file())
        if not paths:
            raise InputError("frames: name at least one file, or a glob in quotes")
        for reader in (pieces_of, channels_of, samples_of):  # a file may have changed since
            reader.cache_clear()
        ordered = sorted(paths, key=lambda path: (path.name, str(path)))
        return cls(tuple((path, _span_in_name(path)) for path in ordered))

    def pieces(self, channel: str, within: Span | None = None) -> list[Piece]:
        """What the files hold of a channel, in order of time.

        Args:
            channel: Its name.
            within: Files that lie outside, by their names, are not opened.

        Raises:
            InputError: None of all files has the channel.
            DamagedDataError: A file cannot be read.
        """
        opened = [
            path
            for path, span in self.files
            if within is None or span is None or _overlap(span, within)
        ]
        found = [piece for path in opened for piece in pieces_of(path, channel)]
        if opened and not found and within is not None:
            self.pieces(channel)  # none at that time; or none at all, which this says
            return []
        if opened and not found:
            there = sorted({name for path in opened for name in channels_of(path)})
            raise InputError(
                f"frames: no file holds the channel {channel}, the {len(opened)} that were opened "
                f"hold {', '.join(there) or 'none'}; name one of them"
            )
        return sorted(found, key=lambda piece: (piece.start, piece.path.name))

    def covering(self, channel: str, within: Span) -> list[Piece]:
        """The pieces of a channel that overlap a stretch, in order of time.

        Raises:
            InputError: The files do not cover it.
            DamagedDataError: A file cannot be read.
        """
        found = [item for item in self.pieces(channel, within) if _overlap(item, within)]
        if without([within], found):
            raise InputError(self._refusal(channel, within))
        return found

    def read(self, channel: str, within: Span) -> tuple[Stretch, list[Path]]:
        """Read a stretch of a channel.

        Args:
            channel: Its name.
            within: From where to where; the first sample is the last one at or before its start.

        Returns:
            The samples, and the files that they come from.

        Raises:
            InputError: The files do not cover it, hold something that is no number in it, or have
                different sample rates.
            DamagedDataError: A file cannot be read.
        """
        pieces = self.covering(channel, within)
        rate = _common_rate(channel, pieces)
        first = pieces[0].start
        start = first + math.floor((within.start - first) * rate + _ROUNDING) / rate
        count = round((within.stop - within.start) * rate)
        values = np.full(count, np.nan)
        for piece in pieces:
            offset = (piece.start - start) * rate
            if abs(offset - round(offset)) > 10 * _ROUNDING:
                raise InputError(
                    f"frames: {piece.path.name} begins between two samples of the file before it; "
                    "give files of one sampling"
                )
            rows = slice(max(0, round(offset)), count)
            part = samples_of(piece, channel)[rows.start - round(offset) :][: count - rows.start]
            values[rows.start : rows.start + len(part)] = part
        wrong = np.flatnonzero(~np.isfinite(values))
        if len(wrong):
            raise NotFiniteError(
                f"frames: {channel} holds no numbers from {start + wrong[0] / rate:.13g} to "
                f"{start + (wrong[-1] + 1) / rate:.13g}, and {within.start:.13g} to "
                f"{within.stop:.13g} are needed; give another time"
            )
        return Stretch(values, start, rate), sorted({piece.path for piece in pieces})

    def _refusal(self, channel: str, within: Span) -> str:
        spans = merged(self.pieces(channel))
        there = ", ".join(f"{span.start:.13g} to {span.stop:.13g}" for span in spans[:MOST_SPANS])
        if len(spans) > MOST_SPANS:
            there += f" and {len(spans) - MOST_SPANS} stretches more, to {spans[-1].stop:.13g}"
        return (
            f"frames: {channel} is needed from {within.start:.13g} to {within.stop:.13g}, the "
            f"files cover {there or 'nothing'} [GPS s]; give the files that are missing, or "
            "another time"
        )


class NotFiniteError(InputError):
    """Frames hold something that is no number where samples are wanted."""


def merged(spans: Sequence[Span]) -> list[Span]:
    """The same time in as few spans as possible, in order."""
    whole: list[Span] = []
    for span in sorted(spans, key=lambda item: item.start):
        if whole and span.start <= whole[-1].stop + 1e-6:
            whole[-1] = Span(whole[-1].start, max(whole[-1].stop, span.stop))
        else:
            whole.append(Span(span.start, span.stop))
    return whole


def common(spans: Sequence[Sequence[Span]]) -> list[Span]:
    """The time that lies in a span of each of several lists, each merged."""
    shared = list(spans[0])
    for others in spans[1:]:
        shared = [
            Span(max(one.start, other.start), min(one.stop, other.stop))
            for one in shared
            for other in others
            if _overlap(one, other)
        ]
    return shared


def without(spans: Sequence[Span], holes: Sequence[Span]) -> list[Span]:
    """What is left of spans outside of others, to a microsecond."""
    left = list(spans)
    for hole in holes:
        left = [
            part
            for span in left
            for part in (
                Span(span.start, min(span.stop, hole.start)),
                Span(max(span.start, hole.stop), span.stop),
            )
            if part.stop - part.start > 1e-6
        ]
    return left


def _overlap(one: Span, other: Span) -> bool:
    return one.start < other.stop and other.start < one.stop


def _common_rate(channel: str, pieces: Sequence[Piece]) -> float:
    rates = sorted({round(piece.sample_rate, 6) for piece in pieces})
    if len(rates) > 1:
        raise InputError(
            f"frames: {channel} is sampled at {' and '.join(f'{rate:g}' for rate in rates)} Hz in "
            "different files; give files of one rate"
        )
    return rates[0]


def _in_cache(path: Path) -> Iterator[Path]:
    """The files that a LAL cache names."""
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        raise InputError(f"frames: {path} cannot be read; give a LAL cache of text") from None
    for line in lines:
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        url = words[-1]
        if len(words) != 5 or (":" in url and not url.startswith("file:")):
            raise InputError(
                f"frames: {path} holds the line {line[:80]!r}; a line of a LAL cache is "
                "observatory, description, GPS, duration and the URL of a local file"
            )
        found = Path(re.sub(r"^file:(//(localhost)?)?", "", url))
        if not found.is_file():
            raise InputError(f"frames: {path} names {found}, which is not there")
        yield found


def _span_in_name(path: Path) -> Span | None:
    match = _NAMED.search(path.name)
    return Span(float(match[1]), float(match[1]) + float(match[2])) if match else None
