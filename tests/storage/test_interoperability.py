"""The same files, read by the tools of both worlds; nothing of ours takes part in the reading."""

import io
import json
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import dask.array
import numcodecs.blosc
import numpy as np
import pytest
import tensorstore
import webdataset
import xarray
import zarr

from storage import open_dataset
from storage.encodings import ENCODINGS

SHARDS = "strain/c/{0..2}/0/0"
ROOT = Path(__file__).parents[2]
COMPRESSED = [name for name, encoding in ENCODINGS.items() if encoding.compressed]
PLAIN = [name for name in ENCODINGS if name not in COMPRESSED]


@pytest.fixture(autouse=True)
def _warnings_are_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.fixture
def data(full_size, encoding):
    """Five full-size events in three shards, the last one partial."""
    return full_size(encoding)


def step_of(data) -> np.ndarray:
    """The largest error that the encoding may make in each sample."""
    if data.schema.encoding.scale_factor is not None:
        return np.full_like(data.strain, data.schema.encoding.scale_factor / 2)
    return np.abs(data.strain) * np.finfo(data.schema.encoding.dtype).eps / 2 + 2.0**-25


def payloads(shard: Path, events: int, slots: int = 2) -> list[bytes]:
    """The bytes that the index of a shard points to, event by event."""
    stored = shard.read_bytes()
    entries = np.frombuffer(stored[-16 * slots - 4 : -4], "<u8").reshape(slots, 2)
    return [stored[offset : offset + length] for offset, length in entries[:events].tolist()]


def frames_in(array: Path) -> list[bytes]:
    """Those of the five events in the three shards of an array, the last one partial."""
    return [
        payload
        for shard, events in enumerate((2, 2, 1))
        for payload in payloads(array / f"c/{shard}/0/0", events)
    ]


def all_payloads(data) -> list[bytes]:
    """Those of a full-size data set."""
    return frames_in(data.folder / "strain")


def assert_same_within_the_step(strain, data) -> None:
    assert np.shape(strain) == data.strain.shape
    assert np.all(np.abs(np.asarray(strain, float) - data.strain) <= step_of(data))


def test_the_comparison_notices_two_steps_in_one_sample(data):
    strain = data.schema.encoding.decode(data.codes).astype(float)
    assert_same_within_the_step(strain, data)
    strain[4, 2, -1] += 4 * step_of(data)[4, 2, -1]
    with pytest.raises(AssertionError):
        assert_same_within_the_step(strain, data)


def test_zarr_python_reads_the_stored_numbers(data):
    group = zarr.open_group(data.folder, mode="r")
    for number in range(5):
        assert np.array_equal(group["strain"][number], data.codes[number])
    assert np.array_equal(group["strain"][1:4, 2, 100:300], data.codes[1:4, 2, 100:300])
    assert np.array_equal(group["parameters"][:], data.parameters)
    assert np.array_equal(group["optimal_snr"][:], data.optimal_snr)
    assert np.array_equal(group["psd"][:], data.psd)
    assert_same_within_the_step(
        group["strain"][:] * (data.schema.encoding.scale_factor or 1.0), data
    )


def test_zarr_python_lists_the_whole_hierarchy(data):
    members = dict(zarr.open_group(data.folder, mode="r").members(max_depth=None))
    assert members.keys() == {"manifest", "strain", "parameters", "optimal_snr", "psd"}
    assert members["strain"].shards == (2, 3, 65_536)
    assert members["strain"].chunks == (1, 3, 65_536)


@pytest.mark.parametrize("options", [{}, {"consolidated": False}, {"chunks": None}])
def test_xarray_decodes_it_by_the_cf_conventions(data, options):
    opened = xarray.open_zarr(data.folder, **options)
    assert opened.strain.dims == ("event", "detector", "time")
    assert_same_within_the_step(opened.strain.values, data)
    assert np.array_equal(opened.parameters, data.parameters)
    assert opened.strain.attrs["detectors"] == ["E1", "E2", "E3"]


def test_dask_reads_one_event_a_chunk(data):
    strain = dask.array.from_zarr(str(data.folder), component="strain")
    assert strain.chunksize == (1, 3, 65_536)
    assert np.array_equal(strain.compute(scheduler="sync"), data.codes)


