"""Polarisations that are projected by torch are the simulator's signals."""

from dataclasses import replace

import lal
import numpy as np
import pytest
import torch
import xarray
from polarised import POLARISATIONS, facts_of, short, sources_of, write_set

from model.estimator import DataFacts
from model.polarisations import PolarisationFacts, read_facts
from model.projection import Projection, Sources
from pipeline.config import DatasetConfig
from pipeline.description import describe_dataset
from pipeline.simulate import Simulator
from storage import open_dataset
from storage.dataset import read_optimal_snr, read_parameters, read_schema
from storage.errors import DamagedDataError
from strainflow import read_config

CPU = torch.device("cpu")
ROUNDING = 1e-6  # of the norm; 4e-7 at most were found


class Pair:
    """A simulator, and the projection of its polarisations."""

    def __init__(self, config) -> None:
        self.simulator = Simulator.from_config(config.simulation)
        self.facts = facts_of(config, self.simulator)
        self.projection = Projection.of(self.facts, CPU)

    def draw(self, seed):
        """A waveform's source, what is stored of it, and the same waveform elsewhere."""
        generator = np.random.default_rng(seed)
        first, other = (self.simulator.draw_parameters(generator) for _ in range(2))
        waves = self.simulator.waves(first)
        series = self.simulator.series.of(waves, first["luminosity_distance"])
        return series, {**first, **{name: other[name] for name in Sources._fields}}

    def error(self, seed, projection=None, **changes):
        """Norm of the difference to the simulator's signal over the norm of that."""
        series, source = self.draw(seed)
        wanted = torch.from_numpy(self.simulator.signal(source))
        project = projection or self.projection
        found = project(torch.from_numpy(series)[None], sources_of({**source, **changes}))[0]
        return ((found - wanted).norm() / wanted.norm()).item()


# Times all over the segment: what a shift moves over its ends has to come back.
ANY_TIME = "--prior.geocent_time=Uniform(1577491215.5, 1577491218.9)"


@pytest.fixture(scope="module")
def pair_of():
    made = {}

    def pair(recipe):
        if recipe not in made:
            flags = ["--events=1", "--noise=none", POLARISATIONS, ANY_TIME]
            config = read_config(DatasetConfig, f"pipeline/recipes/{recipe}.yaml", *flags)
            made[recipe] = Pair(config)
        return made[recipe]

    return pair


@pytest.mark.parametrize("recipe", ["et-bbh", "hlv-bbh"])
@pytest.mark.parametrize("seed", range(6))
def test_the_projection_is_the_simulators_signal_anywhere_in_the_sky(pair_of, recipe, seed):
    assert pair_of(recipe).error(seed) < ROUNDING


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["et-bbh", "et-lowmass", "hlv-bbh"])
def test_so_it_is_of_a_hundred_sources_of_each_network(pair_of, recipe):
    assert max(pair_of(recipe).error(seed) for seed in range(100, 200)) < ROUNDING


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["et-bbh", "hlv-bbh"])
def test_the_default_encoding_costs_projected_signals_no_more_than_what_it_promises(
    tmp_path, recipe
):
    flags = [f"pipeline/recipes/{recipe}.yaml", "--events=96", "--events_per_shard=96"]
    exact = read_config(DatasetConfig, *flags, "--noise=none", "--encoding=float32")
    stored = read_config(DatasetConfig, *flags, "--noise=none", POLARISATIONS)
    exact_set, data = write_set(tmp_path / "s.zarr", exact), write_set(tmp_path / "p.zarr", stored)
    wanted, found = open_dataset(exact_set).strain, projected(data)
    assert read_schema(data).encoding.max_snr_loss == 1e-4
    losses = []
    for event, signal in enumerate(found):
        other = wanted[event].values.astype(float)
        product = float(np.sum(signal.astype(float) * other))
        losses.append(1 - product / (np.linalg.norm(other) * np.linalg.norm(signal)))
    assert 2e-5 < max(losses) < 1e-4  # 9e-5 was found


