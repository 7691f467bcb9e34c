"""Which events of a data set were proved by their checksums since their files were first opened."""

import threading

import numpy as np
from jaxtyping import Int64

from storage.arrays import Array
from storage.schema import Schema


class Proved:
    """A bit an event; the methods may be called by many threads at a time.

    Args:
        schema: What the data set is.

    Attributes:
        replaced: How often a shard was found to be another file than before. Whoever reads events
            by what `has` said before the last time, proves them; whoever proved them before it, of
            a file that may be gone, does not note them.
    """

    def __init__(self, schema: Schema) -> None:
        self._schema = schema
        self._bits = np.zeros(-(-schema.events // 8), np.uint8)
        self._lock = threading.Lock()
        self.replaced = 0

    def has(self, events: Int64[Array, "event"]) -> bool:
        """Whether all of these events were proved."""
        return bool(np.all(self._bits[events >> 3] >> (events & 7) & 1))

    def note(self, events: Int64[Array, "event"], replaced: int) -> None:
        """Note events that were proved.

        Args:
            events: Their numbers.
            replaced: As it was before they were read; where it is not any more, nothing is noted.
        """
        with self._lock:
            if self.replaced == replaced:
                np.bitwise_or.at(self._bits, events >> 3, (1 << (events & 7)).astype(np.uint8))

    def forget(self, shard: int) -> None:
        """Note that the file of a shard is another one than before: nothing of it is proved."""
        events = np.array(self._schema.events_of(shard), np.int64)
        with self._lock:
            np.bitwise_and.at(self._bits, events >> 3, (~(1 << (events & 7))).astype(np.uint8))
            self.replaced += 1  # last: who sees it sees the bits gone
