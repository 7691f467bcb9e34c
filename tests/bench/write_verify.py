"""How fast shards are written and verified, against plain writes and reads of the same bytes.

.venv/bin/python tests/bench/write_verify.py [FOLDER] [ROUNDS]

Each contestant does the same bytes on the same disk in the same minutes, in alternation. Plain
writes are of 16 MB, synced at the end as each shard is; plain reads are of 16 MB. Cold: the files'
pages are dropped before, which is checked. Two: two processes, a shard each at a time.
"""

import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from storage.dataset import create_dataset
from storage.encodings import ENCODINGS
from storage.manifest import require_complete
from storage.schema import GROUP_METADATA, Event, Parameter, Schema, shard_files
from storage.verify import verify_shard
from storage.writer import write_shard

PIECE = 16 * 2**20
SHARDS = 4
SCHEMA = Schema(
    events=512 * SHARDS,
    events_per_shard=512,
    detectors=("E1", "E2", "E3"),
    samples=65_536,
    sample_rate=8192.0,
    encoding=ENCODINGS["float32"],
    noisy=True,
    parameters=(Parameter("chirp_mass", "Msun", "Uniform(25, 100)", 25.0, 100.0),),
    frequencies=9,
    frequency_step=1.0,
)
STRAIN = [
    np.random.default_rng(k).standard_normal((3, 65_536)).astype(np.float32) for k in range(16)
]


def events(shard: int) -> Iterator[Event]:
    """Events whose strain is at hand."""
    for number in SCHEMA.events_of(shard):
        yield Event(number, STRAIN[number % 16], np.array([30.0]), np.ones(3), {})


def write_plainly(folder: Path) -> None:
    """Write as many bytes as the shards have."""
    length = (folder / shard_files(0)["strain"]).stat().st_size
    data = memoryview(np.concatenate(STRAIN).tobytes())[:PIECE]
    for shard in range(SHARDS):
        with (folder.parent / f"plain-{shard}").open("wb", buffering=0) as file:
            for start in range(0, length, PIECE):
                file.write(data[: min(PIECE, length - start)])
            os.fsync(file.fileno())


def write_shards(folder: Path) -> None:
    """Write all shards anew."""
    for shard in range(SHARDS):
        write_shard(folder, SCHEMA, shard, events(shard))


def read_plainly(folder: Path, shard: int) -> None:
    """Read a shard's file of strain."""
    buffer = memoryview(bytearray(PIECE))
    with (folder / shard_files(shard)["strain"]).open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def verify(folder: Path, shard: int) -> None:
    """Verify a shard."""
    found = verify_shard(folder, (folder / GROUP_METADATA).read_bytes(), shard).findings
    assert not found, found


def drop(folder: Path) -> None:
    """Drop the shards' pages, and see that they are gone."""
    for shard in range(SHARDS):
        descriptor = os.open(folder / shard_files(shard)["strain"], os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        try:
            os.preadv(descriptor, [bytearray(4096)], 100 * 2**20, os.RWF_NOWAIT)
        except BlockingIOError:
            pass
        else:
            raise SystemExit("the pages cannot be dropped here: no cold reads")
        finally:
            os.close(descriptor)


def main() -> None:
    """Measure."""
    place = sys.argv[1] if len(sys.argv) > 1 else None
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 5
    root = Path(tempfile.mkdtemp(dir=place))
    folder = root / "events.zarr"
    create_dataset(folder, SCHEMA, np.ones((3, 9)))
    write_shards(folder)
    gigabytes = SHARDS * (folder / shard_files(0)["strain"]).stat().st_size / 1e9
    shards = range(SHARDS)
    seconds: dict[str, list[float]] = {}

    def timed(name: str, work: Callable[[], object]) -> None:
        start = time.perf_counter()
        work()
        seconds.setdefault(name, []).append(time.perf_counter() - start)

    with ProcessPoolExecutor(2) as pool:
        list(pool.map(verify, [folder] * SHARDS, shards))  # imports
        for _ in range(rounds):
            timed("plain writes", lambda: write_plainly(folder))
            timed("write_shard", lambda: write_shards(folder))
            for state in ("cold", "warm"):
                for name, work in (("plain reads", read_plainly), ("verify_shard", verify)):
                    if state == "cold":
                        drop(folder)
                    timed(f"{name}, {state}", lambda w=work: [w(folder, s) for s in shards])
                    if state == "cold":
                        drop(folder)
                    timed(
                        f"{name}, {state}, two",
                        lambda w=work: list(pool.map(w, [folder] * SHARDS, shards)),
                    )
    require_complete(folder, SCHEMA)
    shutil.rmtree(root)
    print(f"{gigabytes:.2f} GB in {SHARDS} shards of float32, medians of {rounds} rounds")
    for name, values in sorted(seconds.items()):
        low, high = gigabytes / max(values), gigabytes / min(values)
        median = gigabytes / statistics.median(values)
        print(f"  {name:<26} {median:6.2f} GB/s  ({low:.2f} to {high:.2f})")
    for ours, plain in (
        ("write_shard", "plain writes"),
        *((f"verify_shard, {s}", f"plain reads, {s}") for s in ("cold", "warm")),
        *((f"verify_shard, {s}, two", f"plain reads, {s}, two") for s in ("cold", "warm")),
    ):
        ratios = [p / o for o, p in zip(seconds[ours], seconds[plain], strict=True)]
        print(f"  {ours} reaches {statistics.median(ratios):.2f} of {plain}")


if __name__ == "__main__":
    main()
