"""Decoding and noise on the device: the same as storage's and the simulator's."""

import numpy as np
import pytest
import torch
from scipy import stats

from model.estimator import DataFacts
from model.preprocess import Preprocess
from pipeline.config import SegmentConfig
from pipeline.noise import Whitening
from storage.encodings import ENCODINGS

SAMPLES, RATE, F_LOWER, STRETCHES = 1024, 1024.0, 16.0, 400
CPU = torch.device("cpu")
FIRST_BIN = 16
IMPROBABLE = 1e-3  # with a fixed seed, a test statistic this improbable is a mistake


def device_noise(seed=1, scale=1.0, first_bin=FIRST_BIN):
    seeds = range(seed, seed + STRETCHES)
    return scale * Preprocess(1, SAMPLES, first_bin).noise(1, seeds, CPU)[:, 0].numpy()


def simulator_noise():
    segment = SegmentConfig(
        start_time=0.0,
        duration=SAMPLES / RATE,
        sample_rate=RATE,
        generation_duration=SAMPLES / RATE,
    )
    whitening = Whitening(np.ones((STRETCHES, SAMPLES // 2 + 1)), segment, F_LOWER)
    noise = np.zeros((len(whitening.psd), whitening.segment.samples), np.float32)
    whitening.add_noise(noise, np.random.default_rng(1))
    return noise


def p_values(series):
    """How probable whitened noise in the band is, and how alike to the simulator's."""
    spectrum = np.fft.rfft(series.astype(np.float64))
    power = np.abs(spectrum[:, FIRST_BIN:-1]) ** 2 / (SAMPLES / 2)
    total = stats.chi2.cdf(power.sum(), 2 * power.size)
    bands = np.array_split(power, 40, axis=1)
    reference = np.abs(np.fft.rfft(simulator_noise())[:, FIRST_BIN:-1]) ** 2 / (SAMPLES / 2)
    return {
        "variance": 2 * min(total, 1 - total),
        "flatness": stats.kstest(
            [stats.chi2.cdf(band.sum(), 2 * band.size) for band in bands], "uniform"
        ).pvalue,
        "edges": min(stats.kstest(power[:, edge], stats.chi2(2).cdf).pvalue for edge in (0, -1)),
        "simulator": stats.ks_2samp(power[:, ::7].ravel(), reference[:, ::7].ravel()).pvalue,
    }


def out_of_band(series):
    """The largest amplitude outside the analysis band, in units of the mean one within."""
    spectrum = np.abs(np.fft.rfft(series.astype(np.float64)))
    outside = np.concatenate([spectrum[:, :FIRST_BIN], spectrum[:, -1:]], 1)
    return outside.max() / spectrum[:, FIRST_BIN:-1].mean()


def test_device_noise_is_the_simulators():
    noise = device_noise()
    assert min(p_values(noise).values()) > IMPROBABLE
    assert out_of_band(noise) < 1e-5
    assert out_of_band(simulator_noise()) < 1e-5


def test_the_noise_test_catches_a_wrong_variance():
    values = p_values(device_noise(scale=1.01))
    assert values["variance"] < IMPROBABLE
    assert p_values(device_noise(scale=1.05))["simulator"] < IMPROBABLE


def test_the_noise_test_catches_a_wrong_band_and_colour():
    assert out_of_band(device_noise(first_bin=FIRST_BIN - 1)) > 0.1
    assert p_values(device_noise(first_bin=FIRST_BIN + 1))["edges"] < IMPROBABLE
    coloured = np.fft.rfft(device_noise()) * np.linspace(0.95, 1.05, SAMPLES // 2 + 1)
    assert p_values(np.fft.irfft(coloured))["flatness"] < IMPROBABLE


@pytest.mark.parametrize("name", ENCODINGS)
def test_decoding_is_that_of_storage(name):
    encoding = ENCODINGS[name]
    strain = np.random.default_rng(3).normal(0, 3, (4, 2, SAMPLES)).clip(-15, 15)
    codes = encoding.encode(strain, 0)
    decoded = Preprocess(encoding.scale_factor or 1.0, SAMPLES, 0)(torch.from_numpy(codes))
    assert decoded.dtype == torch.float32
    assert np.array_equal(decoded.numpy(), encoding.decode(codes))


def test_noise_is_added_where_seeds_are_given_only():
    stored = torch.ones(2, 3, SAMPLES)
    preprocess = Preprocess(1.0, SAMPLES, FIRST_BIN)
    assert torch.equal(preprocess(stored), torch.ones(2, 3, SAMPLES))
    noisy = preprocess(stored, [4, 5])
    noise = preprocess.noise(3, [4, 5], CPU)
    assert torch.equal(noisy, 1 + noise)
    assert noise.std().item() == pytest.approx(np.sqrt(1 - 17 / 512), abs=0.05)
    assert torch.equal(stored, torch.ones(2, 3, SAMPLES)), "what the loader owns was changed"


def test_the_noise_of_an_event_is_a_function_of_its_seed_alone():
    noise = device_noise(5)
    assert np.array_equal(noise, device_noise(5))
    assert np.array_equal(noise[1:], device_noise(6)[:-1])
    assert len(np.unique(noise[:, 0])) == len(noise)


def test_the_band_begins_where_the_data_set_says(schema):
    facts = DataFacts.of(schema)
    assert facts.preprocess().first_bin == 16
