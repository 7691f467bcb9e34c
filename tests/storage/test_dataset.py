import json
import pickle
import subprocess
import sys
from dataclasses import replace
from fnmatch import fnmatch

import blake3
import google_crc32c
import numpy as np
import pytest
from unreadable import on_a_bad_sector

from storage import open_dataset
from storage.dataset import (
    create_dataset,
    read_optimal_snr,
    read_parameters,
    read_psd,
    read_schema,
)
from storage.documents import seal_holds
from storage.encodings import ENCODINGS, Encoding, certified
from storage.errors import DamagedDataError, InputError
from storage.local import LocalStore
from storage.manifest import finished_shards, read_manifests, require_complete
from storage.shard_reader import read_index
from storage.urls import store_of
from storage.writer import write_shard


def content(folder):
    """Every file of a folder with its bytes."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def failing_after(events, count):
    yield from events[:count]
    raise RuntimeError("power cut")


# Creating


def test_the_schema_reads_back_as_it_was_written(build, encoding):
    data = build(encoding=ENCODINGS[encoding], noisy=False)
    assert read_schema(data.folder) == data.schema


@pytest.mark.parametrize(
    ("encoding", "promise"),
    [
        (ENCODINGS["int16"], None),
        (Encoding("int16", 0.1, compressed=True), 1e-3),
        (ENCODINGS["float32+blosc"], 0.0),
    ],
)
def test_a_step_and_a_promise_read_back_as_they_were_written(build, encoding, promise):
    data = build(encoding=certified(encoding, promise))
    assert read_schema(data.folder) == data.schema
    facts = json.loads((data.folder / "zarr.json").read_text())["attributes"]["strainflow"]
    assert facts.get("max_snr_loss", "none") == ("none" if promise is None else promise)


def test_creating_again_from_the_same_facts_changes_nothing(filled):
    before = content(filled.folder)
    assert create_dataset(filled.folder, filled.schema, filled.psd) == store_of(filled.folder)
    assert content(filled.folder) == before


def test_creating_goes_on_where_it_was_interrupted(empty):
    before = content(empty.folder)
    for lost in ("zarr.json", "strain/zarr.json"):
        (empty.folder / lost).unlink()
    (empty.folder / "zarr.json.partial").write_bytes(b"{")
    create_dataset(empty.folder, empty.schema, empty.psd)
    store_of(empty.folder).remove_partial_files()
    assert content(empty.folder) == before


class Interrupted(LocalStore):
    """A folder that can be written to until it cannot: some files, or those of some folder."""

    left = 10**6
    refused = "nothing"

    def create(self, path, contested=False):
        if self.left == 0 or path.startswith(self.refused):
            raise RuntimeError("power cut")
        object.__setattr__(self, "left", self.left - 1)
        return super().create(path, contested)


def interrupted(folder, **when):
    store = Interrupted(folder)
    for name, value in when.items():
        object.__setattr__(store, name, value)
    return store


@pytest.mark.parametrize("files", range(8))
def test_a_data_set_whose_creation_was_interrupted_does_not_look_like_one(
    tmp_path, small, start, files
):
    folder = tmp_path / "events.zarr"
    with pytest.raises(RuntimeError):
        create_dataset(interrupted(folder, left=files), small, np.ones((3, 9)))
    assert len(content(folder)) == files if files else not folder.exists()
    with pytest.raises(InputError, match="no data set there"):
        read_schema(folder)
    assert read_schema(start(folder, small).folder) == small
    assert len(content(folder)) == 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"events": 8}, r"\(events: 7 there, 8 asked for\)"),
        ({"events_per_shard": 4}, r"\(events_per_shard: 3 there, 4 asked for\)"),
        ({"encoding": ENCODINGS["int8"]}, r"\(encoding: 'float32' there, 'int8' asked for\)"),
        (
            {"encoding": ENCODINGS["float32+blosc"]},
            r"\(encoding: 'float32' there, 'float32\+blosc' asked for\)",
        ),
        (
            {"encoding": certified(ENCODINGS["float32"], 1e-3)},
            r"\(max_snr_loss: None there, 0\.001 asked for\)",
        ),
        ({"noisy": False}, r"\(noisy: True there, False asked for\)"),
        ({"provenance": {"seed": 12}}, r"\(configuration: .* there, None asked for\)"),
        (
            {"provenance": {"configuration": {"waveform": {"f_lower": 6.0}}, "seed": 11}},
            r"\(configuration\.waveform\.f_lower: 5\.0 there, 6\.0 asked for\)",
        ),
        ({"samples": 51}, r"\(strain\..*shape: .*50\] there, .*51\] asked for\)"),
    ],
)
def test_another_configuration_is_refused_with_the_key_that_differs(filled, changes, message):
    before = content(filled.folder)
    with pytest.raises(InputError, match=message):
        create_dataset(filled.folder, replace(filled.schema, **changes), filled.psd)
    assert content(filled.folder) == before


def test_a_set_without_a_finished_shard_gives_way_to_another_configuration(empty, finish):
    create_dataset(empty.folder, replace(empty.schema, encoding=ENCODINGS["float16"]), empty.psd)
    stray = empty.folder / "strain/c/99/0/0"
    stray.parent.mkdir(parents=True)
    stray.write_bytes(b"of a run that was refused")
    create_dataset(empty.folder, empty.schema, empty.psd)
    assert read_schema(empty.folder).encoding == empty.schema.encoding
    assert not stray.exists()


def test_a_zarr_group_of_somebody_else_is_never_replaced(tmp_path, small):
    (tmp_path / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group"}')
    with pytest.raises(InputError, match="holds a data set of another configuration"):
        create_dataset(tmp_path, small, np.ones((3, 9)))


def test_finished_shards_survive_the_loss_of_the_groups_metadata(filled):
    whole = content(filled.folder)
    (filled.folder / "zarr.json").unlink()
    before = content(filled.folder)
    with pytest.raises(InputError, match=r"holds finished shards but no zarr\.json"):
        create_dataset(filled.folder, replace(filled.schema, noisy=False), filled.psd)
    assert content(filled.folder) == before
    create_dataset(filled.folder, filled.schema, filled.psd)
    assert content(filled.folder) == whole


def test_the_copy_of_the_groups_metadata_has_the_same_bytes(filled):
    copy = filled.folder / "manifest/dataset.json"
    assert copy.read_bytes() == (filled.folder / "zarr.json").read_bytes()


def test_a_second_run_into_one_folder_is_refused_until_the_first_has_ended(tmp_path):
    with store_of(tmp_path / "x.zarr").only_writer():
        with pytest.raises(InputError, match=r"x\.zarr: process \d+ on .* is writing there; wait"):
            with store_of(tmp_path / "x.zarr").only_writer():
                pass
    with store_of(tmp_path / "x.zarr").only_writer():
        assert list((tmp_path / "x.zarr").iterdir()) == []


def test_another_psd_is_refused(filled):
    with pytest.raises(InputError, match=r"another configuration \(psd.attributes.sha256: "):
        create_dataset(filled.folder, filled.schema, 2 * filled.psd)


def test_a_psd_that_the_disk_cannot_read_is_damage_that_is_named(filled, monkeypatch):
    on_a_bad_sector(monkeypatch, filled.folder / "psd/c/0/0")
    with pytest.raises(DamagedDataError, match="psd/c/0/0: cannot be read .*; `strainflow repair"):
        read_psd(filled.folder)


@pytest.mark.parametrize("change", ["lost", "altered"])
def test_a_psd_that_was_lost_or_altered_is_found_and_restored(filled, change):
    path = filled.folder / "psd/c/0/0"
    original = path.read_bytes()
    if change == "lost":
        path.unlink()
    else:
        path.write_bytes(b"\x01" + original[1:])
    with pytest.raises(DamagedDataError, match="psd/c/0/0: is missing or was altered"):
        read_psd(filled.folder)
    create_dataset(filled.folder, filled.schema, filled.psd)
    assert path.read_bytes() == original
    np.testing.assert_array_equal(read_psd(filled.folder), filled.psd)


def test_a_folder_that_holds_something_else_is_refused_and_left_alone(tmp_path, small):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(InputError, match=r"is not a data set but holds thesis\.tex"):
        create_dataset(tmp_path, small, np.ones((3, 9)))
    assert list(content(tmp_path)) == ["thesis.tex"]


def test_a_file_in_place_of_the_folder_is_refused(tmp_path, small):
    (tmp_path / "events.zarr").write_text("x")
    with pytest.raises(InputError, match="is a file; give the name of a folder"):
        create_dataset(tmp_path / "events.zarr", small, np.ones((3, 9)))


@pytest.mark.parametrize("scheme", ["file", "local"])
def test_file_urls_are_folders(filled, scheme):
    assert read_schema(f"{scheme}://{filled.folder}") == filled.schema


def test_schemes_that_are_not_known_and_urls_with_secrets_are_refused():
    with pytest.raises(InputError, match="the scheme gopher:// is not known; give a path"):
        read_schema("gopher://bucket/events.zarr")
    with pytest.raises(InputError, match=r"s3://\.\.\.: the URL holds a secret") as refusal:
        read_schema("s3://AKIA:abc/def@host/events.zarr")
    assert "abc" not in str(refusal.value)


# Writing


def test_the_bytes_depend_neither_on_the_order_of_the_shards_nor_on_retries(
    filled, tmp_path, start, finish
):
    other = start(tmp_path / "other.zarr", filled.schema)
    with pytest.raises(RuntimeError):
        write_shard(other.folder, other.schema, 1, failing_after(other.events[3:], 2))
    finish(other, [2, 0])
    finish(other, [1, 0])
    assert content(other.folder) == content(filled.folder)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_an_exception_within_a_shard_leaves_nothing_and_a_rerun_completes_it(empty, finish, count):
    before = content(empty.folder)
    with pytest.raises(RuntimeError, match="power cut"):
        write_shard(empty.folder, empty.schema, 0, failing_after(empty.events, count))
    assert content(empty.folder) == before
    assert finished_shards(empty.folder, empty.schema) == []
    finish(empty)
    assert len(require_complete(empty.folder, empty.schema)) == 3


KILLED = """
import os, pickle, sys
from storage.writer import write_shard
folder, schema, events = pickle.load(sys.stdin.buffer)
def killed():
    yield from events[:2]
    os._exit(9)
