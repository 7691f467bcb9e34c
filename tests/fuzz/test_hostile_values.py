"""Values of the wrong kind or size where recipes, priors and tar headers are read."""

import random
import sys
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import yaml
from campaign import campaign, defect_of
from mutations import PRIOR_TOKENS, mutate_document, mutate_text

from pipeline.config import DatasetConfig, simulation_from_dict, simulation_to_dict
from pipeline.distributions import Cosine, Sine, TruncatedGaussian, Uniform
from pipeline.gw_distributions import UniformInComponentsMassRatio
from pipeline.prior_text import parse_prior, read_prior_file
from storage.errors import DamagedDataError, InputError
from storage.tar import parse_tar_header, tar_header
from strainflow import main, read_config

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "pipeline" / "recipes" / "et-bbh.yaml"
RECIPES = [
    yaml.safe_load(path.read_text())
    for path in sorted((ROOT / "pipeline" / "recipes").glob("*.yaml"))
    if "prior:" in path.read_text()
]
CUSTOM = {
    "name": "X",
    "latitude": 10.0,
    "longitude": 20.0,
    "xarm_azimuth": 0.0,
    "yarm_azimuth": 90.0,
    "length": 3.0,
    "elevation": 1.0,
}
# With every section that a recipe may have.
RECIPES.append(
    {
        **RECIPES[0],
        "detectors": ["H1", CUSTOM],
        "psd_of": {"H1": {"name": "aLIGODesignSensitivityT1800044"}},
        "waveform": {"phenomx": {"multibanding": 0.001, "precession_version": 223}},
        "cluster": {"kind": "slurm", "workers": 4, "walltime": "04:00:00", "setup": ["true"]},
        "max_snr_loss": 1e-3,
        "extrinsic_draws_per_waveform": 2,
    }
)


def mutated_recipe(draw: random.Random) -> str:
    """A recipe with one to three of its nodes replaced, taken out or put in."""
    text: str = yaml.safe_dump(mutate_document(draw, draw.choice(RECIPES)), allow_unicode=False)
    return text


@pytest.mark.parametrize("count", [60, pytest.param(1500, marks=pytest.mark.long)])
def test_any_recipe_of_other_values_is_read_or_refused(tmp_path, count):
    file = tmp_path / "recipe.yaml"

    def attempt(draw):
        text = mutated_recipe(draw)
        file.write_text(text)
        read = partial(read_config, DatasetConfig, str(file))
        read.shown = text
        return read

    campaign("values of a recipe", count, attempt)


@pytest.mark.parametrize("count", [30, pytest.param(500, marks=pytest.mark.long)])
def test_any_recipe_is_printed_or_refused(tmp_path, count):
    file = tmp_path / "recipe.yaml"

    def attempt(draw):
        text = mutated_recipe(draw)
        file.write_text(text)

        def read():
            words = ["simulate", "--config", str(file), "--out", "x", "--print_config"]
            with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
                try:
                    code = main(words)
                except SystemExit as ended:
                    code = ended.code
            assert code in (0, 1, 2)

        read.shown = text
        return read

    campaign("printed recipe", count, attempt)


