"""Mutated priors and recipes: each is read, or refused in a sentence."""

import random
from functools import partial
from pathlib import Path

import bilby
import pytest
from campaign import campaign, defect_of
from hypothesis import given, settings
from hypothesis import strategies as st
from mutations import PRIOR_TOKENS, YAML_TOKENS, mutate_text

from pipeline.config import DatasetConfig
from pipeline.prior_text import describe, parse_constraint, parse_prior, read_prior_file
from pipeline.priors import PriorConfig
from storage.errors import InputError
from strainflow import read_config

ROOT = Path(__file__).parents[2]
RECIPES = [
    path.read_text()
    for path in sorted((ROOT / "pipeline" / "recipes").glob("*.yaml"))
    if "prior:" in path.read_text()
]
PRIOR_FILES = [
    path.read_text()
    for path in sorted((Path(bilby.__file__).parent / "gw" / "prior_files").glob("*bbh*.prior"))
]
PRIORS = [
    "Uniform(25, 100)",
    "PowerLaw(alpha=2, minimum=500, maximum=15000)",
    "bilby.core.prior.Sine(name='tilt_1', latex_label='$\\\\tilt_1$', unit=None)",
    "TruncatedGaussian(mu=1, sigma=0.1, minimum=0, maximum=2 * pi)",
    "LogUniform(1e-3, 1)",
    "Gaussian(0, 1)",
    "-(1 + 2) * 3 / 4",
    "UniformSourceFrame(minimum=100, maximum=5000, cosmology='Planck15', unit='Mpc')",
    "UniformInComponentsMassRatio(minimum=0.125, maximum=1, equal_mass=False)",
    "Constraint(minimum=5, maximum=100)",
]
FOR_CI = pytest.mark.slow


@pytest.mark.parametrize("count", [2000, pytest.param(6000, marks=FOR_CI)])
@pytest.mark.parametrize("parse", [parse_prior, parse_constraint])
def test_any_prior_is_read_or_refused(parse, count):
    def attempt(draw: random.Random):
        text = mutate_text(draw, draw.choice(PRIORS), PRIOR_TOKENS)

        def read():
            found = parse(text)
            assert found.minimum <= found.maximum
            if parse is parse_prior:
                assert parse_prior(describe(found)) == found

        read.shown = text
        return read

    campaign(parse.__name__, count, attempt)


@pytest.mark.parametrize("count", [1000, pytest.param(3000, marks=FOR_CI)])
def test_any_prior_file_is_read_or_refused(tmp_path, count):
    file = tmp_path / "a.prior"

    def attempt(draw: random.Random):
        text = mutate_text(draw, draw.choice(PRIOR_FILES), PRIOR_TOKENS)
        file.write_bytes(text.encode("utf-8", "surrogatepass"))
        reader = partial(read_prior_file, str(file))
        if draw.random() < 0.1:
            reader = partial(PriorConfig, file=str(file))
        reader.shown = text
        return reader

    campaign("prior file", count, attempt)


@pytest.mark.parametrize("count", [200, pytest.param(1000, marks=FOR_CI)])
def test_any_recipe_is_read_or_refused(tmp_path, count):
    file = tmp_path / "recipe.yaml"

    def attempt(draw: random.Random):
        text = mutate_text(draw, draw.choice(RECIPES), YAML_TOKENS)
        file.write_bytes(text.encode("utf-8", "surrogatepass"))
        read = partial(read_config, DatasetConfig, str(file))
        read.shown = text
        return read

    campaign("recipe", count, attempt)


@settings(max_examples=500, deadline=None, derandomize=True)
@given(st.text(max_size=60))
def test_any_text_is_a_prior_or_refused(text):
    assert defect_of(lambda: parse_prior(text)) is None
    assert defect_of(lambda: parse_constraint(text)) is None


