"""Every damage is found, and named: the file, the shard, and the event where it concerns one.

Which event a byte belongs to is told by Python's own tarfile and by the length of a table's row.
"""

import errno
import os
import random
import shutil
import socket
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
from unreadable import on_a_bad_sector

from storage.dataset import create_dataset, read_schema
from storage.documents import canonical_json, parse_json
from storage.encodings import ENCODINGS
from storage.errors import DamagedDataError, InputError
from storage.inventory import take_inventory
from storage.local import LocalStore
from storage.schema import GROUP_COPY, GROUP_METADATA, PSD_CHUNK
from storage.verify import look_at_lengths, verify_shard

FLIPS, FLIPS_OF_EACH_FILE = 1000, 8
KINDS = ("int16", "int16+blosc")
BLOCK = 512
TABLES = {"parameters": 3, "optimal_snr": 3}  # columns
CHILDREN = [f"{name}/zarr.json" for name in ("manifest", "strain", "parameters", "optimal_snr")]


def findings(folder):
    """All that verification says against a data set."""
    inventory = take_inventory(folder)
    found = list(inventory.findings)
    for shard in inventory.finished:
        found += verify_shard(folder, inventory.group, shard).findings
    return found


def at_a_glance(folder):
    """All that can be said from metadata and lengths."""
    inventory = take_inventory(folder)
    verdicts = look_at_lengths(folder, inventory)
    return [*inventory.findings, *(found for item in verdicts for found in item.findings)]


def named(found):
    """Which files, shards and events findings name."""
    return [(item.file, item.shard, item.events) for item in found]


def files_of(folder):
    """Length of each file."""
    return {
        str(path.relative_to(folder)): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def shard_of(path):
    """The shard of a file, by its name."""
    folder, _, rest = path.partition("/")
    if folder == "manifest":
        return int(rest.removesuffix(".json")) if rest[:1].isdigit() else None
    return int(rest.split("/")[1]) if folder != "psd" and rest.startswith("c/") else None


def events_at(folder, path, offset, per_shard, events):
    """The events to which a byte of a shard's file belongs."""
    array, shard = path.partition("/")[0], shard_of(path)
    if shard is None or array == "manifest":
        return ()
    if array in TABLES:
        event = shard * per_shard + offset // (8 * TABLES[array])
        return (event,) if event < min((shard + 1) * per_shard, events) else ()
    with tarfile.open(folder / path) as tar:
        for member in tar:
            end = member.offset_data + -(-member.size // BLOCK) * BLOCK
            if member.offset <= offset < end:
                return (int(member.name.partition(".")[0]),)
    return ()


def flip(path, offset, bit):
    """Turn one bit around."""
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1 << bit]))


def random_flips(folder, seed):
    """Where to flip: some in each file, and the others weighted by the files' lengths."""
    generator, sizes = random.Random(seed), files_of(folder)
    chosen = [name for name in sizes for _ in range(FLIPS_OF_EACH_FILE)]
    rest = FLIPS - len(chosen)
    chosen += generator.choices(list(sizes), list(sizes.values()), k=rest)
    return [(name, generator.randrange(sizes[name]), generator.randrange(8)) for name in chosen]


@pytest.fixture(scope="module")
def pristine(build):
    """Data sets that nobody touches, by encoding."""
    return {kind: build(encoding=ENCODINGS[kind]) for kind in KINDS}


@pytest.fixture(scope="module")
def foreign(build, small):
    """Another data set of the same shape, by encoding."""
    provenance = {**small.provenance, "seed": 12}
    return {kind: build(encoding=ENCODINGS[kind], provenance=provenance) for kind in KINDS}


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def damaged(pristine, kind, tmp_path):
    """A copy that a test may damage."""
    data = pristine[kind]
    folder = Path(shutil.copytree(data.folder, tmp_path / "events.zarr"))
    return replace(data, folder=folder)


# Sound


def test_a_sound_set_of_any_encoding_has_no_findings(build, encoding):
    data = build(encoding=ENCODINGS[encoding])
    assert findings(data.folder) == at_a_glance(data.folder) == []
    inventory = take_inventory(data.folder)
    assert (inventory.finished, inventory.notes) == ((0, 1, 2), ())
    verdicts = [verify_shard(data.folder, inventory.group, shard) for shard in range(3)]
    assert [item.events for item in verdicts] == [3, 3, 1]
    of_shards = [length for name, length in files_of(data.folder).items() if shard_of(name) == 1]
    assert verdicts[1].bytes == sum(of_shards)


