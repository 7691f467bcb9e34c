"""The prior of a simulation: bilby's files, constraints, and what is recorded of them."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import bilby
import numpy as np
import pytest
from scipy import stats

from pipeline.config import DatasetConfig, simulation_from_dict, simulation_to_dict
from pipeline.priors import PARAMETERS, PriorConfig
from storage.errors import InputError
from strainflow import read_config

SHIPPED = Path(bilby.gw.prior.DEFAULT_PRIOR_DIR)
USABLE = ["GW150914.prior", "precessing_spins_bbh.prior", "precessing_spins_bns.prior"]
TIME = 1577491218.0
CONSTRAINED = ["mass_1", "mass_2", "total_mass", "symmetric_mass_ratio"]

FILE = """
chirp_mass = bilby.gw.prior.UniformInComponentsChirpMass(minimum=25, maximum=100)
mass_ratio = bilby.gw.prior.UniformInComponentsMassRatio(minimum=0.125, maximum=1)
luminosity_distance = bilby.gw.prior.UniformSourceFrame(minimum=500, maximum=15000, name='x')
mass_1 = Constraint(name='mass_1', minimum=10, maximum=80)
""".replace("'x'", "'luminosity_distance'")


@pytest.fixture(scope="session")
def recipe(et_bbh, tmp_path_factory):
    """A recipe with et-bbh's angles, spins and time, as text, and the prior file for the rest."""
    folder = tmp_path_factory.mktemp("recipe")
    (folder / "bbh.prior").write_text(FILE)
    prior = asdict(et_bbh().prior)
    for name in ("chirp_mass", "mass_ratio", "luminosity_distance", "constraints"):
        del prior[name]
    prior["file"] = str(folder / "bbh.prior")
    document = {"segment": {"start_time": 1577491211.0}, "events": 4, "prior": prior}
    (folder / "recipe.yaml").write_text(json.dumps(document))
    return folder / "recipe.yaml"


def prior_of(file, **others):
    return PriorConfig(file=str(file), **{"geocent_time": TIME, **others})


def our_draws(prior, count, seed):
    """Draws that the constraints allow, by name."""
    uniform = np.random.default_rng(seed).random((len(PARAMETERS), count))
    columns = [
        item.rescale(row) for item, row in zip(prior.distributions().values(), uniform, strict=True)
    ]
    rows = [dict(zip(PARAMETERS, row, strict=True)) for row in zip(*columns, strict=True)]
    kept = [row for row in rows if prior.allows(row)]
    return {name: np.array([row[name] for row in kept]) for name in PARAMETERS}, len(kept) / count


def with_masses(draws):
    return bilby.gw.conversion.generate_mass_parameters(dict(draws))


@pytest.mark.parametrize("name", USABLE)
def test_draws_from_bilbys_own_files_are_bilbys(name):
    """Of every parameter and of every mass that a constraint may be on."""
    ours, _ = our_draws(prior_of(SHIPPED / name), 30_000, seed=6)
    bilby.core.utils.random.seed(7)
    theirs = with_masses(bilby.gw.prior.BBHPriorDict(filename=str(SHIPPED / name)).sample(10_000))
    ours = with_masses(ours)
    drawn = [name for name in PARAMETERS if name != "geocent_time"]
    assert len(ours["mass_1"]) > 3000
    p_values = {key: stats.ks_2samp(ours[key], theirs[key]).pvalue for key in drawn + CONSTRAINED}
    assert min(p_values.values()) > 1e-3, p_values


def test_the_comparison_of_draws_sees_that_constraints_are_left_out():
    name = "GW150914.prior"
    ours, kept = our_draws(replace(prior_of(SHIPPED / name), constraints={}), 10_000, seed=6)
    assert kept == 1
    bilby.core.utils.random.seed(7)
    theirs = bilby.gw.prior.BBHPriorDict(filename=str(SHIPPED / name)).sample(5000)
    assert stats.ks_2samp(ours["mass_ratio"], theirs["mass_ratio"]).pvalue < 1e-6


