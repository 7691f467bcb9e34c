"""Noise out of frames in simulated events."""

import json
from dataclasses import replace

import numpy as np
import pytest
from frame_files import CHANNELS, START, coloured_noise, write_gwf, write_gwpy
from scipy.stats import kstest

from pipeline.config import SimulationConfig, simulation_from_dict, simulation_to_dict
from pipeline.cut import CutConfig, cut_dataset
from pipeline.description import describe_dataset
from pipeline.frame_noise import NoiseSource
from pipeline.frames import Frames
from pipeline.provenance import simulator_of_dataset
from pipeline.repair import repair_dataset
from pipeline.run import simulate_dataset
from pipeline.segment import Cutter
from pipeline.simulate import Simulator, simulate_event
from storage.dataset import create_dataset, open_dataset, read_psd, read_schema
from storage.errors import InputError
from storage.info import describe
from strainflow import main

PSD, RATE, SECONDS = "EinsteinTelescopeP1600143", 8192, 64
RECIPE = "pipeline/recipes/et-bbh.yaml"


@pytest.fixture(scope="module")
def strain():
    return coloured_noise(PSD, 3, RATE, SECONDS)


@pytest.fixture(scope="module")
def folder(strain, tmp_path_factory):
    folder = tmp_path_factory.mktemp("noise")
    write_gwf(folder / f"E-E-{START}-{SECONDS}.gwf", strain, rate=RATE)
    return folder


def flag(folder, pattern="*.gwf", channels=CHANNELS):
    noise = {"frames": [str(folder / pattern)], "channels": list(channels)}
    return f"--noise={json.dumps(noise)}"


@pytest.fixture(scope="module")
def with_frames(et_bbh, folder):
    """The recipe, with noise out of frames."""

    def build(*flags):
        return et_bbh("--waveform.approximant=IMRPhenomXP", flag(folder), *flags)

    return build


def noise_of(config, number):
    """What an event holds beside its signal."""
    simulator = Simulator.from_config(config)
    event = simulator.event(number)
    source = dict(zip(simulator.config.prior.distributions(), event.parameters, strict=True))
    return event.strain - simulator.signal(source)


def test_an_event_is_a_pure_function_of_configuration_and_number(with_frames):
    config = with_frames().simulation
    first, again, other = (simulate_event(config, number) for number in (5, 5, 6))
    assert np.array_equal(first.strain, again.strain)
    assert not np.array_equal(first.strain, other.strain)
    quiet = simulate_event(replace(config, noise="none"), 5)
    assert np.array_equal(first.parameters, quiet.parameters)
    assert np.array_equal(first.optimal_snr, quiet.optimal_snr)


def test_the_noise_is_that_of_the_frames_whitened_as_what_is_cut(with_frames, folder):
    config = with_frames().simulation
    simulator = Simulator.from_config(config)
    source = NoiseSource(config.noise, config, simulator.psd)
    noise, rejected = source.draw(3)
    assert rejected == 0
    generator = np.random.default_rng(np.random.SeedSequence(config.seed, spawn_key=(3, 2)))
    start = START + 8 + generator.random() * (SECONDS - 24)
    cutter, frames = Cutter(config, simulator.psd, 8.0), Frames.find([str(folder / "*.gwf")])
    stretches = [frames.read(name, cutter.span(start))[0] for name in CHANNELS]
    assert np.allclose(noise, cutter.segment(stretches, start, generator), atol=1e-5)
    assert np.allclose(noise_of(config, 3), noise, atol=1e-4)
    assert noise.var() == pytest.approx(1 - 10 / 4096, abs=4 * np.sqrt(2 / noise.size))
    assert kstest(noise[1, ::7] / noise.std(), "norm").pvalue > 1e-3


def test_events_take_their_stretches_from_all_the_time_there_is(with_frames):
    config = with_frames().simulation
    simulator = Simulator.from_config(config)
    source = NoiseSource(config.noise, config, simulator.psd)
    places = [source._place(uniform) for uniform in np.linspace(0, 1, 50, endpoint=False)]
    assert places[0] == START + 8
    assert START + SECONDS - 17 < places[-1] <= START + SECONDS - 16
    assert np.allclose(np.diff(places), (SECONDS - 24) / 50, atol=1e-5)


def test_stretches_with_what_is_no_number_are_drawn_again(et_bbh, strain, tmp_path):
    holed = strain.copy()
    holed[1, 30 * RATE : 31 * RATE] = np.nan
    write_gwpy(tmp_path / "x.hdf5", holed, rate=RATE)
    config = et_bbh("--waveform.approximant=IMRPhenomXP", flag(tmp_path, "x.hdf5")).simulation
    simulator = Simulator.from_config(config)
    events = list(simulator.events(range(6)))
    assert all(np.isfinite(event.strain).all() for event in events)
    assert sum(event.rejected.get("noise_incomplete", 0) for event in events) > 0


