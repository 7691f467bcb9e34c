"""The same files, read by the tools of both worlds; nothing of ours takes part in the reading."""

import gc
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import warnings
from pathlib import Path

import blake3
import dask.array
import google_crc32c
import numcodecs
import numpy as np
import pytest
import tensorstore
import webdataset
import xarray
import zarr

from storage import decode_strain, open_dataset
from storage.encodings import ENCODINGS
from storage.schema import Parameter
from storage.writer import shard_layout

SHARDS = "strain/c/{0..2}/0/0"
SPECIFICATION = Path(__file__).parents[2] / "storage/FORMAT.md"


@pytest.fixture(autouse=True)
def _warnings_are_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.fixture
def data(full_size, encoding):
    """Five full-size events in three shards, the last one partial."""
    return full_size(encoding)


@pytest.fixture(params=[name for name, facts in ENCODINGS.items() if not facts.compressed])
def plain(request, full_size):
    """The same, uncompressed."""
    return full_size(request.param)


@pytest.fixture(params=[name for name, facts in ENCODINGS.items() if facts.compressed])
def compressed(request, full_size):
    """The same, compressed."""
    return full_size(request.param)


def step_of(data) -> np.ndarray:
    """The largest error that the encoding may make in each sample."""
    if data.schema.encoding.scale_factor is not None:
        return np.full_like(data.strain, data.schema.encoding.scale_factor / 2)
    return np.abs(data.strain) * np.finfo(data.schema.encoding.dtype).eps / 2 + 2.0**-25


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


def test_tensorstore_reads_the_stored_numbers(data):
    place = {"driver": "file", "path": str(data.folder / "strain")}
    strain = tensorstore.open({"driver": "zarr3", "kvstore": place}, open=True).result()
    assert strain.domain.labels == ("event", "detector", "time")
    assert np.array_equal(strain.read().result(), data.codes)
    assert np.array_equal(strain[3, 1, 500:600].read().result(), data.codes[3, 1, 500:600])


def test_zarrs_reads_the_stored_numbers(data):
    with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
        strain = zarr.open_array(data.folder / "strain", mode="r")
        assert type(strain.async_array.codec_pipeline).__name__ == "ZarrsCodecPipeline"
        assert np.array_equal(strain[:], data.codes)
        assert np.array_equal(strain[2], data.codes[2])


def test_zarr_pythons_own_codec_writes_the_same_frames(compressed):
    """The metadata describe how the frames were made, not only how they are read."""
    (sharding,) = json.loads((compressed.folder / "strain/zarr.json").read_bytes())["codecs"]
    _, blosc = sharding["configuration"]["codecs"]
    codec = zarr.codecs.BloscCodec.from_dict(blosc)
    shard = (compressed.folder / "strain/c/0/0/0").read_bytes()
    (offset, length), _ = np.frombuffer(shard[-36:-4], "<u8").reshape(2, 2).tolist()
    made = codec._blosc_codec.encode(np.ascontiguousarray(compressed.codes[0]))
    assert bytes(made) == shard[offset : offset + length]


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


# Without site: what is installed with a .pth file, as this project in development, is not there.
STOCK_WEBDATASET = f"""
import importlib.util, json, sys
sys.path.append(sys.argv[1])
import numpy as np
import webdataset as wds
assert importlib.util.find_spec("storage") is None, "our packages are within reach"
for folder in sys.argv[2:]:
    samples = list(wds.WebDataset(folder + "/{SHARDS}", shardshuffle=False).decode())
    member = "strain.blosc" if folder.endswith("blosc") else "strain.npy"
    np.savez(
        folder + ".npz",
        # What webdataset has no decoder for it hands on as bytes; here they are only carried.
        strain=[v if member == "strain.npy" else v.hex() for v in (s[member] for s in samples)],
        facts=json.dumps([sample["json"] for sample in samples]),
        keys=[sample["__key__"] for sample in samples],
    )
assert "storage" not in sys.modules
"""