def projected(data):
    """The strain of a set of polarisations with the sources that it holds."""
    schema = read_schema(data)
    projection = Projection.of(read_facts(schema, data), CPU)
    table = dict(zip(schema.parameter_names, read_parameters(data).T, strict=True))
    sources = Sources(*(torch.from_numpy(table[name].copy()) for name in Sources._fields))
    series = torch.from_numpy(open_dataset(data).strain.values.astype(np.float32))
    return projection(series, sources).numpy()


def test_the_comparison_notices_what_is_wrong_by_little(pair_of):
    pair = pair_of("hlv-bbh")
    series, source = pair.draw(0)
    plain = pair.projection
    exchanged = replace(plain, psd_of=plain.psd_of[::-1])
    still = replace(plain, facts=replace(plain.facts, sidereal_rate=0.0))
    assert pair.error(0, psi=source["psi"] + 1e-3) > 100 * ROUNDING
    assert pair.error(0, luminosity_distance=1.001 * source["luminosity_distance"]) > 9e-4
    assert pair.error(0, geocent_time=source["geocent_time"] + 1e-5) > 100 * ROUNDING
    assert pair.error(0, replace(plain, locations=0 * plain.locations)) > 0.01
    assert pair.error(0, still, ra=source["ra"]) > 3 * ROUNDING
    assert pair.error(0, exchanged) > 0.01


@pytest.mark.parametrize("encoding", ["float32", "float16+blosc"])
def test_a_set_of_polarisations_is_the_set_of_strain_before_the_projection(tmp_path, encoding):
    """With the parameters that it holds, and by the window: each source is the same."""
    plain = write_set(tmp_path / "strain.zarr", short(events=16))
    flags = [f"--encoding={encoding}", *(["--max_snr_loss=1e-4"] if "16" in encoding else [])]
    data = write_set(tmp_path / "p.zarr", short(POLARISATIONS, *flags, events=16))
    assert np.array_equal(read_parameters(data), read_parameters(plain))
    assert np.array_equal(read_optimal_snr(data), read_optimal_snr(plain))
    found = projected(data)
    wanted = open_dataset(plain).strain.values
    errors = np.linalg.norm(found - wanted, axis=(1, 2)) / np.linalg.norm(wanted, axis=(1, 2))
    # A loss of 1e-4 is an error of 0.014 of the norm of both polarisations; of what a network that
    # hears one of them less has, it may be more.
    assert errors.max() < (ROUNDING if encoding == "float32" else 0.03)
    assert DataFacts.of(read_schema(data)).samples == wanted.shape[-1]


def test_a_reader_of_the_format_alone_makes_the_same_events(tmp_path):
    """By the words of storage/FORMAT.md, with LAL's antenna factors."""
    data = write_set(tmp_path / "p.zarr", short(POLARISATIONS, events=6))
    opened, found = xarray.open_zarr(data), projected(data)
    facts = opened.attrs["strainflow"]
    projection, names = facts["projection"], read_schema(data).parameter_names
    psd, spectra = opened.psd.values, np.fft.rfft(opened.strain.values.astype(float))
    frequencies = opened.psd.attrs["frequency_step"] * np.arange(psd.shape[1])
    for event, (plus, cross) in enumerate(spectra):
        source = dict(zip(names, opened.parameters.values[event], strict=True))
        late = source["geocent_time"] - projection["reference_time"]
        sidereal = projection["sidereal_time"] + projection["sidereal_rate"] * late
        hour, dec = sidereal - source["ra"], source["dec"]
        n = np.array([np.cos(dec) * np.cos(hour), -np.cos(dec) * np.sin(hour), np.sin(dec)])
        for row, detector in enumerate(facts["detectors"]):
            response = np.array(detector["response"])
            angles = source["ra"], dec, source["psi"], sidereal
            f_plus, f_cross = lal.ComputeDetAMResponse(response, *angles)
            delay = -n @ np.array(detector["location"]) / 299_792_458
            ratio = np.sqrt(psd[0] / np.where(psd[row] > 0, psd[row], np.inf))
            ratio *= projection["reference_distance"] / source["luminosity_distance"]
            turn = np.exp(-2j * np.pi * frequencies * (late + delay))
            whole = np.fft.irfft((f_plus * plus + f_cross * cross) * turn * ratio)
            wanted = whole[-projection["samples"] :]
            assert np.linalg.norm(found[event, row] - wanted) < ROUNDING * np.linalg.norm(wanted)


