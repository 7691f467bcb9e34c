"""Detector strain and SNR against bilby: 200 draws of each recipe, and each waveform model.

bilby goes another way from parameters to strain: its own conversion of spins and masses, its own
response tensors, sidereal time and delays. What they share is LALSimulation. The comparison is of
the frequency domain before the crop, with our taper laid over bilby's signal.

Masses go to LALSimulation with bilby's own last bits: IMRPhenomXPHM with its default multibanding
is not continuous, and a chirp mass that differs by one part in 10^13 can move the strain by 2e-3.
"""

from dataclasses import replace

import numpy as np
import pytest

from pipeline.config import DatasetConfig
from pipeline.simulate import Simulator
from pipeline.waveform import WaveformError, start_taper
from strainflow import read_config

DRAWS = 200
AGREEMENT = 1e-5  # of the norm, the largest over draws and detectors; measured 5.6e-7
SNR_AGREEMENT = 1e-6  # relative, of the network; measured 8e-8, single precision

RECIPES = {
    "et-bbh": ("pipeline/recipes/et-bbh.yaml",),
    "et-lowmass": ("pipeline/recipes/et-lowmass.yaml",),
    "hlv-bbh": (
        "pipeline/recipes/hlv-bbh.yaml",
        "--psd_of={V1: {name: AdVDesignSensitivityP1200087}, "
        "L1: {name: aLIGOEarlyHighSensitivityP1200087}}",
    ),
}
# Draws of each: one of SEOBNRv4PHM takes seconds.
MODELS = {
    "IMRPhenomXP": 5,
    "IMRPhenomPv2": 5,
    "IMRPhenomXO4a": 5,
    "IMRPhenomXPNR": 5,
    "IMRPhenomTPHM": 5,
    "SEOBNRv4PHM": 2,
}


def simulator_of(name, *flags):
    recipe, *own = RECIPES[name]
    config = read_config(DatasetConfig, recipe, *own, "--events=1", "--noise=none", *flags)
    return Simulator.from_config(config.simulation)


def compare(simulator, reference, source):
    """Norm of the difference over bilby's norm, and the relative difference of the network SNRs."""
    config = simulator.config
    strain, first = simulator.strain(source)
    ours = np.zeros(simulator.psd.shape, complex)
    ours[:, first : first + strain.shape[1]] = strain
    theirs = reference.strain(dict(source))
    taper = start_taper(config.waveform, config.segment)
    theirs[:, first : first + len(taper)] *= taper
    theirs[:, :first] = theirs[:, -1] = 0  # bilby keeps the Nyquist bin
    apart = np.linalg.norm(ours - theirs, axis=1) / np.linalg.norm(theirs, axis=1)
    snr = np.linalg.norm(reference.snrs(theirs))
    whole = replace(config.segment, duration=config.segment.generation_duration)
    series = replace(simulator.whitening, segment=whole).to_segment(
        simulator.whitening.whiten(strain, first), first
    )
    norm = np.linalg.norm(series.astype(np.float64))
    return apart.max(), abs(norm / snr - 1)


def draw(simulator, count, seed):
    generator = np.random.default_rng(seed)
    sources = []
    while len(sources) < count:
        source = simulator.draw_parameters(generator)
        try:
            simulator.strain(source)
        except WaveformError:
            continue
        sources.append(source)
    return sources


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_strain_and_network_snr_of_a_recipe_are_bilbys(name, bilby_of):
    """Measured: see docs/physics.md; run with -s to see the figures."""
    simulator = simulator_of(name)
    reference = bilby_of(simulator)
    sources = draw(simulator, DRAWS, 200)
    strain, snr = np.array([compare(simulator, reference, item) for item in sources]).T
    print(f"{name}: strain {strain.max():.2g}, network SNR {snr.max():.2g}")
    assert strain.max() < AGREEMENT
    assert snr.max() < SNR_AGREEMENT


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_strain_of_a_waveform_model_is_bilbys(name, bilby_of):
    simulator = simulator_of(
        "et-bbh", f"--waveform.approximant={name}", "--prior.chirp_mass=Uniform(50, 80)"
    )
    reference = bilby_of(simulator)
    found = np.array(
        [compare(simulator, reference, source) for source in draw(simulator, MODELS[name], 6)]
    )
    print(f"{name}: strain {found.max(0)[0]:.2g}, network SNR {found.max(0)[1]:.2g}")
    assert found.max(0)[0] < AGREEMENT
    assert found.max(0)[1] < SNR_AGREEMENT


def test_the_comparison_sees_a_microsecond_an_exchange_of_psds_and_another_model(bilby_of):
    simulator = simulator_of("hlv-bbh")
    reference = bilby_of(simulator)
    (source,) = draw(simulator, 1, 1)
    strain, snr = compare(simulator, reference, source)
    assert strain < AGREEMENT
    assert snr < SNR_AGREEMENT
    later = replace(
        simulator,
        detectors=tuple(
            replace(item, location=item.location + [0, 0, 300.0]) for item in simulator.detectors
        ),
    )
    assert compare(later, reference, source)[0] > AGREEMENT  # measured 1.8e-4
    exchanged = replace(simulator, psd=simulator.psd[[0, 2, 1]])
    assert compare(exchanged, reference, source)[1] > 10 * SNR_AGREEMENT
    waveform = replace(simulator.config.waveform, approximant="IMRPhenomXP")
    other = replace(simulator, config=replace(simulator.config, waveform=waveform))
    assert compare(other, reference, source)[0] > 10 * AGREEMENT
