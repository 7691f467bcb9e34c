"""Blosc frames, the form of a compressed event: what Zarr's BloscCodec and Blosc itself read."""

import struct
from typing import Any

import numcodecs.blosc
import numpy as np
from jaxtyping import Num

from storage.arrays import Array
from storage.encodings import Blosc
from storage.errors import MEND, DamagedDataError

_SHUFFLES = {"noshuffle": 0, "shuffle": 1, "bitshuffle": 2}
_DTYPES = {name: name for name in ("<f4", "<f2", "<i2", "|i1")}  # that we store
_HEADER = struct.Struct("<4B3I")  # versions, flags, typesize; nbytes, blocksize, cbytes

# Blosc's own threads append their blocks as they come, so that the bytes would vary from run to
# run; and those who call it here have a thread for each event.
numcodecs.blosc.use_threads = False


def compress(codes: Num[Array, "*shape"], settings: Blosc) -> bytes:
    """Compress an array as one block, whose bytes do not depend on the machine."""
    frame: bytes = numcodecs.blosc.compress(
        codes,
        settings.cname.encode(),
        settings.clevel,
        _SHUFFLES[settings.shuffle],
        codes.nbytes,
        codes.itemsize,
    )
    return frame


def decompress_into(
    frame: memoryview | bytes, out: Num[Array, "*shape"] | memoryview, where: str
) -> None:
    """Decompress a frame into a buffer; releases Python's lock.

    Args:
        frame: What `compress` made.
        out: Takes exactly what the frame holds.
        where: The event, for the message.

    Raises:
        DamagedDataError: It is no such frame.
    """
    # Blosc believes the lengths in its header, so that a wrong one would lead it out of the buffer.
    sizes = _HEADER.unpack(frame[: _HEADER.size])[4:] if len(frame) >= _HEADER.size else (0, 0, 0)
    if (sizes[0], sizes[2]) != (out.nbytes, len(frame)):
        raise DamagedDataError(f"{where}: is no Blosc frame of {out.nbytes:,} bytes; {MEND}")
    try:
        numcodecs.blosc.decompress(frame, out)
    except (RuntimeError, ValueError) as error:
        raise DamagedDataError(f"{where}: cannot be decompressed ({error}); {MEND}") from None


def decode_strain(sample: dict[str, Any]) -> dict[str, Any]:
    """Decompress the strain of an event that webdataset has read from a tar.

    For `wds.WebDataset(...).decode().map(storage.decode_strain)`: gives compressed events a
    `strain.npy` as uncompressed ones have it, and hands those on as they are.

    Args:
        sample: Of webdataset, after `decode()`.

    Raises:
        DamagedDataError: The event's frame is damaged.
    """
    if "strain.blosc" not in sample:
        return sample
    facts, frame = sample["json"], sample["strain.blosc"]
    try:
        kind = "polarisations" if "polarisations" in facts else "detectors"
        series, samples = len(facts[kind]), facts["samples"]
        dtype, where = np.dtype(_DTYPES[facts["dtype"]]), f"event {facts['event']}"
    except (KeyError, TypeError):
        raise DamagedDataError(f"the JSON of a compressed event was altered; {MEND}") from None
    # The room for it is taken only when the frame says the same.
    length = _HEADER.unpack(frame[: _HEADER.size])[4] if len(frame) >= _HEADER.size else 0
    if type(samples) is not int or samples < 0 or series * samples * dtype.itemsize != length:
        raise DamagedDataError(
            f"{where}: its Blosc frame has not the length that its JSON says; {MEND}"
        )
    try:
        strain = np.empty((series, samples), dtype)
    except MemoryError:
        raise DamagedDataError(f"{where}: {length:,} bytes do not fit into memory") from None
    decompress_into(frame, strain, where)
    return {name: value for name, value in sample.items() if name != "strain.blosc"} | {
        "strain.npy": strain
    }