DEEP = {
    "parentheses": "(" * 150 + "1" + ")" * 150,
    "many parentheses": "(" * 10_000 + "1" + ")" * 10_000,
    "signs": "-" * 5000 + "1",
    "many signs": "-" * 200_000 + "1",
    "sum": "1+" * 5000 + "1",
    "long sum": "1+" * 200_000 + "1",
    "attributes": "a." * 5000 + "b(1)",
    "calls": "Uniform(" * 80 + "1" + ")" * 80,
    "brackets": "[" * 90 + "]" * 90,
    "digits": "9" * 5000,
    "surrogate": "\ud800",
    "null character": "1\0",
    "huge": "9" * 400,
    "power": "10**10**10",
    "label": "Uniform(0, 1, unit=" + "[" * 90 + "]" * 90 + ")",
}


@pytest.mark.parametrize("name", DEEP)
def test_a_prior_of_no_sense_is_refused(name):
    assert defect_of(lambda: parse_prior(DEEP[name])) is None
    assert defect_of(lambda: parse_prior(f"Uniform(0, {DEEP[name]})")) is None
    assert defect_of(lambda: parse_constraint(DEEP[name])) is None


YAMLS = {
    "alias bomb": "a0: &a0 [x,x,x,x,x,x,x,x,x]\n"
    + "".join(f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)),
    "bomb as prior": "a0: &a0 {x: 1}\n"
    + "".join(f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))
    + "prior: *a11\n",
    "bomb of detectors": "detectors:\n- &a0 [x,x,x,x,x,x,x,x,x]\n"
    + "".join(f"- &a{n} [{','.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 9)),
    "loop": "prior: &a {x: *a}\n",
    "loop of lists": "detectors: &a [*a]\n",
    "tag": "prior: !!python/object/apply:os.system ['touch canary']\n",
    "name tag": "prior: !!python/name:os.system ''\n",
    "unknown tag": "prior: !x 1\n",
    "deep list": "detectors: " + "[" * 5000 + "]" * 5000 + "\n",
    "deep map": "prior: " + "{a: " * 400 + "1" + "}" * 400 + "\n",
    "deep blocks": "".join(" " * n + "a:\n" for n in range(400)),
    "dates": "seed: 2001-99-99\n",
    "digits": "seed: " + "9" * 5000 + "\n",
    "sexagesimal": "seed: " + "1:" * 3000 + "1\n",
    "key is a list": "? [a, b]\n: 1\n",
    "key is a map": "? {a: b}\n: 1\n",
    "merge of a number": "<<: 1\n",
    "null character": "a: \0\n",
    "two documents": "events: 1\n---\nevents: 2\n",
    "nothing": "",
    "number": "1",
    "number key": "1: 2\n",
    "itself": "config: recipe.yaml\n",
    "no utf-8": "\udcff",
}


@pytest.mark.parametrize("name", YAMLS)
def test_a_recipe_of_no_sense_is_refused(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "recipe.yaml"
    whole = ["", *RECIPES[:1]]
    for start in whole:
        file.write_bytes((start + YAMLS[name]).encode("utf-8", "surrogateescape"))
        error = defect_of(lambda: read_config(DatasetConfig, str(file)))
        assert error is None, repr(error)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("recipe", ["config: bomb.yaml", "{events: 4, 'config': bomb.yaml}"])
def test_a_recipe_within_a_recipe_is_refused_before_it_is_read(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bomb.yaml").write_text(YAMLS["alias bomb"])
    (tmp_path / "recipe.yaml").write_text(recipe)
    with pytest.raises(InputError, match="recipe.yaml names another recipe; give each of them"):
        read_config(DatasetConfig, "recipe.yaml")


def test_a_section_that_names_a_file_is_refused_in_words_of_recipes(tmp_path):
    (tmp_path / "recipe.yaml").write_text("events: 4\nsegment: other.yaml\n")
    with pytest.raises(InputError, match="segment: got 'other.yaml', it is a section of keys and"):
        read_config(DatasetConfig, str(tmp_path / "recipe.yaml"))


REFUSED = {
    "samples": "segment.duration=1e308",
    "infinite": "segment.duration=.inf",
    "infinite rate": "segment.sample_rate=.inf",
    "not a number": "segment.start_time=.nan",
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_number_that_is_none_is_refused(name):
    key, _, value = REFUSED[name].partition("=")
    with pytest.raises(InputError):
        read_config(DatasetConfig, "pipeline/recipes/et-bbh.yaml", f"--{key}={value}")
