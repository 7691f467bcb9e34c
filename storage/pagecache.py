"""How much of a file is in memory already."""

import ctypes
import mmap
import os
from pathlib import Path

import numpy as np


def resident_share(path: Path) -> float:
    """The share of a file's pages that are in the page cache.

    Asks `mincore`, which moves nothing: a read that shall not wait has the kernel read ahead.
    """
    length = path.stat().st_size
    with path.open("rb") as file, mmap.mmap(file.fileno(), length, prot=mmap.PROT_READ) as pages:
        view = np.frombuffer(pages, np.uint8)
        found = np.zeros(-(-length // mmap.PAGESIZE), np.uint8)
        address, there = ctypes.c_void_p(view.ctypes.data), ctypes.c_void_p(found.ctypes.data)
        code = ctypes.CDLL(None, use_errno=True).mincore(address, ctypes.c_size_t(length), there)
        del view
    if code:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(path))
    return float((found & 1).mean())
