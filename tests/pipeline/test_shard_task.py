"""A worker's task: the events that the metadata record, in their encoding, or nothing at all."""

import json

import numpy as np
import pytest

import storage
from pipeline.description import describe_dataset
from pipeline.shard_task import simulate_shard
from pipeline.simulate import Simulator
from storage.dataset import create_dataset
from storage.errors import InputError


def test_what_is_recorded_makes_the_same_events_again(et_bbh, tmp_path):
    """A worker reads the physics from the metadata alone, a PSD from a file included."""
    psd_file = tmp_path / "psd.txt"
    psd_file.write_text("5 1e-24\n100 4e-25\n5000 1e-24\n")
    config = et_bbh(f"--psd.file={psd_file}", "--detectors=[E2,L1]", "--events_per_shard=3")
    simulator = Simulator.from_config(config.simulation)
    folder = create_dataset(tmp_path / "x.zarr", describe_dataset(config, simulator), simulator.psd)
    psd_file.unlink()
    reports = [simulate_shard(folder, shard) for shard in range(2)]
    assert [report.events for report in reports] == [3, 1]
    stored = storage.open_dataset(folder)
    for number in range(4):
        assert stored.strain[number].values.tobytes() == simulator.event(number).strain.tobytes()
    assert np.array_equal(stored.psd.values, simulator.psd)


@pytest.mark.parametrize("encoding", ["int16", "float16"])
def test_an_encoding_keeps_the_events_to_its_step(et_bbh, tmp_path, encoding):
    noise = "gaussian" if encoding == "int16" else "none"
    config = et_bbh(f"--encoding={encoding}", f"--noise={noise}")
    simulator = Simulator.from_config(config.simulation)
    folder = create_dataset(tmp_path / "x.zarr", describe_dataset(config, simulator), simulator.psd)
    simulate_shard(folder, 0)
    stored = storage.open_dataset(folder).strain.values
    for number in range(4):
        strain = simulator.event(number).strain
        step = 1 / 128 if encoding == "int16" else 2.0**-11 * np.abs(strain).max()
        assert np.abs(stored[number] - strain).max() <= 1.0001 * step


def test_a_worker_with_other_libraries_writes_nothing(et_bbh, tmp_path):
    config = et_bbh()
    simulator = Simulator.from_config(config.simulation)
    folder = tmp_path / "x.zarr"
    create_dataset(folder, describe_dataset(config, simulator), simulator.psd)
    metadata = json.loads((folder / "zarr.json").read_text())
    metadata["attributes"]["strainflow"]["versions"]["lalsuite"] = "0.0.1"
    (folder / "zarr.json").write_text(json.dumps(metadata))
    with pytest.raises(InputError, match=r"is made with lalsuite 0.0.1, the worker on .* has "):
        simulate_shard(str(folder), 0)
    assert not list(folder.glob("strain/c/*"))
