"""The way back from damage, on full-size noisy events of et-bbh: the same bytes, or a refusal."""

import errno
import hashlib
import itertools
import json
import os
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import blake3
import numpy as np
import pytest
from crashes import run_until_system_call, system_calls
from permitted import skipped_where_not_permitted

import strainflow
from pipeline.cluster import ClusterConfig
from pipeline.provenance import simulator_of_dataset
from pipeline.repair import _Proof, repair_dataset
from pipeline.run import simulate_dataset
from pipeline.shard_task import checks_of
from pipeline.verify import verify_dataset
from storage.dataset import read_schema
from storage.documents import canonical_json, parse_json
from storage.errors import DamagedDataError, InputError
from storage.info import describe
from storage.local import LocalStore
from storage.manifest import finished_shards, read_manifest
from storage.schema import GROUP_COPY, GROUP_METADATA, PSD_CHUNK, shard_files
from storage.writer import write_shard

EVENTS, PER_SHARD = 20, 8
GOLDEN = Path(__file__).parents[1] / "golden"
SHARDS = 3
SIZES = (f"--events={EVENTS}", f"--events_per_shard={PER_SHARD}", "--encoding=null")
CHILDREN = [
    f"{name}/zarr.json" for name in ("manifest", "strain", "parameters", "optimal_snr", "psd")
]