@pytest.fixture(scope="module")
def stock_webdataset(full_size, tmp_path_factory):
    """What a bare webdataset, in a process of its own, reads from all the full-size data sets."""
    names = tmp_path_factory.mktemp("names")
    for name in ENCODINGS:
        (names / name).symlink_to(full_size(name).folder)
    folders = [str(names / name) for name in ENCODINGS]
    packages = Path(webdataset.__file__).parents[1]
    command = [sys.executable, "-I", "-S", "-c", STOCK_WEBDATASET, packages, *folders]
    done = subprocess.run(command, cwd="/", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {name: np.load(names / f"{name}.npz") for name in ENCODINGS}


def test_stock_webdataset_reads_every_event_of_every_shard(data, encoding, stock_webdataset):
    read = stock_webdataset[encoding]
    assert read["keys"].tolist() == [f"{number:09d}" for number in range(5)]
    strain = read["strain"]
    facts = json.loads(str(read["facts"]))
    if data.schema.encoding.compressed:  # by Blosc alone, with what the JSON beside it says
        strain = np.stack(
            [
                np.frombuffer(numcodecs.Blosc().decode(bytes.fromhex(frame)), f["dtype"]).reshape(
                    len(f["detectors"]), f["samples"]
                )
                for frame, f in zip(strain, facts, strict=True)
            ]
        )
    assert strain.dtype == data.schema.encoding.dtype
    assert np.array_equal(strain, data.codes)
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


def test_with_our_decoder_webdataset_hands_on_arrays_compressed_or_not(data):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # webdataset leaves closing to Python
        shards = webdataset.WebDataset(f"{data.folder}/{SHARDS}", shardshuffle=False)
        pairs = shards.decode().map(decode_strain).to_tuple("strain.npy", "json")
        read = [(facts["event"], strain) for strain, facts in pairs]
        del shards, pairs
        gc.collect()
    assert [number for number, _ in read] == [0, 1, 2, 3, 4]
    assert np.array_equal(np.stack([strain for _, strain in read]), data.codes)


def tar(*arguments) -> bytes:
    done = subprocess.run(
        ["tar", *map(str, arguments)],
        capture_output=True,
        env={**os.environ, "LC_ALL": "C", "TZ": "UTC"},
    )
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout


def test_gnu_tar_lists_and_extracts_it_without_a_complaint(plain):
    last = plain.folder / "strain/c/2/0/0"
    size = 512 + plain.strain[0].size * plain.schema.encoding.dtype.itemsize
    listed = [line.split() for line in tar("-tvf", last).decode().splitlines()]
    assert [line[-1] for line in listed] == ["000000004.json", "000000004.strain.npy"]
    assert listed[1][:4] == ["-rw-r--r--", "0/0", str(size), "1970-01-01"]
    array = np.load(io.BytesIO(tar("-xOf", last, "000000004.strain.npy")), allow_pickle=False)
    assert np.array_equal(array, plain.codes[4])
    assert json.loads(tar("-xOf", last, "000000004.json"))["event"] == 4
    assert len(tar("-tf", plain.folder / "strain/c/0/0/0").split()) == 4


def test_gnu_tar_extracts_frames_that_blosc_reads(compressed):
    last = compressed.folder / "strain/c/2/0/0"
    listed = [line.split() for line in tar("-tvf", last).decode().splitlines()]
    assert [line[-1] for line in listed] == ["000000004.json", "000000004.strain.blosc"]
    frame = tar("-xOf", last, "000000004.strain.blosc")
    assert len(frame) == int(listed[1][2])
    stored = np.frombuffer(numcodecs.Blosc().decode(frame), compressed.schema.encoding.dtype)
    assert np.array_equal(stored.reshape(3, -1), compressed.codes[4])


def test_a_payload_can_be_mapped_into_memory_at_the_offset_in_the_index(plain):
    shard = plain.folder / "strain/c/1/0/0"
    entries = np.frombuffer(shard.read_bytes()[-36:-4], "<u8").reshape(2, 2)
    for number, (offset, _) in zip((2, 3), entries, strict=True):
        mapped = np.memmap(shard, plain.schema.encoding.dtype, "r", int(offset), (3, 65_536))
        assert np.array_equal(mapped, plain.codes[number])


NEWEST_ZARR = """
import sys
import numpy as np
import zarr
for folder in sys.argv[1:]:
    codes = np.load(folder + "-codes.npy")
    group = zarr.open_group(folder, mode="r")
    assert np.array_equal(group["strain"][:], codes), folder
    assert np.array_equal(group["strain"][3, 1, 70:90], codes[3, 1, 70:90]), folder
print(zarr.__version__)
"""


@pytest.mark.slow
def test_the_newest_zarr_python_reads_the_stored_numbers(full_size, tmp_path):
    """This Python may be too old for it: another one, with an environment of its own, reads."""
    python = next((name for name in NEWER_PYTHONS if runs(name)), None)
    if python is None:
        pytest.skip("no Python from 3.12 on is to be had here")
    subprocess.run([python, "-m", "venv", tmp_path / "venv"], check=True)
    there = tmp_path / "venv/bin/python"
    wanted = ["zarr", "numcodecs", "numpy", "-c", str(SPECIFICATION.parents[1] / "constraints.txt")]
    subprocess.run([there, "-m", "pip", "install", "--quiet", *wanted], check=True)
    for name in ENCODINGS:
        data = full_size(name)
        (tmp_path / name).symlink_to(data.folder)
        np.save(tmp_path / f"{name}-codes.npy", data.codes)
    folders = [tmp_path / name for name in ENCODINGS]
    done = subprocess.run(
        [there, "-c", NEWEST_ZARR, *folders], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert tuple(map(int, done.stdout.split(".")[:2])) >= (3, 4)


# Of the system, or beside this one where several are kept, as by pyenv.
BESIDE = sorted(Path(sys.base_prefix).parent.glob("3.1[2-9]*/bin/python3"))
NEWER_PYTHONS = ("python3.12", "python3.13", "python3.14", *map(str, BESIDE))


def runs(python: str) -> bool:
    """Whether an interpreter of that name is there, and no shim of one that is not."""
    path = shutil.which(python)
    return (
        path is not None and subprocess.run([path, "-c", ""], capture_output=True).returncode == 0
    )


def test_the_example_of_the_specification_is_a_real_file(build):
    two = ("chirp_mass", "Msun", "Uniform(25, 100)", 25.0, 100.0), ("ra", "rad", "0", 0.0, 0.0)
    data = build(
        events=5,
        events_per_shard=2,
        samples=65_536,
        sample_rate=8192.0,
        parameters=tuple(Parameter(*column) for column in two),
    )
    shard = data.folder / "strain/c/0/0/0"
    stored = shard.read_bytes()
    with tarfile.open(shard) as archive:
        members = archive.getmembers()
    cells = {f"{member.offset:,} | 512" for member in members}
    cells |= {f"{member.offset_data:,} | {member.size:,}" for member in members[::2]}
    cells |= {f"{member.offset_data:,} | 512" for member in members[1::2]}
    cells |= {f"**{member.offset_data + 512:,}** | 786,432" for member in members[1::2]}
    index, checksum = np.frombuffer(stored[-36:-4], "<u8").tolist(), stored[-4:]
    cells |= {
        "index ({}, {}), ({}, {})".format(*index) + f" | {len(stored) - 36:,} | 32",
        f"crc32c 0x{checksum[::-1].hex()}, stored as `{checksum.hex(' ')}`",
        f"end of the tar | {len(stored) - 36 - 1024:,} | 1,024",
        f"end of the file | {len(stored):,} |",
        f"The stride is {index[2] - index[0]:,}.",
        f"has {(data.folder / 'strain/c/2/0/0').stat().st_size:,} bytes",
        f"`room` = {shard_layout(data.schema).json_room} bytes",
    }
    text = SPECIFICATION.read_text()
    assert len(cells) >= 15
    assert not [cell for cell in cells if cell not in text]


# A writer made from FORMAT.md alone, with nothing of the storage package in it.


def ustar_header(name: str, size: int) -> bytes:
    header = bytearray(512)
    header[: len(name)] = name.encode()
    header[100:124] = b"0000644\x000000000\x000000000\x00"
    header[124:148] = f"{size:011o}\x00{0:011o}\x00".encode()
    header[148:156] = b" " * 8
    header[156:157] = b"0"
    header[257:265] = b"ustar\x0000"
    header[148:156] = f"{sum(header):06o}\x00 ".encode()
    return bytes(header)


def round_up(value: int, multiple: int) -> int:
    return (value + multiple - 1) // multiple * multiple


DESCR = {"float32": "<f4", "float16": "<f2", "int16": "<i2", "int8": "|i1"}
# clevel and shuffle of the specification's table
FRAMES = {"<f4": (1, 1), "<f2": (3, 1), "<i2": (2, 2), "|i1": (1, 0)}


def shard_by_the_specification(data, shard: int) -> bytes:
    schema = data.schema
    kind, compressed, _ = schema.encoding.name.partition("+blosc")
    size, descr = schema.events_per_shard, DESCR[kind]

    def facts(number, parameters, snrs, rate, scale) -> dict:
        return {
            "event": number,
            "detectors": list(schema.detectors),
            "sample_rate": rate,
            "scale_factor": scale,
            "parameters": dict(zip(schema.parameter_names, parameters, strict=True)),
            "optimal_snr": list(snrs),
            **({"dtype": descr, "samples": schema.samples} if compressed else {}),
        }

    widest = -2.2250738585072014e-308
    columns, detectors = len(schema.parameters), len(schema.detectors)
    room = 1 + len(
        json.dumps(facts(schema.events, columns * [widest], detectors * [widest], widest, widest))
    )
    payload = data.codes[0].nbytes
    offset = round_up(1536 + room, 4096)
    stride = round_up(round_up(payload, 512) + 1536 + room, 4096)
    shape = f"({detectors}, {schema.samples})"
    npy = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}}}".ljust(501) + "\n"

    out, index = b"", b""
    for event in data.events[shard * size : (shard + 1) * size]:
        text = json.dumps(
            facts(
                event.number,
                event.parameters.tolist(),
                event.optimal_snr.tolist(),
                schema.sample_rate,
                schema.encoding.scale_factor or 1.0,
            )
        )
        stored, key = data.codes[event.number].tobytes(), f"{event.number:09d}"
        if compressed:
            json_size = round_up(room, 512)
            stored = blosc_frame(stored, descr)
        else:
            json_size = stride - round_up(payload, 512) - 1536 if out else offset - 1536
        out += ustar_header(f"{key}.json", json_size) + text.ljust(json_size - 1).encode() + b"\n"
        if compressed:
            out += ustar_header(f"{key}.strain.blosc", len(stored))
        else:
            out += ustar_header(f"{key}.strain.npy", 512 + payload)
            out += b"\x93NUMPY\x01\x00" + (502).to_bytes(2, "little") + npy.encode()
            assert len(out) == offset + len(index) // 16 * stride
        index += len(out).to_bytes(8, "little") + len(stored).to_bytes(8, "little")
        out += stored + bytes(-len(stored) % 512)
    index = index.ljust(16 * size, b"\xff")
    return out + bytes(1024) + index + google_crc32c.value(index).to_bytes(4, "little")


