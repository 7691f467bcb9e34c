"""Proof that a stream comes back from anywhere: replays it from every state and compares.

For users who wrap a stream, or who doubt: `assert_replays(lambda: EventStream(...))`.
"""

import itertools
from collections.abc import Callable

import blake3

from storage.arrays import as_bytes
from storage.reading import Batch
from storage.stream import EventStream


def assert_replays(new_stream: Callable[[], EventStream], epochs: int = 2) -> int:
    """Compare what follows each state with what followed it the first time, bit for bit.

    Args:
        new_stream: Makes the stream, each time at the same state.
        epochs: How many to replay.

    Returns:
        How many states were tried.

    Raises:
        AssertionError: Something differs; the message says after which state.
    """
    stream, states, batches = new_stream(), [], list[str]()
    for _ in range(epochs):
        states.append(stream.state_dict())  # before the epoch's first batch
        for batch in stream:
            batches.append(_digest(batch))
            states.append(stream.state_dict())
        states.pop()  # the epoch's end is the next one's start
    if len(states) != len(batches):
        raise AssertionError(f"{len(states)} states for {len(batches)} batches")
    for step, state in enumerate(states):
        resumed = new_stream()
        resumed.load_state_dict(state)
        passes = itertools.chain.from_iterable(resumed for _ in range(epochs))
        rest = [_digest(batch) for batch in itertools.islice(passes, len(batches) - step)]
        if rest != batches[step:]:
            raise AssertionError(f"what is delivered differs after state {state}")
    return len(states)


def _digest(batch: Batch) -> str:
    digest = blake3.blake3()
    for array in (batch.strain, batch.parameters, batch.event):
        digest.update(repr((array.shape, array.dtype.str)).encode())
        digest.update(as_bytes(array) if array.size else b"")
    return digest.hexdigest()