def test_our_own_reader_agrees_with_xarray(data):
    ours, plain = open_dataset(data.folder), xarray.open_zarr(data.folder)
    assert np.array_equal(ours.strain, plain.strain)


def test_a_missing_shard_is_nan_and_not_silence(build, encoding):
    data = build(encoding=ENCODINGS[encoding])
    for name in ("strain/c/1/0/0", "parameters/c/1/0", "optimal_snr/c/1/0"):
        (data.folder / name).unlink()
    opened = xarray.open_zarr(data.folder)
    for variable in (opened.strain, opened.parameters, opened.optimal_snr):
        missing = variable.isnull().values.reshape(7, -1)
        assert missing[3:6].all()
        assert not missing[[0, 1, 2, 6]].any()


def run_alone(command: list[str | Path]) -> str:
    """Run something in a process of its own; return what it printed."""
    done = subprocess.run(command, cwd="/", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


# Of zarr-python and what it needs alone. For the newest release it runs under another Python.
READ_WITH_ZARR = """
import json, sys, warnings
warnings.simplefilter("error")
import numpy as np
import zarr
pipeline, out, *folders = sys.argv[1:]
if pipeline != "-":
    zarr.config.set({"codec_pipeline.path": pipeline})
found = {}
for number, folder in enumerate(folders):
    group = zarr.open_group(folder, mode="r")
    assert {"strain", "parameters", "optimal_snr", "psd", "manifest"} == set(dict(group.members()))
    for name in ("strain", "parameters", "optimal_snr", "psd"):
        found[f"{number}/{name}"] = group[name][:]
    found[f"{number}/some"] = group["strain"][1:4, 2, 100:300]
    found[f"{number}/one"] = group["strain"][4]
    kind = type(group["strain"].async_array.codec_pipeline)
    assert pipeline in ("-", f"{kind.__module__.split('.')[0]}.{kind.__name__}"), kind
np.savez(out, **found)
print(zarr.__version__)
"""


def read_with_zarr(python, out: Path, data: dict, pipeline: str = "-") -> tuple[str, dict]:
    """What zarr-python reads of data sets, in a process of its own; its version too."""
    folders = [item.folder for item in data.values()]
    version = run_alone([python, "-I", "-c", READ_WITH_ZARR, pipeline, out, *folders]).strip()
    with np.load(out) as arrays:
        return version, dict(zip(data, grouped(arrays, len(folders)), strict=True))


def grouped(arrays, count: int) -> Iterator[dict[str, np.ndarray]]:
    for number in range(count):
        names = ("strain", "some", "one", "parameters", "optimal_snr", "psd")
        yield {name: arrays[f"{number}/{name}"] for name in names}


def differing(found: dict[str, np.ndarray], data) -> list[str]:
    """Names of what was read otherwise than it was written."""
    wanted = {
        "strain": data.codes,
        "some": data.codes[1:4, 2, 100:300],
        "one": data.codes[4],
        "parameters": data.parameters,
        "optimal_snr": data.optimal_snr,
        "psd": data.psd,
    }
    return [
        name
        for name, values in wanted.items()
        if found[name].dtype != values.dtype or not np.array_equal(found[name], values)
    ]


def test_the_comparison_notices_one_number_and_another_type(full_size):
    data = full_size("int8+blosc")
    found = {
        "strain": data.codes.copy(),
        "some": data.codes[1:4, 2, 100:300].copy(),
        "one": data.codes[4].astype("i2"),
        "parameters": data.parameters,
        "optimal_snr": data.optimal_snr,
        "psd": data.psd,
    }
    assert differing(found, data) == ["one"]
    found["strain"][3, 1, 9] += 1
    assert differing(found, data) == ["strain", "one"]


@pytest.fixture(scope="module")
def every(full_size) -> dict:
    """The full-size data sets of all encodings."""
    return {name: full_size(name) for name in ENCODINGS}


@pytest.fixture(scope="module")
def read_with_zarrs(every, tmp_path_factory) -> dict:
    """What zarr-python reads through zarrs, which takes the place of all its codecs."""
    out = tmp_path_factory.mktemp("zarrs") / "found.npz"
    return read_with_zarr(sys.executable, out, every, "zarrs.ZarrsCodecPipeline")[1]


def test_zarrs_reads_the_stored_numbers(data, encoding, read_with_zarrs):
    assert differing(read_with_zarrs[encoding], data) == []


def in_tensorstore(folder: Path, array: str):
    place = {"driver": "file", "path": f"{folder}/{array}/"}
    return tensorstore.open({"driver": "zarr3", "kvstore": place}, open=True, read=True).result()


def test_tensorstore_reads_the_stored_numbers(data):
    arrays = {
        name: in_tensorstore(data.folder, name)
        for name in ("strain", "parameters", "optimal_snr", "psd")
    }
    found = {name: array[...].read().result() for name, array in arrays.items()}
    found["some"] = arrays["strain"][1:4, 2, 100:300].read().result()
    found["one"] = arrays["strain"][4].read().result()
    assert differing(found, data) == []
    assert arrays["strain"].domain.labels == ("event", "detector", "time")
    assert arrays["strain"].chunk_layout.read_chunk.shape == (1, 3, 65_536)


def test_a_missing_shard_is_the_fill_value_in_tensorstore_and_zarr_python(build, encoding):
    data = build(encoding=ENCODINGS[encoding])
    (data.folder / "strain/c/1/0/0").unlink()
    fill = np.array(float(ENCODINGS[encoding].fill_value)).astype(data.codes.dtype)
    wanted = data.codes.copy()
    wanted[3:6] = fill
    strain = in_tensorstore(data.folder, "strain")[...].read().result()
    assert np.array_equal(strain, wanted, equal_nan=strain.dtype.kind == "f")
    strain = zarr.open_group(data.folder, mode="r")["strain"][:]
    assert np.array_equal(strain, wanted, equal_nan=strain.dtype.kind == "f")


# A data set's metadata are enough for zarr-python to write the strain itself.
WRITE_WITH_ZARR = """
import sys
import numpy as np
import zarr
for folder in sys.argv[1:]:
    array = zarr.open_array(folder, mode="r+")
    array[:] = np.load(folder + "/codes.npy")
assert "storage" not in sys.modules
"""


def write_with_zarr(python, folder: Path, data: dict) -> dict[str, Path]:
    """Write the strain of compressed sets by zarr-python alone, from the same metadata."""
    for name in COMPRESSED:
        (folder / name).mkdir()
        shutil.copy(data[name].folder / "strain/zarr.json", folder / name)
        np.save(folder / name / "codes.npy", data[name].codes)
    folders = {name: folder / name for name in COMPRESSED}
    run_alone([python, "-I", "-c", WRITE_WITH_ZARR, *folders.values()])
    return folders


@pytest.fixture(scope="module")
def written_by_zarr(every, tmp_path_factory) -> dict[str, Path]:
    """What zarr-python writes here."""
    return write_with_zarr(sys.executable, tmp_path_factory.mktemp("written"), every)


@pytest.mark.parametrize("name", COMPRESSED)
def test_our_frames_are_those_that_zarr_python_writes_from_the_metadata(
    full_size, written_by_zarr, name
):
    data, folder = full_size(name), written_by_zarr[name]
    theirs = frames_in(folder)
    ours = all_payloads(data)
    assert len(theirs) == len(ours) == 5
    assert [len(frame) for frame in theirs] == [len(frame) for frame in ours]
    assert theirs == ours


# Without site: what is installed with a .pth file, as this project in development, is not there.
STOCK_WEBDATASET = f"""
import importlib.util, json, sys
sys.path.append(sys.argv[1])
import numpy as np
import webdataset as wds
assert importlib.util.find_spec("storage") is None, "our packages are within reach"
for folder in sys.argv[2:]:
    samples = list(wds.WebDataset(folder + "/{SHARDS}", shardshuffle=False).decode())
    strain = [sample.get("strain.npy", sample.get("strain.blosc")) for sample in samples]
    if isinstance(strain[0], bytes):  # a frame, as it is stored
        strain = {{f"strain_{{row}}": np.frombuffer(f, "u1") for row, f in enumerate(strain)}}
    else:
        strain = {{"strain": np.stack(strain)}}
    np.savez(
        folder + ".npz",
        facts=json.dumps([sample["json"] for sample in samples]),
        keys=[sample["__key__"] for sample in samples],
        members=sorted({{name for sample in samples for name in sample if name[0] != "_"}}),
        **strain,
    )
assert "storage" not in sys.modules
"""


@pytest.fixture(scope="module")
def stock_webdataset(every):
    """What a bare webdataset, in a process of its own, reads from all the full-size data sets."""
    folders = [item.folder for item in every.values()]
    packages = Path(webdataset.__file__).parents[1]
    run_alone([sys.executable, "-I", "-S", "-c", STOCK_WEBDATASET, packages, *folders])
    return {name: np.load(f"{item.folder}.npz") for name, item in every.items()}


def test_stock_webdataset_reads_every_event_of_every_shard(data, encoding, stock_webdataset):
    read = stock_webdataset[encoding]
    assert read["keys"].tolist() == [f"{number:09d}" for number in range(5)]
    if encoding in COMPRESSED:
        assert read["members"].tolist() == ["json", "strain.blosc"]
        frames = [read[f"strain_{row}"].tobytes() for row in range(5)]
        assert frames == all_payloads(data)
        strain = np.stack(
            [
                np.frombuffer(numcodecs.blosc.decompress(frame), fact["dtype"]).reshape(
                    len(fact["detectors"]), fact["samples"]
                )
                for frame, fact in zip(frames, json.loads(str(read["facts"])), strict=True)
            ]
        )
    else:
        assert read["members"].tolist() == ["json", "strain.npy"]
        strain = read["strain"]
    assert strain.dtype == data.schema.encoding.dtype
    assert np.array_equal(strain, data.codes)
    facts = json.loads(str(read["facts"]))
    assert_same_within_the_step(
        np.stack([s * f["scale_factor"] for s, f in zip(strain, facts, strict=True)]), data
    )
    for number, found in enumerate(facts):
        assert found["event"] == number
        assert found["detectors"] == ["E1", "E2", "E3"]
        assert found["sample_rate"] == 8192.0
        names = data.schema.parameter_names
        assert found["parameters"] == dict(zip(names, data.parameters[number], strict=True))
        assert found["optimal_snr"] == data.optimal_snr[number].tolist()


OUR_DECODER = f"""
import sys
sys.path += sys.argv[1:3]
import numpy as np
import webdataset as wds
import storage
for folder in sys.argv[3:]:
    source = wds.WebDataset(folder + "/{SHARDS}", shardshuffle=False).decode()
    samples = list(source.map(storage.decode_strain))
    assert all(
        [name for name in sample if name[0] != "_"] == ["json", "strain.npy"] for sample in samples
    )
    np.save(folder + ".npy", np.stack([sample["strain.npy"] for sample in samples]))
packages = ("storage", "pipeline", "model")
ours = {{name for name in sys.modules if name.partition(".")[0] in packages}}
parts = ("arrays", "blosc", "encodings", "errors")
assert ours == {{"storage", *("storage." + name for name in parts)}}, ours
"""


@pytest.fixture(scope="module")
def decoded_webdataset(every):
    """What webdataset reads with `storage.decode_strain` and nothing else of ours."""
    folders = [item.folder for item in every.values()]
    packages = Path(webdataset.__file__).parents[1]
    run_alone([sys.executable, "-I", "-S", "-c", OUR_DECODER, packages, ROOT, *folders])
    return {name: np.load(f"{item.folder}.npy") for name, item in every.items()}


def test_webdataset_reads_every_encoding_alike_with_our_decoder_alone(
    data, encoding, decoded_webdataset
):
    assert decoded_webdataset[encoding].dtype == data.codes.dtype
    assert np.array_equal(decoded_webdataset[encoding], data.codes)


def tar(*arguments) -> bytes:
    done = subprocess.run(
        ["tar", *map(str, arguments)],
        capture_output=True,
        env={**os.environ, "LC_ALL": "C", "TZ": "UTC"},
    )
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout


def test_gnu_tar_lists_and_extracts_it_without_a_complaint(data, encoding):
    last = data.folder / "strain/c/2/0/0"
    (payload,) = payloads(last, 1)
    name = "000000004.strain." + ("blosc" if encoding in COMPRESSED else "npy")
    size = len(payload) + (0 if encoding in COMPRESSED else 512)
    listed = [line.split() for line in tar("-tvf", last).decode().splitlines()]
    assert [line[-1] for line in listed] == ["000000004.json", name]
    assert listed[1][:4] == ["-rw-r--r--", "0/0", str(size), "1970-01-01"]
    assert json.loads(tar("-xOf", last, "000000004.json"))["event"] == 4
    member = tar("-xOf", last, name)
    if encoding in COMPRESSED:
        assert member == payload
        assert numcodecs.blosc.decompress(member) == data.codes[4].tobytes()
    else:
        array = np.load(io.BytesIO(member), allow_pickle=False)
        assert np.array_equal(array, data.codes[4])
    assert len(tar("-tf", data.folder / "strain/c/0/0/0").split()) == 4


@pytest.mark.parametrize("name", PLAIN)
def test_a_payload_can_be_mapped_into_memory_at_the_offset_in_the_index(full_size, name):
    data = full_size(name)
    shard = data.folder / "strain/c/1/0/0"
    entries = np.frombuffer(shard.read_bytes()[-36:-4], "<u8").reshape(2, 2)
    for number, (offset, _) in zip((2, 3), entries, strict=True):
        mapped = np.memmap(shard, data.schema.encoding.dtype, "r", int(offset), (3, 65_536))
        assert np.array_equal(mapped, data.codes[number])


# The newest zarr-python needs a newer Python than the oldest one that this project runs on.

NEWER = ("3.12", "3.13", "3.14")


def newer_pythons() -> Iterator[str]:
    """Interpreters that may be newer ones; of pyenv also those that its shims hide."""
    for version in NEWER:
        name = f"python{version}"
        places = [Path(sys.executable).with_name(name), shutil.which(name)]
        for place in filter(None, places):
            yield str(place)
            if Path(place).parent.name == "shims":
                yield from map(
                    str, sorted(Path(place).parents[1].glob(f"versions/{version}*/bin/{name}"))
                )


def works(python: str) -> bool:
    try:
        done = subprocess.run([python, "-c", "print(1)"], capture_output=True, text=True)
    except OSError:
        return False
    return (done.returncode, done.stdout) == (0, "1\n")


@pytest.fixture(scope="module")
def newest_zarr(tmp_path_factory) -> Path:
    """A Python in an environment of its own with the zarr-python that constraints.txt names."""
    python = next(filter(works, newer_pythons()), None)
    if python is None:
        pytest.skip(f"none of Python {', '.join(NEWER)} is on PATH: the newest zarr is not read")
    folder = tmp_path_factory.mktemp("newest") / "venv"
    for command in (
        [python, "-m", "venv", folder],
        [folder / "bin/python", "-m", "pip", "install", "--disable-pip-version-check", "--quiet"]
        + ["--only-binary=:all:", "-c", ROOT / "constraints.txt", "zarr", "numpy", "numcodecs"],
    ):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or ["no reason was given"])[-1]
            pytest.skip(f"no environment of {python} with the newest zarr: {last}")
    return folder / "bin/python"


def pinned(package: str, condition: str) -> str:
    """The version of a package in constraints.txt, under a condition on Python's version."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return next(
        line.split("==")[1].split(" ")[0]
        for line in lines
        if line.startswith(f"{package}==") and line.endswith(f"python_version {condition}")
    )


def test_the_zarr_python_that_is_read_with_here_is_a_pinned_one():
    conditions = ("< '3.12'", ">= '3.12'")
    assert zarr.__version__ == pinned("zarr", conditions[sys.version_info >= (3, 12)])


@pytest.mark.slow
def test_the_newest_zarr_python_reads_the_stored_numbers(every, newest_zarr, tmp_path):
    version, found = read_with_zarr(newest_zarr, tmp_path / "found.npz", every)
    assert version == pinned("zarr", ">= '3.12'")
    assert {name: differing(found[name], every[name]) for name in every} == dict.fromkeys(every, [])


@pytest.mark.slow
def test_the_newest_zarr_python_writes_the_frames_that_we_write(every, newest_zarr, tmp_path):
    """With the numcodecs that is pinned for it; another one's Blosc may write others."""
    written = write_with_zarr(newest_zarr, tmp_path, every)
    for name, folder in written.items():
        assert frames_in(folder) == all_payloads(every[name])
