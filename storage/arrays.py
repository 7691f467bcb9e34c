"""One alias for numpy arrays, so that shapes can be written as `Float[Array, "detector time"]`."""

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]
else:
    Array = np.ndarray
