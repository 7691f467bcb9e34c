"""Batches on the device: copied as they are stored, one ahead of the step that works on the last.

A float32 event is four times as large as an int8 one, and the bus to a GPU is as slow as memory:
so strain crosses it quantised, and is decoded there (`model.preprocess`). A stream of its own (of
CUDA) copies the next batch from page-locked buffers while the device works on this one.

Not covered yet: the path of CUDA has not been run on a GPU; `tests/model/test_transfer.py` proves
its order of events with a copy that is as late as a copy may be, and has a `gpu` test for the rest.
"""

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Float64, Int64, Shaped
from torch import Tensor

from storage.arrays import Array
from storage.audit import Audit
from storage.errors import DamagedDataError
from storage.stream import Batch, EventStream

__all__ = ["DeviceBatch", "DeviceBatches", "pinned", "put"]


@dataclass(frozen=True)
class DeviceBatch:
    """Some events on a device.

    On the CPU the arrays are views of the loader's buffers: they hold until the next batch is
    taken. On a GPU they are the consumer's own.

    Attributes:
        strain: As stored; `model.preprocess` decodes it.
        parameters: In the order of the data set's schema.
        event: The events' numbers; these stay on the host.
    """

    strain: Shaped[Tensor, "event detector time"]
    parameters: Float64[Tensor, "event parameter"]
    event: Int64[Array, "event"]


class Copy(Protocol):
    """A batch on its way to a device."""

    def wait(self) -> None:
        """Return when the loader's buffer may be used again."""

    def take(self) -> DeviceBatch:
        """Hand it to the work that is put on the device from now on."""


def pinned(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Make a page-locked buffer, which a GPU copies from by itself: `EventStream(allocate=...)`."""
    kind = torch.from_numpy(np.empty(0, dtype)).dtype
    array: Array = torch.empty(shape, dtype=kind, pin_memory=True).numpy()
    return array


def put(batch: Batch, device: torch.device) -> DeviceBatch:
    """Copy a batch to a device, and wait for it; on the CPU nothing is copied."""
    strain, parameters = torch.from_numpy(batch.strain), torch.from_numpy(batch.parameters)
    return DeviceBatch(strain.to(device), parameters.to(device), batch.event)


class DeviceBatches:
    """Iterates over what is left of an epoch of a stream, with the batches on a device.

    On the CPU they are the stream's own, not copied. On a GPU the next batch is copied while the
    consumer works on this one; the state is that of the batch that the consumer has, and what was
    copied ahead comes again if the iteration is abandoned. From then on the stream is this
    object's: load states here.

    Args:
        stream: Of events; for a GPU with `allocate=pinned`, or else copies do not hide.
        device: Where batches go.
    """

    def __init__(self, stream: EventStream, device: torch.device) -> None:
        self.stream, self._device = stream, device
        self._start_copy: Callable[[Batch], Copy] | None = None
        if device.type == "cuda":
            self._start_copy = CudaCopies(device).start
        self._stand = _Stand.of(stream)

    def __len__(self) -> int:
        """Return the number of batches of a whole epoch."""
        return len(self.stream)

    @property
    def audit(self) -> Audit:
        """Of the events that the consumer was given, as `EventStream.audit`."""
        return self._stand.audit if self._start_copy else self.stream.audit

    def state_dict(self) -> dict[str, Any]:
        """Where the consumer stands, as `EventStream.state_dict`."""
        return dict(self._stand.state) if self._start_copy else self.stream.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state; takes effect at the next `iter`.

        Raises:
            InputError: The state is not one of this data set, range of events and order.
        """
        self.stream.load_state_dict(state)
        self._stand = _Stand.of(self.stream)

    def __iter__(self) -> Iterator[DeviceBatch]:
        """Deliver the batches that are left of this epoch."""
        yield from self.epochs(self.state_dict()["epoch"] + 1)

    def epochs(self, stop: int | None = None) -> Generator[DeviceBatch, None, None]:
        """Deliver what is left of this epoch and the epochs after it, as `EventStream.epochs`.

        Args:
            stop: The epoch before which to end; by default there is no end.
        """
        if self._start_copy is not None:
            yield from self._one_ahead(stop, self._start_copy)
            return
        for batch in self.stream.epochs(stop):
            yield put(batch, self._device)

    def _one_ahead(
        self, stop: int | None, start_copy: Callable[[Batch], Copy]
    ) -> Iterator[DeviceBatch]:
        self._stand.restore(self.stream)  # another iterator may be ahead of its consumer
        batches = self.stream.epochs(stop)

        def start_next() -> "_Underway | None":
            batch = next(batches, None)
            return None if batch is None else _Underway(start_copy(batch), _Stand.of(self.stream))

        following = start_next()
        try:
            while following is not None:
                ready, following = following, None
                # Asked for the next batch, the stream fills the buffer of this one again. This
                # copy had the time of the last step.
                ready.copy.wait()
                try:
                    following = start_next()
                except DamagedDataError:
                    yield self._hand_over(ready)  # it is sound: the error comes in its turn
                    raise
                yield self._hand_over(ready)
        finally:
            if following is not None:
                following.copy.wait()
            self._stand.restore(self.stream)

    def _hand_over(self, ready: "_Underway") -> DeviceBatch:
        self._stand = ready.stand
        return ready.copy.take()


@dataclass(frozen=True)
class _Stand:
    """Where a stream stands, and what it delivered."""

    state: dict[str, Any]
    audit: Audit

    @classmethod
    def of(cls, stream: EventStream) -> "_Stand":
        return cls(stream.state_dict(), stream.audit)

    def restore(self, stream: EventStream) -> None:
        """Let a stream that is ahead stand here again."""
        if stream.state_dict() != self.state:
            stream.load_state_dict(self.state)
            stream.audit = self.audit


@dataclass(frozen=True)
class _Underway:
    """A batch that is copied, and where the stream stands after it."""

    copy: Copy
    stand: _Stand


class CudaCopies:
    """Starts copies to a GPU on a CUDA stream of their own.

    Args:
        device: The GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._side = device, torch.cuda.Stream(device)

    def start(self, batch: Batch) -> "CudaCopy":
        """Begin to copy a batch; its strain must stay as it is until `CudaCopy.wait` returns."""
        # Of the small arrays the copy is made from one that nobody else has: PyTorch's allocator
        # keeps a page-locked block until the copies from it are done.
        parameters = torch.from_numpy(batch.parameters).pin_memory()
        done = torch.cuda.Event(blocking=True)
        with torch.cuda.stream(self._side):
            on_device = DeviceBatch(
                torch.from_numpy(batch.strain).to(self._device, non_blocking=True),
                parameters.to(self._device, non_blocking=True),
                batch.event.copy(),
            )
        done.record(self._side)
        return CudaCopy(on_device, done)


@dataclass(frozen=True)
class CudaCopy:
    """A batch on its way to a GPU.

    Attributes:
        batch: Which is whole when `done` has happened.
        done: Happens at the end of the copy.
    """

    batch: DeviceBatch
    done: torch.cuda.Event

    def wait(self) -> None:
        """Block until the copy is done."""
        self.done.synchronize()

    def take(self) -> DeviceBatch:
        """Let the current CUDA stream wait for the copy, and keep the memory until it is through.

        The memory belongs to the stream that copies, which would otherwise use it again as soon as
        the consumer lets go of the tensors, while kernels that read them still wait their turn.
        """
        for tensor in (self.batch.strain, self.batch.parameters):
            current = torch.cuda.current_stream(tensor.device)
            current.wait_event(self.done)
            tensor.record_stream(current)
        return self.batch