def blosc_frame(data: bytes, descr: str) -> bytes:
    """One block, by one thread."""
    clevel, shuffle = FRAMES[descr]
    values = np.frombuffer(data, descr)
    return bytes(numcodecs.Blosc("zstd", clevel, shuffle, blocksize=len(data)).encode(values))


def manifest_by_the_specification(data, shard: int) -> dict:
    """Its entries, but for what a writer measures: the loss."""
    folder, size = data.folder, data.schema.events_per_shard
    paths = [f"strain/c/{shard}/0/0", f"parameters/c/{shard}/0", f"optimal_snr/c/{shard}/0"]
    stored = {path: (folder / path).read_bytes() for path in paths}
    index = np.frombuffer(stored[paths[0]][-16 * size - 4 : -4], "<u8").reshape(-1, 2).tolist()
    events = data.events[shard * size : (shard + 1) * size]
    return {
        "shard": shard,
        "first_event": shard * size,
        "events": len(events),
        "files": {
            path: {"bytes": len(content), "blake3": blake3.blake3(content).hexdigest()}
            for path, content in stored.items()
        },
        "crc32c": [
            google_crc32c.value(stored[paths[0]][offset : offset + length])
            for offset, length in index[: len(events)]
        ],
        "rejected": {"snr below 8": 2},
        "checks": {},
        "replaced": {},
        "dataset": blake3.blake3((folder / "zarr.json").read_bytes()).hexdigest(),
    }


def test_a_manifest_made_from_the_specification_alone_has_the_same_bytes(build, encoding):
    data = build(encoding=ENCODINGS[encoding], samples=333)
    for shard in range(3):
        stored = (data.folder / f"manifest/00000{shard}.json").read_bytes()
        found = json.loads(stored)
        measured = {key: found[key] for key in ("largest_snr_loss", "worst_event")}
        document = {**manifest_by_the_specification(data, shard), **measured, "digest": "0" * 64}
        text = json.dumps(document, indent=1, sort_keys=True) + "\n"
        digest = blake3.blake3(text.encode()).hexdigest()
        assert text.replace("0" * 64, digest).encode() == stored


def test_a_writer_made_from_the_specification_alone_writes_the_same_bytes(build, encoding):
    data = build(encoding=ENCODINGS[encoding], samples=333)
    for shard in range(3):
        stored = (data.folder / f"strain/c/{shard}/0/0").read_bytes()
        assert shard_by_the_specification(data, shard) == stored
