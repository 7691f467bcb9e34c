"""Which events of a data set an epoch has: those of a range of its finished shards."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Int64

from storage.arrays import Array
from storage.errors import InputError
from storage.manifest import require_sound
from storage.schema import Schema
from storage.urls import Store


@dataclass(frozen=True)
class Snapshot:
    """The events of a range of some shards.

    Attributes:
        schema: What the data set is.
        shards: The numbers of the shards, in order.
        start: The first event, counted in them.
        stop: The end of the events, counted in them.
    """

    schema: Schema
    shards: tuple[int, ...]
    start: int
    stop: int

    @classmethod
    def take(
        cls, store: Store, schema: Schema, limits: tuple[int, int | None], growing: bool
    ) -> "Snapshot":
        """See which shards are finished now.

        Raises:
            InputError: They do not have the events of the range.
            DamagedDataError: A file is missing or has another length; without `growing`, a shard.
        """
        return cls._of(require_sound(store, schema, growing), schema, limits)

    @classmethod
    def parse(cls, text: str, schema: Schema, limits: tuple[int, int | None]) -> "Snapshot":
        """Read the `text` of a snapshot.

        Raises:
            InputError: It is none of this data set.
        """
        shards = list[int]()
        for part in text.split(","):
            match = re.fullmatch(r"(\d{1,18})(?:-(\d{1,18}))?", part)
            if match is None or int(match[2] or match[1]) >= schema.shards:
                raise InputError(f"state: {text[:80]!r} are no shards of this data set")
            shards += range(int(match[1]), int(match[2] or match[1]) + 1)
        return cls._of(shards, schema, limits)

    @classmethod
    def _of(
        cls, shards: Sequence[int], schema: Schema, limits: tuple[int, int | None]
    ) -> "Snapshot":
        available = sum(len(schema.events_of(shard)) for shard in shards)
        start, stop = limits[0], available if limits[1] is None else limits[1]
        if not 0 <= start < stop <= available:
            raise InputError(f"events {start}:{stop}: the data set has events 0:{available}")
        return cls(schema, tuple(shards), start, stop)

    @property
    def events(self) -> int:
        """How many there are."""
        return self.stop - self.start

    @property
    def text(self) -> str:
        """The shards in words, as `0-5,7`."""
        parts, first = list[str](), self.shards[0]
        for shard, following in zip(self.shards, (*self.shards[1:], -1), strict=True):
            if following != shard + 1:
                parts.append(str(first) if first == shard else f"{first}-{shard}")
                first = following
        return ",".join(parts)

    @cached_property
    def _numbers_of_shards(self) -> Int64[Array, "shard"]:
        return np.array(self.shards, np.int64)

    @cached_property
    def counts(self) -> Int64[Array, "shard"]:
        """How many events of the range lie in each shard that has some."""
        per_shard = self.schema.events_per_shard
        edges = np.arange(self.start // per_shard, -(-self.stop // per_shard) + 1) * per_shard
        counts: Array = np.diff(np.clip(edges, self.start, self.stop))
        return counts

    def numbers(self, places: Int64[Array, "n"]) -> Int64[Array, "n"]:
        """The numbers of the events at some places, counted from the start of the range."""
        shard, row = np.divmod(self.start + places, self.schema.events_per_shard)
        numbers: Array = self._numbers_of_shards[shard] * self.schema.events_per_shard + row
        return numbers
