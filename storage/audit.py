"""A digest of which events were delivered, that adds up over batches, ranks and interruptions.

Two sets of events have the same digest only if they are the same, each event as often (but for a
chance of 2^-128, and nobody's malice). What each rank logs of each stretch of an epoch adds up to
`Audit.of(all its events)` exactly if each was delivered once.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from storage.arrays import Array
from storage.order import mix64

_SALTS = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F))


@dataclass(frozen=True)
class Audit:
    """What was delivered of an epoch.

    Attributes:
        epoch: Its number.
        events: How many events.
        sums: Two sums of scrambled numbers of those events, modulo 2^64.
    """

    epoch: int = 0
    events: int = 0
    sums: tuple[int, int] = (0, 0)

    @property
    def digest(self) -> str:
        """The sums as 32 hexadecimal digits."""
        return "".join(f"{value:016x}" for value in self.sums)

    def __add__(self, other: "Audit | Int64[Array, 'event']") -> "Audit":
        """What was delivered with these events, or those of another audit, too."""
        if not isinstance(other, Audit):
            numbers = np.asarray(other).astype(np.uint64)
            sums = [int(mix64(numbers + salt).sum(dtype=np.uint64)) for salt in _SALTS]
            other = Audit(self.epoch, len(numbers), (sums[0], sums[1]))
        first, second = ((a + b) % 2**64 for a, b in zip(self.sums, other.sums, strict=True))
        return Audit(self.epoch, self.events + other.events, (first, second))

    @classmethod
    def of(cls, events: Int64[Array, "event"], epoch: int = 0) -> "Audit":
        """The audit of some events."""
        return cls(epoch) + events
