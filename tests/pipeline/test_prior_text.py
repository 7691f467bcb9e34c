"""Priors as text: what is read, what bilby reads back, and that nothing is ever evaluated."""

import math

import bilby
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.distributions import DeltaFunction, PowerLaw, Sine, Uniform
from pipeline.gw_distributions import (
    UniformComovingVolume,
    UniformInComponentsMassRatio,
    UniformSourceFrame,
)
from pipeline.prior_text import (
    Constraint,
    describe,
    parse_constraint,
    parse_prior,
    read_prior_file,
)
from storage.errors import InputError

ONE_OF_EACH = {
    "chirp_mass": "UniformInComponentsChirpMass(minimum=25, maximum=100)",
    "mass_ratio": "bilby.gw.prior.UniformInComponentsMassRatio(minimum=0.125, maximum=1)",
    "luminosity_distance": "UniformSourceFrame(100, 5000, name='luminosity_distance')",
    "mass_1": "UniformComovingVolume(10, 9000, 'WMAP9', name='luminosity_distance')",
    "mass_2": "UniformSourceFrame(9, 99, 'Planck15_LAL', name='luminosity_distance')",
    "a_1": "Uniform(0, 0.99)",
    "a_2": "LogUniform(0.01, 0.99)",
    "tilt_1": "PowerLaw(alpha=-2.35, minimum=1, maximum=3)",
    "theta_jn": "Sine(name='theta_jn')",
    "dec": "Cosine(name='dec')",
    "psi": "Gaussian(mu=1, sigma=0.2)",
    "phase": "TruncatedNormal(mu=1, sigma=0.2, minimum=0, maximum=2)",
    "phi_jl": "TruncatedGaussian(mu=1, sigma=0.2, minimum=-np.inf, maximum=1.1)",
    "ra": "DeltaFunction(peak=3)",
    "phi_12": "0.25",
}


def in_module(text):
    """An entry as bilby reads it: it looks for bare names in bilby.core.prior."""
    bare = text.startswith("Uniform") and not text.startswith("Uniform(")
    return f"bilby.gw.prior.{text}" if bare else text


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_what_describe_writes_bilby_reads_as_the_same_density(name):
    text = ONE_OF_EACH[name]
    written = bilby.core.prior.PriorDict({name: describe(parse_prior(text))})[name]
    meant = bilby.core.prior.PriorDict({name: in_module(text)})[name]
    assert parse_prior(describe(parse_prior(text))) == parse_prior(text)
    values = np.atleast_1d(meant.rescale(np.linspace(0, 1, 101)[1:-1]))
    assert np.all(np.asarray(meant.prob(values)) > 0)
    np.testing.assert_allclose(written.prob(values), meant.prob(values), rtol=1e-9)
    assert (written.minimum, written.maximum) == (meant.minimum, meant.maximum)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_bare_number_is_a_fixed_value(value):
    fixed = parse_prior(value)
    assert fixed == parse_prior(repr(value)) == DeltaFunction(value)
    assert fixed.minimum == fixed.maximum == value
    assert np.all(fixed.rescale(np.array([0.0, 0.7])) == value)
    assert parse_prior(describe(fixed)) == fixed


@given(st.text(max_size=40))
def test_any_text_is_a_prior_or_an_input_error(text):
    try:
        parse_prior(text)
    except InputError:
        pass


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2 * pi", 2 * math.pi),
        ("np.pi / 2", math.pi / 2),
        ("-math.pi", -math.pi),
        ("1e3 - 1", 999.0),
        ("3 + 0.5", 3.5),
        ("DeltaFunction(peak=4, name='psi')", 4.0),
    ],
)
def test_arithmetic_is_read(text, value):
    assert parse_prior(text) == DeltaFunction(value)


def test_bilbys_dotted_names_are_read():
    assert parse_prior("bilby.core.prior.Uniform(0, 1, name='x')") == Uniform(0, 1)
    assert parse_prior("bilby.core.prior.analytical.Sine()") == Sine()


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('touch {witness}')",
        "__import__('pathlib').Path('{witness}').touch()",
        "Uniform(0, __import__('pathlib').Path('{witness}').touch())",
        "Uniform(0, 1, name=open('{witness}', 'w')) + 1",
        "open('{witness}', 'w')",
        "[open('{witness}', 'w')]",
        "(lambda: open('{witness}', 'w'))()",
        "Uniform(*[0, open('{witness}', 'w')])",
        "Uniform(**{{'minimum': open('{witness}', 'w')}})",
        "__import__('os').Uniform(0, 1)",
    ],
)
def test_nothing_is_evaluated(text, tmp_path):
    witness = tmp_path / "witness"
    with pytest.raises(InputError):
        parse_prior(text.format(witness=witness))
    assert not witness.exists()


