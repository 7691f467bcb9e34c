"""Statistics of whole events: the noise that is in them, and what a matched filter finds in them.

A thousand short events of a fast model, and some of full size. Every p-value of a test has to
exceed 0.05 over their number. Seeds are fixed: these tests give the same answer each time.
"""

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pytest
from scipy import stats

from pipeline.simulate import Simulator

SHORT = (
    "--waveform.approximant=IMRPhenomPv2",
    "--waveform.f_lower=20",
    "--segment={start_time: 1577491216, duration: 2.25, sample_rate: 2048, generation_duration: 4}",
    "--prior.chirp_mass=Uniform(40, 80)",
    "--prior.mass_ratio=Uniform(0.5, 1)",
    "--prior.a_1=Uniform(0, 0.8)",
    "--prior.a_2=Uniform(0, 0.8)",
    "--seed=33",
)
SETS = {
    "short": (1000, SHORT),
    "full size": (48, ("--seed=32",)),
    "unequal detectors": (
        300,
        (
            *SHORT,
            "--detectors=[H1, ETM1, V1]",
            "--psd_of={H1: {name: aLIGODesignSensitivityT1800044}}",
            "--network_snr.minimum=1",
        ),
    ),
}


@dataclass(frozen=True)
class Events:
    """Signals and noise of the same events, (event, detector, time), and where the band begins."""

    signal: np.ndarray
    noise: np.ndarray
    optimal_snr: np.ndarray
    first_bin: int

    @property
    def spectrum(self):
        """Of the noise, in the band; the sum of squares of both parts has variance 1 each."""
        spectrum = np.fft.rfft(self.noise.astype(np.float64))[..., self.first_bin : -1]
        return spectrum / np.sqrt(self.noise.shape[-1] / 2)


def simulate(et_bbh, name):
    count, flags = SETS[name]
    config = et_bbh("--noise=gaussian", *flags).simulation
    noisy, clean = (
        [simulator.event(number) for number in range(count)]
        for simulator in map(Simulator.from_config, (config, replace(config, noise="none")))
    )
    signal = np.array([event.strain for event in clean])
    return Events(
        signal=signal,
        noise=np.array([event.strain for event in noisy]) - signal,
        optimal_snr=np.array([event.optimal_snr for event in clean]),
        first_bin=round(config.waveform.f_lower * config.segment.duration),
    )


@pytest.fixture(scope="module")
def events(et_bbh):
    made = {}
    return lambda name: made.setdefault(name, simulate(et_bbh, name))


def two_sided(cumulative):
    return 2 * min(cumulative, 1 - cumulative)


