import errno
import hashlib
import io
import json
import os
import struct
import tarfile
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import blake3
import numcodecs.blosc
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.arrays import as_bytes
from storage.blosc import compress, decompress_into
from storage.encodings import ENCODINGS
from storage.errors import MEND, DamagedDataError
from storage.files import AtomicFile
from storage.local import LocalFile
from storage.shard import ShardLayout, ShardWriter, event_key, longest_json
from storage.shard_reader import LARGEST_OVERHEAD, ShardReader
from storage.urls import store_of

MISSING = 2**64 - 1


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


def layout_for(slots: int, shape: tuple[int, int], encoding: str, spare: int = 0) -> ShardLayout:
    return ShardLayout(slots, shape, ENCODINGS[encoding], longest_json(facts_of(slots)) + spare)


def reader_of(path: Path, layout: ShardLayout, crc32c: list[int] | None = None) -> ShardReader:
    return ShardReader(store_of(path.parent), path.name, layout.slots, layout.encoding, crc32c)


def entries_of(data: bytes, slots: int) -> np.ndarray:
    """The index: (offset, length) of each slot."""
    return np.frombuffer(data[-16 * slots - 4 : -4], "<u8").reshape(slots, 2)


@pytest.fixture(params=["float32", "float32+blosc"])
def shard(tmp_path, request):
    """A shard of five slots of which three are filled, and not compressed or compressed."""
    layout = layout_for(5, (3, 50), request.param)
    strain = np.random.default_rng(0).standard_normal((3, 3, 50), "f4")
    write(tmp_path / "shard", layout, strain)
    return tmp_path / "shard", layout, strain


@st.composite
def shards(draw, compressed: bool):
    slots = draw(st.integers(1, 5))
    shape = draw(st.integers(1, 4)), draw(st.integers(1, 4000))
    names = [name for name, encoding in ENCODINGS.items() if encoding.compressed is compressed]
    encoding = draw(st.sampled_from(names))
    layout = layout_for(slots, shape, encoding, draw(st.integers(0, 9000)))
    filled = draw(st.integers(0, slots))
    spread = draw(st.sampled_from([0, 3, 99]))  # from what compresses best to what hardly does
    values = np.random.default_rng(0).integers(-spread, spread + 1, (filled, *shape))
    return layout, values.astype(layout.dtype)


def written_to_a_folder(layout: ShardLayout, values: np.ndarray) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        length, digest = write(Path(folder, "shard"), layout, values)
        data = Path(folder, "shard").read_bytes()
    assert (length, digest) == (len(data), blake3.blake3(data).hexdigest())
    return data


