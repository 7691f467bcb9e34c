"""The demo's network on injections by bilby in frames by PyCBC: the way of a real event."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from frame_files import CHANNELS, at_gps, bilby_signal, coloured_noise, write_gwf

from pipeline.config import DatasetConfig
from pipeline.moments import usual_time
from pipeline.priors import PARAMETERS
from pipeline.simulate import Simulator
from storage.results import read_posterior, result_files
from strainflow import main, read_config

RECIPE, NETWORK = "pipeline/recipes/et-demo.yaml", "model/recipes/demo.yaml"
INJECTIONS, SECONDS, RATE, FIRST = 32, 40, 16384, 1600000000
TRAINED = os.environ.get("STRAINFLOW_DEMO")  # a folder left by `make demo`, to save the training


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The demo's training set, and the network trained on it."""
    if TRAINED:
        return Path(TRAINED)
    folder = tmp_path_factory.mktemp("demo")
    data = str(folder / "train.zarr")
    assert main(["simulate", "--config", RECIPE, "--out", data]) == 0
    run = str(folder / "run")
    assert main(["train", "--config", NETWORK, "--data", data, "--out", run]) == 0
    return folder


@pytest.fixture(scope="module")
def injections(bilby_of, tmp_path_factory):
    """Frames, each with an event of the demo's prior at a time of its own, and the truths."""
    folder = tmp_path_factory.mktemp("frames")
    simulator = Simulator.from_config(
        read_config(DatasetConfig, RECIPE, "--events=1", "--seed=77").simulation
    )
    reference, sources, times = bilby_of(simulator), [], []
    for number in range(INJECTIONS):
        drawn = simulator.event(number).parameters.tolist()
        source = dict(zip(PARAMETERS, drawn, strict=True))
        start = FIRST + 10007 * number
        times.append(start + 20.0 + 0.137 * number)
        late = source["geocent_time"] - usual_time(simulator.config)
        sources.append(at_gps(simulator, source, times[-1] + late))
        strain = bilby_signal(reference, sources[-1], RATE, start, SECONDS)
        strain += coloured_noise("EinsteinTelescopeP1600143", 900 + number, RATE, SECONDS)
        write_gwf(folder / f"E-MOCK-{start}-{SECONDS}.gwf", strain, rate=RATE, start=start)
    (folder / "injections.json").write_text(json.dumps(sources))
    return folder, times, sources


@pytest.mark.slow
def test_a_trained_network_covers_injections_in_frames(demo, injections, tmp_path, capsys):
    """Measured: see docs/posteriors.md; run with -s to see the figures."""
    folder, times, sources = injections
    data, results = str(tmp_path / "real.zarr"), str(tmp_path / "results")
    cut = ["cut", "--like", str(demo / "train.zarr"), "--frames", str(folder / "*.gwf")]
    cut += ["--channels", *CHANNELS, "--gps", *map(str, times), "--out", data]
    assert main([*cut, "--injections", str(folder / "injections.json")]) == 0
    assert main(["sample", "--run", str(demo / "run"), "--data", data, "--out", results]) == 0
    capsys.readouterr()
    judged = ["diagnose", results, "--level", "0.01", "--out", str(tmp_path / "pictures"), "--json"]
    assert main(judged) == 0
    verdict = json.loads(capsys.readouterr().out)
    with capsys.disabled():
        print(verdict["combined_p_value"], verdict["checks"])
    assert verdict["events"] == INJECTIONS
    (mass,) = (check for check in verdict["checks"] if check["name"] == "chirp_mass")
    assert mass["narrowing"] > 4
    for path, source in zip(result_files(results), sources, strict=True):
        injected = json.loads(path.read_text())["injection_parameters"]
        for name in ("ra", "geocent_time"):  # as they were injected, in the sky
            assert injected[name] == pytest.approx(source[name], abs=2e-6)
        mass = read_posterior(path).samples[:, 0]
        assert abs(np.median(mass) - source["chirp_mass"]) < 6 * mass.std()