@pytest.mark.parametrize(
    "file", sorted(file.name for file in SHIPPED.glob("*.prior") if file.name not in USABLE)
)
def test_a_file_of_bilby_that_cannot_be_used_is_refused_with_advice(file):
    """Tides and aligned spins: those of all other files."""
    with pytest.raises(InputError) as caught:
        prior_of(SHIPPED / file)
    assert f"{file}: " in str(caught.value)
    assert ("lambda_1" in str(caught.value) and "tides are not simulated" in str(caught.value)) or (
        "chi_1" in str(caught.value) and "write a_1 = Uniform(...)" in str(caught.value)
    )


def test_constraints_allow_what_bilby_allows():
    texts = {
        "mass_1": "Constraint(30, 90)",
        "mass_2": "Constraint(minimum=20, maximum=60)",
        "total_mass": "Constraint(60, 130)",
        "symmetric_mass_ratio": "Constraint(0.2, 0.249)",
    }
    draws, _ = our_draws(
        replace(prior_of(SHIPPED / "precessing_spins_bbh.prior"), constraints={}), 4000, seed=8
    )
    prior = prior_of(SHIPPED / "precessing_spins_bbh.prior")
    for name in (*texts, None):  # each alone, then all
        some = texts if name is None else {name: texts[name]}
        prior = replace(prior, constraints=some)
        theirs = bilby.gw.prior.BBHPriorDict(
            dictionary={**some, "chirp_mass": "Uniform(1, 200)", "mass_ratio": "Uniform(0, 1)"}
        )
        rows = [dict(zip(draws, row, strict=True)) for row in zip(*draws.values(), strict=True)]
        ours = np.array([prior.allows(row) for row in rows])
        masses = {key: draws[key] for key in ("chirp_mass", "mass_ratio")}
        assert np.array_equal(ours, theirs.evaluate_constraints(masses).astype(bool))
        assert 0.02 < ours.mean() < 0.98


def test_what_is_recorded_does_not_depend_on_the_file(recipe):
    config = read_config(DatasetConfig, str(recipe)).simulation
    document = json.loads(json.dumps(simulation_to_dict(config), allow_nan=False))
    assert "bbh.prior" not in json.dumps(document)
    assert document["prior"]["constraints"] == {"mass_1": "Constraint(minimum=10.0, maximum=80.0)"}
    assert "UniformInComponentsMassRatio" in document["prior"]["mass_ratio"]
    file = recipe.parent / "bbh.prior"
    file.unlink()
    try:
        again = simulation_from_dict(document)
    finally:
        file.write_text(FILE)
    assert again == config
    assert hash(again) == hash(config)
    assert simulation_to_dict(again) == document


def test_no_constraints_leave_no_trace_in_what_is_recorded(et_bbh):
    document = simulation_to_dict(et_bbh().simulation)
    assert list(document["prior"]) == list(PARAMETERS)


def test_what_is_given_counts_more_than_the_file(recipe):
    config = read_config(
        DatasetConfig,
        str(recipe),
        "--prior.chirp_mass=Uniform(30, 40)",
        "--prior.constraints.mass_1=Constraint(20, 70)",
        "--prior.constraints.total_mass=Constraint(60, 90)",
    )
    assert config.prior.chirp_mass == "Uniform(30, 40)"
    assert "UniformInComponentsMassRatio" in str(config.prior.mass_ratio)
    assert config.prior.constraints == {
        "mass_1": "Constraint(20, 70)",
        "total_mass": "Constraint(60, 90)",
    }


def test_a_file_may_be_given_on_the_command_line(et_bbh, recipe):
    file = recipe.parent / "bbh.prior"
    flags = [f"--prior.{name}=null" for name in ("chirp_mass", "mass_ratio")]
    config = et_bbh(f"--prior.file={file}", *flags)
    assert config.prior.file is None
    assert "UniformInComponentsMassRatio" in str(config.prior.mass_ratio)
    assert config.prior.luminosity_distance == et_bbh().prior.luminosity_distance
    with pytest.raises(InputError, match="bbh.prior is given beside it too.* set to null"):
        et_bbh(f"--prior.file={file}")


