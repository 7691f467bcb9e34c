"""One alias for numpy arrays, so that shapes can be written as `Float[Array, "detector time"]`."""

from typing import TYPE_CHECKING, Any

import numpy as np

PAGE = 4096

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]
else:
    Array = np.ndarray


def as_bytes(array: Array) -> memoryview:
    """The bytes of a contiguous array, to read into or to write."""
    if not array.size:  # which cannot be cast
        return memoryview(b"")
    return memoryview(array.data).cast("B")


def aligned_empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """An array that begins at a page, as disks want it that are read past the page cache."""
    size = int(np.prod(shape)) * dtype.itemsize
    room = np.empty(size + PAGE, np.uint8)
    start = -room.ctypes.data % PAGE
    array: Array = room[start : start + size].view(dtype).reshape(shape)
    return array
