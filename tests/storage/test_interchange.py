"""Posteriors open in pandas and bilby."""

from dataclasses import replace

import bilby
import numpy as np
import pytest
from bilby.gw.conversion import chirp_mass_and_mass_ratio_to_component_masses

import storage
from storage.errors import InputError
from storage.posterior import Exact, Posterior
from storage.results import write_posterior

NAMES = ("chirp_mass", "mass_ratio", "luminosity_distance", "a_1", "tilt_1")


def posterior(exact=False, event=4):
    draw = np.random.default_rng(event)
    samples = np.stack(
        [
            draw.normal(30, 1, 50),
            draw.uniform(0.3, 1, 50),
            draw.normal(3000, 100, 50),
            draw.uniform(0, 0.9, 50),
            draw.uniform(0, 3, 50),
        ],
        axis=1,
    )
    priors = {
        "chirp_mass": "Uniform(25, 100)",
        "mass_ratio": "Uniform(0.1, 1)",
        "luminosity_distance": "Uniform(500, 9000)",
        "a_1": "Uniform(0, 0.99)",
        "tilt_1": "Uniform(0, 3.1)",
        **dict.fromkeys(("a_2", "tilt_2", "phi_12", "phi_jl", "psi", "phase"), "0.2"),
        **{"theta_jn": "0.4", "ra": "1.0", "dec": "0.5", "geocent_time": "1577491218.0"},
    }
    truth = {name: float(text) for name, text in priors.items() if "U" not in text}
    truth |= {"chirp_mass": 30.0, "mass_ratio": 0.5, "luminosity_distance": 3000.0}
    weights = draw.exponential(size=50)
    found = Exact(weights, -weights, weights / weights.mean(), 5.0, 0.1, -99.0)
    return Posterior(
        event, NAMES, samples, draw.normal(size=50), truth, priors, exact=found if exact else None
    )


def test_a_frame_holds_every_sample():
    ours = posterior()
    frame = ours.to_frame()
    assert list(frame.columns) == [*NAMES, "log_prob"]
    assert np.array_equal(frame[list(NAMES)].to_numpy(), ours.samples)
    reweighted = posterior(exact=True)
    frame = reweighted.to_frame()
    assert list(frame.columns)[-3:] == ["log_likelihood", "log_prior", "weights"]
    assert np.array_equal(frame["weights"], reweighted.exact.weights)


@pytest.mark.parametrize("exact", [False, True])
def test_the_bilby_result_is_the_one_that_bilby_reads_from_the_file(exact, tmp_path):
    ours = posterior(exact)
    result = ours.to_bilby()
    read = bilby.result.read_in_result(str(write_posterior(tmp_path, ours)))
    assert isinstance(result, bilby.result.Result)
    assert result.posterior.equals(read.posterior)
    assert result.priors == read.priors
    assert result.injection_parameters == read.injection_parameters
    assert result.log_bayes_factor == read.log_bayes_factor or not exact


def test_derived_parameters_are_bilbys_own():
    result = posterior().to_bilby(derived=True)
    samples = result.posterior
    mass_1, mass_2 = chirp_mass_and_mass_ratio_to_component_masses(
        samples["chirp_mass"], samples["mass_ratio"]
    )
    assert np.allclose(samples["mass_1"], mass_1)
    assert np.allclose(samples["mass_2"], mass_2)
    assert (samples["mass_1_source"] < samples["mass_1"]).all()
    assert {"redshift", "chi_eff", "chi_p", "total_mass"} <= set(samples.columns)
    assert not {"waveform_approximant", "reference_frequency"} & set(samples.columns)


@pytest.mark.parametrize("known", [False, True])
def test_of_an_event_out_of_frames_all_is_in_the_sky(known):
    sky = {"gps": 1e9, "time_shift": 5e7, "ra_shift": 6.0, "geocent_time": "1627491218.0"}
    simulated = posterior()
    ours = replace(simulated, truth=simulated.truth if known else {}, sky=sky)
    samples = ours.to_bilby(derived=True).posterior
    assert {"mass_1", "chi_eff", "redshift"} <= set(samples.columns)
    assert (samples["geocent_time"] == 1627491218.0).all()
    assert samples["ra"].to_numpy() == pytest.approx(7 - 2 * np.pi)
    assert (samples["theta_jn"] == 0.4).all()

    names = ("ra", "geocent_time")
    points = np.tile([1.0, 1577491218.0], (50, 1))
    inferred = replace(ours, names=names, samples=points)
    frame, result = inferred.to_frame(), inferred.to_bilby()
    assert (frame["geocent_time"] == 1627491218.0).all()
    for name in names:
        assert np.array_equal(frame[name], result.posterior[name])


def test_nothing_is_derived_of_an_event_without_any_weight_in_one_sentence():
    ours = posterior(exact=True)
    dead = replace(ours, exact=replace(ours.exact, weights=np.zeros(50)))
    assert dead.to_bilby().posterior.empty
    with pytest.raises(InputError, match="event_000000004: has no samples of positive weight"):
        dead.to_bilby(derived=True)


def test_a_file_says_that_its_form_is_bilbys(tmp_path):
    """PESummary reads what has this word in its version with bilby, and else without the priors."""
    result = bilby.result.read_in_result(str(write_posterior(tmp_path, posterior())))
    assert "bilby" in result.version


def test_a_folder_is_read_one_posterior_at_a_time(tmp_path):
    for event in (7, 2):
        write_posterior(tmp_path, posterior(event=event))
    found = storage.read_results(tmp_path)
    assert [one.event for one in found] == [2, 7]
    with pytest.raises(InputError, match="no posterior files there"):
        storage.read_results(tmp_path / "nothing")


@pytest.mark.parametrize(("package", "method"), [("pandas", "to_frame"), ("bilby", "to_bilby")])
def test_a_package_that_is_not_installed_is_named(package, method, monkeypatch):
    def refuse(name, *rest):
        if name == package:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name)

    from storage import interchange

    real = interchange.import_module
    monkeypatch.setattr(interchange, "import_module", refuse)
    with pytest.raises(InputError, match=rf"{package} is not installed; pip install 'strainflow"):
        getattr(posterior(), method)()
