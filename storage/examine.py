"""Which events of a shard the damage to its files concerns."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

import numpy as np
from crc32c import crc32c

from storage.arrays import Array
from storage.documents import parse_json
from storage.errors import DamagedDataError, Unreadable
from storage.finding import Finding
from storage.manifest import Manifest
from storage.schema import Event, Schema, shard_files
from storage.shard import event_key
from storage.shard_reader import read_index
from storage.tar import padding, walk_tar
from storage.urls import InputFile, Store
from storage.writer import event_facts, shard_layout


@dataclass(frozen=True)
class Examination:
    """Which events of a shard the damage to its files concerns.

    Attributes:
        store: The data set.
        schema: What it is.
        manifest: Of the shard.
        sound: Whether each of its files is as it was written.
        unreadable: What the disk says of those that it cannot read.
    """

    store: Store
    schema: Schema
    manifest: Manifest
    sound: Mapping[str, bool]
    unreadable: Mapping[str, Unreadable] = field(default_factory=dict)

    def findings(self) -> list[Finding]:
        """One for each damaged file."""
        shard, paths = self.manifest.shard, shard_files(self.manifest.shard)
        found = []
        for name, path in paths.items():
            if self.sound[path]:
                continue
            if path in self.unreadable:
                why = self.unreadable[path]
                found.append(Finding(path, str(why), shard, self._all, not why.forbidden))
                continue
            length, wanted = self.store.length(path), self.manifest.files[path]["bytes"]
            if length is None:
                found.append(Finding(path, "is missing", shard, self._all))
                continue
            what, events = self._strain() if name == "strain" else self._table(name)
            if length != wanted:
                what = f"has {length:,} bytes, {wanted:,} were written; {what}"
            found.append(Finding(path, what, shard, tuple(sorted(set(events)))))
        return found

    @property
    def _all(self) -> tuple[int, ...]:
        return tuple(self.schema.events_of(self.manifest.shard))

    def _strain(self) -> tuple[str, Iterable[int]]:
        file = self.store.open(shard_files(self.manifest.shard)["strain"])
        try:
            return self._examine(file)
        finally:
            file.close()

    def _examine(self, file: InputFile) -> tuple[str, Iterable[int]]:
        """Compare each part of a shard with what should stand there."""
        words: list[str] = []
        entries = self._entries(file, words)
        payloads = [
            row
            for row, (offset, length) in enumerate(entries)
            if crc32c(file.read(offset, length)) != self.manifest.crc32c[row]
        ]
        payloads += range(len(entries), self.manifest.events)
        if payloads:
            words.append(f"the strain of {len(payloads)} events is damaged")
        frames = list(self._damaged_frames(file, entries))
        if frames:
            words.append(f"the tar's header, JSON or padding of {len(frames)} events is damaged")
        layout = shard_layout(self.schema)
        if len(entries) == self.manifest.events and entries:
            wanted = layout.after_payloads(entries)
            start = entries[-1][0] + entries[-1][1] + len(padding(entries[-1][1]))
            if file.read(start, len(wanted) + 1) != wanted and not words:
                words.append("the end of the tar or the index is damaged")
        first = self.schema.events_of(self.manifest.shard).start
        events = {first + row for row in (*payloads, *frames)}
        return "; ".join(words) or "is not as it was written", events

    def _entries(self, file: InputFile, words: list[str]) -> list[tuple[int, int]]:
        """Offset and length of each event's payload, from the index or from the tar."""
        layout, count = shard_layout(self.schema), self.manifest.events
        if not self.schema.encoding.compressed:
            try:
                read_index(file, layout.slots, "")
            except DamagedDataError:
                words.append("the index at its end is damaged")
            return [(layout.payload_offset(row), layout.payload) for row in range(count)]
        try:
            index = read_index(file, layout.slots, "")[:count]
        except DamagedDataError:
            words.append("the index at its end is damaged")
            found = walk_tar(file, ".strain.blosc", layout.payload)
            return list(found)[:count]
        places = [(int(offset), int(length)) for offset, length in index]
        # In a shard of other data they may lie anywhere.
        return list(takewhile(lambda place: sum(place) <= file.length, places))

    def _damaged_frames(self, file: InputFile, entries: list[tuple[int, int]]) -> Iterator[int]:
        """The events around whose payload something else stands than was written."""
        tables = [self._read_table(name) for name in ("parameters", "optimal_snr")]
        if any(table is None for table in tables):
            return
        layout, numbers = shard_layout(self.schema), self.schema.events_of(self.manifest.shard)
        for row, (offset, length) in enumerate(entries):
            parameters, snrs = (table[row] for table in tables if table is not None)
            event = Event(numbers[row], np.zeros((0, 0)), parameters, snrs, {})
            facts = event_facts(self.schema, event)
            before = layout.before_payload(row, event_key(event.number), facts, length)
            behind = padding(length)
            if file.read(offset - len(before), len(before)) != before or (
                file.read(offset + length, len(behind)) != behind
            ):
                yield row

    def _read_table(self, name: str) -> Array | None:
        path = shard_files(self.manifest.shard)[name]
        if not self.sound[path]:
            return None
        return np.frombuffer(self.store.read(path), "<f8").reshape(self.schema.events_per_shard, -1)

    def _table(self, name: str) -> tuple[str, Iterable[int]]:
        """Compare a damaged table with what the tar says of each event."""
        paths, what = shard_files(self.manifest.shard), "is not as it was written"
        content = self.store.read(paths[name])
        if (
            not self.sound[paths["strain"]]
            or len(content) != self.manifest.files[paths[name]]["bytes"]
        ):
            return what, self._all
        table = np.frombuffer(content, "<f8").reshape(self.schema.events_per_shard, -1)
        first, events = self.schema.events_of(self.manifest.shard).start, []
        for row, facts in enumerate(self._facts()):
            told = facts[name]
            values = np.array(list(told.values()) if isinstance(told, dict) else told, "<f8")
            if values.tobytes() != table[row].tobytes():
                events.append(first + row)
        return what, events

    def _facts(self) -> Iterator[dict[str, Any]]:
        """The JSON of each event of an undamaged shard."""
        layout, path = shard_layout(self.schema), shard_files(self.manifest.shard)["strain"]
        file = self.store.open(path)
        for row, (offset, _) in enumerate(self._entries(file, [])):
            size = layout.json_size(row)
            header = layout.before_strain
            yield parse_json(file.read(offset - header - size, size), path)
        file.close()