def test_an_event_does_not_depend_on_those_beside_it():
    config = short(POLARISATIONS)
    pair = Pair(config)
    drawn = [pair.draw(seed) for seed in range(5)]
    series = torch.from_numpy(np.stack([series for series, _ in drawn]))
    sources = sources_of(*(source for _, source in drawn))
    together = pair.projection(series, sources)
    for row in range(5):
        alone = Sources(*(column[row : row + 1] for column in sources))
        found = pair.projection(series[row : row + 1], alone)[0]
        assert (found - together[row]).norm() < ROUNDING * together[row].norm()


def test_detectors_with_one_psd_take_no_other_whitening(pair_of):
    assert not pair_of("et-bbh").projection.is_reweighted
    assert pair_of("hlv-bbh").projection.is_reweighted


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"reference_time": None}, "reference_time"),
        ({"sidereal_time": "noon"}, "noon"),
        ({"samples": 10**6}, "the number of samples 1000000"),
        ({"network_snr": 8.0}, "float"),
        ({"network_snr": [200, 8]}, "network_snr"),
        ({"reference_distance": 0}, "the number 0"),
        ({"sidereal_rate": True}, "the number True"),
        (None, "projection"),
    ],
)
def test_metadata_that_do_not_say_how_are_damage(change, what):
    config = short(POLARISATIONS)
    simulator = Simulator.from_config(config.simulation)
    schema = describe_dataset(config, simulator)
    provenance = dict(schema.provenance)
    recorded = provenance.pop("projection")
    if change is not None:
        values = {**recorded, **change}
        provenance["projection"] = {k: v for k, v in values.items() if v is not None}
    with pytest.raises(DamagedDataError, match=f"do not say how polarisations become.*{what}"):
        PolarisationFacts.of(replace(schema, provenance=provenance), simulator.psd, "events.zarr")


def test_what_is_too_little_or_in_another_order_is_damage():
    config = short(POLARISATIONS)
    simulator = Simulator.from_config(config.simulation)
    schema = describe_dataset(config, simulator)
    exchanged = replace(schema, polarisations=schema.polarisations[::-1])
    with pytest.raises(DamagedDataError, match="the order of"):
        PolarisationFacts.of(exchanged, simulator.psd, "events.zarr")
    with pytest.raises(DamagedDataError, match="the shape of psd"):
        PolarisationFacts.of(schema, simulator.psd[:, :-1], "events.zarr")
    provenance = {**schema.provenance, "detectors": schema.provenance["detectors"][:2]}
    with pytest.raises(DamagedDataError, match="the order of the detectors"):
        PolarisationFacts.of(replace(schema, provenance=provenance), simulator.psd, "events.zarr")


def test_the_facts_are_saved_and_read_back():
    facts = Pair(short(POLARISATIONS)).facts
    again = PolarisationFacts.from_plain(facts.to_plain())
    assert again.parameters == facts.parameters
    assert torch.equal(again.psd, facts.psd)
    assert again.network_snr == facts.network_snr


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_projects_as_the_cpu_does(pair_of):
    pair = pair_of("hlv-bbh")
    series, source = pair.draw(0)
    gpu = Projection.of(pair.facts, torch.device("cuda"))
    there = Sources(*(column.cuda() for column in sources_of(source)))
    found = gpu(torch.from_numpy(series)[None].cuda(), there)[0].cpu()
    wanted = torch.from_numpy(pair.simulator.signal(source))
    assert ((found - wanted).norm() / wanted.norm()).item() < 2e-6
