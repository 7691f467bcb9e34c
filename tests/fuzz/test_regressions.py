"""What fuzzing found, one input each."""

import json

import pytest
from campaign import bounded_memory
from small_sets import small_set

from pipeline.config import SegmentConfig
from storage.dataset import open_dataset, read_psd, read_schema
from storage.documents import canonical_json, parse_json
from storage.errors import DamagedDataError, InputError
from storage.inventory import take_inventory
from storage.local import LocalStore
from storage.manifest import parse_manifest

MANIFEST = "manifest/000001.json"
CHILDREN = ("consolidated_metadata", "metadata")


@pytest.fixture(params=["float32", "int16+blosc"])
def data(request, tmp_path):
    return small_set(tmp_path / "events.zarr", request.param)


def with_value(document, path, value):
    *way, last = path
    place = document
    for key in way:
        place = place[key]
    place[last] = value
    return document


@pytest.mark.parametrize(
    "content",
    [b'{"a": ' + b"[" * 900 + b"]" * 900 + b"}", b'{"a": 1e999}', b'{"a": "\\ud800"}']
    + [b'{"a": ' + b"9" * 400 + b"}"],
    ids=["nested deeply", "infinite", "half a letter", "huge"],
)
def test_json_that_we_cannot_work_with_is_damaged(content):
    with pytest.raises(DamagedDataError):
        parse_json(content, "file")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["shard"], 1.0),  # KeyError: the paths of shard 1.0
        (["shard"], True),
        (["events"], 3.0),
        (["worst_event"], []),
        (["largest_snr_loss"], 10**400),  # OverflowError
        (["files", "strain/c/1/0/0", "bytes"], 10**300),  # OverflowError in the sum of `info`
        (["files", "parameters/c/1/0", "bytes"], 7),  # numpy's ValueError in read_parameters
        (["rejected"], {"x": -1}),
        (["replaced"], {"x": 1}),
    ],
)
def test_a_manifest_with_an_impossible_entry_is_damaged(data, path, value):
    document = with_value(json.loads((data.folder / MANIFEST).read_bytes()), path, value)
    with pytest.raises(DamagedDataError):
        parse_manifest(canonical_json(document), data.schema, 1, "manifest")


OURS = ("attributes", "strainflow")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ([*OURS, "configuration"], 1),  # AttributeError in `info`
        ([*OURS, "configuration", "waveform"], "x"),
        ([*OURS, "versions"], []),
        ([*OURS, "recoded_from"], {"encoding": {"type": 1}}),
        ([*OURS, "recoded_from"], {"encoding": {"type": "float16"}, "largest_snr_loss": "0.1"}),
        ([*OURS, "max_snr_loss"], "0.5"),
        ([*OURS, "events"], 10**15),
        ([*OURS, "events_per_shard"], 10**15),
        ([*CHILDREN, "strain", "shape", 2], 10**9),
        ([*CHILDREN, "strain", "shape", 2], 2**61),  # np.prod went round
        ([*CHILDREN, "strain", "attributes", "detectors"], {"E1": 1}),
        ([*CHILDREN, "strain", "attributes", "detectors"], []),
        ([*CHILDREN, "parameters", "attributes", "parameters"], []),  # max() of nothing
        ([*CHILDREN, "psd", "shape", 1], 10**15),
    ],
)
def test_metadata_with_an_impossible_entry_are_damaged(data, path, value):
    file = data.folder / "zarr.json"
    file.write_bytes(canonical_json(with_value(json.loads(file.read_bytes()), path, value)))
    for read in (read_schema, read_psd, open_dataset):
        with bounded_memory(), pytest.raises(DamagedDataError):
            read(data.folder)


@pytest.mark.parametrize("name", ["../../x", "/x", "..", "x/../../y"])
def test_an_array_whose_name_leads_out_of_the_folder_is_damage(data, name):
    """Its metadata would have been read there."""
    document = json.loads((data.folder / "zarr.json").read_bytes())
    document["consolidated_metadata"]["metadata"][name] = {}
    for manifest in data.folder.glob("manifest/0*.json"):
        manifest.unlink()
    for path in ("zarr.json", "manifest/dataset.json"):
        (data.folder / path).write_bytes(canonical_json(document))
    with pytest.raises(DamagedDataError):
        take_inventory(data.folder)


@pytest.mark.parametrize(
    ("key", "value"), [("add_offset", "x"), ("units", "days since x"), ("_FillValue", [])]
)
def test_attributes_by_which_xarray_goes_are_damage(data, key, value):
    path = [*CHILDREN, "strain", "attributes", key]
    file = data.folder / "zarr.json"
    file.write_bytes(canonical_json(with_value(json.loads(file.read_bytes()), path, value)))
    with pytest.raises(DamagedDataError):
        open_dataset(data.folder)


def test_a_range_beyond_a_file_takes_no_memory(tmp_path):
    (tmp_path / "file").write_bytes(b"12345")
    file = LocalStore(tmp_path).open("file")
    with bounded_memory():
        assert file.read(3, 10**15) == b"45"
        assert file.read(2**64, 2**64) == b""


@pytest.mark.parametrize(
    "changes",
    [{"sample_rate": float("inf")}, {"duration": 1e300, "generation_duration": 1e308}],
)
def test_a_segment_without_an_end_is_refused(changes):
    with pytest.raises(InputError):
        SegmentConfig(start_time=0.0, **changes)
