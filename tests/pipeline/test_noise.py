"""Spectra, whitening and noise: one sigma is what `pipeline.noise` says it is."""

from dataclasses import replace

import bilby
import numpy as np
import pytest
from scipy import stats

from pipeline.config import PsdConfig, SegmentConfig
from pipeline.noise import load_psd
from storage.errors import InputError

# Of Gaussian noise with a fixed seed: a test statistic this improbable is a mistake.
IMPROBABLE = 1e-3

# Powers above this have one chance in ten thousand.
RARE, CHANCE_OF_RARE = 2 * np.log(1e4), 1e-4

# science.md: amplitude densities of ET-D [1/sqrt(Hz)].
ET_D = {5.0: 3.56e-24, 10.0: 1.16e-24, 20.0: 9.40e-25, 100.0: 3.93e-25, 1000.0: 5.77e-25}


def noise_p_values(series, first_bin):
    """How probable whitened noise is, tested in its variance, spectrum, distribution and phases.

    Args:
        series: Stretches of noise, (stretch, time).
        first_bin: Where the analysis band begins.
    """
    spectrum = np.fft.rfft(series.astype(np.float64))[:, first_bin:-1]
    power = np.abs(spectrum) ** 2 / (series.shape[1] / 2)  # chi-squared with 2 degrees of freedom
    variance = stats.chi2.cdf(power.sum(), 2 * power.size)
    bands = np.array_split(power, 64, axis=1)
    levels = [stats.chi2.cdf(band.sum(), 2 * band.size) for band in bands]
    return {
        "variance": 2 * min(variance, 1 - variance),
        "flatness": stats.kstest(levels, "uniform").pvalue,
        "chi-squared": stats.kstest(power[:, ::31].ravel(), stats.chi2(2).cdf).pvalue,
        "tail": stats.binomtest(int(np.sum(power > RARE)), power.size, CHANCE_OF_RARE).pvalue,
        "phases": stats.kstest(
            np.angle(spectrum[:, ::31]).ravel() / np.pi, "uniform", (-1, 2)
        ).pvalue,
    }


@pytest.fixture(scope="module")
def noise(simulator):
    """Sixteen events of noise in three detectors, (48, time)."""
    generator = np.random.Generator(np.random.Philox(16))
    noise = np.zeros((16, 3, simulator.config.segment.samples), np.float32)
    for item in noise:
        simulator.whitening.add_noise(item, generator)
    return noise.reshape(48, -1)


@pytest.fixture(scope="module")
def first_bin(simulator):
    """Where the analysis band begins, in bins of the segment."""
    return round(simulator.config.waveform.f_lower * simulator.config.segment.duration)


def test_noise_is_white_in_the_band(noise, first_bin):
    for name, p_value in noise_p_values(noise, first_bin).items():
        assert p_value > IMPROBABLE, f"{name}: p = {p_value:.2g}"


def test_the_test_of_whiteness_sees_colour_variance_and_other_distributions(noise, first_bin):
    spectrum = np.fft.rfft(noise)
    coloured = np.fft.irfft(spectrum * np.linspace(0.98, 1.02, spectrum.shape[1]))
    assert noise_p_values(coloured, first_bin)["flatness"] < IMPROBABLE
    assert noise_p_values(noise * 1.01, first_bin)["variance"] < IMPROBABLE
    clipped = spectrum / np.maximum(1, np.abs(spectrum) / np.sqrt(0.9 * RARE * noise.shape[1] / 2))
    assert noise_p_values(np.fft.irfft(clipped), first_bin)["tail"] < IMPROBABLE
    one_sided = np.fft.irfft(np.abs(spectrum.real) + 1j * spectrum.imag)
    assert noise_p_values(one_sided, first_bin)["phases"] < IMPROBABLE
    uniform = np.random.default_rng(0).uniform(-(3**0.5), 3**0.5, spectrum.shape)
    flat = np.fft.irfft(uniform * np.sqrt(noise.shape[1]))
    assert noise_p_values(flat, first_bin)["chi-squared"] < IMPROBABLE


def test_the_variance_of_noise_is_the_share_of_the_band(noise, simulator):
    share = 1 - 10 / 4096 - 1 / 32768  # the band ends below the Nyquist bin
    assert noise.dtype == np.float32
    assert noise.astype(np.float64).var() == pytest.approx(share, rel=4 * np.sqrt(2 / noise.size))


