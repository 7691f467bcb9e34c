"""The smallest encoding that keeps a promise about the SNR, and whether it keeps it."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import norm

import storage
from pipeline.description import describe_dataset
from pipeline.null_stream import LARGEST_Z
from pipeline.promise import encoding_of, largest_peak
from pipeline.run import simulate_dataset
from pipeline.shard_task import simulate_shard
from pipeline.simulate import Simulator
from storage.dataset import create_dataset, read_schema
from storage.encodings import LARGEST_LOSS, default_loss, encoding_for
from storage.errors import InputError
from storage.manifest import read_manifests

EVENTS = 24
WIDE, NARROW = (
    "--network_snr={minimum: 8, maximum: 1000}",
    "--network_snr={minimum: 8, maximum: 30}",
)


def chosen(et_bbh, *flags):
    config = et_bbh("--encoding=null", *flags)
    return encoding_of(config, Simulator.from_config(config.simulation))


@pytest.mark.parametrize(
    ("flags", "name", "loss"),
    [
        ((WIDE,), "int16+blosc", 1e-3),
        ((NARROW,), "int8+blosc", 1e-3),
        ((WIDE, "--noise=none"), "float16+blosc", 1e-4),
        ((NARROW, "--noise=none"), "float16+blosc", 1e-4),
        ((WIDE, "--max_snr_loss=1e-5"), "int16+blosc", 1e-5),
        ((NARROW, "--max_snr_loss=1e-5"), "int16+blosc", 1e-5),
        ((NARROW, "--max_snr_loss=0"), "float32+blosc", 0),
        ((WIDE, "--noise=none", "--max_snr_loss=0"), "float32+blosc", 0),
        ((WIDE, "--noise=none", "--max_snr_loss=1e-8"), "float32+blosc", 1e-8),
    ],
)
def test_the_choice_follows_noise_window_and_promise(et_bbh, flags, name, loss):
    encoding = chosen(et_bbh, *flags)
    assert (encoding.name, encoding.max_snr_loss) == (name, loss)


def test_an_encoding_that_is_named_is_taken_and_held_to_the_promise(et_bbh):
    config = et_bbh("--encoding=int16", "--max_snr_loss=1e-4")
    encoding = encoding_of(config, Simulator.from_config(config.simulation))
    assert (encoding.name, encoding.scale_factor, encoding.max_snr_loss) == ("int16", 1 / 64, 1e-4)


@pytest.mark.parametrize("loss", ["-1e-3", "0.0501", "0.9", "2", ".nan", ".inf"])
def test_an_impossible_promise_is_one_sentence(et_bbh, loss):
    words = r"max_snr_loss: got \S+, the share .* between 0 \(none\) and 0.05 \(beyond, .* as 1e-3"
    with pytest.raises(InputError, match=words) as raised:
        chosen(et_bbh, f"--max_snr_loss={loss}")
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize("loss", [5e-324, 1e-300, 1e-17, 1e-16, 3e-16, 1e-12])
def test_promises_below_the_precision_of_numbers_are_kept_by_float32(loss):
    for noisy in (True, False):
        assert encoding_for(loss, noisy, largest_peak=20.0).name == "float32+blosc"


@pytest.mark.parametrize("loss", [1e-6, 1e-5, 1e-3, LARGEST_LOSS])
def test_the_step_takes_what_was_promised_and_hardly_less(loss):
    strain = np.random.default_rng(3).standard_normal((3, 65_536)).astype(np.float32)
    encoding = encoding_for(loss, True, largest_peak=10.0)
    taken = encoding.snr_loss(strain, encoding.encode(strain, 0), noisy=True)
    assert taken <= loss
    assert taken > 0.9 * loss


def standard_deviations_off(step, samples):
    """By how many of noise the power of rounded unit noise differs from 1 + step^2 / 12."""
    codes = np.arange(-100, 101)
    shares = norm.cdf((codes + 0.5) * step) - norm.cdf((codes - 0.5) * step)
    power = np.sum(shares * (codes * step) ** 2)
    return abs(power / (1 + step**2 / 12) - 1) * np.sqrt(samples / 2)


def test_up_to_the_largest_promise_rounding_is_what_the_null_stream_takes_it_for():
    step = encoding_for(LARGEST_LOSS, True, largest_peak=10.0).scale_factor
    assert standard_deviations_off(step, 2**24) < 0.01
    assert standard_deviations_off(1.66, 2**24) > LARGEST_Z  # which loses 0.1
    assert standard_deviations_off(2.13, 2**16) > LARGEST_Z  # 0.15, in the 8 s of et-bbh


def test_a_set_that_keeps_the_largest_promise_passes_its_checks(et_bbh, tmp_path):
    for noise in ("gaussian", "none"):
        config = et_bbh("--encoding=null", "--events=4", f"--noise={noise}", "--max_snr_loss=0.05")
        simulator = Simulator.from_config(config.simulation)
        folder = tmp_path / noise
        create_dataset(folder, describe_dataset(config, simulator), simulator.psd)
        assert simulate_shard(str(folder), 0).failed_checks == ()


def test_the_predicted_peak_is_above_those_of_events(et_bbh):
    config = et_bbh(WIDE)
    simulator = Simulator.from_config(config.simulation)
    predicted = largest_peak(simulator)
    peaks = [np.abs(simulator.event(number).strain).max() for number in range(20)]
    assert max(peaks) < predicted < 500


@pytest.mark.parametrize(("noise", "most"), [("gaussian", 155e3), ("none", 80e3)])
def test_events_of_et_bbh_take_few_bytes_and_keep_the_promise(
    et_bbh, running_cluster, tmp_path, noise, most
):
    """Against a simulation that stores nothing, with formulas written out here."""
    flags = ("--encoding=null", f"--events={EVENTS}", "--events_per_shard=8", f"--noise={noise}")
    config = et_bbh(*flags)
    folder = tmp_path / "x.zarr"
    report = simulate_dataset(replace(config, cluster=running_cluster), folder)
    assert (report.simulated, report.failed_checks) == (EVENTS, 0)
    schema = read_schema(folder)
    manifests = read_manifests(folder, schema)
    strain = sum(path.stat().st_size for path in folder.glob("strain/c/*/0/0"))
    assert strain / EVENTS <= most
    simulator = Simulator.from_config(config.simulation)
    stored = storage.open_dataset(folder).strain.values.astype(np.float64)
    losses = []
    for number, event in enumerate(simulator.events(range(EVENTS))):
        exact = event.strain.astype(np.float64)
        if noise == "gaussian":
            losses.append(1 - 1 / np.sqrt(1 + ((stored[number] - exact) ** 2).mean()))
        else:
            norms = np.linalg.norm(exact) * np.linalg.norm(stored[number])
            losses.append(1 - (exact * stored[number]).sum() / norms)
    promised = {"gaussian": 1e-3, "none": 1e-4}[noise]
    assert default_loss(schema.noisy) == schema.encoding.max_snr_loss == promised
    assert 0.1 * promised < max(losses) <= promised
    recorded = {item.worst_event: item.largest_snr_loss for item in manifests.values()}
    for event, loss in recorded.items():
        assert losses[event] == pytest.approx(loss, rel=1e-4)
    assert max(losses) == pytest.approx(max(recorded.values()), rel=1e-4)
