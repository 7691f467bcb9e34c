"""From a trained network's samples to evidences, by the commands: its densities are normalised."""

import json
from dataclasses import replace

import numpy as np
import pytest
from toy import SMALL_NETWORK

from model.train import train
from pipeline.description import describe_dataset
from pipeline.evaluate import read_strain
from pipeline.likelihood import Likelihood, SegmentNoise
from pipeline.priors import PARAMETERS
from pipeline.provenance import simulator_of_dataset
from pipeline.shard_task import simulate_shard
from pipeline.simulate import Simulator
from storage.dataset import create_dataset, read_parameters
from storage.results import read_posterior, result_files
from strainflow import main

EVENTS = 6
NEAR, FAR = 30_000, 60_000  # [Mpc]
FLAGS = (
    "--waveform.approximant=IMRPhenomXAS",
    "--waveform.f_lower=30",
    "--waveform.f_ref=30",
    "--segment.duration=1",
    "--segment.generation_duration=2",
    "--segment.sample_rate=1024",
    "--segment.start_time=1577491217.25",
    "--prior.chirp_mass=Uniform(40, 60)",
    "--prior.phase=Uniform(0, 2 * pi)",
    *(f"--prior.{name}=0" for name in ("a_1", "a_2", "tilt_1", "tilt_2", "phi_12", "phi_jl")),
    *("--prior.ra=1", "--prior.dec=0.5", "--prior.theta_jn=0.4", "--prior.psi=0.3"),
    *("--prior.mass_ratio=0.8", f"--prior.luminosity_distance=Uniform{NEAR, FAR}"),
    "--prior.geocent_time=1577491218",
    "--network_snr.minimum=0",
)


@pytest.fixture(scope="module")
def written(et_bbh, tmp_path_factory):
    def write(name, *flags):
        config = et_bbh(*FLAGS, *flags)
        simulator = Simulator.from_config(config.simulation)
        folder = tmp_path_factory.mktemp(name) / f"{name}.zarr"
        schema = describe_dataset(config, simulator)
        create_dataset(folder, schema, simulator.psd)
        for shard in range(schema.shards):
            simulate_shard(str(folder), shard)
        return folder

    return write


def evidence_on_grid(folder, event):
    """Log Bayes factor from sums over 201 chirp masses, 100 phases and 100 distances."""
    simulator, schema = simulator_of_dataset(str(folder))
    noise = SegmentNoise.of(simulator.config, schema)
    data = Likelihood.of(noise, read_strain(str(folder), schema, event)).data
    truth = dict(zip(PARAMETERS, read_parameters(folder)[event], strict=True))
    phases = 2 * np.pi * np.arange(100) / 100
    scales = NEAR / (NEAR + (FAR - NEAR) * (np.arange(100) + 0.5) / 100)
    values = []
    for mass in np.linspace(40, 60, 201):
        source = {**truth, "chirp_mass": mass, "luminosity_distance": NEAR}
        pair = [
            noise.coordinates(simulator.signal({**source, "phase": phase}))
            for phase in (0.0, np.pi / 4)
        ]
        templates = np.outer(np.cos(2 * phases), pair[0]) + np.outer(np.sin(2 * phases), pair[1])
        linear, square = templates @ data, (templates**2).sum(1)
        values.append(np.outer(scales, linear) - np.outer(scales**2, square) / 2)
    values = np.array(values)
    return values.max() + np.log(np.exp(values - values.max()).mean())


@pytest.mark.slow
def test_a_networks_samples_give_the_evidence_of_a_grid(written, tmp_path, capsys):
    """The network infers chirp mass and distance, the phase is left out."""
    to_train_on = written("train", "--events=3000", "--noise=none")
    to_test = written("test", f"--events={EVENTS}", "--seed=9")
    network = replace(
        SMALL_NETWORK, parameters=("chirp_mass", "luminosity_distance"), epochs=20, batch_size=50
    )
    train(network, to_train_on, tmp_path / "run")
    results, samples = tmp_path / "results", "--samples=3000"
    words = ["--run", str(tmp_path / "run"), "--data", str(to_test), "--out", str(results)]
    assert main(["sample", *words, samples, "--device=cpu"]) == 0
    capsys.readouterr()
    assert main(["reweight", str(results), "--cluster.workers=2", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    efficiencies = [event["efficiency"] for event in answer["events"]]
    print("efficiencies", np.round(efficiencies, 3), f"{answer['core_seconds']:.1f} s")
    assert min(efficiencies) > 0.02
    off = [
        (event["log_bayes_factor"] - evidence_on_grid(to_test, event["event"]))
        / event["log_bayes_factor_error"]
        for event in answer["events"]
    ]
    print("evidence off by", np.round(off, 2), "standard errors")
    assert np.abs(off).max() < 3.5
    for path in result_files(results / "reweighted"):
        assert read_posterior(path).names == ("chirp_mass", "luminosity_distance", "phase")