def test_a_set_without_noise_is_sound_too(build):
    data = build(encoding=ENCODINGS["float16+blosc"], noisy=False)
    assert findings(data.folder) == []


# Single bits


@pytest.mark.parametrize("seed", [1])
def test_each_of_1000_flipped_bits_is_found_and_its_file_shard_and_event_named(damaged, kind, seed):
    schema, wrong = damaged.schema, []
    flips = random_flips(damaged.folder, f"{kind} {seed}")
    assert len(flips) == FLIPS
    assert {name for name, *_ in flips} == set(files_of(damaged.folder))
    for name, offset, bit in flips:
        events = events_at(damaged.folder, name, offset, schema.events_per_shard, schema.events)
        flip(damaged.folder / name, offset, bit)
        found = named(findings(damaged.folder))
        flip(damaged.folder / name, offset, bit)
        if found != [(name, shard_of(name), events)]:
            wrong.append((name, offset, bit, events, found))
    assert wrong == []
    assert findings(damaged.folder) == []


def test_every_bit_of_a_manifest_counts(damaged):
    """Those of its white space and of its digest too."""
    name = "manifest/000002.json"
    missed = []
    for offset in range(0, files_of(damaged.folder)[name], 3):
        flip(damaged.folder / name, offset, offset % 8)
        if named(findings(damaged.folder)) != [(name, 2, ())]:
            missed.append(offset)
        flip(damaged.folder / name, offset, offset % 8)
    assert missed == []


def test_the_map_of_a_file_tells_its_events_apart(pristine, kind):
    """Else the test of flipped bits could not see that a wrong event is named."""
    data = pristine[kind]
    name = "strain/c/1/0/0"
    size = files_of(data.folder)[name]
    told = [events_at(data.folder, name, offset, 3, 7) for offset in range(0, size, 64)]
    assert list(dict.fromkeys(told)) == [(3,), (4,), (5,), ()]
    for event in (3, 4, 5):
        strain = data.schema.encoding.encode(data.events[event].strain, event).tobytes()
        place = (data.folder / name).read_bytes().find(strain)
        assert "blosc" in kind or events_at(data.folder, name, place, 3, 7) == (event,)
    assert [events_at(data.folder, "parameters/c/2/0", offset, 3, 7) for offset in (0, 23, 24)] == [
        (6,),
        (6,),
        (),
    ]


