"""Entries of `detectors:`, known, networks and own ones, against bilby's and LAL's geometry."""

from dataclasses import asdict, replace

import bilby
import lal
import numpy as np
import pytest

from pipeline.config import DetectorConfig
from pipeline.description import describe_dataset
from pipeline.detector import Detector
from pipeline.network import EMR, SARDINIA, detectors_of, own_detector, triangle
from pipeline.shard_task import simulate_shard
from pipeline.simulate import Simulator
from storage.dataset import create_dataset
from storage.errors import InputError


def from_bilby(config):
    facts = {name: value for name, value in asdict(config).items() if name != "name"}
    return bilby.gw.detector.geometry.InterferometerGeometry(**facts)


def as_config(name):
    """bilby's facts of one of its own detectors."""
    geometry = bilby.gw.detector.get_empty_interferometer(name).geometry
    fields = DetectorConfig.__dataclass_fields__
    return DetectorConfig(
        name="Q1", **{item: float(getattr(geometry, item)) for item in fields if item != "name"}
    )


def from_lal(name):
    facts = next(x.frDetector for x in lal.CachedDetectors if x.frDetector.prefix == name)
    return DetectorConfig(
        name="Q",
        latitude=np.degrees(facts.vertexLatitudeRadians),
        longitude=np.degrees(facts.vertexLongitudeRadians),
        xarm_azimuth=90 - np.degrees(facts.xArmAzimuthRadians),
        yarm_azimuth=90 - np.degrees(facts.yArmAzimuthRadians),
        length=10.0,
        elevation=facts.vertexElevation,
    )


@pytest.mark.parametrize("name", ["H1", "L1", "V1"])
def test_a_known_detector_is_bilbys(name):
    """Measured: 1.1e-7 and 0.3 mm."""
    (ours,) = detectors_of([name])
    theirs = bilby.gw.detector.get_empty_interferometer(name).geometry
    np.testing.assert_allclose(ours.response, theirs.detector_tensor, rtol=0, atol=1e-6)
    np.testing.assert_allclose(ours.location, theirs.vertex, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    "config",
    [
        DetectorConfig(
            name="Q1",
            latitude=-31.36,
            longitude=115.7,
            xarm_azimuth=12.5,
            yarm_azimuth=75.0,
            length=8.0,
            elevation=312.0,
            xarm_tilt=-3e-4,
            yarm_tilt=2e-3,
        ),
        as_config("H1"),
        as_config("L1"),
        as_config("V1"),
        as_config("K1"),
        replace(SARDINIA, name="Q1", elevation=700.0),
    ],
)
def test_an_own_entry_is_what_bilby_makes_of_the_same_numbers(config):
    """Measured: 3e-16 and 0.3 mm."""
    ours, theirs = own_detector(config), from_bilby(config)
    np.testing.assert_allclose(ours.response, theirs.detector_tensor, rtol=0, atol=1e-12)
    np.testing.assert_allclose(ours.location, theirs.vertex, rtol=0, atol=1e-3)


def test_the_comparison_with_bilby_sees_azimuths_counted_from_north():
    wrong = replace(SARDINIA, xarm_azimuth=90 - SARDINIA.xarm_azimuth)
    assert np.abs(own_detector(wrong).response - from_bilby(SARDINIA).detector_tensor).max() > 0.1


def test_a_triangle_at_the_place_of_lals_first_interferometer_is_lals_triangle():
    """Measured: 1.5e-7 and 1.1 mm; LAL stores single precision."""
    for ours, theirs in zip(triangle(from_lal("E1")), detectors_of(["ET"]), strict=True):
        np.testing.assert_allclose(ours.response, theirs.response, rtol=0, atol=5e-7)
        np.testing.assert_allclose(ours.location, theirs.location, rtol=0, atol=0.01)


@pytest.mark.parametrize(("name", "site"), [("ET-Sardinia", SARDINIA), ("ET-EMR", EMR)])
def test_a_network_of_three_is_a_closed_triangle_at_its_site(name, site):
    """bilby walks from vertex to vertex on a sphere, and exchanges the arms of 2 and 3."""
    ours = detectors_of([name])
    assert np.abs(sum(detector.response for detector in ours)).max() < 1e-15
    vertices = np.array([detector.location for detector in ours])
    sides = np.linalg.norm(vertices - np.roll(vertices, 1, axis=0), axis=1)
    np.testing.assert_allclose(sides, 10_000, rtol=1e-9)
    psd = bilby.gw.detector.PowerSpectralDensity(psd_array=np.ones(2), frequency_array=np.ones(2))
    theirs = bilby.gw.detector.networks.TriangularInterferometer(
        "ET", psd, 5.0, 2048.0, **{k: v for k, v in asdict(site).items() if k != "name"}
    )
    for detector, same_arms, same_place in zip(ours, [0, 2, 1], [0, 1, 2], strict=True):
        reference = theirs[same_arms].geometry.detector_tensor
        np.testing.assert_allclose(
            detector.response, reference, rtol=0, atol=2e-3
        )  # 10 km / Earth's radius
        distance = np.linalg.norm(detector.location - theirs[same_place].geometry.vertex)
        assert distance < 30  # measured 26 m


