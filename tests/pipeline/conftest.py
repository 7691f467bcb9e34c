"""What the tests of the pipeline share: the recipe, its simulator, and bilby as a reference."""

from dataclasses import replace

import bilby
import lal
import numpy as np
import pytest

from pipeline.config import DatasetConfig
from pipeline.simulate import Simulator
from strainflow import read_config

RECIPE = "pipeline/recipes/et-bbh.yaml"


@pytest.fixture(scope="session")
def et_bbh():
    """The recipe et-bbh with other flags, as the command line would read it."""

    def read(*flags):
        return read_config(DatasetConfig, RECIPE, "--events=4", *flags)

    return read


@pytest.fixture(scope="session")
def simulator(et_bbh):
    """The simulator of noise-free events of et-bbh."""
    return Simulator.from_config(et_bbh("--noise=none").simulation)


@pytest.fixture(scope="session")
def simulator_with(simulator):
    """The same simulator over another stretch, such as generation_duration=64."""

    def build(**segment):
        return simulator.over(replace(simulator.config.segment, **segment))

    return build


@pytest.fixture(scope="session")
def sources(simulator):
    """Twenty random precessing binaries of the recipe's prior."""
    generator = np.random.default_rng(20)
    return [simulator.draw_parameters(generator) for _ in range(20)]


@pytest.fixture(scope="session")
def frequencies(simulator):
    """The bins of the generated waveform [Hz]."""
    return np.arange(simulator.psd.shape[1]) / simulator.config.segment.generation_duration


@pytest.fixture(scope="session")
def bilby_interferometers(simulator, frequencies, tmp_path_factory):
    """E1, E2, E3 as bilby builds them from LAL's arms; bilby's own ET has other ones."""
    bilby.core.utils.logger.setLevel("ERROR")
    segment = simulator.config.segment
    band = simulator.psd[0] > 0
    psd_file = tmp_path_factory.mktemp("psd") / "psd.txt"
    np.savetxt(psd_file, np.c_[frequencies[band], simulator.psd[0, band]], fmt="%.17g")
    geometry = {item.frDetector.prefix: item.frDetector for item in lal.CachedDetectors}
    interferometers = []
    for name in simulator.config.detectors:
        facts = geometry[name]
        interferometer = bilby.gw.detector.Interferometer(
            name=name,
            power_spectral_density=bilby.gw.detector.PowerSpectralDensity(psd_file=str(psd_file)),
            minimum_frequency=simulator.config.waveform.f_lower,
            maximum_frequency=segment.sample_rate / 2,
            length=10,
            latitude=np.degrees(facts.vertexLatitudeRadians),
            longitude=np.degrees(facts.vertexLongitudeRadians),
            elevation=facts.vertexElevation,
            xarm_azimuth=90 - np.degrees(facts.xArmAzimuthRadians),
            yarm_azimuth=90 - np.degrees(facts.yArmAzimuthRadians),
            xarm_tilt=facts.xArmAltitudeRadians,
            yarm_tilt=facts.yArmAltitudeRadians,
        )
        interferometer.set_strain_data_from_zero_noise(
            segment.sample_rate, segment.generation_duration, segment.generation_start
        )
        interferometers.append(interferometer)
    return interferometers


@pytest.fixture(scope="session")
def bilby_strain(simulator, bilby_interferometers, sources):
    """bilby's strain of each source at each detector, over all bins, without a taper [1/Hz]."""
    segment, waveform = simulator.config.segment, simulator.config.waveform
    generator = bilby.gw.WaveformGenerator(
        duration=segment.generation_duration,
        sampling_frequency=segment.sample_rate,
        frequency_domain_source_model=bilby.gw.source.lal_binary_black_hole,
        waveform_arguments={
            "waveform_approximant": waveform.approximant,
            "reference_frequency": waveform.f_ref,
            "minimum_frequency": waveform.f_lower,
        },
    )
    strain = []
    for source in sources:
        polarisations = generator.frequency_domain_strain(dict(source))
        responses = [
            item.get_detector_response(polarisations, source) for item in bilby_interferometers
        ]
        strain.append(np.array(responses))
    return strain
