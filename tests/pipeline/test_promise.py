"""The smallest encoding that keeps a promise about the SNR, and whether it keeps it."""

from dataclasses import replace

import numpy as np
import pytest

import storage
from pipeline.promise import encoding_of, largest_peak
from pipeline.run import simulate_dataset
from pipeline.simulate import Simulator
from storage.dataset import read_schema
from storage.encodings import default_loss, encoding_for
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


@pytest.mark.parametrize("loss", ["-1e-3", "1", "2", ".nan", ".inf", "-.inf", "nan"])
def test_an_impossible_promise_is_one_sentence(et_bbh, loss):
    with pytest.raises(
        InputError, match="max_snr_loss.*(between 0 .* and 1|Expected a float)"
    ) as raised:
        chosen(et_bbh, f"--max_snr_loss={loss}")
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize("loss", [5e-324, 1e-300, 1e-17, 1e-16, 3e-16, 1e-12])
def test_promises_below_the_precision_of_numbers_are_kept_by_float32(loss):
    for noisy in (True, False):
        assert encoding_for(loss, noisy, largest_peak=20.0).name == "float32+blosc"


@pytest.mark.parametrize("loss", [1e-6, 1e-5, 1e-3, 0.1, 0.9, 0.999999])
def test_the_step_takes_what_was_promised_and_hardly_less(loss):
    strain = np.random.default_rng(3).standard_normal((3, 65_536)).astype(np.float32)
    encoding = encoding_for(loss, True, largest_peak=10.0)
    taken = encoding.snr_loss(strain, encoding.encode(strain, 0), noisy=True)
    assert taken <= loss
    assert loss > 0.5 or taken > 0.9 * loss  # beyond, what is rounded away is all there is


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
