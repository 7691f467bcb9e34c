import hashlib
import io
import json
import os
import struct
import tarfile
import tempfile
from pathlib import Path

import blake3
import numcodecs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.encodings import ENCODINGS
from storage.errors import DamagedDataError
from storage.files import AtomicFile
from storage.local import LocalStore
from storage.shard import ShardLayout, ShardReader, ShardWriter, event_key, longest_json

MISSING = 2**64 - 1
COMPRESSED = ["float32", "float16", "int16", "int8"]


def crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli), bit by bit, as in RFC 3720."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def facts_of(row: int) -> dict:
    return {"event": row, "parameters": {"chirp_mass": row / 3}, "optimal_snr": [1e-300] * 3}


def write(path: Path, layout: ShardLayout, strain: np.ndarray) -> tuple[int, str]:
    with ShardWriter(AtomicFile(path), layout) as writer:
        for row, codes in enumerate(strain):
            writer.add(event_key(row), codes, facts_of(row))
        return writer.finish()


def open_shard(path: Path, layout: ShardLayout, crc32c: list[int] | None = None) -> ShardReader:
    store = LocalStore(path.parent)
    return ShardReader(store, path.name, layout.slots, layout.encoding, crc32c)


def layout_for(slots: int, shape: tuple[int, int], dtype: str, spare: int = 0) -> ShardLayout:
    encoding = next(item for item in ENCODINGS.values() if item.dtype == np.dtype(dtype))
    return ShardLayout(slots, shape, encoding, longest_json(facts_of(slots)) + spare)


@pytest.fixture
def shard(tmp_path):
    """A shard of five slots of which three are filled."""
    layout = layout_for(5, (3, 50), "<f4")
    strain = np.random.default_rng(0).standard_normal((3, 3, 50), "f4")
    write(tmp_path / "shard", layout, strain)
    return tmp_path / "shard", layout, strain


@st.composite
def shards(draw):
    slots = draw(st.integers(1, 5))
    shape = draw(st.integers(1, 4)), draw(st.integers(1, 4000))
    dtype = draw(st.sampled_from(["<f4", "<f2", "<i2", "|i1"]))
    return layout_for(slots, shape, dtype, draw(st.integers(0, 9000))), draw(st.integers(0, slots))


@given(shards())
@settings(max_examples=40, deadline=None)
def test_every_shard_is_an_aligned_tar_with_a_zarr_index_behind_it(case):
    layout, filled = case
    values = np.random.default_rng(0).integers(-99, 99, (filled, *layout.shape))
    with tempfile.TemporaryDirectory() as folder:
        length, digest = write(Path(folder, "shard"), layout, values.astype(layout.dtype))
        data = Path(folder, "shard").read_bytes()
    assert (length, digest) == (len(data), blake3.blake3(data).hexdigest())

    body, index, checksum = (
        data[: -16 * layout.slots - 4],
        data[-16 * layout.slots - 4 : -4],
        data[-4:],
    )
    assert struct.unpack("<I", checksum)[0] == crc32c(index)
    entries = np.frombuffer(index, "<u8").reshape(layout.slots, 2)
    assert np.all(entries[filled:] == MISSING)
    offsets, lengths = entries[:filled].T
    assert np.all(offsets % 4096 == 0)
    assert np.all(np.diff(offsets) == layout.stride)
    assert np.all(lengths == values[0].size * layout.dtype.itemsize if filled else True)
    assert body.endswith(bytes(1024))

    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        members = archive.getmembers()
        assert [member.name for member in members] == [
            f"{row:09d}.{kind}" for row in range(filled) for kind in ("json", "strain.npy")
        ]
        assert (
            len(body)
            == (members[-1].offset_data + -(-members[-1].size // 512) * 512 if filled else 0) + 1024
        )
        for row in range(filled):
            text, array = (
                archive.extractfile(member).read() for member in members[2 * row : 2 * row + 2]
            )
            assert json.loads(text) == facts_of(row)
            assert len(text) % 512 == 0
            assert set(text[len(json.dumps(facts_of(row))) : -1]) <= {ord(" ")}
            assert members[2 * row + 1].offset_data + 512 == offsets[row]
            loaded = np.load(io.BytesIO(array), allow_pickle=False)
            assert loaded.dtype == layout.dtype
            assert np.array_equal(loaded, values[row])


@st.composite
def compressed_shards(draw):
    slots = draw(st.integers(1, 5))
    shape = draw(st.integers(1, 4)), draw(st.integers(1, 4000))
    encoding = ENCODINGS[draw(st.sampled_from(COMPRESSED)) + "+blosc"]
    room = longest_json(facts_of(slots)) + draw(st.integers(0, 3000))
    return ShardLayout(slots, shape, encoding, room), draw(st.integers(0, slots))


@given(compressed_shards())
@settings(max_examples=40, deadline=None)
def test_every_compressed_shard_is_a_tar_of_blosc_frames_that_the_zarr_index_names(case):
    layout, filled = case
    values = np.random.default_rng(0).integers(-99, 99, (filled, *layout.shape))
    codes = values.astype(layout.dtype)
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder, "shard"), layout, codes)
        data = Path(folder, "shard").read_bytes()
        reader, row_read = open_shard(Path(folder, "shard"), layout), np.empty_like(codes)
        for row in range(filled):
            reader.read_into(row, row_read[row])
    assert np.array_equal(row_read, codes)
    entries = np.frombuffer(data[-layout.index_size : -4], "<u8").reshape(layout.slots, 2)
    assert np.all(entries[filled:] == MISSING)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        members = archive.getmembers()
    assert [member.name for member in members] == [
        f"{row:09d}.{kind}" for row in range(filled) for kind in ("json", "strain.blosc")
    ]
    for row, member in enumerate(members[1::2]):
        assert (member.offset_data, member.size) == tuple(entries[row])
        frame = data[member.offset_data : member.offset_data + member.size]
        plain = numcodecs.Blosc().decode(frame)  # as any reader of Blosc does
        assert np.array_equal(np.frombuffer(plain, layout.dtype).reshape(layout.shape), codes[row])
        text = data[members[2 * row].offset_data :][: members[2 * row].size]
        assert json.loads(text) == facts_of(row)


