"""Make the golden data sets: the bytes to which every later strainflow is held.

    python tests/golden/make.py FOLDER [NAME ...]

writes small data sets, those of `SETS` or some of them by name, and `golden.json`, which says what
a reader has to read in them. `tests/storage/test_golden.py` compares all that with what lies beside
this script. It is made again only where the format's version grows, and that of the old one stays.

`before/0.1.0` and `before/0.2.0` are `float32 int8`, written by those versions: this script with
`PYTHONPATH` at a checkout of commit 1452e2f and of 09f5f31.

All numbers come from the raw output of a bit generator, which numpy keeps as it is, by additions
and multiplications alone: so they have the same bits everywhere.
"""

import json
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import blake3
import numpy as np

from storage.dataset import create_dataset
from storage.encodings import ENCODINGS
from storage.schema import Event, Parameter, Schema
from storage.writer import write_shard

DETECTORS, SAMPLES = ("E1", "E2", "E3"), 200

SCHEMA = Schema(
    events=5,
    events_per_shard=2,  # the last shard is partial
    detectors=DETECTORS,
    samples=SAMPLES,
    sample_rate=256.0,
    encoding=ENCODINGS["float32"],
    noisy=True,
    parameters=(
        Parameter("chirp_mass", "Msun", "Uniform(minimum=25, maximum=100)", 25.0, 100.0),
        Parameter("geocent_time", "s", "Gaussian(mu=0, sigma=1)", None, None),
        Parameter("phase", "rad", "0.5", 0.5, 0.5),
    ),
    frequencies=17,
    frequency_step=1.28,
    provenance={"configuration": {"author": "Jos\u00e9", "waveform": {"f_lower": 5.0}}, "seed": 7},
)

SETS = {
    "float32": {"encoding": "float32"},
    "int8": {"encoding": "int8"},
    "int16+blosc": {"encoding": "int16+blosc", "scale_factor": 0.140625, "max_snr_loss": 1e-3},
    "float16+blosc": {"encoding": "float16+blosc", "max_snr_loss": 1e-4, "noisy": False},
    "float32+blosc": {"encoding": "float32+blosc"},
    "float16": {"encoding": "float16", "noisy": False},
    "int16": {"encoding": "int16"},
    "int8+blosc": {"encoding": "int8+blosc", "scale_factor": 0.140625, "max_snr_loss": 1e-3},
    "polarisations": {
        "encoding": "float16+blosc",
        "max_snr_loss": 1e-4,
        "noisy": False,
        "polarisations": ("plus", "cross"),
    },
}


def schema_of(
    encoding: str, noisy: bool = True, polarisations: tuple[str, ...] = (), **settings: float
) -> Schema:
    """What a set is: the same but for its encoding with some settings, its noise and its series."""
    return replace(
        SCHEMA,
        encoding=replace(ENCODINGS[encoding], **settings),
        noisy=noisy,
        polarisations=polarisations,
    )


def uniform(key: int, count: int) -> np.ndarray:
    """Numbers in [0, 1), multiples of 2^-32."""
    return (np.random.Philox(key=key).random_raw(count) >> np.uint64(32)).astype(float) / 2**32


def make_event(schema: Schema, number: int) -> Event:
    """An event; a function of its number and of whether there is noise."""
    shape = schema.strain_shape
    numbers = uniform(number, 12 * shape[0] * shape[1]).reshape(12, *shape)
    noise = numbers.sum(axis=0) - 6  # of unit variance
    growth = (np.arange(SAMPLES) / SAMPLES) ** 2
    strain = noise if schema.noisy else np.cumsum(noise, axis=1) * growth
    facts = uniform(1000 + number, 5)
    return Event(
        number=number,
        strain=strain,
        parameters=np.array([25 + 75 * facts[0], facts[1] - 0.5, 0.5]),
        optimal_snr=8 + 30 * facts[2:5],
        rejected={"network_snr below 8": number} if number % 2 else {},
    )


def make(folder: Path, names: list[str]) -> None:
    """Write data sets, and what a reader has to read in them."""
    facts: dict[str, object] = {"numcodecs": version("numcodecs")}
    psd = 1e-48 * (1 + uniform(99, len(DETECTORS) * 17).reshape(len(DETECTORS), 17))
    for name in names:
        schema = schema_of(**SETS[name])
        create_dataset(folder / name, schema, psd)
        events = [make_event(schema, number) for number in range(schema.events)]
        for shard in range(schema.shards):
            write_shard(folder / name, schema, shard, (events[n] for n in schema.events_of(shard)))
        without_noise = () if schema.noisy else (False,)
        encoding = schema.encoding
        codes = [encoding.encode(event.strain, 0, *without_noise) for event in events]
        strain = np.stack([encoding.decode(item) for item in codes])
        facts[name] = {
            "strain": digest(strain, "<f4"),
            "parameters": digest(np.stack([event.parameters for event in events]), "<f8"),
            "optimal_snr": digest(np.stack([event.optimal_snr for event in events]), "<f8"),
            "psd": digest(psd, "<f8"),
            "last": strain[4, -1, -3:].tolist(),  # for people
        }
    (folder / "golden.json").write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n")


def digest(values: np.ndarray, dtype: str) -> str:
    """BLAKE3 of an array's shape and numbers."""
    header = f"{values.shape} {dtype} ".encode()
    return blake3.blake3(header + values.astype(dtype).tobytes()).hexdigest()


if __name__ == "__main__":
    make(Path(sys.argv[1]), sys.argv[2:] or list(SETS))