SECTIONS = {
    "an empty section": "cluster:\n",
    "an empty section of the physics": "network_snr:\n",
    "a list in place of a section": "network_snr: [1]\n",
    "a number in place of a section": "prior: 1\n",
    "an empty section within one": "waveform:\n  phenomx:\n",
    "an escape that is no character": 'seed: "\\UFFFFFFFF"\n',
    "an escape beyond Unicode": '"\\U00110000": 1\n',
    "a name that is none of a file": 'psd: {file: "\\0"}\nprior: {file: "\\0"}\n',
    "azimuths of infinite distance": "detectors: [{name: X, latitude: 0, longitude: 0, length: 1,"
    " xarm_azimuth: 1.0e+308, yarm_azimuth: -1.0e+308}]\n",
    "a height beyond the atmosphere": "detectors: [{name: X, latitude: 0, longitude: 0, length: 1,"
    " xarm_azimuth: 0, yarm_azimuth: 90, elevation: 1.0e+308}]\n",
    "more events than a float counts": f"events: {'9' * 60}\n",
    "a shard larger than any": f"events_per_shard: {'9' * 60}\n",
    "a seed beyond 128 bits": f"seed: {'9' * 60}\n",
    "more draws than a float counts": f"extrinsic_draws_per_waveform: {'9' * 60}\n",
    "a version that LAL cannot hold": "waveform: {phenomx: {precession_version: 9999999999}}\n",
    "a walltime of too many digits": f"cluster: {{walltime: '{'9' * 60}:0:0'}}\n",
    "nothing in place of a seed": "events: 4\nseed:\n",
    "nothing in place of a length": "segment:\n  duration:\n",
    "nothing in place of a frequency": "waveform:\n  f_lower:\n",
    "nothing in place of a height": "detectors: [{name: X, latitude: 0, longitude: 0, length: 1,"
    " xarm_azimuth: 0, yarm_azimuth: 90, elevation: null}]\n",
    "nothing in place of a PSD": "psd_of: {E1: {name: null}}\n",
    "a zero character": 'segment: "\\0"\n',
    "a density below zero": "prior: {psi: 'Cosine(0, 3)'}\n",
}


@pytest.mark.parametrize("name", SECTIONS)
def test_a_recipe_with_a_value_that_cannot_be_is_refused(name, tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump({"events": 4}) + SECTIONS[name])
    if "events:" in SECTIONS[name]:
        file.write_text(SECTIONS[name])
    # The recipe that is given first says the rest.
    with pytest.raises(InputError):
        read_config(DatasetConfig, str(RECIPE), f"--config={file}")


FLAGS = {
    "a length of 400 digits": f"--segment.duration={'9' * 400}",
    "a walltime of 5000 digits": f"--cluster.walltime={'9' * 5000}:0:0",
    "a prior file without a name": "--prior.file=a\0b",
    "a recipe without a name": "--config=a\0b",
    "a recipe with half a letter as name": "--config=\ud800",
    "a list of lists of lists": "--detectors=" + "[" * 5000,
    "aliases that multiply": "--prior=a: &a [x,x,x,x,x,x,x,x,x]\n"
    + "".join(
        f"{new}: &{new} [{','.join([f'*{old}'] * 9)}]\n"
        for old, new in zip("abcdefgh", "bcdefghi", strict=True)
    ),
}


@pytest.mark.parametrize("name", FLAGS)
def test_a_flag_of_no_sense_is_refused(name):
    with pytest.raises(InputError):
        read_config(DatasetConfig, str(RECIPE), FLAGS[name])


@pytest.mark.parametrize("name", ["a\0b", "\ud800", "", ".", "x" * 5000])
def test_a_prior_file_that_cannot_be_there_is_refused(name):
    with pytest.raises(InputError, match="cannot be read"):
        read_prior_file(name)


@pytest.mark.parametrize(
    ("make", "ends"),
    [
        (Uniform, (0, np.inf)),
        (Uniform, (-1e308, 1e308)),
        (Sine, (0, 10)),
        (Sine, (-1, 1)),
        (Sine, (0, 2 * np.pi)),
        (Cosine, (0, 3)),
        (Cosine, (-9, 9)),
        (UniformInComponentsMassRatio, (1e-320, 1e308)),
        (UniformInComponentsMassRatio, (1, np.nextafter(1, 2))),
        (partial(TruncatedGaussian, np.inf, 1), (-np.inf, np.inf)),
        (partial(TruncatedGaussian, 0, np.inf), (-np.inf, np.inf)),
    ],
)
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_a_density_that_is_none_is_refused(make, ends):
    with pytest.raises(InputError):
        make(*map(float, ends))


