"""Batches from tars through stock webdataset, and what must not be lost on the way."""

import gzip
import io
import itertools
import json
import math
import re
import tarfile
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import psutil
import pytest
import webdataset as wds
from descriptors import open_under, targets

from storage import TarStream
from storage.encodings import ENCODINGS
from storage.errors import DamagedDataError, InputError
from storage.stream import EventStream
from storage.tar import BLOCK


@pytest.fixture(scope="module", params=["float32", "int16", "int8+blosc", "float32+blosc"])
def data(build, request):
    return build(encoding=ENCODINGS[request.param], events=8)


def shards(data):
    return f"{data.folder}/strain/c/{{0..{data.schema.shards - 1}}}/0/0"


def kept(batches):
    return [(b.strain.copy(), b.parameters.copy(), b.event.copy()) for b in batches]


def same(first, second):
    return len(first) == len(second) and all(
        a.dtype == b.dtype and np.array_equal(a, b)
        for one, other in zip(first, second, strict=True)
        for a, b in zip(one, other, strict=True)
    )


def stream(urls, **options):
    return TarStream(urls, **{"batch_size": 3, **options})


def numbers(batches):
    return [number for batch in batches for number in batch.event.tolist()]


def members(number=0, samples=2000, **facts):
    """The members of an event, as another tool writes them."""
    document = {"event": number, "parameters": {"a": number + 0.5, "b": -1.0}, **facts}
    document = {name: value for name, value in document.items() if value is not None}
    strain = np.full((2, samples), number, "<f4")
    return {"json": json.dumps(document).encode(), "strain.npy": as_npy(strain)}


def as_npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def write_tar(path, events, form=tarfile.USTAR_FORMAT):
    """Write a tar with Python's tarfile; events are dicts of members, or (key, members)."""
    with tarfile.open(path, "w", format=form) as tar:
        for number, event in enumerate(events):
            key, content = event if isinstance(event, tuple) else (f"{number:04d}", event)
            for name, data in content.items():
                member = tarfile.TarInfo(f"{key}.{name}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return str(path)


# The same batches


@pytest.mark.parametrize("kind", ["{}", "file:{}", "pipe:cat {}", "pipe:cat {} | cat"])
def test_the_batches_are_those_of_the_stream_in_order(data, kind):
    wanted = kept(EventStream(data.folder, batch_size=3, shuffle=False))
    tars = stream(kind.format(shards(data)))
    assert same(kept(tars), wanted)
    assert same(kept(tars), wanted)  # the next epoch
    schema, layout = data.schema, tars.layout
    assert layout.parameters == schema.parameter_names
    assert layout.detectors == schema.detectors
    assert (layout.shape, layout.dtype) == (schema.strain_shape, schema.encoding.dtype)
    assert layout.scale_factor == (schema.encoding.scale_factor or 1.0)
    assert layout.sample_rate == schema.sample_rate


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_tar_of_pythons_tarfile_with_the_same_members_gives_the_same_batches(
    data, tmp_path, form
):
    samples = wds.WebDataset(shards(data), shardshuffle=False)
    events = [
        (
            f"some/folder/{sample['__key__']}",
            {name: content for name, content in sample.items() if not name.startswith("__")}
            | {"png": b"a picture"},
        )
        for sample in samples
    ]
    path = write_tar(tmp_path / "of-another-tool.tar", events, form)
    assert same(kept(stream(path)), kept(EventStream(data.folder, batch_size=3, shuffle=False)))


def test_tars_of_webdatasets_writer_give_the_same_batches(data, tmp_path):
    with wds.ShardWriter(f"{tmp_path}/%02d.tar", maxcount=3, verbose=0) as writer:
        for sample in wds.WebDataset(shards(data), shardshuffle=False):
            writer.write({k: v for k, v in sample.items() if k != "__url__"})
    wanted = kept(EventStream(data.folder, batch_size=3, shuffle=False))
    assert same(kept(stream(f"{tmp_path}/{{00..02}}.tar")), wanted)
    assert same(kept(stream([f"{tmp_path}/{n:02d}.tar" for n in range(3)])), wanted)
    for path in tmp_path.glob("*.tar"):
        path.with_suffix(".tar.gz").write_bytes(gzip.compress(path.read_bytes()))
    assert same(kept(stream(f"{tmp_path}/{{00..02}}.tar.gz")), wanted)


def test_the_comparison_can_fail(data):
    batches = kept(EventStream(data.folder, batch_size=3, shuffle=False))
    other = kept(EventStream(data.folder, batch_size=3, shuffle=False))
    other[1][0].reshape(-1)[-1] += 1
    assert same(batches, batches)
    assert not same(batches, other)
    assert not same(batches, batches[:-1])


def test_it_feeds_webdatasets_loader(data):
    loader = wds.WebLoader(stream(shards(data)), batch_size=None)
    events = [batch.event.tolist() for batch in loader]
    assert list(itertools.chain(*events)) == list(range(8))
    with pytest.raises(InputError, match="use num_workers=0"):
        list(wds.WebLoader(stream(shards(data)), batch_size=None, num_workers=1))


def test_a_shuffle_delivers_each_event_once_in_another_order_each_epoch(tmp_path):
    for tar in range(5):
        events = [members(20 * tar + number, 4) for number in range(20)]
        write_tar(tmp_path / f"{tar}.tar", events)
    urls = f"{tmp_path}/{{0..4}}.tar"
    shuffled, again = stream(urls, shuffle=30, seed=1), stream(urls, shuffle=30, seed=1)
    epochs = [numbers(shuffled) for _ in range(3)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(100))] * 3
    assert [numbers(again) for _ in range(3)] == epochs
    assert len(set(map(tuple, [*epochs, numbers(stream(urls, shuffle=30, seed=2))]))) == 4
    assert epochs[0] != list(range(100))
    assert numbers(stream(urls)) == list(range(100))


