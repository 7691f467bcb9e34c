"""How fast `EventStream` reads a float32 set in the page cache: against plain reads and webdataset.

    python tests/bench/stream_rate.py [EVENTS]

Writes a set of full-size events of random numbers (reading does not care what they are) into the
working directory, measures as `strainflow bench read` does, and removes it.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np

from storage.bench import ReadBenchConfig, bench_read, summary
from storage.dataset import create_dataset
from storage.encodings import ENCODINGS
from storage.schema import Event, Parameter, Schema
from storage.writer import write_shard


def main(events: int) -> None:
    schema = Schema(
        events=events,
        events_per_shard=256,
        detectors=("E1", "E2", "E3"),
        samples=65536,
        sample_rate=8192.0,
        encoding=ENCODINGS["float32"],
        noisy=True,
        parameters=(Parameter("chirp_mass", "Msun", "Uniform(25, 100)", 25.0, 100.0),),
        frequencies=2,
        frequency_step=1.0,
    )
    generator = np.random.default_rng(0)
    strain = generator.standard_normal(schema.strain_shape, np.float32)
    with tempfile.TemporaryDirectory(dir=".") as folder:
        root = create_dataset(Path(folder) / "rate.zarr", schema, np.ones((3, 2)))
        for shard in range(schema.shards):
            numbers = schema.events_of(shard)
            write_shard(
                root,
                schema,
                shard,
                (Event(n, strain, np.array([float(n)]), np.ones(3), {}) for n in numbers),
            )
        print(summary(bench_read(ReadBenchConfig(), root)))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2048)
