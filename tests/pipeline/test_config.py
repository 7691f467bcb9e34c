"""Configurations: what is impossible is refused by name, what is possible survives as JSON."""

import json
from dataclasses import fields

import pytest

from pipeline.cluster import ClusterConfig
from pipeline.config import simulation_from_dict, simulation_to_dict, without_paths
from pipeline.priors import PARAMETERS, PriorConfig
from storage.errors import InputError


@pytest.mark.parametrize(
    "flags",
    [
        (),
        ("--noise=none", "--seed=123456789012", "--detectors=[E1]"),
        ("--network_snr={minimum: 3}",),
        ("--detectors=[ET-EMR, H1]", "--psd_of={H1: {name: aLIGOZeroDetHighPower}}"),
        (
            "--detectors=[V1, {name: Q1, latitude: 50, longitude: -3.5, xarm_azimuth: 10, "
            "yarm_azimuth: 70, length: 10, elevation: 20, xarm_tilt: 1e-4}]",
        ),
        ("--waveform.phenomx.precession_version=320", "--waveform.phenomx.multibanding=0"),
        ("--psd={file: /some/where.txt, quantity: psd}",),
        ("--prior.chirp_mass=30", "--prior.a_1=Uniform(0, 0.5)"),
        ("--segment={start_time: 1577491214.5, duration: 4}", "--waveform.f_lower=20"),
    ],
)
def test_the_physics_survives_the_metadata(et_bbh, flags):
    config = et_bbh(*flags).simulation
    document = json.loads(json.dumps(simulation_to_dict(config), allow_nan=False))
    assert simulation_from_dict(document) == config


def test_configurations_that_differ_are_seen_to_differ(et_bbh):
    ours = simulation_to_dict(et_bbh().simulation)
    assert ours != simulation_to_dict(et_bbh("--seed=1").simulation)
    assert ours != simulation_to_dict(et_bbh("--prior.psi=1").simulation)


def test_what_is_left_to_the_default_does_not_stand_in_the_metadata(et_bbh):
    """So that data sets that were made before a setting existed can still be completed."""
    document = simulation_to_dict(et_bbh().simulation)
    assert "phenomx" not in document["waveform"]
    assert "psd_of" not in document


def test_the_folder_of_a_psd_file_does_not_matter(et_bbh):
    here = et_bbh("--psd.file=/here/a.txt", "--psd_of={E2: {file: /here/b.txt}}").simulation
    there = et_bbh("--psd.file=/there/a.txt", "--psd_of={E2: {file: /there/b.txt}}").simulation
    assert here != there
    assert without_paths(here) == without_paths(there)
    assert without_paths(here).psd_of["E2"].file == "b.txt"


def test_every_parameter_has_a_prior_and_no_other_has():
    others = {"file", "constraints"}
    assert {field.name for field in fields(PriorConfig)} - others == set(PARAMETERS)


def test_the_stretch_of_the_waveform_ends_with_the_segment(et_bbh):
    segment = et_bbh().segment
    assert segment.samples == 65536
    assert segment.generation_samples == 131072
    assert segment.generation_start == segment.start_time - 8


@pytest.mark.parametrize(
    ("flag", "reason"),
    [
        ("--prior.chirp_mass=Uniform(-5, 100)", "prior.chirp_mass: .* reaches -5 Msun"),
        ("--prior.chirp_mass=Gaussian(30, 1)", "prior.chirp_mass: .* reaches -inf Msun"),
        ("--prior.chirp_mass=0", "prior.chirp_mass: .* reaches 0 Msun"),
        ("--prior.chirp_mass=PowerLaw(-3, 5, inf)", "prior.chirp_mass: .* reaches inf Msun"),
        ("--prior.mass_ratio=Uniform(0.5, 2)", "prior.mass_ratio: .* reaches 2,"),
        ("--prior.luminosity_distance=-1", "prior.luminosity_distance: -1.* reaches -1 Mpc"),
        ("--prior.ra=Uniform(0, 7)", "prior.ra: .* reaches 7 rad, possible is 0 to 6.283 rad"),
        ("--prior.dec=Sine()", "prior.dec: .* reaches 3.14159 rad"),
        ("--prior.a_1=1", "prior.a_1: .*1 excluded"),
        ("--prior.psi=Unifrm(0, 1)", "prior.psi: Unifrm is not a known distribution"),
        ("--prior.geocent_time=0", "prior.geocent_time: 0 to 0 s does not lie within"),
        (
            "--prior.geocent_time=Uniform(1577491217.9, 1577491219.25)",
            "1577491217.9 to 1577491219.25 s does not lie within the segment, "
            "1577491211 to 1577491219 s",
        ),
        ("--segment.duration=0", "segment.duration: got 0 s, must be positive"),
        ("--segment.duration=32", "segment.generation_duration: got 16 s, must be at least"),
        ("--segment.duration=0.00001", "segment.duration: .* even whole number"),
        ("--segment.sample_rate=-8192", "segment.sample_rate: got -8192 Hz, must be positive"),
        ("--waveform.f_lower=0", "waveform.f_lower: got 0 Hz, must be positive"),
        ("--waveform.f_lower=4096", "waveform.f_lower: got 4096 Hz, must lie below half"),
        ("--waveform.f_ref=-1", "waveform.f_ref: got -1 Hz, must be positive"),
        ("--network_snr.minimum=-1", "network_snr: minimum -1"),
        ("--network_snr={minimum: 9, maximum: 8}", "network_snr: minimum 9 and maximum 8"),
        ("--detectors=[]", "detectors: got .*name each detector once"),
        ("--detectors=[E1,E1]", "detectors: got .*name each detector once"),
        (
            "--detectors=[Q1, {name: Q1, latitude: 91, longitude: 0, xarm_azimuth: 0, "
            "yarm_azimuth: 90, length: 4}]",
            "Q1's latitude is 91 degrees, possible is -90 to 90",
        ),
        (
            "--detectors=[{name: Q1, latitude: 9, longitude: 0, xarm_azimuth: 10, "
            "yarm_azimuth: 190, length: 4}]",
            "Q1's arms lie on one line",
        ),
        (
            "--detectors=[{name: Q1, latitude: 9, longitude: 0, xarm_azimuth: 10, "
            "yarm_azimuth: 100, length: 0}]",
            "positive length",
        ),
        ("--seed=-1", "seed: got -1, must not be negative"),
        ("--events=0", "events: got 0, at least 1"),
        ("--events_per_shard=0", "events_per_shard: got 0, at least 1"),
        ("--encoding=int4", "encoding: got 'int4', known are float32"),
        ("--cluster.kind=cloud", "cluster.kind: got 'cloud', known are local"),
        ("--cluster.workers=-2", "cluster.workers: got -2, must not be negative"),
    ],
)
def test_the_impossible_is_refused_by_name(et_bbh, flag, reason):
    with pytest.raises(InputError, match=reason):
        et_bbh(flag)


def test_no_number_of_workers_means_one_a_core():
    assert ClusterConfig().worker_count >= 1
    assert ClusterConfig(workers=3).worker_count == 3
