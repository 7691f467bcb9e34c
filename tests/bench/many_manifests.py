"""What the manifests of 10^6, 10^7 and 10^8 events cost: `info`, and a look at every file's length.

    .venv/bin/python tests/bench/many_manifests.py [FOLDER] [EVENTS ...]

The data sets are synthetic: manifests as a run writes them, and files that are as long as they say
but take no room on the disk (holes). Each measurement is a process of its own.
"""

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from storage.dataset import create_dataset
from storage.documents import sealed_json
from storage.encodings import Encoding
from storage.manifest import dataset_identity, manifest_path
from storage.schema import Parameter, Schema, shard_files

STRAIN_BYTES = 512 * 142_000
LOOK = "from storage.dataset import read_schema; from storage.manifest import require_complete; "
LOOK += "import sys; require_complete(sys.argv[1], read_schema(sys.argv[1]))"


def make(folder: Path, events: int) -> int:
    """Make a synthetic data set; return how many files it has."""
    names: tuple[str, ...] = (
        "chirp_mass",
        "mass_ratio",
        "luminosity_distance",
        "ra",
        "dec",
        "a_1",
        "a_2",
        "tilt_1",
    )
    names += ("tilt_2", "theta_jn", "psi", "phi_12", "phi_jl", "phase", "geocent_time")
    schema = Schema(
        events=events,
        events_per_shard=512,
        detectors=("E1", "E2", "E3"),
        samples=65_536,
        sample_rate=8192.0,
        encoding=Encoding("int16", 39 / 256, compressed=True, max_snr_loss=1e-3),
        noisy=True,
        parameters=tuple(Parameter(name, "", "Uniform(0, 1)", 0.0, 1.0) for name in names),
        frequencies=65_537,
        frequency_step=1 / 16,
    )
    create_dataset(folder, schema, np.ones((3, 65_537)))
    identity = dataset_identity(folder)
    lengths = {"strain": STRAIN_BYTES, "parameters": 512 * 15 * 8, "optimal_snr": 512 * 3 * 8}
    generator = np.random.default_rng(0)
    for shard in range(schema.shards):
        files = {}
        for name, path in shard_files(shard).items():
            (folder / path).parent.mkdir(parents=True)
            with (folder / path).open("wb") as file:
                file.truncate(lengths[name])
            files[path] = {"bytes": lengths[name], "blake3": generator.bytes(32).hex()}
        numbers = schema.events_of(shard)
        document = {
            "shard": shard,
            "first_event": numbers.start,
            "events": len(numbers),
            "files": files,
            "crc32c": generator.integers(0, 2**32, len(numbers)).tolist(),
            "largest_snr_loss": 0.00097,
            "worst_event": numbers.start,
            "rejected": {"snr_below_minimum": 3},
            "checks": {"null_stream": {"passed": True}},
            "dataset": identity,
            "replaced": {},
        }
        (folder / manifest_path(shard)).write_bytes(sealed_json(document))
    return sum(len(names) for _, _, names in os.walk(folder))


def measure(*command: str) -> tuple[float, float, str]:
    """Run a command; return seconds, peak memory [MB], and what it printed."""
    start = time.perf_counter()
    done = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    said = done.stdout.read() if done.stdout else ""
    _, status, usage = os.wait4(done.pid, 0)
    assert status == 0, said
    return time.perf_counter() - start, usage.ru_maxrss / 1e3, said


def main() -> None:
    """Measure."""
    place = sys.argv[1] if len(sys.argv) > 1 else None
    numbers = [int(float(word)) for word in sys.argv[2:]] or [10**6, 10**7, 10**8]
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for events in numbers:
        root = Path(tempfile.mkdtemp(dir=place))
        folder = root / "events.zarr"
        files = make(folder, events)
        strainflow = str(Path(sys.executable).with_name("strainflow"))
        measure(strainflow, "info", str(folder), "--json")  # into the cache
        seconds, memory, said = measure(strainflow, "info", str(folder), "--json")
        assert json.loads(said)["complete"]
        look, look_memory, _ = measure(sys.executable, "-c", LOOK, str(folder))
        print(
            f"{events:>12,} events, {files:,} files: info {seconds:.2f} s, {memory:.0f} MB; "
            f"every length {look:.2f} s, {look_memory:.0f} MB",
            flush=True,
        )
        shutil.rmtree(root)


if __name__ == "__main__":
    main()
