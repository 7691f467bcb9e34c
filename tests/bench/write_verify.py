"""How fast shards are written and verified, against what plain programs get of the same disk.

.venv/bin/python tests/bench/write_verify.py [FOLDER] [ROUNDS]

Each contestant does the same bytes on the same disk in the same minutes, in an order drawn anew
each round. The disk's own speed is what plain programs get, the better of two: 16 MB at a time
through the page cache, and past it (O_DIRECT, aligned memory). All writes are of new files, synced
at the end as each shard is. Cold: the files' pages are dropped before, which is checked. 1, 2:
processes, a shard each at a time.
"""

import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from storage.arrays import aligned_empty, as_bytes
from storage.bench.limits import (
    PAGE,
    PIECE,
    drop_from_cache,
    read_plainly,
    strain_files,
    write_plainly,
)
from storage.bench.sets import noise, noise_schema, noise_set, write_shards
from storage.manifest import require_complete
from storage.schema import GROUP_METADATA
from storage.verify import verify_shard

SHARDS = 4
SCHEMA = noise_schema("float32", 512 * SHARDS, 512)
STRAIN = noise(SCHEMA)


def room() -> memoryview:
    """Memory as disks want it: in a child, what its parent allocated is copied to small pages."""
    return as_bytes(aligned_empty((PIECE,), np.dtype(np.uint8)))


def read_one(folder: Path, shard: int) -> None:
    """Read a shard's file of strain through the page cache."""
    read_plainly(strain_files(folder, [shard]), 1)


def read_past_cache(folder: Path, shard: int) -> None:
    """Read it past the page cache."""
    (path,) = strain_files(folder, [shard])
    descriptor, buffer, offset = os.open(path, os.O_RDONLY | os.O_DIRECT), room(), 0
    while count := os.preadv(descriptor, [buffer], offset):
        offset += count
        if count % PAGE:
            break
    os.close(descriptor)
    assert offset == path.stat().st_size, f"{path}: read {offset} bytes"


def verify(folder: Path, shard: int) -> None:
    """Verify a shard."""
    found = verify_shard(folder, (folder / GROUP_METADATA).read_bytes(), shard).findings
    assert not found, found


def processor_time(work: Callable[[], object]) -> float:
    """Do something, and say how long this process's processors were at work for it [s]."""
    start = time.process_time()
    work()
    return time.process_time() - start


def main() -> None:
    """Measure."""
    place = sys.argv[1] if len(sys.argv) > 1 else None
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 5
    root = Path(tempfile.mkdtemp(dir=place))
    folder, shards = noise_set(root / "events.zarr", SCHEMA), range(SHARDS)
    files, copies = strain_files(folder, shards), [root / f"plain-{shard}" for shard in shards]
    lengths = [path.stat().st_size for path in files]
    gigabytes = sum(lengths) / 1e9
    seconds, processor = dict[str, list[float]](), dict[str, list[float]]()

    def timed(name: str, work: Callable[[], float]) -> None:
        start = time.perf_counter()
        spent = work()
        seconds.setdefault(name, []).append(time.perf_counter() - start)
        processor.setdefault(name, []).append(spent)

    def write(name: str, work: Callable[[], object], written: list[Path]) -> None:
        for path in written:  # freeing them is no part of writing
            path.unlink(missing_ok=True)
        timed(name, partial(processor_time, work))

    def read(state: str, name: str, work: Callable[[Path, int], None], two: bool) -> None:
        tasks = [partial(work, folder, shard) for shard in shards]
        if state == "cold":
            drop_from_cache(files)
        each = pool.map if two else map
        timed(f"{state}, {2 if two else 1}: {name}", lambda: sum(each(processor_time, tasks)))

    writers: dict[str, tuple[Callable[[], object], list[Path]]] = {
        "plain": (partial(write_plainly, root, lengths, past_cache=False), copies),
        "plain past the cache": (partial(write_plainly, root, lengths, past_cache=True), copies),
        "write_shard": (partial(write_shards, folder, SCHEMA, STRAIN), files),
    }
    readers = {"plain": read_one, "plain past the cache": read_past_cache, "verify_shard": verify}
    write_plainly(root, [PAGE], past_cache=True)  # makes its bytes, outside the clock
    with ProcessPoolExecutor(2) as pool:
        list(pool.map(verify, [folder] * SHARDS, shards))  # imports
        for _ in range(rounds):
            for name in random.sample(list(writers), len(writers)):
                write(f"write: {name}", *writers[name])
            jobs = [(name, two) for name in readers for two in (False, True)]
            for name, two in random.sample(jobs, len(jobs)):
                read("cold", name, readers[name], two)
            for shard in shards:
                read_one(folder, shard)
            for name, two in random.sample(jobs, len(jobs)):
                if name != "plain past the cache":
                    read("warm", name, readers[name], two)
    require_complete(folder, SCHEMA)
    shutil.rmtree(root)
    print(f"{gigabytes:.2f} GB in {SHARDS} shards of float32, medians of {rounds} rounds")
    for name in sorted(seconds):
        low, high = gigabytes / max(seconds[name]), gigabytes / min(seconds[name])
        median = gigabytes / statistics.median(seconds[name])
        spent = statistics.median(processor[name]) / gigabytes
        print(f"  {name:<32} {median:5.2f} GB/s ({low:.2f} to {high:.2f}), {spent:.2f} CPU-s/GB")
    for name in sorted(seconds):
        work, _, ours = name.partition(": ")
        for plain in (f"{work}: plain", f"{work}: plain past the cache"):
            if ours in ("write_shard", "verify_shard") and plain in seconds:
                pairs = zip(seconds[name], seconds[plain], strict=True)
                ratios = sorted(plainly / here for here, plainly in pairs)
                print(
                    f"  {name} reaches {statistics.median(ratios):.2f} "
                    f"({ratios[0]:.2f} to {ratios[-1]:.2f}) of {plain}"
                )


if __name__ == "__main__":
    main()
