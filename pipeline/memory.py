"""Keeps the memory that an event frees for the next event.

glibc gives arrays of megabytes back to the kernel as soon as they are freed, and Dask asks it to do
so eagerly. The next event then spends as long on page faults as on physics: a waveform call takes
19 ms instead of 11.
"""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # from malloc.h
LARGEST_MMAP_THRESHOLD = 32 * 2**20  # glibc refuses more


def keep_freed_memory() -> None:
    """Tell this process's allocator not to return memory; without effect where it is not glibc."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_TRIM_THRESHOLD, 2**30)
        mallopt(M_MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD)