write_shard(folder, schema, 0, killed())
"""


def test_a_killed_writer_leaves_only_partial_files_and_a_rerun_the_same_bytes(
    filled, tmp_path, start, finish
):
    other = start(tmp_path / "other.zarr", filled.schema)
    before = content(other.folder)
    given = pickle.dumps((other.folder, other.schema, other.events))
    assert subprocess.run([sys.executable, "-c", KILLED], input=given).returncode == 9
    (left,) = content(other.folder).keys() - before.keys()
    assert fnmatch(left, "strain/c/0/0/0.*.partial")
    store_of(other.folder).remove_partial_files()
    assert content(other.folder) == before
    assert content(finish(other).folder) == content(filled.folder)


def test_the_manifest_is_written_after_everything_else(empty):
    before = content(empty.folder)
    store = interrupted(empty.folder, refused="manifest/0")
    with pytest.raises(RuntimeError, match="power cut"):
        write_shard(store, empty.schema, 0, empty.events[:3])
    written = content(empty.folder).keys() - before.keys()
    assert written == {"strain/c/0/0/0", "parameters/c/0/0", "optimal_snr/c/0/0"}
    assert finished_shards(empty.folder, empty.schema) == []


def test_an_event_that_does_not_fit_leaves_nothing_of_its_shard(tmp_path, small, start, finish):
    data = start(tmp_path / "events.zarr", replace(small, encoding=ENCODINGS["int8"]))
    data.events[4].strain[0, 0] = 16.0
    with pytest.raises(InputError, match="event 4: its peak of 16 sigma does not fit"):
        finish(data)
    assert finished_shards(data.folder, data.schema) == [0]
    assert not (data.folder / "strain/c/1/0/0").exists()


@pytest.mark.parametrize(
    ("name", "value", "loss"),
    [("int8+blosc", 1 / 16 - 1e-9, "0.00195"), ("float16+blosc", 40_014.0, "0.929")],
)
def test_an_event_that_would_lose_more_than_was_promised_leaves_nothing_of_its_shard(
    tmp_path, small, start, finish, name, value, loss
):
    promising = replace(small, encoding=certified(ENCODINGS[name], 1e-3))
    data = start(tmp_path / "events.zarr", promising)
    data.events[4].strain[:] = value  # each sample is almost half a step off
    with pytest.raises(
        InputError, match=f"event 4: the encoding .* takes {loss} of its SNR, 0.001 was promised"
    ):
        finish(data)
    assert finished_shards(data.folder, data.schema) == [0]
    assert not (data.folder / "strain/c/1/0/0").exists()


@pytest.mark.parametrize("events", [slice(0, 2), slice(0, 4), slice(1, 4)])
def test_too_few_too_many_or_other_events_leave_no_file(empty, events):
    before = content(empty.folder)
    with pytest.raises((ValueError, AssertionError)):
        write_shard(empty.folder, empty.schema, 0, empty.events[events])
    assert content(empty.folder) == before


@pytest.mark.parametrize("name", ["int16", "int16+blosc"])
def test_a_manifest_holds_the_digests_the_checksums_the_loss_and_the_rejected_draws(build, name):
    data = build(encoding=ENCODINGS[name])
    manifests = read_manifests(data.folder, data.schema)
    assert [(m.shard, m.first_event, m.events) for m in manifests.values()] == [
        (0, 0, 3),
        (1, 3, 3),
        (2, 6, 1),
    ]
    group = blake3.blake3((data.folder / "zarr.json").read_bytes()).hexdigest()
    for shard, manifest in manifests.items():
        for path, facts in manifest.files.items():
            stored = (data.folder / path).read_bytes()
            assert facts == {"bytes": len(stored), "blake3": blake3.blake3(stored).hexdigest()}
        rows = slice(manifest.first_event, manifest.first_event + manifest.events)
        assert manifest.crc32c == tuple(
            google_crc32c.value(payload) for payload in payloads(data, shard)
        )
        losses = [
            data.schema.encoding.snr_loss(event.strain, codes, True)
            for event, codes in zip(data.events[rows], data.codes[rows], strict=True)
        ]
        assert manifest.largest_snr_loss == max(losses)
        assert manifest.worst_event == manifest.first_event + np.argmax(losses)
        assert manifest.rejected == {"snr below 8": 2}
        assert manifest.dataset == group
        assert manifest.replaced == {}
        assert seal_holds(
            (data.folder / f"manifest/{shard:06d}.json").read_bytes(), manifest.digest
        )


def payloads(data, shard):
    """The bytes of each event of a shard, as its index tells where they lie."""
    file = store_of(data.folder).open(f"strain/c/{shard}/0/0")
    entries = read_index(file, data.schema.events_per_shard, "")
    return [file.read(*map(int, entry)) for entry in entries[: len(data.schema.events_of(shard))]]


def test_the_payload_of_an_uncompressed_event_is_its_codes(build):
    data = build(encoding=ENCODINGS["int16"])
    for shard in range(3):
        wanted = [data.codes[number].tobytes() for number in data.schema.events_of(shard)]
        assert payloads(data, shard) == wanted


def test_all_json_files_are_sorted_and_end_with_a_newline(filled):
    for path in [*filled.folder.rglob("*.json")]:
        text = path.read_text()
        assert text == json.dumps(json.loads(text), indent=1, sort_keys=True) + "\n"


# Reading


def test_open_dataset_decodes_and_labels(build, encoding):
    data = build(encoding=ENCODINGS[encoding])
    opened = open_dataset(data.folder)
    assert opened.sizes == {"event": 7, "detector": 3, "time": 50, "parameter": 3, "frequency": 9}
    half = data.schema.encoding.type == "float16"
    assert opened.strain.dtype == ("float16" if half else "float32")
    assert np.array_equal(opened.strain, data.schema.encoding.decode(data.codes))
    assert np.array_equal(opened.parameters, data.parameters)
    assert np.array_equal(opened.optimal_snr, data.optimal_snr)
    assert np.array_equal(opened.psd, data.psd)
    assert opened.time.values[-1] == 49 / 64
    assert opened.frequency.values[-1] == 8 * 1.28
    one = opened.sel(event=5, detector="E2", parameter="psi")
    assert one.parameters == data.parameters[5, 1]
    assert np.array_equal(one.strain, data.schema.encoding.decode(data.codes[5, 1]))


def test_open_dataset_reads_no_strain_until_it_is_asked_for(filled):
    opened = open_dataset(filled.folder)
    for path in filled.folder.glob("strain/c/*/0/0"):
        path.unlink()
    assert opened.strain.shape == (7, 3, 50)
    assert np.isnan(opened.strain[0].values).all()


def test_the_whole_tables_are_read(filled):
    assert np.array_equal(read_parameters(filled.folder), filled.parameters)
    assert np.array_equal(read_optimal_snr(filled.folder), filled.optimal_snr)


def test_a_folder_without_a_data_set_is_refused(tmp_path):
    with pytest.raises(InputError, match="no data set there"):
        read_schema(tmp_path)
    with pytest.raises(InputError, match="no data set there"):
        open_dataset(tmp_path / "nowhere")


def test_a_zarr_group_of_others_is_refused(tmp_path):
    (tmp_path / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group"}')
    with pytest.raises(InputError, match="none that strainflow wrote"):
        read_schema(tmp_path)


@pytest.mark.parametrize(
    ("version", "advice"),
    [
        ("2", "is newer than this strainflow, which reads version 1; install a newer strainflow"),
        ("10000000000000000000000", "is newer than this strainflow"),
        ("0", "is none that strainflow ever wrote"),
        ("-1", "is none that strainflow ever wrote"),
        ('"2"', "is none that strainflow ever wrote"),
        ("true", "is none that strainflow ever wrote"),
        ("1.5", "is none that strainflow ever wrote"),
    ],
)
def test_another_format_version_is_refused_with_advice(filled, version, advice):
    path = filled.folder / "zarr.json"
    path.write_text(path.read_text().replace('"format_version": 1', f'"format_version": {version}'))
    for reads in (open_dataset, read_schema, read_psd, read_parameters):
        with pytest.raises(InputError, match=f"format version .* {advice}"):
            reads(filled.folder)


def test_a_missing_shard_is_counted(empty, finish):
    finish(empty, [0, 2])
    with pytest.raises(DamagedDataError, match="1 of 3 shards are missing; run the same"):
        require_complete(empty.folder, empty.schema)
    with pytest.raises(DamagedDataError, match="1 of 3"):
        open_dataset(empty.folder)


FILES = ["strain/c/1/0/0", "parameters/c/1/0", "optimal_snr/c/1/0"]


@pytest.mark.parametrize("path", FILES)
def test_a_deleted_file_is_named_with_its_events_and_the_mend(filled, path):
    (filled.folder / path).unlink()
    with pytest.raises(
        DamagedDataError,
        match=rf"{path}: is missing, .* \(shard 1, events 3 to 5\); `strainflow repair ",
    ):
        require_complete(filled.folder, filled.schema)


@pytest.mark.parametrize("path", FILES)
def test_a_truncated_file_is_named(filled, path):
    data = (filled.folder / path).read_bytes()
    (filled.folder / path).write_bytes(data[:-1])
    with pytest.raises(
        DamagedDataError, match=f"{path}: has {len(data) - 1:,} bytes, {len(data):,} were"
    ):
        require_complete(filled.folder, filled.schema)


def test_a_shard_whose_manifest_was_removed_is_written_again_with_the_same_bytes(filled, finish):
    before = content(filled.folder)
    (filled.folder / FILES[0]).unlink()
    (filled.folder / "manifest/000001.json").unlink()
    missing = set(range(3)) - set(finished_shards(filled.folder, filled.schema))
    finish(filled, sorted(missing))
    assert content(filled.folder) == before


@pytest.mark.parametrize("path", ["zarr.json", "manifest/000000.json"])
def test_altered_metadata_are_named(filled, path):
    (filled.folder / path).write_text('{"zarr_form')
    with pytest.raises(DamagedDataError, match=f"{path}: is not valid JSON"):
        require_complete(filled.folder, read_schema(filled.folder))


@pytest.mark.parametrize("damage", ["lost", "altered"])
@pytest.mark.parametrize("name", ["strain", "parameters", "optimal_snr", "psd", "manifest"])
def test_metadata_of_an_array_may_be_lost_or_altered_since_the_groups_repeat_them(
    filled, name, damage
):
    whole, path = content(filled.folder), filled.folder / name / "zarr.json"
    if damage == "lost":
        path.unlink()
    else:
        path.write_text('{"zarr_form')
    assert read_schema(filled.folder) == filled.schema
    opened = open_dataset(filled.folder)
    assert np.array_equal(opened.strain, filled.strain.astype("f4"))
    assert np.array_equal(opened.psd, filled.psd)
    create_dataset(filled.folder, filled.schema, filled.psd)
    assert content(filled.folder) == whole
