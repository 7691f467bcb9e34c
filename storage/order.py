"""The order of the events in an epoch: a pure function of (seed, epoch, position).

By default it is global: every order of all events is to be had, and neighbours in it lie anywhere.
`WindowedOrder` is for places where reading an event here and one there is slow, as spinning disks
and object stores.

A Feistel network permutes the smallest power of four that holds all positions; a position whose
image lies outside the set walks on until it falls inside (cycle walking), which leaves a
permutation of the set itself. No table is kept: 10^9 events cost no more memory than ten.

Source: M. Luby, C. Rackoff, SIAM J. Comput. 17 (1988) 373; J. Black, P. Rogaway, CT-RSA 2002
(cycle walking); the mixing function is SplitMix64 (G. Steele et al., OOPSLA 2014).
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Int64, UInt64

from storage.arrays import Array
from storage.errors import InputError

ROUNDS = 8
SMALLEST_HALF = 4  # bits; below, a network of few values shuffles badly


@dataclass(frozen=True)
class Window:
    """How a windowed order mixes: blocks of neighbouring events, of several shards at a time.

    Attributes:
        shards: That are read side by side.
        events: Neighbours in a shard that are read together, one behind the other. 16 are 2 MB
            (int16+blosc) to 13 MB (float32) of the usual event. A batch of b events holds about
            b / events blocks, of as many shards unless fewer are side by side.
    """

    shards: int = 16
    events: int = 16

    def __post_init__(self) -> None:
        for name in ("shards", "events"):
            if getattr(self, name) < 1:
                raise InputError(f"window.{name}: got {getattr(self, name)}, at least 1 is needed")


def permuted(
    positions: Int64[Array, "n"], size: int, seed: int, epoch: int, *part: int
) -> Int64[Array, "n"]:
    """Return which element stands at each position of an epoch's order.

    Args:
        positions: Each at least 0 and below `size`.
        size: Number of elements.
        seed: Of the run.
        epoch: Number of the epoch.
        part: Numbers of the part of the epoch, where parts are ordered by themselves.
    """
    if len(positions) and not 0 <= positions.min() <= positions.max() < size:
        raise IndexError(f"positions must lie in [0, {size})")
    half = np.uint64(max(SMALLEST_HALF, -(-(size - 1).bit_length() // 2)))
    # A spawn key, because SeedSequence((2**32 + 5, 0)) and ((5, 1)) are the same.
    keys = np.random.SeedSequence(seed, spawn_key=(epoch, *part)).generate_state(ROUNDS, np.uint64)
    values = positions.astype(np.uint64)
    walking = np.arange(len(values))
    while len(walking):
        values[walking] = _feistel(values[walking], half, keys)
        walking = walking[values[walking] >= size]
    return values.astype(np.int64)


class WindowedOrder:
    """An order that reads shards from front to back, several side by side.

    The shards come in a permuted order. So many of them as the window says are read side by side:
    a block of neighbouring events of each, those blocks in a shuffled order, then the next blocks.
    Every shard begins anywhere and goes round, so that an epoch seldom has the blocks of another.
    They are shuffled and not events, so that any stretch of the order has whole blocks but for its
    ends: a batch is read in large pieces whatever its size, where it begins, and how many ranks
    share it. What is lost against the global order is that the events of a block stay together: a
    batch is none the worse where events are drawn independently of each other, as they are unless
    neighbours share a waveform.

    Args:
        counts: How many elements lie in each shard; the elements are numbered through.
        window: How it mixes.
    """

    def __init__(self, counts: Int64[Array, "shard"], window: Window) -> None:
        self._counts, self._window = counts, window
        self._firsts = np.cumsum(counts) - counts
        self._windows = lru_cache(maxsize=2)(self._find_windows)
        self._table = lru_cache(maxsize=8)(self._find_mix)

    def __call__(self, positions: Int64[Array, "n"], seed: int, epoch: int) -> Int64[Array, "n"]:
        """Return which element stands at each position of an epoch."""
        found = np.empty_like(positions)
        _, ends = self._windows(seed, epoch)
        for number, here, inside in _split(positions, ends):
            mixes = self._mix_ends(seed, epoch, number)
            elements = np.empty_like(inside)
            for mix, there, place in _split(inside, mixes):
                elements[there] = self._table(seed, epoch, number, mix)[place]
            found[here] = elements
        return found

    def _find_windows(
        self, seed: int, epoch: int
    ) -> tuple[Int64[Array, "shard"], Int64[Array, "window"]]:
        """The shards in the epoch's order, and where each window ends."""
        shards = permuted(np.arange(len(self._counts)), len(self._counts), seed, epoch, 0)
        starts = np.arange(0, len(shards), self._window.shards)
        return shards, np.cumsum(np.add.reduceat(self._counts[shards], starts))

    def _shards(self, seed: int, epoch: int, number: int) -> Int64[Array, "shard"]:
        side_by_side = self._window.shards
        return self._windows(seed, epoch)[0][number * side_by_side : (number + 1) * side_by_side]

    def _mix_ends(self, seed: int, epoch: int, number: int) -> Int64[Array, "mix"]:
        """Where each mix of a window ends, counted from the window's start."""
        counts = self._counts[self._shards(seed, epoch, number)]
        block = self._window.events
        rows = np.arange(1, -(-int(counts.max()) // block) + 1) * block
        ends: Array = np.minimum(counts, rows[:, np.newaxis]).sum(axis=1)
        return ends

    def _find_mix(self, seed: int, epoch: int, number: int, mix: int) -> Int64[Array, "element"]:
        """The elements of a mix: a block of each shard that still has one, in a shuffled order."""
        shards, block = self._shards(seed, epoch, number), self._window.events
        turns = np.random.SeedSequence(seed, spawn_key=(epoch, 1 + number)).generate_state(
            len(shards), np.uint64
        )
        blocks = []
        for shard, turn in zip(shards, turns, strict=True):
            count = int(self._counts[shard])
            inside = np.arange(mix * block, min((mix + 1) * block, count))
            blocks.append(self._firsts[shard] + (inside + int(turn % np.uint64(count))) % count)
        keys = np.random.SeedSequence(seed, spawn_key=(epoch, 1 + number, mix))
        order = np.argsort(keys.generate_state(len(blocks), np.uint64), kind="stable")
        shuffled: Array = np.concatenate([blocks[place] for place in order])
        return shuffled


def _split(
    positions: Int64[Array, "n"], ends: Int64[Array, "part"]
) -> list[tuple[int, Array, Int64[Array, "m"]]]:
    """Of each part that holds some of the positions: its number, which they are, where in it."""
    parts = np.searchsorted(ends, positions, side="right")
    found = []
    for part in np.unique(parts).tolist():
        here = parts == part
        found.append((part, here, positions[here] - (ends[part - 1] if part else 0)))
    return found


def _feistel(
    values: UInt64[Array, "n"], half: np.uint64, keys: UInt64[Array, "round"]
) -> UInt64[Array, "n"]:
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = values >> half, values & mask
    for key in keys:
        left, right = right, left ^ (mix64(right + key) & mask)
    return (left << half) | right


def mix64(values: UInt64[Array, "n"]) -> UInt64[Array, "n"]:
    """Scramble 64 bits (the output function of SplitMix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: Array = values ^ (values >> np.uint64(31))
    return mixed