def test_even_a_label_is_not_evaluated(tmp_path):
    witness = tmp_path / "witness"
    assert parse_prior(f"Uniform(0, 1, name=open({str(witness)!r}, 'w'))") == Uniform(0, 1)
    assert not witness.exists()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Unifrom(0, 1)", "Unifrom is not a known distribution; known are Uniform, "),
        ("Uniform(0, 1", "is not a prior"),
        ("", "is not a prior"),
        ("Uniform(0)", "Uniform takes minimum, maximum"),
        ("Uniform(0, 1, 2)", "Uniform takes minimum, maximum"),
        ("Uniform(low=0, high=1)", "Uniform takes minimum, maximum"),
        ("Uniform(0, maximum=1, minimum=2)", "Uniform takes minimum, maximum"),
        ("Uniform(minimum=0, minimum=1)", "Uniform takes minimum, maximum"),
        ("Uniform(minimum=0, minimum=1, maximum=2)", "Uniform takes minimum, maximum"),
        ("Uniform(1, 0)", "minimum 1 is not below maximum 0"),
        ("Uniform(0, nan)", "'nan' is not a number"),
        ("Uniform(0, inf - inf)", "minimum 0 is not below maximum nan"),
        ("Uniform(0, 1 / 0)", "division by zero"),
        ("Uniform(0, 2 ** 3)", "is not a number"),
        ("True", "is not a number"),
        ("1j", "is not a number"),
        ("'1'", "is not a number"),
        ("PowerLaw(-2, 0, 1)", "cannot be normalised"),
        ("PowerLaw(2, -1, 1)", "cannot be normalised"),
        ("PowerLaw(1e6, 1, 2)", "cannot be normalised"),
        ("LogUniform(0, 1)", "cannot be normalised"),
        ("Gaussian(0, -1)", "sigma: got -1, must be positive"),
        ("UniformInComponentsMassRatio(0, 1)", "cannot be normalised; give 0 < minimum"),
        ("UniformInComponentsMassRatio(0.1, 1, equal_mass=1)", "'1' is not True or False"),
        ("UniformSourceFrame(-1, 100)", "-1 Mpc: give luminosity distances from 0 to"),
        ("UniformSourceFrame(1, inf)", "inf Mpc: give luminosity distances from 0 to"),
        ("UniformSourceFrame(5, 5.000000000001)", "are too close; move them apart"),
        ("UniformSourceFrame(1, 9, cosmology='Plank15')", "got 'Plank15', known are WMAP1, "),
        ("UniformSourceFrame(1, 9, cosmology=open('x'))", "is not a text in quotes"),
        ("UniformSourceFrame(1, 9, name='redshift')", "got redshift in Mpc, only a luminosity_"),
        ("UniformSourceFrame(1, 9, unit='Gpc')", "got luminosity_distance in Gpc, only"),
        ("Constraint(1, 2)", "is no distribution; write e.g. Uniform"),
        ("TruncatedGaussian(0, 1, 50, 60)", "nothing between 50 and 60"),
        ("(" * 150 + "1" + ")" * 500, "is not a prior"),
    ],
)
def test_what_is_not_a_prior_is_explained(text, reason):
    with pytest.raises(InputError) as caught:
        parse_prior(text)
    assert reason in str(caught.value)


def test_bilbys_gw_priors_are_read_with_their_labels():
    ours = parse_prior(
        "bilby.gw.prior.UniformSourceFrame(1e2, 5e3, name='luminosity_distance', "
        "cosmology='Planck18', unit='Mpc', latex_label='$d_L$', boundary=None)"
    )
    assert ours == UniformSourceFrame(100.0, 5000.0, "Planck18")
    assert parse_prior("UniformComovingVolume(1, 2, cosmology=None)") == UniformComovingVolume(1, 2)
    equal = "UniformInComponentsMassRatio(0.1, 1, name='mass_ratio', equal_mass=True)"
    assert parse_prior(equal) == UniformInComponentsMassRatio(0.1, 1.0)
    assert parse_prior("UniformInComponentsChirpMass(25, 100)") == PowerLaw(1.0, 25.0, 100.0)


def test_a_latex_label_with_a_backslash_is_read_without_a_warning(recwarn):
    assert parse_prior(r"Uniform(0, 1, unit='$M_{\odot}$')") == Uniform(0, 1)
    assert not recwarn.list


def test_a_constraint_excludes_its_ends():
    constraint = parse_constraint("bilby.core.prior.Constraint(minimum=5, maximum=9, name='x')")
    assert constraint == Constraint(5.0, 9.0)
    assert [constraint.allows(value) for value in (4, 5, 7, 9, 10)] == [
        False,
        False,
        True,
        False,
        False,
    ]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Uniform(5, 9)", "is no constraint; write e.g. Constraint"),
        ("7", "is no constraint"),
        ("Constraint(9, 5)", "minimum 9 is not below maximum 5"),
        ("Constraint(9)", "Constraint takes minimum, maximum"),
    ],
)
def test_what_is_no_constraint_is_explained(text, reason):
    with pytest.raises(InputError, match=reason):
        parse_constraint(text)


def test_a_prior_file_is_read_as_by_bilby(tmp_path):
    file = tmp_path / "some.prior"
    file.write_text(
        "# a comment\n\nra = Uniform(minimum=0, maximum=1)\npsi=0.5\n"
        "ra =  Uniform(name='ra', minimum=0, maximum=2)\n"
    )
    theirs = bilby.core.prior.PriorDict(filename=str(file))
    ours = {name: parse_prior(text) for name, text in read_prior_file(str(file)).items()}
    assert set(ours) == set(theirs) == {"ra", "psi"}
    assert (ours["ra"].maximum, ours["psi"].peak) == (theirs["ra"].maximum, theirs["psi"].peak)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"ra Uniform(0, 1)\n", "line 1 of .* is 'ra Uniform.0, 1.'; write name = distribution"),
        (b"psi = 1\nra =\n", "line 2 of .* is 'ra ='"),
        (b"# nothing\n", "holds no entries"),
        (b"\xff\xfe\x00", "cannot be read; give a bilby prior file"),
    ],
)
def test_what_is_no_prior_file_is_explained(tmp_path, content, reason):
    file = tmp_path / "some.prior"
    file.write_bytes(content)
    with pytest.raises(InputError, match=reason):
        read_prior_file(str(file))


def test_a_prior_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match="absent.prior cannot be read"):
        read_prior_file(str(tmp_path / "absent.prior"))