@pytest.mark.parametrize("count", [1000, pytest.param(6000, marks=pytest.mark.slow)])
def test_any_prior_that_is_read_gives_numbers_within_its_support(count):
    starts = [
        "Uniform(25, 100)",
        "PowerLaw(alpha=2, minimum=500, maximum=15000)",
        "Sine(minimum=0.1, maximum=3)",
        "Cosine(-1, 1.5)",
        "TruncatedGaussian(mu=1, sigma=0.1, minimum=0, maximum=2 * pi)",
        "UniformInComponentsMassRatio(minimum=0.125, maximum=1)",
    ]

    def attempt(draw):
        text = mutate_text(draw, draw.choice(starts), PRIOR_TOKENS)

        def read():
            found = parse_prior(text)
            with np.errstate(all="ignore"):
                values = found.rescale(np.array([0.0, 0.3, 1 - 2**-53]))
                density = found.log_prob(values)
            assert np.all((values >= found.minimum) & (values <= found.maximum)), values
            assert not np.any(np.isnan(density)), density

        read.shown = text
        return read

    campaign("numbers of a prior", count, attempt)


CODE = {
    "in place of a PSD": "psd_of: {E1: canary_module.X}\n",
    "as the class of a PSD": "psd_of: {E1: {class_path: canary_module.X}}\n",
    "as the class of a detector": "detectors: [{class_path: canary_module.X}]\n",
    "as the class of a section": "psd: {class_path: canary_module.X}\n",
    "in place of a section": "cluster: canary_module.X\n",
}


@pytest.mark.parametrize("name", CODE)
def test_a_recipe_that_names_code_imports_nothing(name, tmp_path, monkeypatch):
    (tmp_path / "canary_module.py").write_text("class X: pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    file = tmp_path / "recipe.yaml"
    file.write_text(CODE[name])
    with pytest.raises(InputError):
        read_config(DatasetConfig, str(RECIPE), f"--config={file}")
    assert "canary_module" not in sys.modules


def test_metadata_that_name_code_import_nothing(tmp_path, monkeypatch):
    (tmp_path / "canary_module.py").write_text("class X: pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    document = simulation_to_dict(read_config(DatasetConfig, str(RECIPE)).simulation)
    assert simulation_from_dict(document).seed == 0
    hostile = {"class_path": "canary_module.X"}
    for changes in (
        hostile,
        {"psd_of": {"E1": hostile}},
        {"psd": hostile},
        {"detectors": [hostile]},
    ):
        with pytest.raises(DamagedDataError):
            simulation_from_dict(document | changes)
    with pytest.raises(DamagedDataError):
        simulation_from_dict(hostile)
    assert "canary_module" not in sys.modules


@pytest.mark.parametrize("count", [40, pytest.param(1000, marks=pytest.mark.long)])
def test_any_configuration_in_metadata_is_read_or_refused(count):
    start = simulation_to_dict(read_config(DatasetConfig, str(RECIPE)).simulation)

    def attempt(draw):
        document = mutate_document(draw, start)
        read = partial(simulation_from_dict, document)
        read.shown = document
        return read

    campaign("configuration", count, attempt)


def with_checksum(header: bytes) -> bytes:
    """The header with the checksum that it should have."""
    blank = header[:148] + b" " * 8 + header[156:]
    return header[:148] + f"{sum(blank):06o}\0 ".encode() + header[156:]


@pytest.mark.parametrize(
    ("at", "field"),
    [
        (345, b"../../x"),  # ustar's `prefix`, which stands before the name
        (345, b"/etc"),
        (157, b"/etc/passwd"),  # the target of a link
        (257, b"ustar  \0"),  # GNU's form
        (100, b"0004777\0"),  # set-user-ID
        (124, b"0o5".ljust(12, b"\0")),
        (124, b"0_5".ljust(12, b"\0")),
        (124, b"+5".ljust(12, b"\0")),
        (124, b"7" * 12),
    ],
)
def test_a_tar_header_with_anything_but_our_name_and_size_is_refused(at, field):
    header = tar_header("000000001.json", 5)
    assert parse_tar_header(with_checksum(header)) == ("000000001.json", 5)
    altered = header[:at] + field + header[at + len(field) :]
    with pytest.raises(DamagedDataError):
        parse_tar_header(with_checksum(altered))


def test_a_defect_in_a_reader_of_recipes_would_be_seen():
    assert isinstance(defect_of(lambda: {}["x"]), KeyError)