def test_a_flip_changes_one_bit_and_a_second_one_takes_it_back(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    flip(tmp_path / "x", 1, 0)
    assert (tmp_path / "x").read_bytes() == b"acc"
    flip(tmp_path / "x", 1, 0)
    assert (tmp_path / "x").read_bytes() == b"abc"


# Lengths and absences


@pytest.mark.parametrize("look", [findings, at_a_glance])
def test_every_truncation_of_every_file_is_found(damaged, look):
    for name, size in files_of(damaged.folder).items():
        path = damaged.folder / name
        content = path.read_bytes()
        for length in {0, 1, size // 2, size - 1}:
            os.truncate(path, length)
            found = look(damaged.folder)
            path.write_bytes(content)
            assert [(item.file, item.shard) for item in found] == [(name, shard_of(name))], length
            if shard_of(name) is not None and not name.startswith("manifest"):
                assert f"has {length:,} bytes, {size:,} were written" in str(found[0])
    assert look(damaged.folder) == []


def test_a_truncated_shard_has_lost_the_events_behind_the_cut(damaged):
    name = "strain/c/0/0/0"
    with tarfile.open(damaged.folder / name) as tar:
        second = next(item for item in tar if item.name.startswith("000000001.strain"))
    os.truncate(damaged.folder / name, second.offset_data + 1)
    (found,) = findings(damaged.folder)
    assert found.events == (1, 2)


@pytest.mark.parametrize("look", [findings, at_a_glance])
def test_every_file_that_has_grown_is_found(damaged, look):
    for name, size in files_of(damaged.folder).items():
        with (damaged.folder / name).open("ab") as file:
            file.write(b"\0")
        found = look(damaged.folder)
        os.truncate(damaged.folder / name, size)
        assert [(item.file, item.shard) for item in found] == [(name, shard_of(name))]


@pytest.mark.parametrize("look", [findings, at_a_glance])
def test_every_deletion_of_every_file_is_found(damaged, look):
    for name in files_of(damaged.folder):
        path = damaged.folder / name
        content = path.read_bytes()
        path.unlink()
        (found,) = look(damaged.folder)
        path.write_bytes(content)
        assert (found.file, found.shard) == (name, shard_of(name))
        assert "is missing" in found.what
    assert look(damaged.folder) == []


def link_to_itself(path):
    path.symlink_to(path.name)


def make_socket(path):
    with socket.socket(socket.AF_UNIX) as end:
        here = os.open(".", os.O_RDONLY)
        os.chdir(path.parent)  # the kernel takes short names alone
        end.bind(path.name)
        os.fchdir(here)
        os.close(here)


def test_what_is_no_file_in_place_of_any_file_is_found(damaged):
    for name in files_of(damaged.folder):
        if name.endswith("json"):
            continue
        path = damaged.folder / name
        content = path.read_bytes()
        for make in (os.mkdir, os.mkfifo, link_to_itself, make_socket):
            path.unlink()
            make(path)
            found = findings(damaged.folder)
            path.rmdir() if path.is_dir() else path.unlink()
            path.write_bytes(content)
            assert (name, "is missing") in {(item.file, item.what) for item in found}, make


@pytest.mark.parametrize("name", ["strain/c/1/0/0", "parameters/c/1/0", "optimal_snr/c/1/0"])
def test_what_the_disk_cannot_read_is_found_and_does_not_stop_the_search(damaged, name):
    path = damaged.folder / name
    path.unlink()
    path.symlink_to("/proc/self/mem")  # at whose start there is nothing: EIO
    with pytest.raises(OSError, match="Input/output error"):
        path.read_bytes()
    flip(damaged.folder / "strain/c/0/0/0", 5000, 3)
    link, other, whole = findings(damaged.folder)
    assert (link.file, link.what) == (name, "is a link")
    assert (whole.file, whole.what) == (name, "cannot be read (Input/output error)")
    assert (whole.shard, whole.events) == (1, tuple(read_schema(damaged.folder).events_of(1)))
    assert other.file == "strain/c/0/0/0"


@pytest.mark.parametrize(
    "name",
    [GROUP_METADATA, GROUP_COPY, PSD_CHUNK, "psd/zarr.json", *CHILDREN, "manifest/000001.json"],
)
def test_metadata_that_the_disk_cannot_read_are_found_and_do_not_stop_the_search(
    damaged, monkeypatch, name
):
    flip(damaged.folder / "strain/c/0/0/0", 5000, 3)
    on_a_bad_sector(monkeypatch, damaged.folder / name)
    with pytest.raises(OSError, match="Input/output error"):
        LocalStore(damaged.folder).read(name)
    of_file, of_strain = sorted(
        findings(damaged.folder), key=lambda item: item.file == "strain/c/0/0/0"
    )
    assert (of_file.file, of_file.what) == (name, "cannot be read (Input/output error)")
    assert of_strain.file == "strain/c/0/0/0"
    assert named(at_a_glance(damaged.folder)) == [(name, of_file.shard, ())]


def closed(monkeypatch, path):
    """Take the right to read a file or folder away; root, too, has none then."""
    open_it, scan = LocalStore.open, os.scandir
    answer = PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    def open_or_not(store, name):
        if store.folder / name == path:
            raise answer
        return open_it(store, name)

    def scan_or_not(folder):
        if Path(folder) == path:
            raise answer
        return scan(folder)

    monkeypatch.setattr(LocalStore, "open", open_or_not)
    monkeypatch.setattr(LocalStore, "open_once", open_or_not)
    monkeypatch.setattr(os, "scandir", scan_or_not)


@pytest.mark.parametrize(
    "name",
    [GROUP_METADATA, GROUP_COPY, PSD_CHUNK, *CHILDREN, "manifest/000001.json", "strain/c/1/0/0"],
)
def test_what_may_not_be_read_is_found_and_does_not_stop_the_search(damaged, monkeypatch, name):
    flip(damaged.folder / "strain/c/0/0/0", 5000, 3)
    closed(monkeypatch, damaged.folder / name)
    of_file, of_strain = sorted(
        findings(damaged.folder), key=lambda item: item.file == "strain/c/0/0/0"
    )
    assert (of_file.file, of_file.what) == (name, "cannot be read (Permission denied)")
    assert not of_file.mendable
    assert (of_strain.file, of_strain.mendable) == ("strain/c/0/0/0", True)


def test_a_folder_that_may_not_be_looked_into_is_found(damaged, monkeypatch):
    (damaged.folder / "theirs").mkdir()
    closed(monkeypatch, damaged.folder / "theirs")
    (found,) = findings(damaged.folder)
    assert (found.file, found.what) == ("theirs/", "cannot be read (Permission denied)")


def test_metadata_of_which_the_disk_can_read_neither_copy_are_damage(damaged, monkeypatch):
    for name in (GROUP_METADATA, GROUP_COPY):
        on_a_bad_sector(monkeypatch, damaged.folder / name)
    with pytest.raises(DamagedDataError, match="neither it nor its copy"):
        take_inventory(damaged.folder)


def test_a_glance_sees_no_flipped_bit_but_everything_else_does(damaged):
    flip(damaged.folder / "strain/c/0/0/0", 5000, 3)
    assert at_a_glance(damaged.folder) == []
    assert len(findings(damaged.folder)) == 1


def test_exactly_the_shards_that_are_missing_are_reported(tmp_path, small, start, finish, kind):
    schema = replace(small, events=25, encoding=ENCODINGS[kind])
    data = finish(start(tmp_path / "x.zarr", schema), [1, 3, 4, 8])
    for look in (findings, at_a_glance):
        found = look(data.folder)
        assert [(item.file, item.shard) for item in found] == [
            ("manifest/000000.json", 0),
            ("manifest/000002.json", 2),
            ("manifest/000005.json", 5),
        ]
        assert [item.what for item in found] == [
            "is missing, so the shard is not finished (events 0 to 2)",
            "is missing, so the shard is not finished (events 6 to 8)",
            "and those up to manifest/000007.json are missing: not finished (events 15 to 23)",
        ]
    assert take_inventory(data.folder).finished == (1, 3, 4, 8)


def test_a_set_without_any_shard_is_missing_them_all(empty):
    (found,) = findings(empty.folder)
    assert (found.file, found.shard) == ("manifest/000000.json", 0)
    assert "manifest/000002.json are missing" in found.what


# Files in the wrong place


def exchange(folder, one, other):
    """Let two files change places."""
    (folder / one).rename(folder / "between")
    (folder / other).rename(folder / one)
    (folder / "between").rename(folder / other)


def test_two_shards_that_changed_places_are_found(damaged):
    exchange(damaged.folder, "strain/c/0/0/0", "strain/c/1/0/0")
    assert named(findings(damaged.folder)) == [
        ("strain/c/0/0/0", 0, (0, 1, 2)),
        ("strain/c/1/0/0", 1, (3, 4, 5)),
    ]


def test_a_full_shard_in_place_of_the_last_one_is_found(damaged):
    exchange(damaged.folder, "strain/c/0/0/0", "strain/c/2/0/0")
    assert named(findings(damaged.folder)) == [
        ("strain/c/0/0/0", 0, (0, 1, 2)),
        ("strain/c/2/0/0", 2, (6,)),
    ]


@pytest.mark.parametrize("table", TABLES)
def test_two_tables_that_changed_places_are_found(damaged, table):
    exchange(damaged.folder, f"{table}/c/0/0", f"{table}/c/1/0")
    assert named(findings(damaged.folder)) == [
        (f"{table}/c/0/0", 0, (0, 1, 2)),
        (f"{table}/c/1/0", 1, (3, 4, 5)),
    ]


def of_shard(folder, shard):
    """All files of a shard."""
    return [name for name in files_of(folder) if shard_of(name) == shard]


def test_two_shards_that_changed_places_with_their_manifests_are_found(damaged):
    for one, other in zip(of_shard(damaged.folder, 0), of_shard(damaged.folder, 1), strict=True):
        exchange(damaged.folder, one, other)
    found = findings(damaged.folder)
    assert [(item.file, item.shard) for item in found] == [
        ("manifest/000000.json", 0),
        ("manifest/000001.json", 1),
    ]
    assert all("cannot be, so it was altered" in item.what for item in found)


@pytest.mark.parametrize("shard", [0, 1, 2])
def test_a_shard_of_another_data_set_is_found_though_it_is_sound_there(
    damaged, foreign, kind, shard
):
    for name in of_shard(foreign[kind].folder, shard):
        shutil.copy(foreign[kind].folder / name, damaged.folder / name)
    of_another = [(f"manifest/{shard:06d}.json", shard, tuple(damaged.schema.events_of(shard)))]
    for look in (findings, at_a_glance):
        assert named(look(damaged.folder)) == of_another
        assert look(damaged.folder)[0].what == "is of another data set"
    # Which of the two the folder is, more shards than one have to say.
    shutil.copy(foreign[kind].folder / GROUP_COPY, damaged.folder / GROUP_COPY)
    assert named(findings(damaged.folder)) == [(GROUP_COPY, None, ()), *of_another]


def test_the_files_of_another_data_set_without_its_manifest_are_found(damaged, build, small):
    other = build(encoding=damaged.schema.encoding, detectors=("H1", "L1", "V1"))
    for name in of_shard(other.folder, 1):
        if not name.startswith("manifest"):
            shutil.copy(other.folder / name, damaged.folder / name)
    found = [item for item in named(findings(damaged.folder)) if item[0].startswith("strain")]
    assert found == [("strain/c/1/0/0", 1, (3, 4, 5))]


@pytest.mark.parametrize(
    "name",
    [
        "notes.txt",
        "strain/c/0/0/1",
        "strain/c/3/0/0",
        "strain/c/00/0/0",
        "parameters/c/0/1",
        "manifest/000003.json",
        "manifest/0000001.json",
        "psd/c/0/1",
        "\N{ARABIC-INDIC DIGIT ONE}",
    ],
)
def test_a_file_that_is_not_of_the_set_is_found(damaged, name):
    (damaged.folder / name).parent.mkdir(parents=True, exist_ok=True)
    (damaged.folder / name).touch()
    assert named(findings(damaged.folder)) == [(name, None, ())]
    assert findings(damaged.folder)[0].what == "does not belong to the data set"


@pytest.mark.parametrize("target", ["strain/c/0/0/0", "strain", "nowhere", "/"])
def test_an_extra_link_is_found_and_not_followed(damaged, target):
    (damaged.folder / "link").symlink_to(target)
    assert named(findings(damaged.folder)) == [("link", None, ())]
    assert findings(damaged.folder)[0].what == "is a link"


@pytest.mark.parametrize(
    "name", ["strain/c/1/0/0", "strain/c/1", "parameters", "manifest/000001.json", GROUP_METADATA]
)
def test_a_link_in_place_of_a_part_of_the_set_is_found_though_its_bytes_are_right(
    damaged, tmp_path, name
):
    (damaged.folder / name).rename(tmp_path / "elsewhere")
    (damaged.folder / name).symlink_to(tmp_path / "elsewhere")
    (found,) = findings(damaged.folder)
    assert (found.file, found.what, found.mendable) == (name, "is a link", False)


def test_a_set_behind_a_link_is_sound(damaged, tmp_path):
    (tmp_path / "link.zarr").symlink_to(damaged.folder)
    assert findings(tmp_path / "link.zarr") == []


@pytest.mark.parametrize("name", ["extra", "strain/extra", "strain/c/0/1", "x/y/z", "psd/c/1"])
def test_an_empty_folder_that_is_not_of_the_set_is_found(damaged, name):
    (damaged.folder / name).mkdir(parents=True)
    (found,) = findings(damaged.folder)
    assert (found.file, found.what) == (f"{name}/", "does not belong to the data set")


def test_the_empty_folders_of_a_shard_that_was_begun_are_no_finding(empty):
    before = findings(empty.folder)
    for name in ("strain/c/0/0", "parameters/c/0", "optimal_snr/c"):
        (empty.folder / name).mkdir(parents=True)
    assert findings(empty.folder) == before


OURS = [
    "strain/c/0/0/0.0123456789ab.partial",
    "zarr.json.partial",
    "manifest/000001.json.x.partial",
]
THEIRS = ["my-download.partial", "sub/foo.csv.partial", "strain/c/0/0/1.partial", ".partial"]


def test_partial_files_are_ours_only_by_the_names_of_the_files_that_they_were_to_be(damaged):
    for name in (*OURS, *THEIRS):
        (damaged.folder / name).parent.mkdir(exist_ok=True)
        (damaged.folder / name).touch()
    what = {item.file: (item.what, item.mendable) for item in findings(damaged.folder)}
    assert what == {
        **dict.fromkeys(OURS, ("was left by a writer that died", True)),
        **dict.fromkeys(THEIRS, ("does not belong to the data set", False)),
    }
    assert LocalStore(damaged.folder).remove_partial_files() == sorted(OURS)
    assert {item.file for item in findings(damaged.folder)} == set(THEIRS)


def test_a_data_set_that_is_created_anew_leaves_files_of_others_where_they_are(empty):
    theirs = empty.folder / "strain/c/notes.partial"
    ours = empty.folder / "strain/c/0/0/0"
    for path in (theirs, ours):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    create_dataset(empty.folder, empty.schema, empty.psd)
    assert theirs.exists()
    assert not ours.exists()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (b"a\nb\x1b[31m", "a\\nb\\x1b[31m"),
        (b"\xff\xfe.dat", "\\xff\\xfe.dat"),
        ("\N{LATIN SMALL LETTER E WITH ACUTE}".encode(), "\N{LATIN SMALL LETTER E WITH ACUTE}"),
    ],
)
def test_the_name_of_a_foreign_file_is_one_line_of_what_can_be_printed(damaged, name, said):
    Path(os.fsdecode(bytes(damaged.folder) + b"/" + name)).touch()
    (found,) = findings(damaged.folder)
    assert found.file == os.fsdecode(name)
    assert str(found) == f"{said}: does not belong to the data set"


