"""A local cache before a store: what was read of a shard's files once comes from a disk then.

An item's key is the digest of its file, from the shard's manifest, with offset and length. So a
data set that was made again under the same URL, or repaired or recoded in place, shares nothing
with the one before, and a copy elsewhere shares everything; an ETag would need a request a file,
and is not to be had from every store. Manifests, metadata, lengths and listings are never kept:
what grows is seen to grow. And because a store may give damaged bytes, or those of a shard that is
being replaced, nothing is kept that the manifest does not prove.
"""

import itertools
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from storage.cache.folder import CacheFolder
from storage.cache.known import KnownFile, Part, known_files
from storage.errors import DamagedDataError
from storage.objects import ObjectFile
from storage.schema import MANIFEST_FOLDER
from storage.urls import InputFile, OutputFile, Store

_MANIFEST = re.compile(rf"{MANIFEST_FOLDER}/\d{{6,18}}\.json")


class CachedStore(Store):
    """Another store, with what is read of the shards kept in a folder.

    Kept are, once a shard's manifest was read through this store: whole files, the index at a
    shard's end and, when that was read, the events of ranges that begin and end with one, each by
    itself; what stands between two of them is kept with the first, unproved. A hit asks the other
    store for nothing. Several processes and data sets may share the folder; `CacheFolder` says what
    holds then, and where it may lie.

    Args:
        store: The other store.
        folder: For the items; made when there is one.
        limit_bytes: What the items may take, over all processes.

    Attributes:
        hits: How many ranges and files this object has found.
        misses: How many it would have kept, and did not find.

    Raises:
        InputError: The folder is a file or lies on a network file system, or the limit is none.
    """

    def __init__(self, store: Store, folder: str | Path, limit_bytes: int) -> None:
        self.store = store
        self.hits = self.misses = 0
        self._folder = CacheFolder(folder, limit_bytes)
        self._known: dict[str, KnownFile] = {}
        self._counting = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        """What another process makes the same from."""
        return CachedStore, (self.store, self._folder.folder, self._folder.limit)

    @property
    def url(self) -> str:  # type: ignore[override]  # read-only is enough
        """That of the other store."""
        return self.store.url

    @property
    def address(self) -> str:
        """That of the other store."""
        return self.store.address

    def where(self, path: str = "") -> str:
        """The full name of a file in the other store."""
        return self.store.where(path)

    def read(self, path: str) -> bytes:
        """Read a whole file."""
        (content,) = self._whole([path], lambda paths: [self.store.read(paths[0])])
        assert content is not None
        return content

    def read_each(self, paths: Sequence[str]) -> Iterator[bytes | None]:
        """Read small files one after the other; of the shards' all at once."""
        if any(path in self._known for path in paths):
            yield from self._whole(paths, self.store.read_each)
            return
        for path, content in zip(paths, self.store.read_each(paths), strict=True):
            self._learn(path, content)
            yield content

    def read_ranges(self, ranges: Sequence[tuple[str, int, int]]) -> list[bytes]:
        """Read ranges: from the folder what is there, all others at once.

        A range of several events is put together of what is kept of each, however they were read
        before; of those that follow each other and are not there, one range is read.
        """
        parts = [self._parts(*wanted) for wanted in ranges]
        found: dict[Part, bytes] = {}
        for part in itertools.chain.from_iterable(parts):
            content = self._get(part) if part not in found else None
            if content is not None:
                found[part] = content
        self._count(hits=len(found))
        missing = [
            list(run)
            for of_range in parts
            for is_there, run in itertools.groupby(of_range, found.__contains__)
            if not is_there
        ]
        if missing:
            wanted = [(run[0].path, run[0].offset, run[-1].end - run[0].offset) for run in missing]
            fetched: list[tuple[Part, bytes]] = []
            for run, content in zip(missing, self.store.read_ranges(wanted), strict=True):
                begin = run[0].offset
                fetched += [
                    (
                        part,
                        content if len(run) == 1 else content[part.offset - begin :][: part.size],
                    )
                    for part in run
                ]
            self._keep(fetched)
            found.update(fetched)
        return [
            _together(of_range, found, length)
            for of_range, (_, _, length) in zip(parts, ranges, strict=True)
        ]

    def _parts(self, path: str, offset: int, length: int) -> list[Part]:
        """What a range consists of: events, each with what stands between it and the next one."""
        file = self._known.get(path)
        rows = None if file is None else file.rows(offset, length)
        if file is None or file.index is None or rows is None:
            return [Part(path, offset, length)]
        begins, ends = file.index
        last = len(begins) - 1
        return [
            Part(
                path,
                int(begins[row]),
                int(ends[row] - begins[row]),
                int(begins[row + 1] - ends[row]) if row < last else 0,
                row,
                row != rows[-1],
            )
            for row in rows
        ]

    def _get(self, part: Part) -> bytes | None:
        file = self._known.get(part.path)
        if file is None or part.length <= 0:
            return None
        key = file.key(part.offset, part.length)
        content = self._folder.get(key, part.length, part.rest, part.with_rest)
        if content is not None:
            file.learn_index(part.offset, content)
        return content

    def length(self, path: str) -> int | None:
        """Length of a file, as the other store has it now."""
        return self.store.length(path)

    def lengths(self) -> Callable[[str], int | None]:
        """The same for many."""
        return self.store.lengths()

    def files(self, folder: str = "") -> Iterator[str]:
        """The paths of all files below a folder, as the other store has them now."""
        return self.store.files(folder)

    def names(self, folder: str) -> Iterator[str]:
        """The names in a folder, as the other store has them now."""
        return self.store.names(folder)

    def open(self, path: str) -> InputFile:
        """Open a file; one of a shard whose manifest was read needs no request for that."""
        file = self._known.get(path)
        return self.store.open(path) if file is None else ObjectFile(self, path, file.length)

    def create(self, path: str, contested: bool = False) -> OutputFile:
        """Begin a file in the other store."""
        return self.store.create(path, contested)

    def remove(self, path: str) -> None:
        """Remove a file from the other store."""
        self.store.remove(path)

    def remove_partial_files(self) -> list[str]:
        """Remove what writers that died left in the other store."""
        return self.store.remove_partial_files()

    def only_writer(self) -> AbstractContextManager[None]:
        """Hold the other store against a second run."""
        return self.store.only_writer()

    def is_being_written(self) -> bool:
        """Whether a run holds the other store."""
        return self.store.is_being_written()

    @property
    def beside(self) -> Path:
        """That of the other store."""
        return self.store.beside

    def _whole(
        self, paths: Sequence[str], read: Callable[[Sequence[str]], Any]
    ) -> list[bytes | None]:
        """Read whole files, from the folder those that are there."""
        found: dict[str, bytes | None] = {}
        for path in paths:
            if (file := self._known.get(path)) is not None and file.length > 0:
                content = self._folder.get(file.key(0, file.length), file.length)
                if content is not None:
                    found[path] = content
        self._count(hits=len(found))
        missing = [path for path in paths if path not in found]
        if missing:
            contents = list(read(missing))
            files = zip(missing, contents, strict=True)
            self._keep(
                [(Part(path, 0, len(content)), content) for path, content in files if content]
            )
            there = dict(zip(missing, contents, strict=True))
            for path, content in there.items():
                self._learn(path, content)
            found.update(there)
        return [found[path] for path in paths]

    def _keep(self, fetched: Sequence[tuple[Part, bytes]]) -> None:
        """Put what is proved into the folder."""
        items = []
        for part, content in fetched:
            file = self._known.get(part.path)
            if file is not None and len(content) == part.size > 0:
                file.learn_index(part.offset, content)
                if file.proves(part, content):
                    items.append((file.key(part.offset, part.length), content, part.rest))
        self._count(misses=len(items))
        self._folder.put(items)

    def _learn(self, path: str, content: bytes | None) -> None:
        """Learn from a manifest that was read what its shard's files are."""
        if _MANIFEST.fullmatch(path) and content is not None:
            try:
                self._known.update(known_files(content, path))
            except (AttributeError, DamagedDataError, KeyError, OverflowError, TypeError):
                pass  # whoever has asked for it will say what is wrong

    def _count(self, hits: int = 0, misses: int = 0) -> None:
        with self._counting:
            self.hits += hits
            self.misses += misses

    @property
    def bytes(self) -> int:
        """What the items in the folder take, over all processes."""
        return self._folder.total()


def _together(parts: Sequence[Part], found: Mapping[Part, bytes], length: int) -> bytes:
    """A range from its parts; shorter where one is, since the file ends there."""
    contents = []
    for part in parts:
        contents.append(found[part])
        if len(found[part]) < (part.size if part.with_rest else part.length):
            break
    content = contents[0] if len(contents) == 1 else b"".join(contents)
    return content if len(content) <= length else content[:length]