def digests(folder):
    """SHA-256 of every file of a folder, by its path."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def changed(before, after):
    """The files that are in one of two folders alone, or in both with other bytes."""
    return sorted({name for name, _ in set(before.items()) ^ set(after.items())})


def times(folder):
    """When each file was written."""
    return {
        str(path.relative_to(folder)): path.stat().st_mtime_ns
        for path in folder.rglob("*")
        if path.is_file()
    }


def flip(path, offset, bit=0):
    """Turn one bit around."""
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1 << bit]))


def files_of(shard):
    return [*shard_files(shard).values(), f"manifest/{shard:06d}.json"]


@pytest.fixture(scope="module")
def simulate(et_bbh, running_cluster, tmp_path_factory):
    """Simulate a data set with some flags."""

    def simulate(*flags):
        folder = tmp_path_factory.mktemp("data") / "x.zarr"
        config = et_bbh(*SIZES, *flags)
        simulate_dataset(replace(config, cluster=running_cluster), folder)
        return folder

    return simulate


@pytest.fixture(scope="module")
def pristine(simulate):
    """What nobody touches: the default encoding, compressed with a promise."""
    folder = simulate("--seed=7")
    assert "+blosc" in read_schema(folder).encoding.name
    return folder


@pytest.fixture(scope="module")
def expected(pristine):
    return digests(pristine)


@pytest.fixture
def folder(pristine, tmp_path):
    """A copy to be damaged."""
    return Path(shutil.copytree(pristine, tmp_path / "x.zarr"))


@pytest.fixture
def repair(running_cluster, folder):
    """Repair the copy."""
    return lambda accept=False: repair_dataset(folder, running_cluster, accept)


@pytest.fixture
def verify(running_cluster, folder):
    """What is found in the copy."""
    return lambda: verify_dataset(folder, running_cluster).findings


@pytest.fixture
def command(running_cluster, folder, capsys):
    """Call the front door with the copy."""

    def command(verb, *flags):
        where = ("--cluster.kind=address", f"--cluster.address={running_cluster.address}")
        code = strainflow.main([verb, str(folder), *where, *flags])
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return code, said.out

    return command


def test_a_sound_set_is_left_alone(folder, repair):
    before = times(folder)
    report = repair()
    assert (report.found, report.metadata, report.shards, report.remaining) == ([], [], [], [])
    assert times(folder) == before


def test_the_comparison_of_folders_sees_one_bit_and_one_file(folder, expected):
    assert changed(expected, digests(folder)) == []
    flip(folder / "strain/c/1/0/0", 123_456)
    (folder / "extra").touch()
    assert changed(expected, digests(folder)) == ["extra", "strain/c/1/0/0"]


# Shards


def cut(path):
    os.truncate(path, path.stat().st_size // 2)


DAMAGES = {
    "a bit of strain": {0: lambda at: flip(at / "strain/c/0/0/0", 100_000)},
    "a bit of parameters": {2: lambda at: flip(at / "parameters/c/2/0", 77, 3)},
    "a bit of the SNRs": {1: lambda at: flip(at / "optimal_snr/c/1/0", 9)},
    "cut strain and a lost table": {
        0: lambda at: cut(at / "strain/c/0/0/0"),
        2: lambda at: (at / "parameters/c/2/0").unlink(),
    },
    "a lost shard": {1: lambda at: [(at / name).unlink() for name in files_of(1)]},
    "lost manifests": {n: lambda at, n=n: (at / files_of(n)[3]).unlink() for n in (0, 2)},
    "a manifest's white space": {0: lambda at: flip(at / files_of(0)[3], 2)},
    "a manifest's digest of a file": {
        1: lambda at: replace_in(at / files_of(1)[3], b'"blake3": "', b'"blake3": "0')
    },
    "half a manifest": {2: lambda at: cut(at / files_of(2)[3])},
    "an empty manifest": {2: lambda at: os.truncate(at / files_of(2)[3], 0)},
    "a bit of a manifest and one of its strain": {
        0: lambda at: (flip(at / files_of(0)[3], 2), flip(at / "strain/c/0/0/0", 100_000))
    },
}


def replace_in(path, old, new):
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new, 1))


def most_slow(names, quick):
    """All names, but those that are not among some with a mark."""
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in names]


QUICK = (
    "cut strain and a lost table",
    "lost manifests",
    "a bit of a manifest and one of its strain",
)


@pytest.mark.parametrize("damage", most_slow(DAMAGES, QUICK))
def test_exactly_the_damaged_shards_are_simulated_again_bit_for_bit(
    folder, repair, verify, expected, damage
):
    for spoil in DAMAGES[damage].values():
        spoil(folder)
    assert changed(expected, digests(folder)) != []
    before = times(folder)
    report = repair()
    assert report.shards == sorted(DAMAGES[damage])
    assert (report.accepted, report.refused, report.remaining) == ([], {}, [])
    assert {found.shard for found in report.found} == set(DAMAGES[damage])
    assert changed(expected, digests(folder)) == []
    untouched = set(expected) - {name for shard in DAMAGES[damage] for name in files_of(shard)}
    assert {name: times(folder)[name] for name in untouched} == {
        name: before[name] for name in untouched
    }
    assert verify() == []


def test_a_set_that_is_not_finished_is_completed(folder, repair, expected):
    for name in (*files_of(0), *files_of(1)):
        (folder / name).unlink()
    (folder / "strain/c/1/0/0.0123456789ab.partial").touch()
    assert repair().shards == [0, 1]
    assert changed(expected, digests(folder)) == []


@pytest.fixture(scope="module")
def foreign(simulate):
    """Another data set of the same shape."""
    return simulate("--seed=8")


@pytest.mark.parametrize("shard", [0, 1])
def test_a_shard_of_another_data_set_gives_way_to_the_right_one(
    folder, repair, expected, foreign, shard
):
    for name in files_of(shard):
        shutil.copy(foreign / name, folder / name)
    assert repair().shards == [shard]
    assert changed(expected, digests(folder)) == []


def test_two_shards_that_changed_places_change_back(folder, repair, expected):
    for one, other in zip(files_of(0), files_of(1), strict=True):
        (folder / one).rename(folder / "between")
        (folder / other).rename(folder / one)
        (folder / "between").rename(folder / other)
    assert repair().shards == [0, 1]
    assert changed(expected, digests(folder)) == []


# Metadata


@pytest.mark.parametrize(
    "content", [None, *(pytest.param(item, marks=pytest.mark.slow) for item in (b"", b"{}"))]
)
@pytest.mark.parametrize(
    "name",
    most_slow(
        [GROUP_METADATA, GROUP_COPY, PSD_CHUNK, *CHILDREN], (GROUP_METADATA, GROUP_COPY, PSD_CHUNK)
    ),
)
def test_each_file_of_the_metadata_is_restored_and_nothing_else_is_written(
    folder, repair, expected, name, content
):
    before = times(folder)
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    report = repair()
    assert (report.metadata, report.shards, report.remaining) == ([name], [], [])
    assert [found.file for found in report.found] == [name]
    assert changed(expected, digests(folder)) == []
    assert changed(before, times(folder)) == [name]


def test_the_folder_of_the_manifests_is_restored_with_all_that_was_in_it(folder, repair, expected):
    shutil.rmtree(folder / "manifest")
    assert repair().remaining == []
    assert changed(expected, digests(folder)) == []


@pytest.mark.parametrize("name", ["strain/c/1/0/0", "manifest/000001.json", PSD_CHUNK])
def test_a_folder_in_place_of_a_file_is_named_by_a_repair_and_left(folder, repair, name):
    (folder / name).unlink()
    (folder / name).mkdir()
    with pytest.raises(InputError, match=f"{name}: is a folder, where a file has to be") as told:
        repair()
    assert "partial" not in str(told.value)
    assert (folder / name).is_dir()
    (folder / name).rmdir()
    assert repair().remaining == []


def test_a_file_in_place_of_a_folder_is_named_by_a_repair_and_left(folder, repair):
    shutil.rmtree(folder / "strain/c/1")
    (folder / "strain/c/1").touch()
    with pytest.raises(InputError, match="strain/c/1: is a file, where a folder has to be"):
        repair()
    assert (folder / "strain/c/1").is_file()


def test_all_metadata_but_one_of_two_and_a_shard_are_restored_at_once(folder, repair, expected):
    for name in (GROUP_METADATA, PSD_CHUNK, *CHILDREN, "strain/c/0/0/0"):
        (folder / name).unlink()
    report = repair()
    assert set(report.metadata) == {GROUP_METADATA, PSD_CHUNK, *CHILDREN}
    assert report.shards == [0]
    assert changed(expected, digests(folder)) == []


def test_metadata_lost_with_their_copy_are_what_simulate_restores(
    folder, command, et_bbh, running_cluster, expected
):
    (folder / GROUP_METADATA).unlink()
    (folder / GROUP_COPY).unlink()
    for verb in ("verify", "repair"):
        assert command(verb) == (strainflow.ANSWER_IS_NO, "")
    config = et_bbh(*SIZES, "--seed=7")
    report = simulate_dataset(replace(config, cluster=running_cluster), folder)
    assert report.simulated == 0
    assert changed(expected, digests(folder)) == []


@pytest.mark.parametrize("name", [GROUP_METADATA, GROUP_COPY])
def test_of_two_metadata_that_nothing_proves_a_repair_overwrites_neither(folder, command, name):
    for path in folder.glob("manifest/0*.json"):
        path.unlink()
    document = parse_json((folder / name).read_bytes(), "")
    document["attributes"]["strainflow"]["seed"] = 8
    (folder / name).write_bytes(canonical_json(document))
    before = digests(folder)
    assert command("repair") == (strainflow.ANSWER_IS_NO, "")
    assert digests(folder) == before
    code, said = command("verify")
    assert code == strainflow.ANSWER_IS_NO
    assert "zarr.json: differs from its copy manifest/dataset.json, and no finished shard" in said
    assert "strainflow repair" not in said


def test_a_psd_whose_file_is_gone_stays_lost_and_that_is_said(
    et_bbh, running_cluster, tmp_path, folder, command
):
    psd = tmp_path / "psd.txt"
    psd.write_text("5 1e-24\n5000 1e-24\n")
    shutil.rmtree(folder)
    config = et_bbh(f"--psd.file={psd}", "--events=2", "--events_per_shard=1")
    simulate_dataset(replace(config, cluster=running_cluster), tmp_path / "made.zarr")
    shutil.move(tmp_path / "made.zarr", folder)  # where no worker has read its PSD yet
    psd.unlink()
    (folder / PSD_CHUNK).unlink()
    code, text = command("repair")
    assert code == strainflow.ANSWER_IS_NO
    assert "REPAIRED IN PART" in text
    assert f"remains: {PSD_CHUNK}: is missing" in text
    (folder / "strain/c/0/0/0").unlink()
    before = digests(folder)
    assert command("repair") == (strainflow.ANSWER_IS_NO, "")  # no shard without a PSD
    assert digests(folder) == before


# What is nobody's


def test_what_cannot_be_simulated_again_is_one_sentence_and_the_rest_is_restored(folder, command):
    shutil.rmtree(folder)
    shutil.copytree(GOLDEN / "float32", folder)  # says not by whom
    (folder / CHILDREN[1]).unlink()
    flip(folder / PSD_CHUNK, 9)
    code, said = command("repair")
    assert (code, said.count("remains: ")) == (strainflow.ANSWER_IS_NO, 1)
    assert f"remains: {PSD_CHUNK}: is not as it was written" in said
    flip(folder / "strain/c/1/0/0", 5000)
    code, said = command("repair")
    assert code == strainflow.ANSWER_IS_NO
    assert (
        "\n  found: strain/c/1/0/0: the strain of 1 events is damaged (shard 1, event 2)\n" in said
    )
    refusal = (
        "refused: shard 1: the metadata do not say how it was simulated (no 'detectors'), so it"
    )
    assert refusal in said
    assert "--encoding" not in said


def test_a_repair_writes_through_no_link_and_mends_what_is_not_behind_one(
    folder, command, tmp_path, expected
):
    (folder / "strain/c/1").rename(tmp_path / "elsewhere")
    (folder / "strain/c/1").symlink_to(tmp_path / "elsewhere")
    flip(tmp_path / "elsewhere/0/0", 100_000)
    flip(folder / "strain/c/0/0/0", 100_000)
    before = digests(tmp_path / "elsewhere")
    code, said = command("repair")
    assert code == strainflow.ANSWER_IS_NO
    assert "\n  simulated again: shards 0\n" in said
    assert "refused: shard 1: strain/c/1 is a link, through which nothing is written" in said
    assert "\n  remains: strain/c/1: is a link\n" in said
    assert digests(tmp_path / "elsewhere") == before
    assert (folder / "strain/c/1").is_symlink()
    (folder / "strain/c/1").unlink()
    assert command("repair")[0] == strainflow.DONE
    assert changed(expected, digests(folder)) == []


def test_a_repair_restores_no_metadata_through_a_link(folder, command, tmp_path):
    (folder / "psd").rename(tmp_path / "elsewhere")
    (folder / "psd").symlink_to(tmp_path / "elsewhere")
    flip(tmp_path / "elsewhere/c/0/0", 100)
    before = digests(tmp_path / "elsewhere")
    code, said = command("repair")
    assert code == strainflow.ANSWER_IS_NO
    assert "remains: psd/c/0/0: is not as it was written" in said
    assert digests(tmp_path / "elsewhere") == before


def test_a_repair_removes_partial_files_of_ours_alone_and_says_which(folder, command, expected):
    ours = ["strain/c/1/0/0.0123456789ab.partial", "zarr.json.partial"]
    for name in (*ours, "my-download.partial"):
        (folder / name).touch()
    code, said = command("repair")
    assert code == strainflow.ANSWER_IS_NO
    assert f"\n  removed, left by a writer that died: {', '.join(ours)}\n" in said
    assert changed(expected, digests(folder)) == ["my-download.partial"]
    assert "left by a writer" not in command("repair")[1]


def test_a_repair_leaves_a_shard_alone_that_may_not_be_read(tmp_path, monkeypatch):
    folder = Path(shutil.copytree(GOLDEN / "int8", tmp_path / "x.zarr"))
    before, open_once = digests(folder), LocalStore.open_once

    def open_or_not(store, name):
        if name == "strain/c/1/0/0":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), name)
        return open_once(store, name)

    monkeypatch.setattr(LocalStore, "open_once", open_or_not)
    report = repair_dataset(folder, ClusterConfig(), accept=True)
    (finding,) = report.remaining
    assert (finding.file, finding.what) == ("strain/c/1/0/0", "cannot be read (Permission denied)")
    assert report.refused[1].endswith("give yourself the right to read it")
    assert digests(folder) == before


@pytest.mark.parametrize(
    ("damage", "last"),
    [
        (lambda at: (at / "notes.txt").touch(), "are yours to move: repair does not"),
        (lambda at: (at / "strain/zarr.json").unlink(), "mends shards and metadata"),
        (
            lambda at: flip(at / "strain/c/1/0/0", 5000),
            "put those back from a copy; `strainflow repair x.zarr` mends metadata",
        ),
    ],
)
def test_verify_advises_repair_only_for_what_repair_mends(
    tmp_path, monkeypatch, capsys, damage, last
):
    monkeypatch.chdir(tmp_path)
    damage(Path(shutil.copytree(GOLDEN / "int8", "x.zarr")))
    assert strainflow.main(["verify", "x.zarr"]) == strainflow.ANSWER_IS_NO
    said = capsys.readouterr().out
    assert said.splitlines()[-1].endswith(last)
    assert ("strainflow repair" in said) == ("mends" in last)


def test_foreign_files_stay_and_are_named_with_exit_code_1(folder, command, expected):
    (folder / "notes.txt").write_text("mine")
    (folder / "link").symlink_to("strain")
    flip(folder / "strain/c/0/0/0", 100_000)
    code, text = command("repair", "--json")
    report = json.loads(text)
    assert code == strainflow.ANSWER_IS_NO
    assert report["shards"] == [0]
    assert {found["file"] for found in report["remaining"]} == {"notes.txt", "link"}
    assert (folder / "notes.txt").read_text() == "mine"
    assert (folder / "link").is_symlink()
    assert changed(expected, digests(folder)) == ["notes.txt"]
    assert command("verify")[0] == strainflow.ANSWER_IS_NO
    (folder / "notes.txt").unlink()
    (folder / "link").unlink()
    assert command("repair")[0] == strainflow.DONE
    assert command("verify")[0] == strainflow.DONE


def test_a_place_that_is_being_written_is_refused(folder, repair):
    flip(folder / "strain/c/0/0/0", 100_000)
    before = digests(folder)
    with (
        LocalStore(folder).only_writer(),
        pytest.raises(InputError, match=f"process {os.getpid()} on .* is writing there"),
    ):
        repair()
    assert digests(folder) == before


def test_what_is_no_data_set_is_refused_and_nothing_is_made(tmp_path, running_cluster):
    for place in (tmp_path / "nowhere.zarr", tmp_path):
        with pytest.raises(InputError, match="no data set there"):
            repair_dataset(place, running_cluster, accept=False)
    assert list(tmp_path.iterdir()) == []


def test_other_libraries_are_refused_and_no_shard_is_changed(
    tmp_path, et_bbh, running_cluster, folder, command
):
    """Metadata that ask for another LAL, with shards that are theirs."""
    schema = read_schema(folder)
    versions = {**schema.provenance["versions"], "lalsuite": "0.0.1"}
    rewrite(folder, replace(schema, provenance={**schema.provenance, "versions": versions}))
    assert command("verify")[0] == strainflow.DONE
    flip(folder / "strain/c/0/0/0", 100_000)
    before = digests(folder)
    assert command("repair") == (strainflow.WRONG_CALL, "")
    assert digests(folder) == before


# Other bytes


def rewrite(folder, schema, change=lambda event: event, shards=range(SHARDS)):
    """Write shards of events once more, under a schema: consistent, and perhaps with other bits."""
    from storage.dataset import create_dataset

    simulator, _ = simulator_of_dataset(str(folder))
    if schema != read_schema(folder):
        shutil.rmtree(folder)
        create_dataset(folder, schema, simulator.psd)
    for shard in shards:
        events = map(change, simulator.events(schema.events_of(shard)))
        write_shard(folder, schema, shard, events, partial(checks_of, str(folder), shard))


def slightly_other(event):
    """As another kind of CPU would make it."""
    strain = event.strain * np.float32(1 + 1e-6)
    return replace(event, strain=strain, optimal_snr=np.nextafter(event.optimal_snr, np.inf))


def test_shards_written_once_more_from_the_same_events_have_the_same_bytes(folder, expected):
    """So that what differs below comes from the events."""
    rewrite(folder, read_schema(folder))
    assert changed(expected, digests(folder)) == []


@pytest.fixture
def other(folder):
    """A sound data set whose second shard was made elsewhere; the digests of all its files."""
    rewrite(folder, read_schema(folder), slightly_other, [1])
    return digests(folder)


def test_where_the_bytes_differ_a_repair_refuses_in_one_sentence_and_changes_nothing(
    folder, other, command, verify, expected
):
    assert changed(expected, other) == sorted({*files_of(1)} - {"parameters/c/1/0"})
    assert verify() == []
    flip(folder / "strain/c/1/0/0", 100_000)
    before, written = digests(folder), times(folder)
    code, text = command("repair")
    assert code == strainflow.ANSWER_IS_NO
    (refusal,) = (line for line in text.splitlines() if line.startswith("  refused: "))
    assert "shard 1: simulated here it has other bytes than its manifest records" in refusal
    assert "--accept" in refusal
    assert (digests(folder), times(folder)) == (before, written)
    code, text = command("repair", "--json")
    report = json.loads(text)
    assert code == strainflow.ANSWER_IS_NO
    assert list(report["refused"]) == ["1"]
    assert [found["file"] for found in report["remaining"]] == ["strain/c/1/0/0"]


def test_one_refusal_does_not_hold_up_other_shards(folder, other, repair):
    flip(folder / "strain/c/0/0/0", 100_000)
    flip(folder / "strain/c/1/0/0", 100_000)
    report = repair()
    assert (report.shards, list(report.refused)) == ([0], [1])
    assert changed(other, digests(folder)) == ["strain/c/1/0/0"]


def test_accepted_bytes_replace_the_old_ones_and_the_old_digests_are_recorded(
    folder, other, command, repair, verify, expected
):
    schema = read_schema(folder)
    old = read_manifest(folder, schema, 1)
    flip(folder / "strain/c/1/0/0", 100_000)
    code, text = command("repair", "--accept")
    assert code == strainflow.DONE
    assert "accepted with other bytes than before: shards 1" in text
    assert changed(expected, digests(folder)) == ["manifest/000001.json"]
    new = read_manifest(folder, schema, 1)
    assert new.replaced == {path: facts["blake3"] for path, facts in old.files.items()}
    assert verify() == []
    # From now on these are the bytes, and the record stays with them.
    accepted = digests(folder)
    for spoil in (lambda path: path, lambda path: flip(path, 2)):  # no JSON any more
        flip(folder / "optimal_snr/c/1/0", 9)
        spoil(folder / "manifest/000001.json")
        report = repair()
        assert (report.shards, report.accepted, report.remaining) == ([1], [], [])
        assert digests(folder) == accepted


def test_accepting_what_needs_no_acceptance_records_nothing(folder, repair, expected):
    flip(folder / "strain/c/1/0/0", 100_000)
    report = repair(accept=True)
    assert (report.shards, report.accepted) == ([1], [])
    assert changed(expected, digests(folder)) == []


def test_a_damaged_manifest_of_other_bytes_proves_nothing(folder, other, repair):
    cut(folder / "manifest/000001.json")
    before = digests(folder)
    report = repair()
    assert "its manifest is damaged, and simulated here it has other bytes" in report.refused[1]
    assert digests(folder) == before
    there = {path: blake3_of(folder / path) for path in shard_files(1).values()}
    report = repair(accept=True)
    assert (report.accepted, report.remaining) == ([1], [])
    assert read_manifest(folder, read_schema(folder), 1).replaced == there


@pytest.mark.parametrize("accept", [False, True])
@pytest.mark.parametrize("renamed", [1, 3])
def test_what_a_damaged_manifest_gave_way_to_is_known_though_the_repair_was_stopped(
    folder, other, repair, renamed, accept
):
    """As FORMAT.md says of a manifest that is cut off."""
    schema, paths = read_schema(folder), list(shard_files(1).values())
    cut(folder / "manifest/000001.json")
    there = {path: (folder / path).read_bytes() for path in paths}
    simulator, _ = simulator_of_dataset(str(folder))

    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shard(
            folder,
            schema,
            1,
            simulator.events(schema.events_of(1)),
            stop,
            _Proof(LocalStore(folder), True, 1).approve,
        )
    for path in paths[renamed:]:
        (folder / path).write_bytes(there[path])
    with pytest.raises(DamagedDataError):  # nobody takes it for finished
        read_manifest(folder, schema, 1)
    assert describe(folder).damaged_manifests == ["manifest/000001.json"]
    left = (folder / "manifest/000001.json").read_bytes()
    whole = parse_json(left + b"}\n", "whole")
    report = repair(accept)
    assert (report.refused, report.remaining) == ({}, [])
    assert read_manifest(folder, schema, 1).files == whole["files"]
    replaced = read_manifest(folder, schema, 1).replaced
    assert replaced == {path: blake3.blake3(data).hexdigest() for path, data in there.items()}


def blake3_of(path):
    return blake3.blake3(path.read_bytes()).hexdigest()


# Interrupted


@pytest.fixture(scope="module")
def traced():
    """Skip where nothing can be traced."""
    with skipped_where_not_permitted():
        system_calls(int)


@pytest.mark.slow
@pytest.mark.parametrize("accept", [False, True])
def test_killed_at_any_system_call_a_repair_has_made_nothing_worse_and_the_next_one_ends_it(
    traced, folder, request, expected, accept
):
    """From when the events are there; what is right stays, and what is recorded too."""
    if accept:
        request.getfixturevalue("other")
    schema, damaged = read_schema(folder), folder / "strain/c/1/0/0"
    sound = digests(folder)
    flip(damaged, 100_000)
    before = folder.with_name("before.zarr")
    shutil.copytree(folder, before)
    simulator, _ = simulator_of_dataset(str(folder))
    events = list(simulator.events(schema.events_of(1)))
    recorded = read_manifest(folder, schema, 1)

    def mend():
        proof = _Proof(LocalStore(folder), accept, 1)
        check = partial(checks_of, str(folder), 1)
        write_shard(folder, schema, 1, events, check, proof.approve)

    def again():
        shutil.rmtree(folder)
        shutil.copytree(before, folder)

    mend()
    ended = digests(folder)
    assert changed(sound, ended) == (
        sorted({*files_of(1)} - {"parameters/c/1/0"}) if accept else []
    )
    killed = 0
    for call in itertools.count(1, 3):
        again()
        if not run_until_system_call(mend, call):
            break
        killed += 1
        state = digests(folder)
        for name, digest in state.items():
            assert name.endswith(".partial") or digest in {
                digests_before.get(name) for digests_before in (digests_of(before), ended)
            }, f"{name} is half written after {call} calls"
        assert set(expected) <= set(state), f"something is lost after {call} calls"
        manifest = read_manifest(folder, schema, 1)
        assert manifest == recorded or state["strain/c/1/0/0"] == ended["strain/c/1/0/0"]
        LocalStore(folder).remove_partial_files()
        mend()
        assert digests(folder) == ended, f"the next repair leaves other bytes after {call} calls"
    assert killed > 20


def digests_of(folder, kept={}):  # noqa: B006  # read once
    """The same as `digests`, of a folder that does not change."""
    return kept.setdefault(folder, digests(folder))


def test_a_refused_repair_leaves_no_partial_file(folder, other):
    schema = read_schema(folder)
    flip(folder / "strain/c/1/0/0", 100_000)
    before = digests(folder)
    simulator, _ = simulator_of_dataset(str(folder))
    with pytest.raises(DamagedDataError, match="other bytes"):
        write_shard(
            folder,
            schema,
            1,
            simulator.events(schema.events_of(1)),
            approve=_Proof(LocalStore(folder), False, 1).approve,
        )
    assert digests(folder) == before
    assert finished_shards(folder, schema) == [0, 1, 2]