def test_a_compressed_event_with_another_checksum_is_refused_before_it_is_decompressed(tmp_path):
    layout = ShardLayout(2, (3, 500), ENCODINGS["int16+blosc"], longest_json(facts_of(2)))
    codes = np.arange(3000, dtype="<i2").reshape(2, 3, 500)
    with ShardWriter(AtomicFile(tmp_path / "shard"), layout) as writer:
        for row in range(2):
            writer.add(event_key(row), codes[row], facts_of(row))
        writer.finish()
    reader = open_shard(tmp_path / "shard", layout, writer.crc32c)
    offset, length = reader.place(1, codes[1])
    data = bytearray((tmp_path / "shard").read_bytes())
    data[offset + length // 2] ^= 1
    (tmp_path / "shard").write_bytes(data)
    damaged = open_shard(tmp_path / "shard", layout, writer.crc32c)
    damaged.read_into(0, codes[0])
    with pytest.raises(DamagedDataError, match="event 1 of this shard has not the checksum"):
        damaged.read_into(1, codes[1])


NUMBERS = st.floats(allow_nan=False, allow_infinity=False)


@given(st.lists(NUMBERS), st.dictionaries(st.text(max_size=5), NUMBERS), st.integers(0, 999))
def test_the_room_for_json_is_enough_whatever_the_numbers_are(snrs, parameters, number):
    facts = {"event": number, "detectors": ["E1"], "parameters": parameters, "snrs": snrs}
    zeros = {
        "event": 999,
        "detectors": ["E1"],
        "parameters": dict.fromkeys(parameters, 0.0),
        "snrs": [0.0] * len(snrs),
    }
    assert len(json.dumps(facts)) < longest_json(zeros)


def test_the_checksum_used_here_is_that_of_the_standard():
    assert crc32c(b"123456789") == 0xE3069283  # RFC 3720's catalogue value


def test_the_checksum_of_each_event_is_that_of_its_payload(tmp_path):
    layout = layout_for(2, (1, 30), "<i2")
    codes = np.arange(60, dtype="<i2").reshape(2, 1, 30)
    with ShardWriter(AtomicFile(tmp_path / "shard"), layout) as writer:
        for row in range(2):
            writer.add(event_key(row), codes[row], facts_of(row))
        assert writer.crc32c == [crc32c(code.tobytes()) for code in codes]


def test_the_bytes_are_the_ones_that_were_pinned(tmp_path):
    """Made by this test; a change of these bytes is a change of the format's version."""
    layout = layout_for(3, (2, 5), "<i2")
    write(tmp_path / "shard", layout, np.arange(20).reshape(2, 2, 5))
    digest = hashlib.sha256((tmp_path / "shard").read_bytes()).hexdigest()
    assert digest == "2604b3b9db369c15f15141b241b1c2d82fd26bbd3a0e145e88d5db7360997db5"


def test_tar_headers_are_plain_ustar_and_tell_nothing_of_the_writer(shard):
    header = shard[0].read_bytes()[:512]
    assert header[257:265] == b"ustar\x0000"
    assert header[100:124] == b"0000644\x000000000\x000000000\x00"  # mode, owner, group
    assert header[136:148] == b"0" * 11 + b"\x00"  # time
    assert not header[265:].strip(b"\x00")  # names of owner and group, prefix


def write_one_and_fail(path: Path, layout: ShardLayout, codes: np.ndarray) -> None:
    with ShardWriter(AtomicFile(path, contested=True), layout) as writer:
        writer.add(event_key(0), codes, facts_of(0))
        assert len(list(path.parent.glob("shard.*.partial"))) == 1
        raise RuntimeError("power cut")


def test_an_exception_in_the_middle_leaves_no_file(tmp_path):
    with pytest.raises(RuntimeError, match="power cut"):
        write_one_and_fail(tmp_path / "shard", layout_for(2, (1, 10), "<f4"), np.zeros((1, 10)))
    assert not list(tmp_path.iterdir())


def test_a_shard_that_is_written_again_replaces_the_old_one_only_when_it_is_complete(shard):
    path, layout, strain = shard
    before = path.read_bytes()
    with pytest.raises(RuntimeError, match="power cut"):
        write_one_and_fail(path, layout, 2 * strain[0])
    assert path.read_bytes() == before
    write(path, layout, 2 * strain)
    assert path.read_bytes() != before


def test_a_reader_reads_each_event_into_the_row_it_is_given(shard):
    path, layout, strain = shard
    reader, batch = open_shard(path, layout), np.full((5, 3, 50), np.nan, "f4")
    for row, target in ((2, 0), (0, 3), (1, 4)):
        reader.read_into(row, batch[target])
    assert np.array_equal(batch[[3, 4, 0]], strain)
    assert np.isnan(batch[1:3]).all()


def test_a_reader_refuses_a_slot_that_is_not_filled(shard):
    path, layout, _ = shard
    with pytest.raises(DamagedDataError, match=r"shard: event 3 of this shard"):
        open_shard(path, layout).read_into(3, np.empty((3, 50), "f4"))


def test_a_reader_refuses_a_buffer_of_another_size(shard):
    path, layout, _ = shard
    with pytest.raises(DamagedDataError, match=r"has 600 bytes .* 1200 were expected"):
        open_shard(path, layout).read_into(0, np.empty((3, 50), "f8"))


@pytest.mark.parametrize("left", [-1, -84, -85, 9000, 83, 3, 0])
def test_a_truncated_shard_is_named_when_it_is_opened(shard, left):
    path, layout, _ = shard
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(
        DamagedDataError, match=f"{path}: the index at its end is missing or damaged"
    ):
        open_shard(path, layout)


@pytest.mark.parametrize("byte", [-84, -50, -4, -1])
def test_a_flipped_bit_in_the_index_or_its_checksum_is_noticed(shard, byte):
    path, layout, _ = shard
    data = bytearray(path.read_bytes())
    data[byte] ^= 16
    path.write_bytes(data)
    with pytest.raises(DamagedDataError, match=f"{path}: the index"):
        open_shard(path, layout)


def test_a_shard_that_lost_its_middle_is_noticed_when_the_event_is_read(shard):
    path, layout, _ = shard
    data = path.read_bytes()
    path.write_bytes(data[:5000] + data[-84:])
    with pytest.raises(DamagedDataError, match=f"{path}: ends within event 2"):
        open_shard(path, layout).read_into(2, np.empty((3, 50), "f4"))


def test_a_missing_shard_is_named(tmp_path):
    with pytest.raises(DamagedDataError, match=f"{tmp_path}/shard: is missing"):
        open_shard(tmp_path / "shard", layout_for(3, (3, 50), "<f4"))


def test_a_reader_closes_its_file_with_the_last_reference_to_it(shard):
    path, layout, _ = shard

    def is_open() -> bool:
        return any(
            os.path.samefile(path, entry)
            for entry in Path("/proc/self/fd").iterdir()
            if entry.exists()
        )

    reader = open_shard(path, layout)
    assert is_open()
    del reader
    assert not is_open()