def test_noise_is_gaussian_sample_by_sample(noise):
    share = 1 - 10 / 4096 - 1 / 32768
    samples = noise.ravel()[::97].astype(np.float64)
    assert stats.kstest(samples, stats.norm(0, np.sqrt(share)).cdf).pvalue > IMPROBABLE


def test_there_is_nothing_outside_the_band(noise, first_bin):
    power = np.abs(np.fft.rfft(noise.astype(np.float64))) ** 2 / (noise.shape[1] / 2)
    assert power[:, :first_bin].max() < 1e-9
    assert power[:, -1].max() < 1e-9


def test_detectors_have_independent_noise(noise):
    correlation = np.corrcoef(noise.astype(np.float64))
    off_diagonal = correlation[np.triu_indices(len(correlation), 1)] * np.sqrt(noise.shape[1])
    assert stats.kstest(off_diagonal, "norm").pvalue > IMPROBABLE


def test_noise_that_bilby_coloured_is_white_after_our_whitening(simulator, bilby_interferometers):
    """Drawing the noise whitened is the same as colouring and whitening it."""
    segment = simulator.config.segment
    density = bilby_interferometers[0].power_spectral_density
    first = round(simulator.config.waveform.f_lower * segment.generation_duration)
    bilby.core.utils.random.seed(0)
    whole = []
    for _ in range(8):
        strain, _ = density.get_noise_realisation(segment.sample_rate, segment.generation_duration)
        whitened = simulator.whitening.whiten(np.tile(strain[first:-1], (3, 1)), first)[0]
        spectrum = np.zeros(segment.generation_samples // 2 + 1, complex)
        spectrum[first:-1] = whitened
        whole.append(np.fft.irfft(spectrum))
    for name, p_value in noise_p_values(np.array(whole), first).items():
        assert p_value > IMPROBABLE / 10, f"{name}: p = {p_value:.2g}"


def test_the_power_of_a_whitened_signal_is_its_snr_squared(simulator_with, sources):
    """Exactly so where nothing is cropped."""
    whole = simulator_with(duration=16.0, start_time=1577491203.0)
    for source in sources[:5]:
        strain, first = whole.strain(source)
        density = whole.psd[:, first : first + strain.shape[1]]
        snr_squared = 4 / 16 * np.sum(np.abs(strain) ** 2 / density, axis=1)
        power = np.sum(whole.signal(source).astype(np.float64) ** 2, axis=1)
        assert power == pytest.approx(snr_squared, rel=1e-5)


@pytest.mark.parametrize(("frequency", "amplitude"), ET_D.items())
def test_et_d_has_its_known_amplitude_density(frequency, amplitude):
    psd = load_psd(PsdConfig(name="ET-D"), SegmentConfig(start_time=0.0), 5.0)
    assert np.sqrt(psd[round(16 * frequency)]) == pytest.approx(amplitude, rel=5e-3)


def test_the_psd_is_zero_outside_the_band(simulator, frequencies):
    outside = (frequencies < 10) | (frequencies >= 4096)
    assert np.all((simulator.psd == 0) == outside)


@pytest.mark.parametrize(("quantity", "power"), [("asd", 0.5), ("psd", 1.0)])
def test_a_psd_from_a_file_is_the_psd_of_the_same_name(
    simulator_with, sources, tmp_path, quantity, power
):
    by_name = simulator_with(sample_rate=1024.0)
    psd = by_name.psd[0]
    path = tmp_path / "et-d.txt"
    bins = np.arange(len(psd)) / 16  # zero below the band, as in many a file
    np.savetxt(path, np.c_[bins, psd**power][:-1], fmt="%.17g")
    config = replace(by_name.config, psd=PsdConfig(file=str(path), quantity=quantity))
    from_file = type(by_name).from_config(config)
    np.testing.assert_allclose(from_file.psd, by_name.psd, rtol=1e-12)
    ours, theirs = from_file.signal(sources[0]), by_name.signal(sources[0])
    assert np.abs(ours - theirs).max() < 1e-6 * np.abs(theirs).max()


def test_a_coarse_psd_file_is_interpolated_as_a_power_law(tmp_path):
    path = tmp_path / "steep.txt"
    known = np.geomspace(5, 5000, 7)
    np.savetxt(path, np.c_[known, 1e-46 * known**-4.0])
    psd = load_psd(PsdConfig(file=str(path), quantity="psd"), SegmentConfig(start_time=0.0), 10.0)
    between = np.arange(160, 65536) / 16
    np.testing.assert_allclose(psd[160:-1], 1e-46 * between**-4.0, rtol=1e-9)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("20 1e-24\n5000 1e-24\n", "covers 20 to 5000 Hz, the analysis band is 10 to 4095.94 Hz"),
        ("5 1e-24\n2048 1e-24\n", "covers 5 to 2048 Hz"),
        ("5 1e-24\n", "needs two columns"),
        ("5\n6\n7\n", "needs two columns"),
        ("5000 1e-24\n5 1e-24\n", "the frequency rising"),
        ("0 1e-24\n5000 1e-24\n", "covers 0 to 5000 Hz"),
        ("5 1e-24\n100 nan\n5000 1e-24\n", "holds nan at 100 Hz"),
        ("5 1e-24\n100 inf\n5000 1e-24\n", "holds inf at 100 Hz"),
        ("5 1e-24\n100 -1e-24\n5000 1e-24\n", "holds -1e-24 at 100 Hz"),
        ("5 0\n100 0\n5000 0\n", "holds 0 at 5 Hz"),
        ("5 1e-24\n100 0\n5000 1e-24\n", "must be positive and finite"),
        ("f asd\n5 1e-24\n", "no table of numbers"),
        ("", "needs two columns"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_a_psd_file_that_cannot_be_used_is_refused(tmp_path, content, reason):
    path = tmp_path / "psd.txt"
    path.write_text(content)
    with pytest.raises(InputError, match=reason):
        load_psd(PsdConfig(file=str(path)), SegmentConfig(start_time=0.0), 10.0)


def test_what_a_psd_file_holds_outside_the_band_does_not_matter(tmp_path):
    path = tmp_path / "psd.txt"
    path.write_text("0 inf\n1 0\n2 nan\n5 1e-24\n5000 1e-24\n6000 0\n")
    psd = load_psd(PsdConfig(file=str(path)), SegmentConfig(start_time=0.0), 10.0)
    np.testing.assert_allclose(psd[160:-1], 1e-48)


def test_a_detector_may_have_its_own_psd(simulator, tmp_path):
    path = tmp_path / "asd.txt"
    path.write_text("5 1e-24\n5000 1e-24\n")
    own = {"E2": PsdConfig(name="CosmicExplorerP1600143"), "E3": PsdConfig(file=str(path))}
    other = type(simulator).from_config(replace(simulator.config, psd_of=own))
    assert np.array_equal(other.psd[0], simulator.psd[0])
    one = load_psd(own["E2"], simulator.config.segment, 10.0)
    assert np.array_equal(other.psd[1], one)
    np.testing.assert_allclose(other.psd[2, 160:-1], 1e-48)


@pytest.mark.parametrize(
    ("psd_of", "reason"),
    [
        ({"V1": PsdConfig()}, "psd_of: got V1, the detectors are E1, E2, E3"),
        ({"E2": PsdConfig(name="ET-Z")}, "psd_of.E2.name: got 'ET-Z'"),
        ({"E2": PsdConfig(file="/no")}, "psd_of.E2.file: /no cannot be read"),
    ],
)
def test_an_own_psd_that_cannot_be_used_is_named(simulator, psd_of, reason):
    with pytest.raises(InputError, match=reason):
        type(simulator).from_config(replace(simulator.config, psd_of=psd_of))


@pytest.mark.parametrize(
    ("psd", "f_lower", "reason"),
    [
        (PsdConfig(name="ET-D"), 3.0, "known from 5 Hz up, waveform.f_lower is 3 Hz"),
        (PsdConfig(name="EinsteinTelescopeP1600143"), 4.9, "known from 5 Hz up"),
        (PsdConfig(name="ET-Z"), 10.0, "got 'ET-Z', known are ET-D, "),
        (PsdConfig(file="/nowhere/psd.txt"), 10.0, "/nowhere/psd.txt cannot be read"),
        (PsdConfig(file="/"), 10.0, "cannot be read"),
    ],
)
def test_a_psd_that_is_not_there_is_refused(psd, f_lower, reason):
    with pytest.raises(InputError, match=reason):
        load_psd(psd, SegmentConfig(start_time=0.0), f_lower)
