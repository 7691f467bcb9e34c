"""Cutting events out of frames that bilby and PyCBC wrote, against the simulator's own events."""

import json
import shutil
from dataclasses import replace

import bilby
import numpy as np
import pytest
from frame_files import (
    CHANNELS,
    RATE,
    START,
    at_gps,
    bilby_signal,
    coloured_noise,
    write_gwf,
    write_gwosc,
    write_gwpy,
)
from scipy.stats import kstest

from pipeline import event_prior
from pipeline.cut import CutConfig, cut_dataset
from pipeline.description import describe_dataset
from pipeline.event_prior import EventPrior
from pipeline.frames import Frames, Stretch
from pipeline.moments import Moment, read_injections, usual_time
from pipeline.priors import PARAMETERS
from pipeline.provenance import simulator_of_dataset
from pipeline.repair import repair_dataset
from pipeline.segment import Cutter, estimate_psd
from pipeline.shard_task import simulate_shard
from pipeline.simulate import Simulator
from pipeline.verify import verify_dataset
from storage import TarStream
from storage.dataset import create_dataset, open_dataset, read_psd, read_schema
from storage.errors import InputError
from storage.info import describe, summary
from strainflow import main

PSD = "EinsteinTelescopeP1600143"
GPS, AROUND = START + 32.0, START + 16  # the latter of 32 s of signal
FAST = (
    "--waveform.approximant=IMRPhenomXP",
    "--waveform.f_lower=30",
    "--waveform.f_ref=30",
    "--segment.duration=2",
    "--segment.generation_duration=4",
    "--segment.sample_rate=1024",
    "--segment.start_time=1577491216.5",
)
AGREEMENT = 4e-3  # of the norm: signals of the simulator wrap around after 16 s; measured 2.3e-3


@pytest.fixture(scope="module")
def simulator(et_bbh):
    """Of a model without multibanding, which is continuous in the masses."""
    config = et_bbh("--noise=none", "--waveform.approximant=IMRPhenomXP")
    return Simulator.from_config(config.simulation)


@pytest.fixture(scope="module")
def like(et_bbh, simulator, tmp_path_factory):
    """The metadata of a data set that a network may have been trained on."""
    config = et_bbh("--noise=none", "--waveform.approximant=IMRPhenomXP")
    folder = tmp_path_factory.mktemp("like") / "like.zarr"
    create_dataset(folder, describe_dataset(config, simulator), simulator.psd)
    return folder


@pytest.fixture(scope="module")
def reference(simulator, bilby_of):
    return bilby_of(simulator)


@pytest.fixture(scope="module")
def noise():
    return coloured_noise(PSD, seed=1)


@pytest.fixture(scope="module")
def folder(noise, tmp_path_factory):
    """Noise alone, as one GWF file."""
    folder = tmp_path_factory.mktemp("frames")
    write_gwf(folder / f"E-E-{START}-64.gwf", noise)
    return folder


@pytest.fixture
def config(folder):
    """Two times in the noise."""
    return CutConfig(frames=(str(folder / "*.gwf"),), channels=CHANNELS, gps=(GPS, GPS + 1.5))


def draw(simulator, seed, **fixed):
    """A source of the prior, in the segment of the simulator, and the same in the sky."""
    source = simulator.draw_parameters(np.random.default_rng(seed)) | fixed
    late = source["geocent_time"] - usual_time(simulator.config)
    return source, at_gps(simulator, source, GPS + late)


def cut(simulator, frames, gps=GPS, fill=False, channels=CHANNELS):
    """The whitened segment around a time."""
    cutter = Cutter(simulator.config, simulator.psd, 8.0, fill)
    start = Moment.at(gps, simulator.config).start
    stretches = [frames.read(channel, cutter.span(start))[0] for channel in channels]
    return cutter.segment(stretches, start, np.random.default_rng(0))


