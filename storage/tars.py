"""Batches from tars that can only be streamed, and from those that other tools have written.

Through stock webdataset, at its speed: its openers of URLs, its grouping of members into events and
its shuffle. Only its walk through a tar is our own, since that takes a cut or damaged tar for one
that ends there.
"""

import io
import math
import random
import sys
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import webdataset
from jaxtyping import Num
from webdataset.pytorch import IterableDataset
from webdataset.shardlists import expand_urls
from webdataset.tariterators import group_by_keys

from storage.arrays import Array
from storage.blosc import decode_strain
from storage.documents import parse_json
from storage.errors import DamagedDataError, InputError
from storage.stream import Batch
from storage.tar import BLOCK

_MEMBERS = ("strain.npy", "strain.blosc")
_MAGIC = b"ustar"  # of a tar header, at byte 257


@dataclass(frozen=True)
class TarLayout:
    """What all events of a stream share.

    Attributes:
        shape: Of an event's strain, (detector, time).
        dtype: Its stored type.
        parameters: Names of the columns of `Batch.parameters`, as the first event orders them.
        scale_factor: Sigma per step of the stored strain; 1 where the events name none.
        detectors: Their names, or those of the polarisations; empty where the events name none.
        sample_rate: [Hz]; None where the events name none.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    parameters: tuple[str, ...]
    scale_factor: float
    detectors: tuple[str, ...]
    sample_rate: float | None


class TarStream(IterableDataset):
    """Iterates over the events of tars in the batches of `EventStream`, through stock webdataset.

    A tar holds, for each event, KEY.json with at least `event` (its number) and `parameters` (their
    values by name), and KEY.strain.npy or KEY.strain.blosc, next to each other. Other members of an
    event are ignored. Feeds a trainer through `wds.WebLoader(stream, batch_size=None)`.

    In contrast to `EventStream` it promises no exact resume, since what was delivered cannot be
    skipped without being read; no global shuffle, only one of the tars and one within a buffer; no
    equal number of batches in each process of torch.distributed (each reads tars of its own, as
    `wds.split_by_node` deals them out); no proof of bytes beyond what a tar and a Blosc frame hold
    (a flipped bit of an uncompressed event is delivered); and a tenth of the speed.

    Args:
        urls: One or several, with braces (`{0..7}`); paths, `http://`, `pipe:COMMAND` and what else
            webdataset opens. A command is run by the shell: take URLs from nobody you do not trust.
        batch_size: Events a batch; the last one may be smaller.
        shuffle: Events in the buffer from which the next one is drawn, by which the order of the
            tars is permuted too; 0 for the order of the tars.
        seed: Of the order, which is another one in each epoch.

    Attributes:
        layout: What the events share; None until the first was read.

    Raises:
        InputError: An argument is impossible; while iterating: a tar cannot be opened, an event
            lacks a member, or is not like those before it.
        DamagedDataError: While iterating: a tar is cut or damaged, or an event of it.
    """

    def __init__(
        self, urls: str | Sequence[str], *, batch_size: int, shuffle: int = 0, seed: int = 0
    ) -> None:
        given = [urls] if isinstance(urls, str) else list(urls)
        self._urls = [url for text in given if text for url in expand_urls(str(text))]
        if not self._urls:
            raise InputError("TarStream: no URLs were given; give paths or URLs of tars")
        for name, value, least in (("batch_size", batch_size, 1), ("shuffle", shuffle, 0)):
            if value < least:
                raise InputError(f"{name}: got {value}, at least {least} is needed")
        self._batch_size, self._shuffle, self._seed = batch_size, shuffle, seed
        self._epoch = 0
        self.layout: TarLayout | None = None

    def __iter__(self) -> Iterator[Batch]:
        """Deliver the batches of one epoch."""
        torch_data = sys.modules.get("torch.utils.data")
        if torch_data is not None and torch_data.get_worker_info() is not None:
            raise InputError(
                "TarStream: a DataLoader worker would deliver the same order each epoch; use "
                "num_workers=0"
            )
        rows: list[_Row] = []
        for sample in self._samples():
            row, layout = _decoded(sample)
            self.layout = self.layout or layout
            rows.append(row.like(self.layout, layout))
            if len(rows) == self._batch_size:
                yield _batch(rows)
                rows = []
        if rows:
            yield _batch(rows)
        self._epoch += 1

    def _samples(self) -> Iterator[dict[str, Any]]:
        """The events, not yet decoded, in the order in which they are delivered."""
        draw = random.Random(f"{self._seed} {self._epoch}")
        urls = list(self._urls)
        if self._shuffle:
            draw.shuffle(urls)
        samples = _grouped(webdataset.split_by_node(urls))
        if self._shuffle:
            stage = webdataset.shuffle(self._shuffle, initial=self._shuffle, rng=draw)
            samples = stage(samples)
        return samples


@dataclass(frozen=True)
class _Row:
    """One event."""

    where: str
    event: int
    strain: Num[Array, "detector time"]
    parameters: dict[str, float]

    def like(self, first: TarLayout, own: TarLayout) -> Self:
        """Give it back if it is like the events before it.

        Raises:
            InputError: It is not.
        """
        for name in ("shape", "dtype", "scale_factor", "detectors", "sample_rate"):
            mine, theirs = getattr(own, name), getattr(first, name)
            if mine != theirs:
                raise InputError(
                    f"{self.where}: its {name} is {mine}, that of the events before it {theirs}; "
                    "give tars of one kind of event"
                )
        if set(own.parameters) != set(first.parameters):
            odd = ", ".join(sorted(set(own.parameters) ^ set(first.parameters)))
            raise InputError(
                f"{self.where}: has not the parameters of the events before it ({odd}); give tars "
                "of one kind of event"
            )
        parameters = {name: self.parameters[name] for name in first.parameters}
        return type(self)(self.where, self.event, self.strain, parameters)


def _batch(rows: Sequence[_Row]) -> Batch:
    return Batch(
        strain=np.stack([row.strain for row in rows]),
        parameters=np.array([list(row.parameters.values()) for row in rows], np.float64),
        event=np.array([row.event for row in rows], np.int64),
    )


def _decoded(sample: dict[str, Any]) -> tuple[_Row, TarLayout]:
    """An event from its members.

    Raises:
        DamagedDataError: One of them was altered.
        InputError: One of them is missing.
    """
    where = f"{sample['__url__']}: event {sample['__key__']}"
    there = [name for name in _MEMBERS if name in sample]
    if "json" not in sample or len(there) != 1:
        have = ", ".join(sorted(name for name in sample if not name.startswith("__")))
        raise InputError(
            f"{where} has the members {have}; .json is needed, and either of "
            ".strain.npy and .strain.blosc next to it"
        )
    facts = parse_json(sample["json"], f"{where}, .json")
    number, parameters = facts.get("event"), facts.get("parameters")
    if type(number) is not int or not 0 <= number < 2**63:
        raise InputError(f"{where}: its JSON has no number `event`; write one")
    if not isinstance(parameters, dict) or not all(
        value is None or _is_number(value) for value in parameters.values()
    ):
        raise InputError(f"{where}: its JSON has no numbers by name in `parameters`; write them")
    try:
        strain = _strain(sample, facts)
    except (DamagedDataError, EOFError, SyntaxError, TypeError, ValueError) as error:
        words = " ".join(str(error).split())
        raise DamagedDataError(f"{where}: its .{there[0]} is damaged ({words})") from None
    detectors = facts.get("polarisations") or facts.get("detectors", [])
    scale_factor, sample_rate = facts.get("scale_factor", 1.0), facts.get("sample_rate")
    if not _is_number(scale_factor) or not (sample_rate is None or _is_number(sample_rate)):
        raise InputError(
            f"{where}: its JSON has {scale_factor!r} and {sample_rate!r} as scale_factor and "
            "sample_rate; write numbers, or leave them out"
        )
    if (
        strain.ndim != 2
        or strain.dtype.kind not in "fi"
        or not isinstance(detectors, list)
        or len(detectors) not in (0, len(strain))
    ):
        raise InputError(
            f"{where}: its strain is {strain.dtype} of shape {strain.shape}, numbers of shape "
            f"(detector, time) are needed, and as many names of `detectors` ({detectors}) if any"
        )
    layout = TarLayout(
        shape=strain.shape,
        dtype=strain.dtype,
        parameters=tuple(parameters),
        scale_factor=scale_factor,
        detectors=tuple(map(str, detectors)),
        sample_rate=sample_rate,
    )
    known = {name: math.nan if value is None else value for name, value in parameters.items()}
    return _Row(where, number, strain, known), layout


def _strain(sample: dict[str, Any], facts: dict[str, Any]) -> Num[Array, "detector time"]:
    if "strain.npy" in sample:
        strain: Array = np.load(io.BytesIO(sample["strain.npy"]), allow_pickle=False)
    else:
        strain = decode_strain({"json": facts, "strain.blosc": sample["strain.blosc"]})[
            "strain.npy"
        ]
    return strain


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and type(value) is not bool and math.isfinite(value)


def _grouped(urls: Iterable[str]) -> Iterator[dict[str, Any]]:
    """The members of each event, together."""
    for url in urls:
        try:
            yield from group_by_keys(_members(url))
        except ValueError as error:
            if isinstance(error, InputError):
                raise
            raise DamagedDataError(f"{url}: {error.args[0]}") from None


def _members(url: str) -> Iterator[dict[str, Any]]:
    """The members of a tar, as webdataset hands them on.

    Raises:
        InputError: It cannot be opened.
        DamagedDataError: It is cut or damaged.
    """
    try:
        stream = webdataset.gopen(url)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{url}: cannot be opened ({error}); give a path, http(s):// or pipe:COMMAND"
        ) from None
    try:
        with tarfile.open(fileobj=stream, mode="r|*", tarinfo=_CheckedHeader) as tar:
            for member in tar:
                file = tar.extractfile(member) if member.isreg() else None
                if file is not None:
                    yield {"fname": member.name, "data": file.read(), "__url__": url}
                tar.members = []  # type: ignore[attr-defined]  # or they are all kept
            _drain(tar.fileobj)
        stream.close()  # tells of a command that failed
    except (DamagedDataError, EOFError, OSError, tarfile.TarError) as error:
        raise DamagedDataError(
            f"{url}: is cut or damaged, or did not come whole ({error}); nothing of it is skipped"
        ) from None
    finally:
        with suppress(OSError):
            stream.close()


def _drain(stream: Any) -> None:  # noqa: ANN401  # tarfile's own
    """Read what follows the end of a tar, such as a Zarr index; not, unnoticed, another tar."""
    while block := stream.read(BLOCK):
        if block[257 : 257 + len(_MAGIC)] == _MAGIC:
            raise DamagedDataError("another tar follows its end, which tar readers do not see")


class _CheckedHeader(tarfile.TarInfo):
    """A header of a tar; one that is damaged or missing is no end."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """Read a header.

        Raises:
            DamagedDataError: It is none.
        """
        if len(buf) < BLOCK:
            raise DamagedDataError("it ends without the mark of its end")
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if any(buf):
                raise DamagedDataError(f"a tar header is damaged: {error}") from None
            raise  # the zeros at the end