def test_the_two_ls_are_turned_by_45_degrees_against_the_circle_that_joins_them():
    ours = detectors_of(["2L"])
    for detector in ours:
        assert np.square(detector.response).sum() == pytest.approx(0.5, rel=1e-12)
    first, second = (detector.location / np.linalg.norm(detector.location) for detector in ours)
    assert np.degrees(np.arccos(first @ second)) * 111.2 == pytest.approx(1165, abs=10)
    normal = np.cross(first, second)
    normal /= np.linalg.norm(normal)
    turned = []
    for detector, up in zip(ours, (first, second), strict=True):
        along, response = np.cross(normal, up), detector.response
        difference = along @ response @ along - normal @ response @ normal
        turned.append(np.degrees(np.arctan2(2 * along @ response @ normal, difference)) / 2)
    # 0.1 degrees: this circle's plane holds the Earth's centre, the site's vertical does not.
    assert (turned[0] - turned[1]) % 90 == pytest.approx(45, abs=0.1)


def test_all_names_are_different():
    every = detectors_of(["ET", "ET-Sardinia", "ET-EMR", "2L", "HLV", "K1"])
    assert len({detector.name for detector in every}) == len(every) == 15
    assert [detector.name for detector in every[3:11]] == [
        *("ETS1", "ETS2", "ETS3", "ETM1", "ETM2", "ETM3", "ETSL", "ETML")
    ]


def test_a_member_of_a_network_is_known_by_its_name():
    network = detectors_of(["ET-EMR"])
    (alone,) = detectors_of(["ETM2"])
    assert np.array_equal(alone.location, network[1].location)
    assert np.array_equal(alone.response, network[1].response)


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        (["E9"], "'E9', known are .*E1, E2, E3.* networks ET, ET-Sardinia, ET-EMR, 2L, HLV"),
        (["ET", "E1"], "E1 would be there twice"),
        ([replace(SARDINIA, name="H1")], "own entry is called H1, as a known one"),
        ([replace(SARDINIA, name="ETS1")], "own entry is called ETS1, as a known one"),
        ([replace(SARDINIA, name="2L")], "own entry is called 2L, as a known one"),
        (["strainflow's own entry"], "known are"),
    ],
)
def test_entries_that_cannot_be_used_are_named(entries, reason):
    own_detector(replace(SARDINIA, name="Q1"))  # leaves nothing behind that a name could find
    with pytest.raises(InputError, match=reason):
        detectors_of(entries)


def test_an_own_entry_may_have_any_number_of_configurations_in_a_process():
    first = own_detector(replace(SARDINIA, name="Q1"))
    second = own_detector(replace(EMR, name="Q1"))
    again = own_detector(replace(SARDINIA, name="Q1"))
    assert np.array_equal(first.response, again.response)
    assert not np.allclose(first.response, second.response)


def test_the_data_set_of_a_network_names_its_detectors_and_records_their_geometry(et_bbh):
    config = et_bbh("--detectors=[2L, ET]", "--psd_of={ETML: {name: CosmicExplorerP1600143}}")
    simulator = Simulator.from_config(config.simulation)
    schema = describe_dataset(config, simulator)
    assert schema.detectors == ("ETSL", "ETML", "E1", "E2", "E3")
    recorded = [Detector.from_dict(item) for item in schema.provenance["detectors"]]
    for ours, theirs in zip(recorded, simulator.detectors, strict=True):
        assert np.array_equal(ours.response, theirs.response)
    assert schema.provenance["configuration"]["detectors"] == ["2L", "ET"]
    assert not np.array_equal(simulator.psd[0], simulator.psd[1])


def test_a_worker_needs_neither_the_names_nor_the_psd_files_of_a_network(et_bbh, tmp_path):
    asd = tmp_path / "asd.txt"
    asd.write_text("5 1e-24\n5000 1e-24\n")
    flags = ("--detectors=[ET-EMR]", f"--psd_of={{ETM2: {{file: {asd}}}}}", "--events=2")
    config = et_bbh(*flags)
    simulator = Simulator.from_config(config.simulation)
    folder = tmp_path / "x.zarr"
    create_dataset(folder, describe_dataset(config, simulator), simulator.psd)
    asd.unlink()
    simulate_shard(folder, 0)
    assert "asd.txt" in (folder / "zarr.json").read_text()
    assert str(tmp_path) not in (folder / "zarr.json").read_text()
    stored = np.fromfile(folder / "optimal_snr/c/0/0", "<f8").reshape(2, 3)
    assert np.array_equal(stored[1], simulator.event(1).optimal_snr)
