"""Small data sets whose bytes are pinned: what tests/golden/make.py wrote, and writes today."""

import json
import runpy
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import blake3
import numpy as np
import pytest
import xarray
from streams import open_stream

import strainflow
from storage import open_dataset
from storage.dataset import read_optimal_snr, read_parameters, read_psd, read_schema
from storage.documents import canonical_json, sealed_json
from storage.encodings import ENCODINGS
from storage.errors import InputError
from storage.info import describe
from storage.inventory import take_inventory
from storage.manifest import read_manifests, require_complete
from storage.verify import verify_shard

GOLDEN = Path(__file__).parents[1] / "golden"
FACTS = json.loads((GOLDEN / "golden.json").read_text())
SETS = [name for name in FACTS if name != "numcodecs"]
BEFORE = [
    f"before/{number}/{name}" for number in ("0.1.0", "0.2.0") for name in ("float32", "int8")
]
digest = runpy.run_path(str(GOLDEN / "make.py"))["digest"]


def facts_of(name: str) -> dict:
    """What golden.json says of a set."""
    place, _, last = name.rpartition("/")
    return json.loads((GOLDEN / place / "golden.json").read_text())[last]


def content(folder: Path) -> dict[str, bytes]:
    """Every file of a folder with its bytes."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def differing(one: Path, other: Path) -> list[str]:
    """The files that differ, or that only one of two folders has."""
    ours, theirs = content(one), content(other)
    return sorted(path for path in ours.keys() | theirs if ours.get(path) != theirs.get(path))


def strain_of(folder: Path) -> np.ndarray:
    """The strain of a data set [sigma], as the stream delivers it; without damaged events."""
    stream = open_stream(folder, batch_size=2, shuffle=False, damaged="skip")
    return np.concatenate([stream.schema.encoding.decode(batch.strain) for batch in stream])


def wrong_values(folder: Path, facts: dict) -> list[str]:
    """Names of what a reader reads otherwise than golden.json says."""
    opened = open_dataset(folder)
    plain = xarray.open_zarr(folder)
    found = {
        "stream": ("strain", strain_of(folder), "<f4"),
        "open_dataset": ("strain", opened.strain.values, "<f4"),
        "xarray": ("strain", plain.strain.values, "<f4"),
        "parameters": ("parameters", read_parameters(folder), "<f8"),
        "parameters of xarray": ("parameters", plain.parameters.values, "<f8"),
        "optimal_snr": ("optimal_snr", read_optimal_snr(folder), "<f8"),
        "psd": ("psd", read_psd(folder), "<f8"),
    }
    wrong = [name for name, (key, values, d) in found.items() if digest(values, d) != facts[key]]
    last = opened.strain.values[4, -1, -3:].astype(float).tolist()
    return wrong if last == facts["last"] else [*wrong, "last"]


@pytest.fixture(scope="module")
def today(tmp_path_factory) -> Path:
    """What the script makes today."""
    folder = tmp_path_factory.mktemp("golden")
    subprocess.run([sys.executable, GOLDEN / "make.py", folder], check=True)
    return folder


@pytest.fixture
def copy(tmp_path):
    """A copy of a golden set that a test may damage."""

    def copy(name: str) -> Path:
        return Path(shutil.copytree(GOLDEN / name, tmp_path / "events.zarr"))

    return copy


def test_the_golden_sets_are_of_every_kind():
    schemas = [read_schema(GOLDEN / name) for name in SETS]
    assert {schema.encoding.name for schema in schemas} == set(ENCODINGS)
    assert len(ENCODINGS) == 8
    assert {schema.encoding.dtype.name for schema in schemas} == {
        "float32",
        "float16",
        "int16",
        "int8",
    }
    for kind in ("compressed", "max_snr_loss", "scale_factor"):
        assert {bool(getattr(schema.encoding, kind)) for schema in schemas} == {True, False}
    assert {schema.noisy for schema in schemas} == {True, False}
    assert {schema.kind_of_series for schema in schemas} == {"detector", "polarisation"}
    for schema in schemas:
        assert (schema.events, schema.shards, schema.samples) == (5, 3, 200)


@pytest.mark.parametrize("name", SETS)
def test_todays_writer_writes_the_golden_bytes(today, name):
    differ = differing(today / name, GOLDEN / name)
    if (
        read_schema(GOLDEN / name).encoding.compressed
        and version("numcodecs") != FACTS["numcodecs"]
    ):  # of another Blosc: what is not compressed, and does not depend on it, is still the same
        assert all(path.startswith(("strain/c", "manifest/0")) for path in differ)
    else:
        assert differ == []


def test_todays_writer_writes_what_reads_as_the_golden_values(today):
    written = json.loads((today / "golden.json").read_text())
    assert {name: written[name] for name in SETS} == {name: FACTS[name] for name in SETS}
    assert {name: wrong_values(today / name, FACTS[name]) for name in SETS} == dict.fromkeys(
        SETS, []
    )


@pytest.mark.parametrize("name", [*SETS, *BEFORE])
def test_todays_reader_reads_the_golden_values(name):
    assert wrong_values(GOLDEN / name, facts_of(name)) == []


@pytest.mark.parametrize("name", [*SETS, *BEFORE])
def test_nothing_is_wrong_with_a_golden_set(name):
    schema = read_schema(GOLDEN / name)
    assert require_complete(GOLDEN / name, schema) == [0, 1, 2]
    assert describe(GOLDEN / name).problems == []
    inventory = take_inventory(GOLDEN / name)
    assert inventory.findings == ()
    assert bool(inventory.notes) == (name in BEFORE)
    for shard in range(3):
        assert verify_shard(GOLDEN / name, inventory.group, shard).findings == ()


@pytest.mark.parametrize("name", SETS)
def test_a_golden_set_keeps_its_promise(name):
    schema = read_schema(GOLDEN / name)
    events = runpy.run_path(str(GOLDEN / "make.py"))["make_event"]
    exact = np.stack([events(schema, number).strain for number in range(5)])
    stored = strain_of(GOLDEN / name).astype(np.float64)
    if schema.noisy:
        losses = 1 - 1 / np.sqrt(1 + ((stored - exact) ** 2).mean(axis=(1, 2)))
    else:
        norms = np.sqrt((stored**2).sum(axis=(1, 2)) * (exact**2).sum(axis=(1, 2)))
        losses = 1 - (stored * exact).sum(axis=(1, 2)) / norms
    promise = schema.encoding.max_snr_loss
    assert promise is None or 0.5 * promise < losses.max() <= promise
    for manifest in read_manifests(GOLDEN / name, schema).values():
        if schema.encoding.type != "float32":
            assert manifest.largest_snr_loss == pytest.approx(losses[manifest.worst_event])


@pytest.mark.parametrize("name", [*SETS, *BEFORE])
@pytest.mark.parametrize("path", ["strain/c/1/0/0", "parameters/c/1/0", "optimal_snr/c/1/0"])
def test_a_flipped_bit_in_a_golden_set_is_found(copy, name, path):
    folder = copy(name)
    damaged = bytearray((folder / path).read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (folder / path).write_bytes(damaged)
    inventory = take_inventory(folder)
    (finding,) = verify_shard(folder, inventory.group, 1).findings
    assert (finding.file, finding.shard) == (path, 1)


def test_the_comparisons_notice_a_byte_and_a_value(copy):
    folder = copy("float32")
    assert differing(folder, GOLDEN / "float32") == []
    strain = folder / "strain/c/1/0/0"
    damaged = bytearray(strain.read_bytes())
    damaged[4096] ^= 1  # the first sample of event 2
    strain.write_bytes(damaged)
    (folder / "notes.txt").write_text("x")
    assert differing(folder, GOLDEN / "float32") == ["notes.txt", "strain/c/1/0/0"]
    wrong = ["stream", "open_dataset", "xarray"]
    assert wrong_values(folder, FACTS["float32"]) == wrong
    assert wrong_values(GOLDEN / "int8", FACTS["float32"]) == [*wrong, "last"]


@pytest.mark.parametrize("name", SETS)
def test_a_writer_of_today_goes_on_with_a_golden_set(copy, today, name):
    """As after an upgrade: the same metadata are accepted, and what is missing is written."""
    folder = copy(name)
    make = runpy.run_path(str(GOLDEN / "make.py"))
    schema = make["schema_of"](**make["SETS"][name])
    assert schema == read_schema(folder)
    (folder / "manifest/000001.json").unlink()
    make["create_dataset"](folder, schema, read_psd(folder))
    events = [make["make_event"](schema, number) for number in schema.events_of(1)]
    make["write_shard"](folder, schema, 1, events)
    if version("numcodecs") == FACTS["numcodecs"]:
        assert differing(folder, GOLDEN / name) == []
    assert wrong_values(folder, FACTS[name]) == []


def of_the_future(folder: Path) -> Path:
    """Make a data set one of format version 2, in itself without a fault."""
    group = json.loads((folder / "zarr.json").read_text())
    group["attributes"]["strainflow"]["format_version"] = 2
    for name in ("zarr.json", "manifest/dataset.json"):
        (folder / name).write_bytes(canonical_json(group))
    identity = blake3.blake3(canonical_json(group)).hexdigest()
    for path in folder.glob("manifest/0*.json"):
        document = json.loads(path.read_text())
        path.write_bytes(sealed_json({**document, "dataset": identity}))
    return folder


ADVICE = "format version 2 is newer than this strainflow, which reads version 1; install a newer"


@pytest.mark.parametrize("name", SETS)
def test_a_data_set_of_the_future_is_refused_with_advice(copy, name):
    folder = of_the_future(copy(name))
    for reads in (read_schema, open_dataset, read_parameters, read_psd, describe, take_inventory):
        with pytest.raises(InputError, match=ADVICE):
            reads(folder)
    with pytest.raises(InputError, match=ADVICE):
        open_stream(folder, batch_size=2)


@pytest.mark.parametrize("verb", ["info", "verify", "repair", "bench read"])
def test_the_command_line_refuses_a_data_set_of_the_future_in_one_line(copy, verb, capsys):
    folder = of_the_future(copy("int16+blosc"))
    before = content(folder)
    assert strainflow.main([*verb.split(), str(folder)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert f"{folder}: its {ADVICE} strainflow" in captured.err
    assert content(folder) == before