def noise_p_values(events):
    """Spectrum band by band and detector by detector, distribution, and independence."""
    spectrum, found = events.spectrum, {}
    detectors = spectrum.shape[1]
    power = np.abs(spectrum) ** 2
    for detector in range(detectors):
        for number, band in enumerate(np.array_split(power[:, detector], 12, axis=1)):
            found[f"detector {detector}, band {number}"] = two_sided(
                stats.chi2.cdf(band.sum(), 2 * band.size)
            )
    variances = power.sum(-1).ravel()
    found["variance from event to event"] = stats.kstest(
        variances, stats.chi2(2 * power.shape[-1]).cdf
    ).pvalue
    parts = spectrum.ravel()[:: 1 + spectrum.size // 100_000]
    found["real parts, KS"] = stats.kstest(parts.real, "norm").pvalue
    found["imaginary parts, KS"] = stats.kstest(parts.imag, "norm").pvalue
    # Anderson-Darling with known mean and variance: of uniform numbers, in its statistic A^2.
    ranks = np.sort(stats.norm.cdf(parts.real[:20_000]))
    index = np.arange(1, len(ranks) + 1)
    found["tails, Anderson-Darling"] = anderson_p(
        -len(ranks) - np.mean((2 * index - 1) * (np.log(ranks) + np.log1p(-ranks[::-1])))
    )
    cross = [
        overlap(spectrum[:, first], spectrum[:, second])
        for first, second in [(0, 1), (1, 2), (0, 2)]
    ]
    found["between detectors"] = stats.kstest(np.concatenate(cross), "norm").pvalue
    after = [overlap(first, second) for first, second in pairwise(spectrum)]
    found["between events"] = stats.kstest(np.concatenate(after), "norm").pvalue
    whole = np.sum(np.concatenate(cross)) / np.sqrt(np.size(cross))
    found["between detectors, all events"] = two_sided(stats.norm.cdf(whole))
    return found


def overlap(first, second):
    """Correlation over the last axis, a standard normal number where both are independent."""
    return np.sum((first * second.conj()).real, axis=-1) / np.sqrt(2 * first.shape[-1])


def anderson_p(statistic):
    """Upper tail of A^2 with all parameters known: G. and J. Marsaglia, J. Stat. Soft. 9 (2004)."""
    if statistic < 2:
        series = (
            2.00012
            + (
                0.247105
                - (
                    0.0649821
                    - (0.0347962 - (0.011672 - 0.00168691 * statistic) * statistic) * statistic
                )
                * statistic
            )
            * statistic
        )
        return 1 - np.exp(-1.2337141 / statistic) / np.sqrt(statistic) * series
    series = (
        1.0776
        - (
            2.30695
            - (0.43424 - (0.082433 - (0.008056 - 0.0003146 * statistic) * statistic) * statistic)
            * statistic
        )
        * statistic
    )
    return 1 - np.exp(-np.exp(series))


def filter_p_values(events, template=None):
    """Of the matched-filter SNR: normal, with mean optimal_snr and variance one."""
    template = events.signal if template is None else template
    template = template.astype(np.float64)
    data = events.signal + events.noise.astype(np.float64)
    snr = np.sum(data * template, axis=-1) / np.linalg.norm(template, axis=-1)
    deviation = (snr - events.optimal_snr).ravel()
    total = np.sum(data * template, axis=(1, 2)) / np.linalg.norm(template, axis=(1, 2))
    network = total - np.linalg.norm(events.optimal_snr, axis=1)
    count = deviation.size
    return {
        "mean": two_sided(stats.norm.cdf(deviation.sum() / np.sqrt(count))),
        "variance": two_sided(stats.chi2.cdf(np.sum(deviation**2), count)),
        "distribution": stats.kstest(deviation, "norm").pvalue,
        "network": stats.kstest(network, "norm").pvalue,
        "independent of the SNR": stats.spearmanr(deviation, events.optimal_snr.ravel()).pvalue,
    }


def unlikely(found):
    """Those p-values that are below 0.05 over the number of them."""
    return {name: value for name, value in found.items() if value < 0.05 / len(found)}


@pytest.mark.slow
@pytest.mark.parametrize("name", SETS)
def test_the_noise_of_events_is_white_gaussian_and_independent(events, name):
    found = noise_p_values(events(name))
    print(f"{name}: smallest of {len(found)} p-values {min(found.values()):.3g}")
    assert unlikely(found) == {}


@pytest.mark.slow
@pytest.mark.parametrize("name", SETS)
def test_a_matched_filter_finds_the_optimal_snr_with_unit_variance(events, name):
    found = filter_p_values(events(name))
    print(f"{name}: " + ", ".join(f"{key} {value:.2g}" for key, value in found.items()))
    assert unlikely(found) == {}


@pytest.mark.slow
@pytest.mark.parametrize("name", SETS)
def test_the_variance_of_a_sample_is_the_share_of_the_band(events, name):
    """The band ends below the Nyquist bin: its bins are half the samples less those below."""
    noise = events(name).noise.astype(np.float64)
    half = noise.shape[-1] // 2
    share = (half - events(name).first_bin) / half
    assert two_sided(stats.chi2.cdf(np.sum(noise**2), noise.size * share)) > 0.05
    assert two_sided(stats.chi2.cdf(np.sum(noise**2), noise.size)) < 1e-3


@pytest.mark.slow
def test_these_statistics_see_what_is_wrong(events):
    good = events("short")
    assert unlikely(noise_p_values(replace(good, noise=1.005 * good.noise)))
    common = good.noise + 0.02 * good.noise[:, [1, 2, 0]]
    assert "between detectors, all events" in unlikely(noise_p_values(replace(good, noise=common)))
    repeated = good.noise.copy()
    repeated[1::20] = repeated[::20]
    assert "between events" in unlikely(noise_p_values(replace(good, noise=repeated)))
    student = np.random.default_rng(0).standard_t(12, good.noise.shape) * np.sqrt(10 / 12)
    assert unlikely(noise_p_values(replace(good, noise=student)))
    late = np.roll(good.signal, 1, axis=-1)
    assert "mean" in unlikely(filter_p_values(good, template=late))
    assert "variance" in unlikely(filter_p_values(replace(good, noise=1.05 * good.noise)))