def test_what_a_dead_writer_left_is_found_but_not_while_a_run_holds_the_place(damaged):
    names = ["strain/c/0/0/0.0123456789ab.partial", "zarr.json.partial"]
    for name in names:
        (damaged.folder / name).touch()
    left = [(name, "was left by a writer that died") for name in sorted(names)]
    assert sorted((item.file, item.what) for item in findings(damaged.folder)) == left
    with LocalStore(damaged.folder).only_writer():
        assert findings(damaged.folder) == []
        (damaged.folder / "notes.txt").touch()  # is nobody's, whoever writes
        assert named(findings(damaged.folder)) == [("notes.txt", None, ())]
    assert len(findings(damaged.folder)) == 3


# Metadata


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"\xff", None])
@pytest.mark.parametrize("name", [GROUP_METADATA, GROUP_COPY, PSD_CHUNK, *CHILDREN])
def test_damaged_metadata_are_named_and_nothing_else(damaged, name, content):
    (damaged.folder / name).unlink()
    if content is not None:
        (damaged.folder / name).write_bytes(content)
    for look in (findings, at_a_glance):
        assert named(look(damaged.folder)) == [(name, None, ())]


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"\xff", b'{"digest": "\\ud800"}'])
def test_a_damaged_manifest_is_named_and_nothing_else(damaged, content):
    (damaged.folder / "manifest/000001.json").write_bytes(content)
    for look in (findings, at_a_glance):
        assert named(look(damaged.folder)) == [("manifest/000001.json", 1, ())]


