"""What the loader promises, measured: full-size events of float32, int8 and the usual int16+blosc.

    .venv/bin/python tests/bench/reading.py [FOLDER] [GIGABYTES] [ROUNDS]

Writes sets of random noise, each of so many GB of strain, into the folder, and removes them. Every
line is a promise, what was reached, and whether that keeps it. `bench compare` is part of it where
the peers are installed (pip install 'strainflow[bench]').
"""

import sys
import tempfile
from pathlib import Path

from storage.bench import compare, feed, read
from storage.bench.measure import Rate
from storage.bench.sets import noise_schema, noise_set, usual_encoding
from storage.encodings import encoding_named


def plain(rates: tuple[Rate, ...]) -> float:
    """The best plain reads [GB/s]."""
    return max(rate.gigabytes_per_second for rate in rates if rate.name.startswith("plain"))


def main() -> None:
    """Measure, and hold it against the promises."""
    place = sys.argv[1] if len(sys.argv) > 1 else None
    gigabytes = float(sys.argv[2]) if len(sys.argv) > 2 else 3.2
    rounds = int(sys.argv[3]) if len(sys.argv) > 3 else 5
    encodings = {
        "float32": encoding_named("float32"),
        "int8": encoding_named("int8"),
        "compressed": usual_encoding(),
    }
    said: list[tuple[str, float, float]] = []
    with tempfile.TemporaryDirectory(dir=place) as folder:
        found = {}
        for name, encoding in encodings.items():
            events = int(gigabytes * 1e9 / noise_schema(encoding, 1).event_bytes)
            data = noise_set(Path(folder) / f"{name}.zarr", noise_schema(encoding, events))
            found[name] = read.bench_read(read.ReadBenchConfig(rounds=rounds), data)
            print(read.summary(found[name]), "\n", flush=True)
        fed = feed.bench_feed(feed.FeedBenchConfig(rounds=rounds), Path(folder) / "int8.zarr")
        print(feed.summary(fed), "\n", flush=True)
        compared = compare.bench_compare(
            compare.CompareBenchConfig(rounds=rounds), Path(folder) / "float32.zarr"
        )
        print(compare.summary(compared), "\n", flush=True)
    float32, int8, blosc = found.values()
    said.append(("warm float32 over plain reads", float32.of_limit["warm, global"], 0.9))
    said.append(
        (
            "the same, over reads into as much memory",
            float32.of_limit["warm, global, same memory"],
            0.9,
        )
    )
    said.append(  # of the same minutes: plain reads know nothing of encodings
        (
            "warm int8, as float32, over plain reads",
            int8.float32_equivalent / plain(int8.warm),
            2.5,
        )
    )
    said.append(
        ("warm int16+blosc, as by default, over its limit", blosc.of_limit["warm, global"], 0.85)
    )
    for bench in (float32, int8):
        for order in ("as stored", "global"):
            share = bench.of_limit[f"cold, {order}"]
            said.append((f"cold {bench.encoding} over fio, {order}", share, 0.9))
    said.append(("utilisation with int8 and steps of 50 ms", fed.utilisation, 0.95))
    for name, times in compared.times.items():
        said.append((f"times {name}", times, 10 if name == "webdataset" else 5))
    for what, reached, wanted in said:
        words = "kept" if reached >= wanted else "NOT KEPT"
        print(f"{what:<52} {reached:6.2f}, promised {wanted:5.2f}: {words}")


if __name__ == "__main__":
    main()
