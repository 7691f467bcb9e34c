"""Strain at the detectors: against bilby, and the triangle's null stream."""

from dataclasses import replace

import numpy as np
import pytest

from pipeline.detector import Detector, SkyPosition, detector_named, time_shift
from pipeline.waveform import TAPER_END
from storage.errors import InputError


def difference(ours, reference):
    """Norm of the difference over the norm of the reference, the largest of all detectors."""
    norms = np.linalg.norm(ours - reference, axis=-1) / np.linalg.norm(reference, axis=-1)
    return norms.max()


def over_all_bins(simulator, source):
    strain, first = simulator.strain(source)
    full = np.zeros(simulator.psd.shape, complex)
    full[:, first : first + strain.shape[1]] = strain
    return full


def delays(source, detectors):
    position = SkyPosition(*(source[name] for name in ("ra", "dec", "psi", "geocent_time")))
    return np.array([position.delay(detector) for detector in detectors])


def null_share_of_spectrum(simulator, source, undone):
    """Norm of the sum of all channels, each shifted back by `undone`, over that of the channels."""
    strain, first = simulator.strain(source)
    step = 1 / simulator.config.segment.generation_duration
    back = [time_shift(-delay, first, strain.shape[1], step) for delay in undone]
    return np.linalg.norm((strain * back).sum(0)) / np.linalg.norm(strain)


def null_share_of_event(simulator, source, undone):
    """The same for the stored series, shifted by FFT; its ends are cut, so shifts must be short."""
    whitened = simulator.signal(source).astype(np.float64)
    segment = simulator.config.segment
    bins = np.fft.rfftfreq(segment.samples, 1 / segment.sample_rate)
    spectrum = np.fft.rfft(whitened) * np.exp(2j * np.pi * np.outer(undone, bins))
    null = np.fft.irfft(spectrum.sum(0), segment.samples)
    return np.linalg.norm(null) / np.linalg.norm(whitened)


def test_strain_agrees_with_bilby(simulator, sources, bilby_strain, frequencies):
    """Measured: at most 1.4e-5 of the norm."""
    untapered = frequencies >= TAPER_END * simulator.config.waveform.f_lower
    untapered[-1] = False  # the Nyquist bin
    for source, reference in zip(sources, bilby_strain, strict=True):
        ours = over_all_bins(simulator, source)
        assert difference(ours[:, untapered], reference[:, untapered]) < 1e-4


def test_the_comparison_with_bilby_sees_a_shift_of_a_microsecond_and_an_exchange_of_detectors(
    simulator, sources, bilby_strain, frequencies
):
    untapered = frequencies >= TAPER_END * simulator.config.waveform.f_lower
    reference = bilby_strain[0][:, untapered]
    later = dict(sources[0], geocent_time=sources[0]["geocent_time"] + 2e-6)
    assert difference(over_all_bins(simulator, later)[:, untapered], reference) > 1e-4
    exchanged = over_all_bins(simulator, sources[0])[[0, 2, 1]]
    assert difference(exchanged[:, untapered], reference) > 1e-1


def test_the_three_channels_add_up_to_nothing_before_the_crop(simulator, sources):
    """Measured: at most 2.5e-7 of the norm."""
    for source in sources:
        undone = delays(source, simulator.detectors)
        assert null_share_of_spectrum(simulator, source, undone) < 1e-6


def test_the_three_channels_of_a_stored_event_add_up_to_nothing(simulator, sources):
    """Measured: at most 5e-5, from the ends of the segment, where the shifts wrap around."""
    for source in sources:
        undone = delays(source, simulator.detectors)
        assert null_share_of_event(simulator, source, undone - undone[0]) < 2e-4


@pytest.mark.parametrize("null_share", [null_share_of_spectrum, null_share_of_event])
def test_the_null_stream_sees_omitted_and_exchanged_delays(simulator, sources, null_share):
    for source in sources[:3]:
        undone = delays(source, simulator.detectors)
        undone -= undone[0]
        good = null_share(simulator, source, undone)
        assert null_share(simulator, source, 0 * undone) > 10 * good
        assert null_share(simulator, source, undone * [1, 0, 1]) > 10 * good
        assert null_share(simulator, source, undone[[0, 2, 1]]) > 10 * good


def test_the_null_stream_sees_the_two_arms_of_an_interferometer_exchanged(simulator, sources):
    first, second, third = simulator.detectors
    wrong = replace(simulator, detectors=(first, replace(second, response=-second.response), third))
    undone = delays(sources[0], simulator.detectors)
    assert null_share_of_spectrum(wrong, sources[0], undone) > 0.1
    assert null_share_of_event(wrong, sources[0], undone - undone[0]) > 0.1


def test_the_triangle_has_the_right_shape(simulator):
    for detector in simulator.detectors:
        assert np.square(detector.response).sum() == pytest.approx(0.375, rel=1e-6)
        assert np.trace(detector.response) == pytest.approx(0, abs=1e-6)
    vertices = np.array([detector.location for detector in simulator.detectors])
    sides = np.linalg.norm(vertices - np.roll(vertices, 1, axis=0), axis=1)
    assert sides == pytest.approx([10_000] * 3, rel=1e-3)


def test_delays_are_finer_than_a_sample(simulator, sources):
    for source in sources:
        relative = delays(source, simulator.detectors)
        assert np.ptp(relative) < 1.01 * 10_000 / 299_792_458 < 1 / 8192


def test_time_shift_is_the_exponential_of_each_bin():
    bins = np.arange(160, 160 + 1000)
    expected = np.exp(-2j * np.pi * bins / 16 * 15.0123)
    assert np.abs(time_shift(15.0123, 160, 1000, 1 / 16) - expected).max() < 1e-9


def test_a_detector_survives_the_metadata():
    detector = detector_named("E2")
    again = Detector.from_dict(detector.to_dict())
    assert again.name == "E2"
    assert np.array_equal(again.response, detector.response)
    assert np.array_equal(again.location, detector.location)


def test_an_unknown_detector_is_answered_with_the_known_ones():
    with pytest.raises(InputError, match="'E9', known are .*E1, E2, E3"):
        detector_named("E9")