def test_metadata_of_another_data_set_are_named(damaged, foreign, kind):
    shutil.copy(foreign[kind].folder / GROUP_METADATA, damaged.folder / GROUP_METADATA)
    assert named(findings(damaged.folder)) == [(GROUP_METADATA, None, ())]


def test_metadata_that_are_lost_with_their_copy_are_damage_and_not_a_wrong_call(damaged):
    (damaged.folder / GROUP_COPY).unlink()
    (damaged.folder / GROUP_METADATA).write_bytes(b"{}")
    for _ in range(2):
        with pytest.raises(DamagedDataError, match="run the same `strainflow simulate` again"):
            take_inventory(damaged.folder)
        (damaged.folder / GROUP_METADATA).unlink(missing_ok=True)


# Without a finished shard


def rewrite(path, change):
    """Write a JSON document as we do, with something changed in it."""
    document = parse_json(path.read_bytes(), "")
    change(document)
    path.write_bytes(canonical_json(document))


def with_seed(document):
    document["attributes"]["strainflow"]["seed"] = 12


def with_unit(document):
    children = document["consolidated_metadata"]["metadata"]
    children["psd"]["attributes"]["units"] = "1"


def with_other_psd(document):
    children = document["consolidated_metadata"]["metadata"]
    children["psd"]["attributes"]["sha256"] = "0" * 64