def test_ranks_share_the_tars(tmp_path, monkeypatch):
    for tar in range(3):
        write_tar(tmp_path / f"{tar}.tar", [members(2 * tar + number, 4) for number in range(2)])
    monkeypatch.setenv("WORLD_SIZE", "2")
    delivered = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        delivered.append(numbers(stream(f"{tmp_path}/{{0..2}}.tar")))
    assert delivered == [[0, 1, 4, 5], [2, 3]]


class WithoutRanges(SimpleHTTPRequestHandler):
    """Serves a folder; a file whose name starts with `cut` ends before its length."""

    def log_message(self, *_):
        pass

    def copyfile(self, source, out):
        content = source.read()
        out.write(content[: len(content) // 2] if "/cut" in self.path else content)


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Serve a folder without ranges; its address."""
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")

    def handler(*arguments):
        return WithoutRanges(*arguments, directory=str(tmp_path))

    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_server_without_ranges_will_do(server, tmp_path):
    for name in ("0.tar", "1.tar", "cut.tar"):
        write_tar(tmp_path / name, [members(number) for number in range(4)])
    assert numbers(stream(f"{server}/{{0..1}}.tar")) == [0, 1, 2, 3] * 2
    with pytest.raises(DamagedDataError, match="cut.tar: is cut or damaged"):
        list(stream(f"{server}/cut.tar"))
    with pytest.raises(DamagedDataError, match="none.tar: is cut or damaged"):
        list(stream(f"{server}/none.tar"))


# What must not be lost


EVENTS = 4


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A tar that is cut and damaged, and where its members begin."""
    path = tmp_path_factory.mktemp("tars") / "sound.tar"
    write_tar(path, [members(number) for number in range(EVENTS)])
    with tarfile.open(path) as tar:
        return path.read_bytes(), [member.offset for member in tar]


@pytest.mark.parametrize("pipe", ["", "pipe:cat "])
def test_a_tar_that_is_cut_anywhere_is_damaged(sound, tmp_path, pipe):
    content, offsets = sound
    end = offsets[-1] + BLOCK + -(-len(members()["strain.npy"]) // BLOCK) * BLOCK
    near = (0, 1, 100, BLOCK - 1, BLOCK, BLOCK + 1, 5000)
    cuts = sorted({o + more for o in offsets for more in near} | {end - 1, end, end + BLOCK - 1})
    assert stream_of(content[: end + BLOCK], tmp_path, pipe) == list(range(EVENTS))
    for cut in cuts:
        with pytest.raises(DamagedDataError, match="cut.tar: is cut or damaged"):
            stream_of(content[:cut], tmp_path, pipe)


def stream_of(content, folder, pipe=""):
    path = folder / "cut.tar"
    path.write_bytes(content)
    return numbers(stream(f"{pipe}{path}"))


def test_stock_webdataset_loses_events_of_a_cut_tar_in_silence(sound, tmp_path):
    """Why the walk through a tar is our own; when this fails, stock webdataset's will do."""
    content, offsets = sound
    path = tmp_path / "cut.tar"
    path.write_bytes(content[: offsets[4]])
    assert len(list(wds.WebDataset(str(path), shardshuffle=False))) == 2


def test_a_flipped_bit_of_a_header_is_no_end(sound, tmp_path):
    content, offsets = sound
    for offset, place in itertools.product(offsets, (0, 130, 150, 300)):
        damaged = bytearray(content)
        damaged[offset + place] ^= 1
        with pytest.raises(DamagedDataError, match="cut.tar: is cut or damaged"):
            stream_of(bytes(damaged), tmp_path)


def test_a_second_tar_behind_the_first_is_not_passed_over(sound, tmp_path):
    with pytest.raises(DamagedDataError, match="another tar follows"):
        stream_of(sound[0] * 2, tmp_path)


def test_a_command_that_fails_is_no_end(sound, tmp_path):
    path = tmp_path / "x.tar"
    path.write_bytes(sound[0])
    for end in ("exit 3", "sleep 0.3; exit 3", "exec >&-; sleep 0.3; exit 3"):
        command = f"cat {path}; {end}"
        with pytest.raises(DamagedDataError, match="exit 3"):
            list(stream(f"pipe:{command}"))
    for command in (f"head -c 9000 {path}", "exit 4", "true"):
        with pytest.raises(DamagedDataError, match=re.escape(command)):
            list(stream(f"pipe:{command}"))


def test_a_damaged_frame_is_named_with_file_and_key(data, tmp_path):
    if not data.schema.encoding.compressed:
        pytest.skip("there are no frames")
    samples = list(wds.WebDataset(shards(data), shardshuffle=False))
    whole = samples[4]["strain.blosc"]
    longer = whole[:4] + bytes([whole[4] ^ 1]) + whole[5:]
    for damaged in (b"", whole[:15], whole[:-1], longer, whole + b"x"):
        events = []
        for number, sample in enumerate(samples):
            frame = damaged if number == 4 else sample["strain.blosc"]
            events.append((f"{number:09d}", {"json": sample["json"], "strain.blosc": frame}))
        path = write_tar(tmp_path / "x.tar", events)
        words = r"x\.tar: event 000000004: its \.strain\.blosc is damaged"
        with pytest.raises(DamagedDataError, match=words):
            list(stream(path))


@pytest.mark.parametrize("cut", [0, 5, 70, 200])
def test_a_damaged_array_is_named_with_file_and_key(tmp_path, cut):
    damaged = {**members(1), "strain.npy": members(1)["strain.npy"][:cut]}
    path = write_tar(tmp_path / "x.tar", [members(0), damaged])
    with pytest.raises(DamagedDataError, match=r"x\.tar: event 0001: its \.strain\.npy is damaged"):
        list(stream(path))


def test_no_object_is_unpickled(tmp_path):
    objects = as_npy(np.array([[{}]], object))
    path = write_tar(tmp_path / "x.tar", [{**members(0), "strain.npy": objects}])
    with pytest.raises(DamagedDataError, match=r"its \.strain\.npy is damaged"):
        list(stream(path))


# What is refused


def without(name):
    return {kept: content for kept, content in members(1).items() if kept != name}


REFUSED = {
    "no json": (without("json"), r"0001 has the members strain\.npy; \.json is needed"),
    "no strain": (without("strain.npy"), r"0001 has the members json; \.json is needed, and ei"),
    "two strains": ({**members(1), "strain.blosc": b""}, "either of"),
    "shape": (members(1, 7), r"0001: its shape is \(2, 7\), that of the events before it \(2, 20"),
    "type": ({**members(1), "strain.npy": as_npy(np.zeros((2, 2000)))}, "its dtype is float64"),
    "axes": ({**members(1), "strain.npy": as_npy(np.zeros(3))}, "float64 of shape"),
    "letters": ({**members(1), "strain.npy": as_npy(np.full((2, 3), "a"))}, "<U1 of shape"),
    "no number": (members(1, event=None), "its JSON has no number `event`"),
    "negative": (members(1, event=-1), "its JSON has no number `event`"),
    "no parameters": (members(1, parameters=None), "no numbers by name in `parameters`"),
    "a word": (members(1, parameters={"a": "x", "b": 1}), "no numbers by name in `parameters`"),
    "others": (members(1, parameters={"a": 1, "c": 1}), r"0001: has not the parameters .*\(b, c\)"),
    "fewer": (members(1, parameters={"a": 1}), r"has not the parameters .*\(b\)"),
    "scale": (members(1, scale_factor=0.5), r"its scale_factor is 0\.5, that of the .* 1\.0"),
    "no scale": (members(1, scale_factor="x"), "'x' and None as scale_factor and sample_rate"),
    "rate": (members(1, sample_rate=4.0), r"its sample_rate is 4\.0"),
    "detectors": (members(1, detectors=["H1"]), "as many names of `detectors`"),
    "names": (members(1, detectors=["H1", "L1"]), r"its detectors is \('H1', 'L1'\)"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_event_like_the_others_is_refused_in_one_sentence(tmp_path, case):
    event, words = REFUSED[case]
    path = write_tar(tmp_path / "x.tar", [members(0), event])
    with pytest.raises(InputError, match=words) as refusal:
        list(stream(path))
    assert str(refusal.value).startswith(f"{path}: event 0001")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"event": NaN}', b"\xff"])
def test_a_json_that_is_none_is_damage(tmp_path, text):
    path = write_tar(tmp_path / "x.tar", [{**members(0), "json": text}])
    with pytest.raises(DamagedDataError, match=r"x\.tar: event 0000, \.json: is not"):
        list(stream(path))


def test_a_member_that_comes_twice_is_damage(tmp_path):
    path = write_tar(tmp_path / "x.tar", [("a", members(0)), ("a", members(0))])
    with pytest.raises(DamagedDataError, match=r"x\.tar: a\.json: duplicate"):
        list(stream(path))


def test_the_order_of_parameters_is_that_of_the_first_event(tmp_path):
    other = members(1, parameters={"b": 2.0, "a": 1.0})
    batch = next(iter(stream(write_tar(tmp_path / "x.tar", [members(0), other]))))
    assert batch.parameters.tolist() == [[0.5, -1.0], [1.0, 2.0]]


@pytest.mark.parametrize("urls", ["", [], [""]])
def test_no_url_is_refused(urls):
    with pytest.raises(InputError, match="no URLs were given"):
        stream(urls)


def test_impossible_arguments_are_refused(tmp_path):
    for name, value in (("batch_size", 0), ("shuffle", -1)):
        with pytest.raises(InputError, match=f"{name}: got {value}"):
            stream("x.tar", **{name: value})
    for url in (f"{tmp_path}/none.tar", "nonsense://x/y.tar", str(tmp_path)):
        with pytest.raises(InputError, match=f"{re.escape(url)}: cannot be opened"):
            list(stream(url))


def open_pipes() -> set[Path]:
    return {target for target in targets() if str(target).startswith("pipe:")}


def test_leaving_early_leaves_no_process_and_no_file_open(tmp_path):
    path = write_tar(tmp_path / "x.tar", [members(number) for number in range(9)])
    this = psutil.Process()
    # Tests that ran before may have left a helper process, such as
    # multiprocessing's resource tracker: what counts is what is added here.
    children, pipes = set(this.children()), open_pipes()
    for url in (path, f"pipe:cat {path}"):
        batches = iter(stream(url, batch_size=1))
        next(batches)
        assert open_under(tmp_path) or open_pipes() > pipes
        batches.close()
        assert open_under(tmp_path) == []
        assert open_pipes() == pipes
    # A child that ended but was not waited for is still listed, as a zombie.
    assert set(this.children()) == children


def test_a_huge_number_is_no_parameter(tmp_path):
    text = json.dumps({"event": 0, "parameters": {"a": math.inf}}).encode()
    path = write_tar(tmp_path / "x.tar", [{**members(0), "json": text}])
    with pytest.raises(DamagedDataError, match="is not valid JSON"):
        list(stream(path))
