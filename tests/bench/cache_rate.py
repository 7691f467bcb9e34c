"""What a hit of the cache costs: against plain reads of the same files, from the page cache.

    python tests/bench/cache_rate.py [FOLDER]

Writes 300 MB of items of 200 kB and of 3 MB each into a folder of its own there (here by default),
reads them in turns with two threads, and removes it.
"""

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from storage.cache.folder import CacheFolder
from storage.cache.item import KEY_BYTES

TOTAL, TURNS, THREADS, TOGETHER = 300_000_000, 9, 2, 64  # bytes, and items a `put`


def seconds(work: Callable[[bytes], object], keys: list[bytes]) -> float:
    def some(first: int) -> None:
        for key in keys[first::THREADS]:
            work(key)

    begin = time.perf_counter()
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(some, range(THREADS)))
    return time.perf_counter() - begin


def measure(folder: str, size: int) -> None:
    cache, content = CacheFolder(folder, 2 * TOTAL), os.urandom(size)
    keys = [os.urandom(KEY_BYTES) for _ in range(TOTAL // size)]
    begin = time.perf_counter()
    for first in range(0, len(keys), TOGETHER):
        cache.put([(key, content) for key in keys[first : first + TOGETHER]])
    put = time.perf_counter() - begin

    def plain(key: bytes) -> None:
        descriptor = os.open(cache._path(key), os.O_RDONLY)
        assert len(os.pread(descriptor, size, 0)) == size
        os.close(descriptor)

    def hit(key: bytes) -> None:
        assert cache.get(key, size) is not None

    taken: dict[str, list[float]] = {"plain": [], "hit": []}
    for _ in range(TURNS):
        taken["plain"].append(seconds(plain, keys))
        taken["hit"].append(seconds(hit, keys))
    ratio = statistics.median(p / h for p, h in zip(*taken.values(), strict=True))
    rates = {name: TOTAL / 1e9 / statistics.median(times) for name, times in taken.items()}
    print(
        f"items of {size / 1e3:,.0f} kB: plain reads {rates['plain']:.2f} GB/s, hits "
        f"{rates['hit']:.2f} GB/s, {ratio:.2f} of that; put {TOTAL / 1e9 / put:.2f} GB/s"
    )


if __name__ == "__main__":
    for size in (200_000, 3_000_000):
        with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else ".") as place:
            measure(place, size)