def with_other_shape(document):
    document["attributes"]["strainflow"]["events"] = 8


@pytest.mark.parametrize("name", [GROUP_METADATA, GROUP_COPY])
def test_of_metadata_and_a_copy_that_differ_without_proof_neither_is_blamed(empty, name):
    rewrite(empty.folder / name, with_seed)
    inventory = take_inventory(empty.folder)
    assert inventory.disputed
    (found,) = [item for item in inventory.findings if item.shard is None]
    assert found.file == GROUP_METADATA
    assert found.what.startswith(
        f"differs from its copy {GROUP_COPY}, and no finished shard proves"
    )
    assert found.what.endswith("the same `strainflow simulate` again writes both anew")


@pytest.mark.parametrize("name", [GROUP_METADATA, GROUP_COPY])
@pytest.mark.parametrize("change", [with_unit, with_other_psd, with_other_shape, None])
def test_of_metadata_and_a_copy_that_differ_the_one_that_fits_the_rest_is_right(
    empty, name, change
):
    if change is None:  # white space
        (empty.folder / name).write_bytes((empty.folder / name).read_bytes() + b"\n")
    else:
        rewrite(empty.folder / name, change)
    inventory = take_inventory(empty.folder)
    assert not inventory.disputed
    assert [item.file for item in inventory.findings if item.shard is None] == [name]
    assert parse_json(inventory.group, "")["attributes"]["strainflow"]["seed"] == 11


