"""The null stream: silent where all is well, loud where geometry, channels or table are wrong."""

from dataclasses import replace
from itertools import count

import numpy as np
import pytest
from scipy import stats

from pipeline.description import describe_dataset
from pipeline.null_stream import (
    LARGEST_SHARE,
    LARGEST_Z,
    NOT_FINITE,
    check_shard,
    closed_triangle,
    delays_of,
    noise_scores,
    null_of_segment,
    null_spectrum,
    share_of_signal,
)
from pipeline.priors import PARAMETERS
from pipeline.simulate import Simulator
from storage.dataset import create_dataset
from storage.schema import shard_files
from storage.writer import write_shard

EVENTS = 6


def exchange_arms(simulator):
    first, second, third = simulator.detectors
    return replace(simulator, detectors=(first, replace(second, response=-second.response), third))


def event_with(change):
    return lambda event: replace(event, strain=np.ascontiguousarray(change(event.strain)))


def move_source(event):
    parameters = event.parameters.copy()
    ra = list(PARAMETERS).index("ra")
    parameters[ra] = (parameters[ra] + 1.0) % (2 * np.pi)
    return replace(event, parameters=parameters)


# What is done to the simulator, and what to each of its events.
WRONG = {
    "arms of a detector exchanged": (exchange_arms, lambda event: event),
    "two channels swapped": (lambda x: x, event_with(lambda strain: strain[[0, 2, 1]])),
    "sign of a channel wrong": (
        lambda x: x,
        event_with(lambda strain: strain * np.float32([[1], [-1], [1]])),
    ),
    "sky position wrong in the table": (lambda x: x, move_source),
}
NOISE_FREE = ("--noise=none",)
# A binary at 5 Mpc: SNR 30,000 or so.
LOUD = (
    "--noise=gaussian",
    "--prior.luminosity_distance=5",
    "--network_snr={minimum: 3000, maximum: 1000000}",
)


@pytest.fixture(scope="module")
def stored(et_bbh, tmp_path_factory):
    """A data set of one shard, with something wrong in it."""
    numbers = count()

    def write(flags, break_simulator=lambda x: x, break_event=lambda x: x):
        config = et_bbh(*flags, f"--events={EVENTS}", "--seed=21")
        simulator = Simulator.from_config(config.simulation)
        schema = describe_dataset(config, simulator)
        folder = tmp_path_factory.mktemp("null") / f"{next(numbers)}.zarr"
        create_dataset(folder, schema, simulator.psd)
        wrong = break_simulator(simulator)
        events = (break_event(wrong.event(number)) for number in range(EVENTS))
        write_shard(folder, schema, 0, events)
        return folder

    return write


@pytest.mark.parametrize("encoding", ["float32", "float16", "int16"])
def test_sound_signals_have_a_silent_null_stream(stored, encoding):
    """Measured: 4e-6, and 2.2e-4 by the rounding of float16, which is allowed for."""
    report = check_shard(stored((*NOISE_FREE, f"--encoding={encoding}")), 0, events=EVENTS)
    assert report.passed
    assert report.quantity == "share"
    assert report.events == EVENTS
    assert report.detectors == ("E1", "E2", "E3")
    assert report.largest < report.limit == LARGEST_SHARE


@pytest.mark.parametrize(
    "flags",
    [
        ("--encoding=float32",),
        ("--encoding=int16",),
        ("--encoding=int8", "--network_snr={minimum: 8, maximum: 100}"),
        ("--detectors=[ET-EMR]",),
        ("--detectors=[H1, ET-Sardinia]", "--psd_of={H1: {name: aLIGOZeroDetHighPower}}"),
        LOUD,
    ],
)
def test_sound_noisy_events_have_a_null_stream_of_noise(stored, flags):
    report = check_shard(stored(flags), 0, events=EVENTS)
    assert report.passed
    assert report.quantity == "z"
    assert report.largest < report.limit == LARGEST_Z


