"""The order of the events in an epoch: a pure function of (seed, epoch, position).

A Feistel network permutes the smallest power of four that holds all positions; a position whose
image lies outside the set walks on until it falls inside (cycle walking), which leaves a
permutation of the set itself. No table is kept: 10^9 events cost no more memory than ten.

Source: M. Luby, C. Rackoff, SIAM J. Comput. 17 (1988) 373; J. Black, P. Rogaway, CT-RSA 2002
(cycle walking); the mixing function is SplitMix64 (G. Steele et al., OOPSLA 2014).
"""

import numpy as np
from jaxtyping import Int64, UInt64

from storage.arrays import Array

ROUNDS = 8
SMALLEST_HALF = 4  # bits; below, a network of few values shuffles badly


def permuted(positions: Int64[Array, "n"], size: int, seed: int, epoch: int) -> Int64[Array, "n"]:
    """Return which element stands at each position of an epoch's order.

    Args:
        positions: Each at least 0 and below `size`.
        size: Number of elements.
        seed: Of the run.
        epoch: Number of the epoch.
    """
    if len(positions) and not 0 <= positions.min() <= positions.max() < size:
        raise IndexError(f"positions must lie in [0, {size})")
    half = np.uint64(max(SMALLEST_HALF, -(-(size - 1).bit_length() // 2)))
    # A spawn key, because SeedSequence((2**32 + 5, 0)) and ((5, 1)) are the same.
    keys = np.random.SeedSequence(seed, spawn_key=(epoch,)).generate_state(ROUNDS, np.uint64)
    values = positions.astype(np.uint64)
    walking = np.arange(len(values))
    while len(walking):
        values[walking] = _feistel(values[walking], half, keys)
        walking = walking[values[walking] >= size]
    return values.astype(np.int64)


def _feistel(
    values: UInt64[Array, "n"], half: np.uint64, keys: UInt64[Array, "round"]
) -> UInt64[Array, "n"]:
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = values >> half, values & mask
    for key in keys:
        left, right = right, left ^ (_mix(right + key) & mask)
    return (left << half) | right


def _mix(values: UInt64[Array, "n"]) -> UInt64[Array, "n"]:
    """Scramble 64 bits (the output function of SplitMix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: Array = values ^ (values >> np.uint64(31))
    return mixed