def test_a_data_set_records_the_frames_and_is_repaired_from_them(
    with_frames, running_cluster, tmp_path, folder
):
    config = replace(with_frames("--events=4", "--events_per_shard=2"), cluster=running_cluster)
    out = tmp_path / "x.zarr"
    simulate_dataset(config, out)
    facts = read_schema(out).provenance["noise_frames"]
    assert list(facts["files"]) == [f"E-E-{START}-{SECONDS}.gwf"]
    assert describe(out).complete
    before = (out / "strain/c/1/0/0").read_bytes()
    (out / "strain/c/1/0/0").unlink()
    report = repair_dataset(out, running_cluster, accept=False)
    assert (report.shards, report.remaining) == ([1], [])
    assert (out / "strain/c/1/0/0").read_bytes() == before
    simulator, _ = simulator_of_dataset(str(out))
    stored = open_dataset(out)["strain"].values[3]
    assert np.array_equal(simulator.event(3).strain, stored)


def test_frames_that_have_changed_are_refused(et_bbh, running_cluster, strain, tmp_path):
    short = strain[:, : 28 * RATE]
    write_gwpy(tmp_path / "x.hdf5", short, rate=RATE)
    config = et_bbh("--waveform.approximant=IMRPhenomXP", flag(tmp_path, "x.hdf5"))
    config = replace(config, cluster=running_cluster)
    simulate_dataset(config, tmp_path / "x.zarr")
    assert simulate_dataset(config, tmp_path / "x.zarr").simulated == 0
    write_gwpy(tmp_path / "x.hdf5", 1.01 * short, rate=RATE)
    with pytest.raises(InputError, match=r"another configuration \(noise_frames.files.x.hdf5"):
        simulate_dataset(config, tmp_path / "x.zarr")


def test_the_psd_of_the_frames_can_be_estimated(with_frames):
    simulator = Simulator.from_config(with_frames("--psd.name=estimate").simulation)
    named = Simulator.from_config(with_frames().simulation).psd
    band = named > 0
    assert np.mean(simulator.psd[band] / named[band]) == pytest.approx(1, abs=0.05)
    assert not np.array_equal(simulator.psd[0], simulator.psd[1])


def test_the_configuration_comes_back_from_the_metadata(with_frames):
    config = with_frames().simulation
    assert isinstance(config, SimulationConfig)
    document = json.loads(json.dumps(simulation_to_dict(config)))
    assert simulation_from_dict(document) == config


REFUSALS = {
    "noise.channels: got 2, the detectors are E1, E2, E3": {"channels": CHANNELS[:2]},
    "no file is called": {"pattern": "*.hdf"},
    "frames: no file holds the channel E9:STRAIN": {"channels": (*CHANNELS[:2], "E9:STRAIN")},
    "noise: name frames, and a channel": {"channels": ()},
}


@pytest.mark.parametrize("sentence", REFUSALS)
def test_frames_that_cannot_serve_end_the_call_with_one_sentence(
    sentence, folder, tmp_path, capsys
):
    call = ["simulate", "--config", RECIPE, "--events=2", "--out", str(tmp_path / "x.zarr")]
    assert main([*call, "--psd.name=estimate", flag(folder, **REFUSALS[sentence])]) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("noise", "sentence"),
    [
        ("pink", "noise: got pink; wanted is gaussian, none, or frames of detectors: {frames: "),
        ("{frames: [a.gwf]}", "noise: the following arguments are required: channels; wanted is"),
        ("{frames: a.gwf, channels: [E1:X]}", "noise: frames: Expected a tuple"),
    ],
)
def test_noise_that_is_none_is_answered_in_one_sentence(noise, sentence, tmp_path, capsys):
    call = ["simulate", "--config", RECIPE, "--events=2", "--out", str(tmp_path / "x.zarr")]
    assert main([*call, "--noise", noise]) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1
    assert "pipeline." not in said


def test_too_short_frames_are_refused(et_bbh, strain, tmp_path):
    write_gwf(tmp_path / "x.gwf", strain[:, : 20 * RATE], rate=RATE)
    config = et_bbh("--waveform.approximant=IMRPhenomXP", flag(tmp_path, "x.gwf")).simulation
    with pytest.raises(InputError, match="nowhere do all channels cover the 24 s"):
        simulate_event(config, 0)


def test_an_estimate_needs_frames(et_bbh):
    with pytest.raises(InputError, match="estimate needs frames to estimate from"):
        et_bbh("--psd.name=estimate")


def test_the_stored_psd_is_that_of_the_frames(with_frames, running_cluster, tmp_path):
    config = replace(with_frames("--psd.name=estimate", "--events=2"), cluster=running_cluster)
    simulate_dataset(config, tmp_path / "x.zarr")
    simulator = Simulator.from_config(config.simulation)
    assert np.array_equal(read_psd(tmp_path / "x.zarr"), simulator.psd)


def test_events_are_cut_like_those_with_noise_out_of_frames(with_frames, folder, tmp_path):
    config = with_frames("--psd.name=estimate")
    simulator = Simulator.from_config(config.simulation)
    create_dataset(tmp_path / "x.zarr", describe_dataset(config, simulator), simulator.psd)
    cut = CutConfig(frames=(str(folder / "*.gwf"),), channels=CHANNELS, gps=(START + 30.0,))
    cut_dataset(cut, tmp_path / "x.zarr", tmp_path / "cut.zarr")
    assert np.array_equal(read_psd(tmp_path / "cut.zarr"), simulator.psd)
    assert open_dataset(tmp_path / "cut.zarr")["strain"].std() == pytest.approx(1, abs=0.03)
