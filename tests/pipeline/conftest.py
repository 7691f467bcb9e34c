"""What the tests of the pipeline share: the recipe, its simulator, and bilby as a reference."""

from dataclasses import dataclass, replace

import bilby
import lal
import numpy as np
import psutil
import pytest

from pipeline.cluster import ClusterConfig, local
from pipeline.config import DatasetConfig
from pipeline.simulate import Simulator
from strainflow import read_config

RECIPE = "pipeline/recipes/et-bbh.yaml"


@pytest.fixture(scope="session")
def et_bbh():
    """The recipe et-bbh with other flags, as the command line would read it, in float32."""

    def read(*flags):
        return read_config(DatasetConfig, RECIPE, "--events=4", "--encoding=float32", *flags)

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


@dataclass(frozen=True)
class Bilby:
    """bilby's detectors and its waveform generator, set up as a simulator is."""

    interferometers: list
    generator: bilby.gw.WaveformGenerator

    def strain(self, source):
        """Strain at each detector, over all bins, without a taper [1/Hz]."""
        polarisations = self.generator.frequency_domain_strain(dict(source))
        return np.array(
            [item.get_detector_response(polarisations, source) for item in self.interferometers]
        )

    def snrs(self, strain):
        """Optimal SNR of a strain in each detector."""
        return np.array(
            [
                np.sqrt(item.optimal_snr_squared(row).real)
                for item, row in zip(self.interferometers, strain, strict=True)
            ]
        )


@pytest.fixture(scope="session")
def bilby_of(tmp_path_factory):
    """Build bilby's counterpart of a simulator."""

    def build(simulator):
        bilby.core.utils.logger.setLevel("ERROR")
        segment, waveform = simulator.config.segment, simulator.config.waveform
        frequencies = np.arange(simulator.psd.shape[1]) / segment.generation_duration
        folder = tmp_path_factory.mktemp("psd")
        interferometers = []
        for detector, psd in zip(simulator.detectors, simulator.psd, strict=True):
            psd_file = folder / f"{detector.name}.txt"
            np.savetxt(psd_file, np.c_[frequencies, psd][psd > 0], fmt="%.17g")
            interferometer = bilby.gw.detector.Interferometer(
                name=detector.name,
                power_spectral_density=bilby.gw.detector.PowerSpectralDensity(
                    psd_file=str(psd_file)
                ),
                minimum_frequency=waveform.f_lower,
                maximum_frequency=segment.sample_rate / 2,
                **geometry_for_bilby(detector.name),
            )
            interferometer.set_strain_data_from_zero_noise(
                segment.sample_rate, segment.generation_duration, segment.generation_start
            )
            interferometers.append(interferometer)
        generator = bilby.gw.WaveformGenerator(
            duration=segment.generation_duration,
            sampling_frequency=segment.sample_rate,
            frequency_domain_source_model=bilby.gw.source.lal_binary_black_hole,
            waveform_arguments={
                "waveform_approximant": waveform.approximant,
                "reference_frequency": waveform.f_ref,
                "minimum_frequency": waveform.f_lower,
                **{LAL_SETTINGS[name]: value for name, value in waveform.phenomx.given().items()},
            },
        )
        return Bilby(interferometers, generator)

    return build


LAL_SETTINGS = {
    "multibanding": "PhenomXHMThresholdMband",
    "precession_multibanding": "PhenomXPHMThresholdMband",
    "precession_version": "PhenomXPrecVersion",
}


def geometry_for_bilby(name):
    """LAL's facts of a detector in bilby's words; bilby's own ET has exchanged arms."""
    facts = next(x.frDetector for x in lal.CachedDetectors if x.frDetector.prefix == name)
    return {
        "length": 2e-3 * facts.xArmMidpoint,
        "latitude": np.degrees(facts.vertexLatitudeRadians),
        "longitude": np.degrees(facts.vertexLongitudeRadians),
        "elevation": facts.vertexElevation,
        "xarm_azimuth": 90 - np.degrees(facts.xArmAzimuthRadians),
        "yarm_azimuth": 90 - np.degrees(facts.yArmAzimuthRadians),
        "xarm_tilt": facts.xArmAltitudeRadians,
        "yarm_tilt": facts.yArmAltitudeRadians,
    }


@pytest.fixture(scope="session")
def bilby_reference(simulator, bilby_of):
    """bilby's counterpart of the simulator of et-bbh."""
    return bilby_of(simulator)


@pytest.fixture(scope="session")
def bilby_interferometers(bilby_reference):
    """E1, E2, E3 as bilby builds them from LAL's arms."""
    return bilby_reference.interferometers


@pytest.fixture(scope="session")
def bilby_strain(bilby_reference, sources):
    """bilby's strain of each source at each detector, over all bins, without a taper [1/Hz]."""
    return [bilby_reference.strain(source) for source in sources]


@pytest.fixture(scope="session")
def running_cluster(tmp_path_factory):
    """Two workers that serve many runs, as `cluster.kind: address` names them."""
    with local(ClusterConfig(workers=2), tmp_path_factory.mktemp("log")) as cluster:
        yield ClusterConfig(kind="address", address=cluster.client.scheduler.address)


@pytest.fixture(scope="session")
def workers_of():
    """The process ids of Dask's workers, which are children of a run."""

    def workers(run):
        try:
            children = psutil.Process(run.pid).children()
            return [child.pid for child in children if "spawn_main" in " ".join(child.cmdline())]
        except psutil.NoSuchProcess:  # the run, or one of them, has ended meanwhile
            return []

    return workers
