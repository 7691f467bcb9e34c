"""Data sets of polarisations: of the same sources, refused where training could not use them."""

import lal
import numpy as np
import pytest
from polarised import POLARISATIONS, short, write_set

from pipeline.cluster import ClusterConfig
from pipeline.config import simulation_from_dict, simulation_to_dict
from pipeline.cut import simulator_like
from pipeline.description import describe_dataset
from pipeline.event_prior import share_of_dataset
from pipeline.null_stream import check_shard
from pipeline.polarisations import projection_facts
from pipeline.recode import RecodeConfig, recode_dataset, stored_events
from pipeline.repair import mend_shard, repair_dataset
from pipeline.reweight_event import Target
from pipeline.simulate import Simulator
from pipeline.verify import verify_dataset
from storage.dataset import read_schema
from storage.errors import InputError
from storage.manifest import read_manifests
from storage.urls import store_of

HERE = ClusterConfig(workers=1)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Twenty events in two shards."""
    folder = tmp_path_factory.mktemp("made") / "p.zarr"
    return write_set(folder, short(POLARISATIONS, events=20))


@pytest.fixture
def data(made, tmp_path):
    """A copy of it that a test may damage."""
    folder = tmp_path / "p.zarr"
    for source in (path for path in made.rglob("*") if path.is_file()):
        target = folder / source.relative_to(made)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read_bytes())
    return folder


def test_events_are_those_of_the_set_of_strain_but_for_the_projection():
    plain, polarised = (Simulator.from_config(short(*f).simulation) for f in ([], [POLARISATIONS]))
    for first, second in zip(plain.events(range(8)), polarised.events(range(8)), strict=True):
        assert np.array_equal(first.parameters, second.parameters)
        assert np.array_equal(first.optimal_snr, second.optimal_snr)
        assert first.rejected == second.rejected
        assert second.strain.shape == (2, 4096)
        assert second.strain.dtype == np.float32


def test_they_do_not_depend_on_distance_direction_and_time_but_for_their_scale():
    simulator = Simulator.from_config(short(POLARISATIONS).simulation)
    source = simulator.draw_parameters(np.random.default_rng(0))
    other = {**source, "luminosity_distance": 7.5, "ra": 1.0, "dec": 0.2, "geocent_time": 5.0}
    series = [
        simulator.series.of(simulator.waves(each), each["luminosity_distance"])
        for each in (source, other)
    ]
    error = np.linalg.norm(series[0] - series[1]) / np.linalg.norm(series[0])
    assert error < 1e-6


def test_the_coalescence_lies_at_the_reference_time():
    config = short(POLARISATIONS)
    event = Simulator.from_config(config.simulation).event(0)
    peak = np.abs(event.strain).max(axis=0).argmax() / 1024
    late = projection_facts(config)["reference_time"] - config.segment.generation_start
    assert abs(peak - late) < 0.02


def test_the_recorded_sidereal_time_is_lals_all_over_a_day():
    facts = projection_facts(short(POLARISATIONS))
    for late in (-43_200.0, -3.0, 0.0, 10.0, 43_200.0):
        gps = lal.LIGOTimeGPS(facts["reference_time"] + late)
        turned = facts["sidereal_time"] + facts["sidereal_rate"] * late
        off = (lal.GreenwichMeanSiderealTime(gps) - turned) % (2 * np.pi)
        assert min(off, 2 * np.pi - off) < 1e-8


def test_what_is_recorded_is_read_back_and_a_set_of_strain_records_nothing_of_it():
    physics = short(POLARISATIONS).simulation
    document = simulation_to_dict(physics)
    assert document["stored"] == "polarisations"
    assert simulation_from_dict(document).stored == "polarisations"
    plain = short()
    assert "stored" not in simulation_to_dict(plain.simulation)
    schema = describe_dataset(plain, Simulator.from_config(plain.simulation))
    assert "projection" not in schema.provenance
    assert schema.polarisations == ()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--noise=gaussian"], "stored: polarisations hold no noise.*set noise: none"),
        (["--extrinsic_draws_per_waveform=4"], "extrinsic_draws_per_waveform: got 4.*set it to 1"),
        (
            ["--prior.luminosity_distance=UniformSourceFrame(500, 4000)"],
            "prior.luminosity_distance: UniformSourceFrame has no closed form.*a PowerLaw",
        ),
        (
            ["--prior.geocent_time=TruncatedGaussian(1577491211.5, 1, 1577491217.5, 1577491218)"],
            "prior.geocent_time: TruncatedGaussian has no closed form",
        ),
        (
            ["--prior.psi=UniformInComponentsMassRatio(0.2, 1)"],
            "prior.psi: UniformInComponentsMassRatio has no closed form",
        ),
        (
            ["--detectors=[V1, E1, E2, E3]", "--psd.name=ET-D", "--waveform.f_lower=10"],
            "up to .* times that of another.*name the most sensitive detector first",
        ),
    ],
)
def test_what_training_could_not_use_is_refused_before_anything_is_simulated(flags, says):
    with pytest.raises(InputError, match=says):
        Simulator.from_config(short(POLARISATIONS, *flags).simulation)


def test_the_encoding_that_is_chosen_keeps_its_promise_whatever_the_window(tmp_path):
    flags = ["--encoding=null", "--network_snr={minimum: 8, maximum: 9}", "--events=4"]
    data = write_set(tmp_path / "p.zarr", short(POLARISATIONS, *flags, events=4))
    schema = read_schema(data)
    assert schema.encoding.name == "float16+blosc"
    (manifest,) = read_manifests(data, schema).values()
    assert 0 < manifest.largest_snr_loss <= 1e-4


def test_a_sound_set_is_verified_and_a_damaged_one_repaired_bit_for_bit(made, data):
    assert verify_dataset(data, HERE).findings == []
    path = data / "strain/c/1/0/0"
    sound = path.read_bytes()
    path.write_bytes(sound[:5000] + b"x" + sound[5001:])
    assert [item.shard for item in verify_dataset(data, HERE).findings] == [1]
    assert mend_shard(str(data), False, 1).report is not None
    assert path.read_bytes() == sound
    (data / "psd/c/0/0").unlink()
    (data / "zarr.json").unlink()
    report = repair_dataset(data, HERE, accept=False)
    assert not report.remaining
    names = {path.relative_to(made) for path in made.rglob("*") if path.is_file()}
    assert all((data / name).read_bytes() == (made / name).read_bytes() for name in names)


def test_it_is_recoded_as_another_encoding_is_simulated(made, tmp_path):
    config = RecodeConfig(encoding="float16+blosc", max_snr_loss=1e-4, cluster=HERE)
    recode_dataset(config, made, tmp_path / "recoded.zarr")
    flags = ["--encoding=float16+blosc", "--max_snr_loss=1e-4"]
    wanted = write_set(tmp_path / "w.zarr", short(POLARISATIONS, *flags, events=20))
    for name in ("strain/c/0/0/0", "strain/c/1/0/0", "zarr.json", "manifest/000001.json"):
        assert (tmp_path / "recoded.zarr" / name).read_bytes() == (wanted / name).read_bytes()


def test_its_events_and_the_share_of_the_prior_are_read(made):
    schema = read_schema(made)
    events = list(stored_events(store_of(made), schema, 1))
    assert [event.strain.shape for event in events] == [(2, 4096)] * 4
    plain = short(events=20)
    shares = share_of_dataset(made, plain.simulation)
    assert shares is not None
    assert 0 < shares[0] < 1


def test_the_null_stream_has_nothing_to_say(made):
    assert check_shard(made, 0) is None


def test_events_of_frames_can_be_cut_like_it(made):
    config = simulator_like(made).config
    assert (config.stored, config.noise) == ("strain", "gaussian")


def test_likelihoods_are_refused(made):
    with pytest.raises(InputError, match="holds polarisations, and no event of detectors"):
        Target.of(str(made))