def apart(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


def stretches_of(strain, rate=RATE, start=GPS - 15.0):
    return [Stretch(row, start, rate) for row in strain]


@pytest.mark.parametrize(("seed", "rate"), [(1, RATE), (2, RATE // 2)])
def test_a_signal_by_bilby_at_any_time_is_cut_as_the_simulator_makes_it(
    simulator, reference, tmp_path, seed, rate
):
    ours, sky = draw(simulator, seed)
    signal = bilby_signal(reference, sky, rate, AROUND, 32)
    path = write_gwf(tmp_path / "x.gwf", signal, rate=rate, start=AROUND)
    frames = Frames.find([str(path)])
    expected = simulator.signal(ours)
    found = apart(cut(simulator, frames), expected)
    print(f"{found:.2g}")
    assert found < AGREEMENT
    # The comparison sees a fifth of a sample, and a sky that has not turned.
    assert apart(cut(simulator, frames, GPS + 2.5e-5), expected) > 2 * AGREEMENT
    assert apart(expected, simulator.signal(ours | {"ra": sky["ra"]})) > 0.05


def test_a_time_between_two_samples_is_met(simulator, reference, tmp_path):
    late = 0.6 / RATE
    ours, sky = draw(simulator, 4)
    sky["geocent_time"] += late
    signal = bilby_signal(reference, sky, RATE // 2, AROUND, 32)
    write_gwpy(tmp_path / "x.hdf5", signal, rate=RATE // 2, start=AROUND)
    frames = Frames.find([str(tmp_path / "x.hdf5")])
    assert apart(cut(simulator, frames, GPS + late), simulator.signal(ours)) < AGREEMENT


def test_noise_has_the_power_of_simulated_noise_in_every_band(simulator, noise):
    """Of 12 channels; with `fill` in the taper's band too, from 10 to 12 Hz."""
    cutter = Cutter(simulator.config, simulator.psd, 8.0)
    bare = replace(cutter, fill=False)
    samples, edges = simulator.config.segment.samples, (10, 12, 20, 80, 320, 1280, 4096)
    powers = {True: [], False: []}
    for number in range(4):
        start = START + 8.0 + 12.0 * number
        rows = noise[:, round((start - 8 - START) * RATE) :][:, : 24 * RATE]
        stretches = stretches_of(rows, start=start - 8)
        for item in (cutter, bare):
            strain = item.segment(stretches, start, np.random.default_rng(number))
            power = np.square(np.abs(np.fft.rfft(strain.astype(np.float64)))) / samples
            bins = [round(edge * 8) for edge in edges]
            powers[item.fill].append(
                [power[:, a:b].mean() for a, b in zip(bins, bins[1:], strict=False)]
            )
    counts = 12 * 8 * np.diff(edges)  # bins in all, each chi-squared with 2 degrees of freedom
    off = (np.mean(powers[True], axis=0) - 1) * np.sqrt(counts)
    assert np.all(np.abs(off) < 4), off
    assert np.mean(powers[False], axis=0)[0] < 0.5  # sin^4 has a mean of 3/8
    assert np.abs(np.mean(powers[False], axis=0)[1:] - 1).max() < 0.1


def test_noise_is_normal_and_as_large_as_simulated_noise(simulator, noise):
    frames = stretches_of(noise[:, 17 * RATE : 41 * RATE], start=GPS - 15)
    cutter = Cutter(simulator.config, simulator.psd, 8.0)
    strain = cutter.segment(frames, GPS - 7, np.random.default_rng(0)).astype(np.float64)
    assert strain.var() == pytest.approx(1 - 10 / 4096, abs=4 * np.sqrt(2 / strain.size))
    assert kstest(strain[0, ::7] / strain.std(), "norm").pvalue > 1e-3


def test_what_lies_below_the_band_does_not_leak_into_it(simulator, noise):
    """A drift and a line of 10^6 times the noise's size."""
    rows = noise[:, 17 * RATE : 41 * RATE]
    time = np.arange(rows.shape[1]) / RATE
    slow = 1e-18 * (time - 5) + 1e-17 * np.sin(2 * np.pi * 0.7 * time)
    cutter = Cutter(simulator.config, simulator.psd, 8.0)
    quiet, loud = (
        cutter.segment(stretches_of(item), GPS - 7, np.random.default_rng(0))
        for item in (rows, rows + slow)
    )
    print(f"{np.abs(loud - quiet).max():.2g} sigma")
    assert np.abs(loud - quiet).max() < 0.05


def test_an_estimated_psd_is_that_of_the_noise(simulator, folder):
    frames, span = Frames.find([str(folder / "*.gwf")]), Cutter(simulator.config, simulator.psd, 8)
    stretches = [span.span(GPS - 7)]
    estimate = estimate_psd(frames, "E1:STRAIN", stretches, simulator.config, 60.0, 2.0)
    found = estimate.psd
    assert (estimate.periodograms, estimate.wanted) == (38, 58)
    band = simulator.psd[0] > 0
    assert np.array_equal(found > 0, band)
    ratio = found[band] / simulator.psd[0][band]
    assert ratio[:-16].mean() == pytest.approx(1, abs=0.02)
    assert ratio.std() < 0.3  # of 38 periodograms that overlap
    with pytest.raises(InputError, match="at least 8 are needed for an estimate"):
        estimate_psd(frames, "E1:STRAIN", stretches, simulator.config, 60.0, 8.0)


def test_the_estimate_leaves_the_events_out(simulator, noise, tmp_path):
    loud = noise[:1].copy()
    loud[:, 18 * RATE : 40 * RATE] *= 1000
    path = str(write_gwpy(tmp_path / "x.hdf5", loud, CHANNELS[:1]))
    span = Cutter(simulator.config, simulator.psd, 8).span(GPS - 7)
    found = estimate_psd(Frames.find([path]), CHANNELS[0], [span], simulator.config, 60.0, 2.0).psd
    assert found[200] < 3 * simulator.psd[0][200]


def test_the_data_set_is_sound_and_says_where_it_comes_from(like, config, tmp_path):
    out = tmp_path / "cut.zarr"
    report = cut_dataset(config, like, out)
    assert (report.events, report.simulated) == (2, 2)
    assert verify_dataset(out, _cluster()).findings == []
    words = summary(describe(out))
    assert "frames      E1:STRAIN, E2:STRAIN, E3:STRAIN of 1 files, E-E-1600000000-64.gwf" in words
    assert "GPS 1600000032, 1600000033.5" in words
    facts, trained = read_schema(out), read_schema(like)
    for name in ("detectors", "samples", "sample_rate", "parameters"):
        assert getattr(facts, name) == getattr(trained, name)
    for name in ("start_time", "band", "detectors"):
        assert facts.provenance[name] == trained.provenance[name]
    assert np.array_equal(read_psd(out), read_psd(like))
    simulator_of_dataset(str(out))  # as a likelihood does


def test_what_is_not_known_of_a_real_event_is_nan_and_null(like, config, tmp_path):
    out = tmp_path / "cut.zarr"
    cut_dataset(config, like, out)
    data = open_dataset(out)
    assert np.isnan(data["parameters"]).all()
    assert np.isnan(data["optimal_snr"]).all()
    assert data["strain"].std() == pytest.approx(1, abs=0.01)
    (batch,) = TarStream([str(out / "strain/c/0/0/0")], batch_size=2)
    assert np.isnan(batch.parameters).all()
    assert batch.parameters.shape == (2, len(PARAMETERS))


def test_known_parameters_are_counted_as_in_the_training_set(
    like, simulator, reference, noise, folder, tmp_path
):
    ours, sky = draw(simulator, 7, luminosity_distance=3000.0)
    signal = bilby_signal(reference, sky, RATE, AROUND, 32)
    signal += noise[:, 16 * RATE : 48 * RATE]
    path = write_gwf(tmp_path / "x.gwf", signal, start=AROUND)
    (tmp_path / "injections.json").write_text(json.dumps([sky]))
    config = CutConfig(
        frames=(str(path),), channels=CHANNELS, injections=str(tmp_path / "injections.json")
    )
    cut_dataset(config, like, tmp_path / "cut.zarr")
    data = open_dataset(tmp_path / "cut.zarr")
    # Of the injection's own time the segment is made: the merger is at the median of the prior.
    moment = read_schema(tmp_path / "cut.zarr").moment_of(0)
    late = usual_time(simulator.config) - ours["geocent_time"]
    truth = dict(zip(PARAMETERS, data["parameters"].values[0], strict=True))
    assert truth["geocent_time"] == pytest.approx(usual_time(simulator.config), abs=1e-6)
    turned = 2 * np.pi * late / 86164.1
    assert truth.pop("ra") == pytest.approx(ours["ra"] + turned, abs=1e-7)
    for name in truth.keys() - {"geocent_time"}:
        assert truth[name] == ours[name]
    assert moment["time_shift"] == pytest.approx(sky["geocent_time"] - truth["geocent_time"])
    expected = simulator.signal(truth | {"ra": ours["ra"] + turned})
    snr = np.linalg.norm(expected, axis=1)
    assert data["optimal_snr"].values[0] == pytest.approx(snr, rel=1e-3)
    whitened = data["strain"].values[0].astype(np.float64)
    matched = (whitened * expected).sum() / np.linalg.norm(expected)
    assert matched == pytest.approx(np.linalg.norm(snr), abs=4)


def test_injections_are_read_as_bilby_and_spreadsheets_write_them(simulator, tmp_path):
    _, sky = draw(simulator, 1)
    masses = bilby.gw.conversion.generate_mass_parameters(dict(sky))
    frame = {name: [masses[name], masses[name]] for name in masses if name != "chirp_mass"}
    files = {
        "list.json": json.dumps([sky, sky]),
        "bilby.json": json.dumps({"injections": {"__dataframe__": True, "content": frame}}),
        "table.csv": "\n".join([",".join(sky), *[",".join(map(repr, sky.values()))] * 2]),
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
        first, second = read_injections(tmp_path / name)
        assert first == second
        assert first.keys() == PARAMETERS.keys()
        assert [first[key] for key in sky] == pytest.approx(list(sky.values()), rel=1e-12), name
    for text in ("", "[]", "[1]", '{"a": [1]}', "[{]"):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(InputError, match="injections: .*bad.json"):
            read_injections(tmp_path / "bad.json")


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_rerun_cuts_what_is_missing_or_damaged_to_the_same_bytes(like, config, tmp_path):
    out = tmp_path / "cut.zarr"
    cut_dataset(config, like, out)
    before = contents(out)
    assert cut_dataset(config, like, out).simulated == 0
    with (out / "strain/c/0/0/0").open("r+b") as file:
        file.seek(30000)
        file.write(b"damaged")
    assert cut_dataset(config, like, out).simulated == 2
    assert contents(out) == before
    (out / "manifest/000000.json").unlink()
    assert cut_dataset(config, like, out).simulated == 2
    assert contents(out) == before
    with pytest.raises(InputError, match="another configuration"):
        cut_dataset(replace(config, gps=(GPS, GPS + 2)), like, out)


def test_repair_simulates_nothing_in_place_of_an_event_of_frames(
    like, config, tmp_path, running_cluster
):
    out = tmp_path / "cut.zarr"
    cut_dataset(config, like, out)
    (out / "strain/c/0/0/0").write_bytes(b"damaged")
    report = repair_dataset(out, running_cluster, accept=True)
    assert list(report.refused) == [0]
    assert "were cut out of frames and cannot be simulated" in report.refused[0]
    assert report.shards == []
    assert (out / "strain/c/0/0/0").read_bytes() == b"damaged"


def words(like, folder, out, *more, gps=(GPS,), channels=CHANNELS, frames="*.gwf"):
    return [
        *("cut", "--like", str(like), "--frames", str(folder / frames)),
        *("--channels", *channels, "--gps", *map(str, gps), "--out", str(out), *more),
    ]


def test_the_command_takes_lists_as_words(like, folder, tmp_path, capsys):
    out = tmp_path / "x.zarr"
    assert main(words(like, folder, out, "--json", "--psd", "ET-D", gps=(GPS, GPS + 1))) == 0
    assert json.loads(capsys.readouterr().out)["simulated"] == 2
    assert read_schema(out).provenance["frames"]["psd"] == "ET-D"
    assert np.array_equal(read_psd(out), read_psd(like))


def test_an_estimate_of_less_than_was_asked_for_is_recorded_and_warned_of(
    like, folder, tmp_path, capsys
):
    """64 s of frames around a segment and its margins of 24 s."""
    enough = ("--psd", "estimate", "--psd_segment", "1", "--psd_duration")
    assert main(words(like, folder, tmp_path / "x.zarr", *enough, "256")) == 0
    said = capsys.readouterr().err
    assert "hold 78 periodograms of E1:STRAIN (40 s), 510 were asked for by --psd_dur" in said
    recorded = read_schema(tmp_path / "x.zarr").provenance["frames"]["psd"]
    assert recorded == "median of periodograms of 1 s around the segment, 78 in 40 s"
    assert main(words(like, folder, tmp_path / "y.zarr", *enough, "30")) == 0
    assert "periodograms" not in capsys.readouterr().err
    recorded = read_schema(tmp_path / "y.zarr").provenance["frames"]["psd"]
    assert recorded == "median of periodograms of 1 s around the segment, 58 in 30 s"


@pytest.fixture
def windowed(et_bbh, tmp_path):
    """A simulated data set of short events with a window, whose manifests count refusals."""
    flags = (*FAST, "--network_snr.minimum=60", "--events=12", f"--psd.name={PSD}")
    config = et_bbh(*flags)
    simulator = Simulator.from_config(config.simulation)
    place = tmp_path / "windowed.zarr"
    create_dataset(place, describe_dataset(config, simulator), simulator.psd)
    simulate_shard(str(place), 0)
    return place


def prior_of(place):
    simulator, schema = simulator_of_dataset(str(place))
    return EventPrior.of(simulator, place, schema)


def test_the_prior_of_real_events_is_normalised_as_that_of_those_they_are_like(
    windowed, config, tmp_path, monkeypatch
):
    monkeypatch.setattr(event_prior, "DRAWS", 200)
    expected = prior_of(windowed)
    assert expected.share < 0.9
    cut_dataset(config, windowed, tmp_path / "cut.zarr")
    found = prior_of(tmp_path / "cut.zarr")
    assert (found.share, found.share_error) == (expected.share, expected.share_error)
    # Of what was cut from the metadata alone, or by another PSD, the share is drawn.
    cut_dataset(replace(config, psd="aLIGOZeroDetHighPower"), windowed, tmp_path / "other.zarr")
    shutil.rmtree(windowed / "manifest")
    cut_dataset(config, windowed, tmp_path / "bare.zarr")
    for name in ("other.zarr", "bare.zarr"):
        assert "accepted_share" not in read_schema(tmp_path / name).provenance["frames"]
    drawn = prior_of(tmp_path / "bare.zarr")
    spread = np.hypot(drawn.share_error, expected.share_error)
    assert abs(np.log(drawn.share / expected.share)) < 3 * spread
    # And what was recorded stays, whatever has become of --like.
    assert cut_dataset(config, windowed, tmp_path / "cut.zarr").simulated == 0


REFUSALS = {
    "frames: E1:STRAIN is needed from": {"gps": (START + 60,)},
    "frames: no file holds the channel X:Y": {"channels": ("X:Y", *CHANNELS[1:])},
    "channels: got 1, the detectors of": {"channels": ("E1:STRAIN",)},
    "channels: E2:STRAIN stands where E1's belongs": {
        "channels": ("E2:STRAIN", "E1:STRAIN", "E3:STRAIN")
    },
    "channels: E1:STRAIN stands twice": {"channels": ("E1:STRAIN", "E1:STRAIN", "E3:STRAIN")},
    "no file is called": {"frames": "*.hdf5"},
    "gps: got -5": {"gps": ("-5",)},
    "margin: got 0.5 s": {"more": ("--margin", "0.5")},
    "psd.name: got 'nothing'": {"more": ("--psd", "nothing")},
    "psd_segment: got 100 s": {"more": ("--psd_segment", "100")},
    "injections:": {"more": ("--injections", "nowhere.csv")},
    "encoding: got 'int5'": {"more": ("--encoding", "int5")},
}


@pytest.mark.parametrize("sentence", REFUSALS)
def test_a_call_that_cannot_be_met_ends_with_one_sentence(sentence, like, folder, tmp_path, capsys):
    given = dict(REFUSALS[sentence])
    call = words(like, folder, tmp_path / "x.zarr", *given.pop("more", ()), **given)
    assert main(call) == 2
    said = capsys.readouterr()
    assert sentence in said.err
    assert said.err.count("\n") == 1
    assert not (tmp_path / "x.zarr").exists()


def test_frames_of_too_low_a_rate_are_refused(like, noise, tmp_path, capsys):
    slow = noise[:, ::8]
    for row, name in zip(slow, ("E1", "E2", "E3"), strict=True):
        write_gwosc(tmp_path / f"{name}.hdf5", row, name, rate=RATE // 8)
    call = words(like, tmp_path, tmp_path / "x.zarr", frames="*.hdf5")
    assert main(call) == 2
    assert "sampled at 2048 Hz and hold nothing above 1024 Hz" in capsys.readouterr().err


def posterior_of_chirp_mass(simulator, strain, source):
    """Chirp mass on a grid, with the distance integrated out by its prior; the rest is known.

    Gives the posterior's cumulative probability at the truth, and its width in units of the
    prior's.
    """
    step = 1e-4 * source["chirp_mass"]
    signal = simulator.signal(source).astype(np.float64)
    ahead = simulator.signal(source | {"chirp_mass": source["chirp_mass"] + step})
    width = step / np.linalg.norm(ahead - signal)
    masses = source["chirp_mass"] + width * np.linspace(-6, 6, 25)
    distances = np.linspace(0.7, 1.4, 400) * source["luminosity_distance"]
    likelihood = np.empty((len(masses), len(distances)))
    for row, mass in zip(likelihood, masses, strict=True):
        template = simulator.signal(source | {"chirp_mass": mass}).astype(np.float64)
        scale = source["luminosity_distance"] / distances
        row[:] = scale * (template * strain).sum() - scale**2 * (template**2).sum() / 2
    density = np.exp(likelihood - likelihood.max()) * distances**2
    fine = np.linspace(masses[0], masses[-1], 4001)
    marginal = np.interp(fine, masses, density.sum(1))
    cumulative = np.cumsum(marginal) / marginal.sum()
    return float(np.interp(source["chirp_mass"], fine, cumulative))


def ranks_of_the_truth(like, simulator, reference, folder, count):
    """Inject with bilby into noise of its own, cut, and rank the truth in its exact posterior."""
    ranks, trained = [], replace(simulator, psd=read_psd(like))
    for number in range(count):
        source, sky = draw(simulator, 100 + number, luminosity_distance=4000.0)
        path = folder / f"{number}.gwf"
        strain = bilby_signal(reference, sky, 8192, AROUND, 32)
        strain += coloured_noise(PSD, 500 + number, 8192, 32)
        write_gwf(path, strain, rate=8192, start=AROUND)
        (folder / f"{number}.json").write_text(json.dumps(sky))
        out = folder / f"{number}.zarr"
        config = CutConfig(
            frames=(str(path),), channels=CHANNELS, injections=str(folder / f"{number}.json")
        )
        cut_dataset(config, like, out)
        data = open_dataset(out)
        truth = dict(zip(PARAMETERS, data["parameters"].values[0], strict=True))
        strain = data["strain"].values[0].astype(np.float64)
        ranks.append(posterior_of_chirp_mass(trained, strain, truth))
    return np.array(ranks)


def test_an_exact_posterior_of_what_was_cut_covers_the_truth(like, simulator, reference, tmp_path):
    ranks = ranks_of_the_truth(like, simulator, reference, tmp_path, 3)
    print(ranks)
    assert np.all((ranks > 1e-3) & (ranks < 1 - 1e-3))


@pytest.mark.slow
def test_exact_posteriors_of_what_was_cut_are_calibrated(like, simulator, reference, tmp_path):
    """Measured: see docs/posteriors.md; run with -s to see the figures."""
    ranks = ranks_of_the_truth(like, simulator, reference, tmp_path, 60)
    p_value = kstest(ranks, "uniform").pvalue
    print(f"p = {p_value:.2g}; {np.mean(np.abs(ranks - 0.5) < 0.45):.2f} within 90 %")
    assert p_value > 1e-2


def _cluster():
    from pipeline.cluster import ClusterConfig

    return ClusterConfig()