@pytest.mark.parametrize("flags", [NOISE_FREE, LOUD], ids=["noise-free", "loud"])
@pytest.mark.parametrize("wrong", WRONG)
def test_the_null_stream_sees(stored, flags, wrong):
    report = check_shard(stored(flags, *WRONG[wrong]), 0)
    assert not report.passed
    assert report.largest > 2 * report.limit
    assert 0 <= report.worst_event < EVENTS


def test_noise_of_a_wrong_size_is_seen(stored):
    louder = event_with(lambda strain: strain * np.float32(1.05))
    assert not check_shard(stored((), break_event=louder), 0).passed


def test_a_value_that_is_not_finite_does_not_pass(stored):
    folder = stored(NOISE_FREE)
    path = folder / shard_files(0)["parameters"]
    table = np.fromfile(path, "<f8").reshape(EVENTS, -1)
    table[:, list(PARAMETERS).index("dec")] = np.nan
    path.write_bytes(table.tobytes())
    report = check_shard(folder, 0)
    assert not report.passed
    assert report.largest == NOT_FINITE


@pytest.mark.parametrize(
    "flags",
    [
        ("--detectors=[H1, L1, V1]",),
        ("--detectors=[E1, E2]",),
        ("--psd_of={E2: {name: CosmicExplorerP1600143}}",),
        ("--detectors=[2L]",),
    ],
)
def test_a_network_without_a_closed_triangle_or_with_unequal_psds_has_none(et_bbh, flags):
    simulator = Simulator.from_config(et_bbh(*flags).simulation)
    assert closed_triangle(simulator.detectors, simulator.psd) is None


def test_a_triangle_is_found_within_a_network_and_by_its_responses(et_bbh):
    simulator = Simulator.from_config(et_bbh("--detectors=[V1, E3, H1, E1, E2]").simulation)
    assert closed_triangle(simulator.detectors, simulator.psd) == (1, 3, 4)
    renamed = [replace(item, name=str(k)) for k, item in enumerate(simulator.detectors)]
    assert closed_triangle(renamed, simulator.psd) == (1, 3, 4)
    wrong = [*simulator.detectors[:4], replace(renamed[4], response=-renamed[4].response)]
    assert closed_triangle(wrong, simulator.psd) is None


def test_no_shard_of_another_network_is_checked(stored):
    assert check_shard(stored(("--detectors=[H1, L1, V1]", "--network_snr.minimum=0")), 0) is None


def test_before_the_crop_next_to_nothing_is_left(simulator, sources):
    """Measured: at most 2.5e-7 of the norm; after the crop 4e-6."""
    for source in sources:
        strain, first = simulator.strain(source)
        whitened = simulator.whitening.whiten(strain, first)
        delays = delays_of(source, simulator.detectors)
        null = null_spectrum(whitened, first, 1 / 16, delays)
        assert np.linalg.norm(null) < 1e-6 * np.linalg.norm(whitened)
        series = simulator.signal(source)
        assert share_of_signal(series, 8192.0, delays) < 2e-5


def test_scores_of_noise_are_standard_normal(simulator):
    """200 events, 11 octaves each and the whole: p-values above 0.05 / 13."""
    generator = np.random.Generator(np.random.Philox(5))
    delays = np.array([0.0, 2e-5, -3e-5])
    scores = np.empty((200, 11))
    for row in scores:
        noise = np.zeros((3, simulator.config.segment.samples), np.float32)
        simulator.whitening.add_noise(noise, generator)
        row[:] = noise_scores(null_of_segment(noise, 8192.0, delays), 80, 1.0)
    for octave in scores.T:
        assert stats.kstest(octave, "norm").pvalue > 0.05 / 13
    octaves = scores[:, :-1].ravel()
    assert stats.kstest(octaves, "norm").pvalue > 0.05 / 13
    assert stats.kstest(octaves * 1.2, "norm").pvalue < 1e-3


def test_a_merger_at_the_very_end_is_no_false_alarm(stored):
    late = "--prior.geocent_time=Uniform(1577491218.93, 1577491218.97)"
    assert check_shard(stored((*NOISE_FREE, late)), 0) is None