@pytest.mark.parametrize("name", [GROUP_METADATA, GROUP_COPY])
def test_of_metadata_and_a_copy_that_differ_a_damaged_manifest_still_tells_the_right_one(
    damaged, name
):
    for path in damaged.folder.glob("manifest/0*.json"):
        path.write_bytes(path.read_bytes()[:-2])
    rewrite(damaged.folder / name, with_seed)
    inventory = take_inventory(damaged.folder)
    assert not inventory.disputed
    assert [item.file for item in inventory.findings if item.shard is None] == [name]


def test_an_empty_folder_is_no_data_set(tmp_path):
    with pytest.raises(InputError, match="no data set there"):
        take_inventory(tmp_path)


def test_manifests_of_before_they_had_digests_are_noted_and_their_shards_still_proved(damaged):
    (damaged.folder / GROUP_COPY).unlink()
    for shard in range(3):
        path = damaged.folder / f"manifest/{shard:06d}.json"
        document = parse_json(path.read_bytes(), "")
        for key in ("digest", "dataset", "replaced", "worst_event"):
            del document[key]
        path.write_bytes(canonical_json(document))
    assert findings(damaged.folder) == []
    assert "before 0.3.0" in take_inventory(damaged.folder).notes[0]
    flip(damaged.folder / "parameters/c/0/0", 30, 0)
    assert named(findings(damaged.folder)) == [("parameters/c/0/0", 0, (1,))]


def test_a_finding_says_where_in_one_line(damaged):
    flip(damaged.folder / "optimal_snr/c/1/0", 25, 0)
    (found,) = findings(damaged.folder)
    assert str(found) == "optimal_snr/c/1/0: is not as it was written (shard 1, event 4)"
    (damaged.folder / "optimal_snr/c/1/0").unlink()
    (found,) = findings(damaged.folder)
    assert str(found) == "optimal_snr/c/1/0: is missing (shard 1, events 3 to 5)"