def test_the_same_prior_by_file_or_by_hand_is_the_same_density(recipe, et_bbh):
    by_file = read_config(DatasetConfig, str(recipe)).prior.distributions()
    by_hand = et_bbh(
        "--prior.chirp_mass=UniformInComponentsChirpMass(25, 100)",
        "--prior.mass_ratio=UniformInComponentsMassRatio(0.125, 1)",
        "--prior.luminosity_distance=UniformSourceFrame(500, 15000)",
    ).prior.distributions()
    assert by_file == by_hand


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("chi_1 = Uniform(0, 1)", "chi_1 = .* write a_1 = Uniform.*tilt_1 = 0"),
        ("mass_1 = Uniform(5, 9)", "mass_1 = .* write chirp_mass and mass_ratio.*mass_1 = Constr"),
        ("lambda_2 = 0", "lambda_2 = 0 .*tides are not simulated"),
        ("cos_theta_jn = Uniform(-1, 1)", "write theta_jn = Sine"),
        ("redshift = Uniform(0, 1)", "write luminosity_distance = UniformSourceFrame"),
        ("H1_time = Uniform(0, 1)", "write geocent_time = Uniform"),
        ("mass_1_source = Uniform(5, 9)", "write mass_1 in the detector frame"),
        ("spam = Uniform(5, 9)", "spam = .*take the line out"),
        ("chi_eff = Constraint(0, 1)", "chi_eff = .*take the line out"),
        ("psi = Constraint(0, 1)", "prior.psi: Constraint.* is no distribution"),
        ("psi = Uniform(0, 4)", "prior.psi: .*reaches 4 rad"),
        ("psi = Unifrm(0, 4)", "prior.psi: Unifrm is not a known distribution"),
        ("total_mass = Constraint(9, 1)", "constraints.total_mass: minimum 9 is not below"),
    ],
)
def test_an_entry_that_cannot_be_used_is_refused_with_advice(tmp_path, line, reason):
    file = tmp_path / "some.prior"
    file.write_text(f"{line}\n")
    with pytest.raises(InputError, match=f"prior.file: .*some.prior: .*{reason}"):
        PriorConfig(file=str(file))


def test_what_is_given_may_replace_an_entry_that_cannot_be_used(tmp_path):
    text = (SHIPPED / "precessing_spins_bbh.prior").read_text()
    file = tmp_path / "some.prior"
    file.write_text(f"{text}\na_1 = bilby.gw.prior.Unheard(1)\n")
    with pytest.raises(InputError, match="Unheard is not a known distribution"):
        prior_of(file)
    assert prior_of(file, a_1=0.5).a_1 == 0.5


def test_a_missing_parameter_is_named():
    with pytest.raises(InputError, match="^prior.geocent_time: is missing; give"):
        PriorConfig(file=str(SHIPPED / "precessing_spins_bbh.prior"))
    with pytest.raises(InputError, match="^prior.mass_ratio: is missing, and so are luminosity"):
        PriorConfig(chirp_mass=30)


@pytest.mark.parametrize(
    ("flag", "reason"),
    [
        ("chirp_mass=Constraint(5, 9)", "constraints.chirp_mass: chirp_mass is drawn itself"),
        ("lambda_1=Constraint(5, 9)", "constraints.lambda_1: lambda_1 is not known; .*mass_1, "),
        ("mass_1=Uniform(5, 9)", "constraints.mass_1: Uniform.* is no constraint; write"),
        ("mass_1=Constraint(9, 5)", "constraints.mass_1: minimum 9 is not below maximum 5"),
    ],
)
def test_an_impossible_constraint_is_refused_by_name(et_bbh, flag, reason):
    with pytest.raises(InputError, match=reason):
        et_bbh(f"--prior.constraints.{flag}")