def assert_tar_and_index(data: bytes, layout: ShardLayout, filled: int, kind: str) -> list:
    """Look at the tar, the end of it and the index; return members and contents."""
    index, checksum = data[-16 * layout.slots - 4 : -4], data[-4:]
    assert struct.unpack("<I", checksum)[0] == crc32c(index)
    assert np.all(entries_of(data, layout.slots)[filled:] == MISSING)
    body = data[: -len(index) - 4]
    assert body.endswith(bytes(1024))
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        members = archive.getmembers()
        contents = [archive.extractfile(member).read() for member in members]
    assert [member.name for member in members] == [
        f"{row:09d}.{extension}" for row in range(filled) for extension in ("json", kind)
    ]
    end = members[-1].offset_data + -(-members[-1].size // 512) * 512 if filled else 0
    assert len(body) == end + 1024
    for row, text in enumerate(contents[::2]):
        assert json.loads(text) == facts_of(row)
        assert len(text) % 512 == 0
        assert set(text[len(json.dumps(facts_of(row))) : -1]) <= {ord(" ")}
        assert text.endswith(b"\n")
    return list(zip(members, contents, strict=True))


@given(shards(compressed=False))
@settings(max_examples=40, deadline=None)
def test_every_shard_is_an_aligned_tar_with_a_zarr_index_behind_it(case):
    layout, values = case
    data = written_to_a_folder(layout, values)
    found = assert_tar_and_index(data, layout, len(values), "strain.npy")
    offsets, lengths = entries_of(data, layout.slots)[: len(values)].T
    assert np.all(offsets % 4096 == 0)
    assert np.all(np.diff(offsets) == layout.stride)
    assert np.all(lengths == np.prod(layout.shape) * layout.dtype.itemsize)
    for row, (member, content) in enumerate(found[1::2]):
        assert member.offset_data + 512 == offsets[row]
        loaded = np.load(io.BytesIO(content), allow_pickle=False)
        assert loaded.dtype == layout.dtype
        assert np.array_equal(loaded, values[row])


@given(shards(compressed=True))
@settings(max_examples=40, deadline=None)
def test_every_compressed_shard_is_a_tar_of_blosc_frames_without_gaps_and_an_index(case):
    layout, values = case
    data = written_to_a_folder(layout, values)
    found = assert_tar_and_index(data, layout, len(values), "strain.blosc")
    entries = entries_of(data, layout.slots)
    at = 0
    for row, ((text, json_bytes), (frame, content)) in enumerate(
        zip(found[::2], found[1::2], strict=True)
    ):
        assert text.offset == at
        assert len(json_bytes) == -(-layout.json_room // 512) * 512
        assert frame.offset == text.offset_data + len(json_bytes)
        assert entries[row].tolist() == [frame.offset_data, len(content)]
        assert len(content) <= layout.payload + LARGEST_OVERHEAD
        decompressed = np.frombuffer(numcodecs.blosc.decompress(content), layout.dtype)
        assert np.array_equal(decompressed.reshape(layout.shape), values[row])
        at = frame.offset_data + -(-len(content) // 512) * 512


@pytest.mark.parametrize("name", [name for name in ENCODINGS if ENCODINGS[name].compressed])
@pytest.mark.parametrize("kind", ["zeros", "noise", "random bits"])
def test_frames_have_the_same_bytes_whatever_threads_make_them(name, kind, monkeypatch):
    encoding = ENCODINGS[name]
    draw = np.random.default_rng(7)
    arrays = {
        "zeros": np.zeros((8, 3, 65_536), encoding.dtype),
        "noise": (draw.standard_normal((8, 3, 65_536)) / (encoding.scale_factor or 1)),
        "random bits": draw.integers(-128, 128, (8, 3, 65_536 * encoding.dtype.itemsize), "i1"),
    }
    events = arrays[kind]
    events = events.view(encoding.dtype) if kind == "random bits" else events.astype(encoding.dtype)
    here = [compress(codes, encoding.blosc) for codes in events]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda codes: compress(codes, encoding.blosc), events)) == here
    monkeypatch.setattr(numcodecs.blosc, "use_threads", True)  # Blosc's own
    before = numcodecs.blosc.get_nthreads()
    for threads in (1, 2, 5):
        numcodecs.blosc.set_nthreads(threads)
        assert [compress(codes, encoding.blosc) for codes in events] == here
    numcodecs.blosc.set_nthreads(before)
    for codes, frame in zip(events, here, strict=True):
        assert len(frame) <= codes.nbytes + LARGEST_OVERHEAD
        assert numcodecs.blosc.decompress(frame) == codes.tobytes()


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


@pytest.mark.parametrize("name", ["int16", "int16+blosc"])
def test_the_checksum_of_each_event_is_that_of_its_payload(tmp_path, name):
    layout = layout_for(2, (1, 30), name)
    codes = np.arange(60, dtype="<i2").reshape(2, 1, 30)
    with ShardWriter(AtomicFile(tmp_path / "shard"), layout) as writer:
        for row in range(2):
            writer.add(event_key(row), codes[row], facts_of(row))
        writer.finish()
    data = (tmp_path / "shard").read_bytes()
    payloads = [data[at : at + size] for at, size in entries_of(data, 2).tolist()]
    assert writer.crc32c == [crc32c(payload) for payload in payloads]
    if name == "int16":
        assert payloads == [code.tobytes() for code in codes]


def test_the_bytes_are_the_ones_that_were_pinned(tmp_path):
    """Made by this test; a change of these bytes is a change of the format's version."""
    layout = layout_for(3, (2, 5), "int16")
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
        write_one_and_fail(tmp_path / "shard", layout_for(2, (1, 10), "float32"), np.zeros((1, 10)))
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
    reader, batch = reader_of(path, layout), np.full((5, 3, 50), np.nan, "f4")
    for row, target in ((2, 0), (0, 3), (1, 4)):
        reader.read(row, [as_bytes(batch[target])])
    assert np.array_equal(batch[[3, 4, 0]], strain)
    assert np.isnan(batch[1:3]).all()


def test_a_payload_that_was_read_by_itself_is_unpacked_into_the_row_it_is_given(shard):
    path, layout, strain = shard
    reader, batch, data = reader_of(path, layout), np.zeros((3, 3, 50), "f4"), path.read_bytes()
    for row in range(3):
        (piece,) = reader.pieces(row, 1, batch[row].nbytes)
        content = data[piece.offset : piece.offset + piece.length]
        reader.unpack(piece, content, [as_bytes(batch[row])])
    assert np.array_equal(batch, strain)


def test_a_reader_refuses_a_slot_that_is_not_filled(shard):
    path, layout, _ = shard
    with pytest.raises(DamagedDataError, match=r"shard: event 3 "):
        reader_of(path, layout).read(3, [as_bytes(np.empty((3, 50), "f4"))])


def test_a_reader_refuses_a_buffer_of_another_size(shard):
    path, layout, _ = shard
    message = r"has 600 bytes by the index, 1200 were expected"
    if layout.encoding.compressed:
        message = "event 0: is no Blosc frame of 1,200 bytes"
    with pytest.raises(DamagedDataError, match=message):
        reader_of(path, layout).read(0, [as_bytes(np.empty((3, 50), "f8"))])


@pytest.mark.parametrize("left", [-1, -84, -85, 3500, 83, 3, 0])
def test_a_truncated_shard_is_named_when_it_is_opened(shard, left):
    path, layout, _ = shard
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(
        DamagedDataError, match=f"{path}: the index at its end is missing or damaged"
    ):
        reader_of(path, layout)


@pytest.mark.parametrize("byte", [-84, -50, -4, -1])
def test_a_flipped_bit_in_the_index_or_its_checksum_is_noticed(shard, byte):
    path, layout, _ = shard
    data = bytearray(path.read_bytes())
    data[byte] ^= 16
    path.write_bytes(data)
    with pytest.raises(DamagedDataError, match=f"{path}: the index"):
        reader_of(path, layout)


def test_a_shard_that_lost_its_middle_is_noticed_when_the_event_is_read(shard):
    path, layout, _ = shard
    data = path.read_bytes()
    path.write_bytes(data[:1700] + data[-84:])
    with pytest.raises(DamagedDataError, match=f"{path}: event 2 is cut off"):
        reader_of(path, layout).read(2, [as_bytes(np.empty((3, 50), "f4"))])


def flip(path: Path, byte: int, mask: int) -> None:
    data = bytearray(path.read_bytes())
    data[byte] ^= mask
    path.write_bytes(data)


@pytest.mark.parametrize("at", ["first", "middle", "last"])
def test_a_flipped_bit_in_a_payload_is_noticed_by_a_reader_that_has_the_checksums(shard, at):
    path, layout, strain = shard
    data = path.read_bytes()
    checksums = [crc32c(data[o : o + n]) for o, n in entries_of(data, 5)[:3].tolist()]
    offset, length = entries_of(data, 5)[1].tolist()
    flip(path, offset + {"first": 0, "middle": length // 2, "last": length - 1}[at], 4)
    reader, buffer = reader_of(path, layout, checksums), np.empty((3, 50), "f4")
    with pytest.raises(DamagedDataError, match=f"{path}: event 1 has not the check"):
        reader.read(1, [as_bytes(buffer)])
    for row in (0, 2):
        reader.read(row, [as_bytes(buffer)])
        assert np.array_equal(buffer, strain[row])


@pytest.mark.parametrize("byte", [4, 5, 6, 7, 12, 13, 14, 15])
def test_a_wrong_length_in_a_frames_header_never_leads_blosc_out_of_its_buffers(tmp_path, byte):
    """Blosc believes these lengths; here no checksum stands before them."""
    layout = layout_for(1, (3, 50), "float32+blosc")
    strain = np.random.default_rng(0).standard_normal((1, 3, 50), "f4")
    write(tmp_path / "shard", layout, strain)
    offset = int(entries_of((tmp_path / "shard").read_bytes(), 1)[0, 0])
    flip(tmp_path / "shard", offset + byte, 1)
    guarded = np.full((5, 3, 50), 7, "f4")
    with pytest.raises(DamagedDataError, match=f"is no Blosc frame of 600 bytes; {MEND}"):
        reader_of(tmp_path / "shard", layout).read(0, [as_bytes(guarded[2])])
    assert np.all(guarded == 7)


def test_a_frame_that_cannot_be_decompressed_is_named_with_what_mends_it():
    codes = np.arange(300, dtype="<f4")
    blosc = ENCODINGS["float32+blosc"].blosc
    frame = bytearray(compress(codes, blosc))
    frame[24:] = bytes(len(frame) - 24)  # the lengths in its header stay right
    with pytest.raises(DamagedDataError, match=f"event 7: cannot be decompressed .*; {MEND}"):
        decompress_into(bytes(frame), np.empty_like(codes), "event 7")


def test_a_missing_shard_is_named(tmp_path):
    with pytest.raises(DamagedDataError, match=f"{tmp_path}/shard: is missing"):
        reader_of(tmp_path / "shard", layout_for(3, (1, 1), "float32"))


def test_a_reader_closes_its_file_with_the_last_reference_to_it(shard):
    path, layout, _ = shard

    def is_open() -> bool:
        return any(
            os.path.samefile(path, entry)
            for entry in Path("/proc/self/fd").iterdir()
            if entry.exists()
        )

    reader = reader_of(path, layout)
    assert is_open()
    del reader
    assert not is_open()


def test_an_index_that_the_disk_cannot_read_is_damage_of_the_shard(shard, monkeypatch):
    path, layout, _ = shard

    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(LocalFile, "read", fail)
    with pytest.raises(DamagedDataError, match=r"its index cannot be read \(Input/output error\)"):
        reader_of(path, layout)
