import json
import re
from dataclasses import replace

import pytest
from unreadable import on_a_bad_sector

from storage.commands import info
from storage.dataset import SHARD_ARRAYS
from storage.encodings import ENCODINGS, Encoding
from storage.errors import MEND, DamagedDataError, InputError
from storage.info import describe, summary
from storage.manifest import read_manifests, require_complete
from storage.schema import GROUP_COPY, GROUP_METADATA, PSD_CHUNK
from storage.writer import write_shard


def test_a_complete_data_set_is_described_from_its_metadata(filled):
    facts = describe(filled.folder)
    assert facts.complete
    assert facts.problems == []
    assert (facts.events, facts.finished_events) == (7, 7)
    assert (facts.shards, facts.finished_shards, facts.events_per_shard) == (3, 3, 3)
    assert (facts.encoding, facts.noisy, facts.detectors) == ("float32", True, ("E1", "E2", "E3"))
    assert facts.bytes_per_event == 3 * 50 * 4
    assert facts.rejected == {"snr below 8": 6}
    assert [item["name"] for item in facts.parameters] == ["chirp_mass", "psi", "phase"]
    assert facts.provenance["seed"] == 11


def test_of_a_compressed_set_it_tells_the_step_the_promise_and_the_mean_size(build):
    promise = Encoding("int8", 0.12, compressed=True, max_snr_loss=1e-3)
    data = build(encoding=promise, samples=2000)
    facts = describe(data.folder)
    assert (facts.encoding, facts.scale_factor, facts.max_snr_loss) == ("int8+blosc", 0.12, 1e-3)
    assert 0 < facts.largest_snr_loss <= 1e-3
    on_disk = sum(path.stat().st_size for path in data.folder.glob("strain/c/*/0/0"))
    assert facts.bytes_per_event == round(on_disk / 7)
    words = f"int8+blosc in steps of 0.12 sigma, {facts.bytes_per_event:,} bytes an event, largest"
    assert words in summary(facts)
    assert " of 0.001 promised" in summary(facts)


@pytest.mark.parametrize("shards", [[0, 1, 2], [1]])
def test_the_bytes_are_those_on_disk_for_each_encoding(tmp_path, small, start, finish, shards):
    for name, encoding in ENCODINGS.items():
        data = start(tmp_path / name, replace(small, encoding=encoding))
        finish(data, shards)
        files = [path for name in SHARD_ARRAYS for path in (data.folder / name / "c").rglob("*")]
        assert describe(data.folder).bytes == sum(p.stat().st_size for p in files if p.is_file())


def test_the_bytes_are_those_on_disk(filled):
    paths = [
        path for m in read_manifests(filled.folder, filled.schema).values() for path in m.files
    ]
    assert len(paths) == 9
    assert describe(filled.folder).bytes == sum((filled.folder / p).stat().st_size for p in paths)


def test_describing_reads_neither_strain_nor_parameters(filled):
    for path in [*filled.folder.glob("strain/c/*/0/0"), *filled.folder.glob("parameters/c/*/0")]:
        path.write_bytes(b"x" * path.stat().st_size)
    assert describe(filled.folder).complete


def test_the_summary_says_what_a_reader_wants_to_know(filled):
    text = summary(describe(filled.folder))
    for words in (
        f"{filled.folder}: complete",
        "7 of 7 in 3 of 3 shards of 3",
        "E1, E2, E3 x 50 samples at 64 Hz (0.78125 s), signal and noise",
        "float32, 600 bytes an event, largest SNR loss 0",
        "draws thrown away: 6 snr below 8",
        "chirp_mass  Uniform(25, 100)  [Msun]",
    ):
        assert words in text
    assert "problem" not in text


def test_an_incomplete_data_set_says_what_is_missing(empty, finish):
    finish(empty, [1])
    facts = describe(empty.folder)
    assert not facts.complete
    assert (facts.finished_events, facts.finished_shards) == (3, 1)
    assert "2 of 3 shards are missing" in facts.problems[0]
    assert f"{empty.folder}: NOT COMPLETE\n  problem: 2 of 3 shards are missing" in summary(facts)


def test_a_data_set_without_any_shard_is_described(empty):
    facts = describe(empty.folder)
    assert (facts.complete, facts.bytes, facts.largest_snr_loss) == (False, 0, 0.0)
    assert "0 of 7 in 0 of 3 shards" in summary(facts)


def test_every_damaged_shard_is_a_problem_of_its_own(filled):
    (filled.folder / "strain/c/0/0/0").unlink()
    path = filled.folder / "parameters/c/2/0"
    path.write_bytes(path.read_bytes()[:-8])
    facts = describe(filled.folder)
    assert not facts.complete
    assert len(facts.problems) == 2
    assert "strain/c/0/0/0: is missing" in facts.problems[0]
    assert "parameters/c/2/0: has 64 bytes, 72 were written" in facts.problems[1]
    assert all(f"  problem: {problem}" in summary(facts) for problem in facts.problems)


def cut_off(path):
    path.write_bytes(path.read_bytes()[:-2])


def test_damaged_manifests_are_counted_and_named_and_the_rest_is_told(filled, capsys):
    for shard in (0, 2):
        cut_off(filled.folder / f"manifest/{shard:06d}.json")
    facts = describe(filled.folder)
    assert not facts.complete
    assert facts.damaged_manifests == ["manifest/000000.json", "manifest/000002.json"]
    assert (facts.finished_shards, facts.finished_events) == (1, 3)
    assert facts.problems == [
        "2 of 3 manifests are damaged, so nothing is known of their shards: manifest/000000.json, "
        f"manifest/000002.json (the first: is not valid JSON, so it was altered); {MEND}"
    ]
    assert info(str(filled.folder)) == 1
    said = capsys.readouterr().out
    assert said.startswith(
        f"{filled.folder}: NOT COMPLETE\n  problem: 2 of 3 manifests are damaged"
    )
    assert "E1, E2, E3 x 50 samples at 64 Hz" in said


def test_damaged_manifests_are_told_apart_from_missing_ones(empty, finish):
    finish(empty, [0, 1])
    cut_off(empty.folder / "manifest/000001.json")
    damaged, missing = describe(empty.folder).problems
    assert damaged.startswith("1 of 2 manifests are damaged")
    assert missing.startswith("1 of 3 shards are missing")


def test_of_many_damaged_manifests_the_words_name_ten_and_json_all(tmp_path, small, start, finish):
    data = finish(start(tmp_path / "x.zarr", replace(small, events=36)))
    for path in data.folder.glob("manifest/0*.json"):
        cut_off(path)
    facts = describe(data.folder)
    assert len(facts.damaged_manifests) == 12
    assert "manifest/000009.json, ... (" in facts.problems[0]


def test_a_manifest_that_the_disk_cannot_read_is_a_damaged_one(filled, monkeypatch):
    on_a_bad_sector(monkeypatch, filled.folder / "manifest/000001.json")
    assert describe(filled.folder).damaged_manifests == ["manifest/000001.json"]


def test_metadata_that_the_disk_cannot_read_are_damage_that_is_named(filled, monkeypatch):
    on_a_bad_sector(monkeypatch, filled.folder / "zarr.json")
    (problem,) = describe(filled.folder).problems
    assert re.search("zarr.json: cannot be read .*`strainflow repair", problem)


@pytest.mark.parametrize(
    "name", [GROUP_METADATA, GROUP_COPY, PSD_CHUNK, "strain/zarr.json", "manifest/zarr.json"]
)
def test_metadata_that_are_missing_or_altered_are_a_problem_that_repair_mends(filled, name):
    path, mends = filled.folder / name, f"; `strainflow repair {filled.folder}` restores it"
    path.write_bytes(path.read_bytes()[:-1])
    facts = describe(filled.folder)
    assert facts.problems == [f"{path}: is not as it was written{mends}"]
    path.unlink()
    facts = describe(filled.folder)
    assert facts.problems == [f"{path}: is missing{mends}"]
    assert not facts.complete
    assert (facts.finished_events, facts.finished_shards) == (7, 3)
    assert info(str(filled.folder)) == 1


def test_metadata_that_are_lost_with_their_copy_are_damage(filled):
    for name in (GROUP_METADATA, GROUP_COPY):
        (filled.folder / name).write_bytes(b"{}")
    with pytest.raises(DamagedDataError, match="run the same `strainflow simulate` again"):
        describe(filled.folder)


@pytest.mark.parametrize(
    ("facts", "verb"),
    [
        ({}, "simulate"),
        ({"frames": {"channels": [], "files": {}, "psd": "", "events": []}}, "cut"),
        ({"recoded_from": {"encoding": vars(ENCODINGS["int8"])}}, "recode"),
    ],
)
def test_the_verb_that_completes_a_set_is_the_one_that_made_it(
    tmp_path, small, start, finish, facts, verb
):
    moment = {"gps": 0, "start": 0, "time_shift": 0, "ra_shift": 0, "geocent_time": ""}
    facts = (
        {**facts, "frames": {**facts["frames"], "events": [moment] * 7}} if verb == "cut" else facts
    )
    data = finish(start(tmp_path / "x.zarr", replace(small, provenance=facts)), [1])
    assert describe(data.folder).problems == [
        f"2 of 3 shards are missing; run the same `strainflow {verb}` again to complete it"
    ]
    with pytest.raises(DamagedDataError, match=f"run the same `strainflow {verb}` again"):
        require_complete(data.folder, data.schema)


def test_a_shard_that_does_not_pass_a_check_is_a_problem(empty, finish, capsys):
    finish(empty, [0, 1])
    found = {"echo": {"largest": 7.0, "passed": False}}
    events = [empty.events[number] for number in empty.schema.events_of(2)]
    write_shard(empty.folder, empty.schema, 2, events, check=lambda: found)
    facts = describe(empty.folder)
    assert facts.complete
    assert facts.checks == {"echo": {"shards": 1, "passed": 0}}
    assert facts.problems == ["shard 2 does not pass its check echo: " + str(found["echo"])]
    assert "check       echo: passed in 0 of 1 shards" in summary(facts)
    assert info(str(empty.folder)) == 1


@pytest.mark.parametrize(("shards", "code"), [([0, 1, 2], 0), ([0], 1)])
def test_the_verb_answers_in_words_and_in_json_and_by_its_exit_code(
    empty, finish, capsys, shards, code
):
    finish(empty, shards)
    assert info(str(empty.folder)) == code
    assert capsys.readouterr().out.startswith(f"{empty.folder}: ")
    assert info(str(empty.folder), json=True) == code
    facts = json.loads(capsys.readouterr().out)
    assert facts["complete"] is (code == 0)
    assert facts["finished_shards"] == len(shards)


def test_what_is_no_data_set_is_refused(tmp_path):
    with pytest.raises(InputError, match="no data set there"):
        describe(tmp_path)


def test_the_settings_of_a_waveform_model_are_named_one_by_one(filled):
    waveform = {"approximant": "IMRPhenomXPHM", "phenomx": {"precession_version": 320}}
    facts = replace(
        describe(filled.folder), provenance={"configuration": {"waveform": waveform}, "seed": 1}
    )
    assert "waveform    approximant IMRPhenomXPHM, phenomx.precession_version 320\n" in summary(
        facts
    )


def test_shards_that_were_accepted_with_other_bytes_are_told_in_one_line(empty, finish, capsys):
    finish(empty, [0, 2])
    assert "  accepted" not in summary(describe(empty.folder))
    events = [empty.events[number] for number in empty.schema.events_of(1)]
    other = {"strain/c/1/0/0": "0" * 64}
    write_shard(empty.folder, empty.schema, 1, events, approve=lambda m: replace(m, replaced=other))
    facts = describe(empty.folder)
    assert facts.complete
    assert facts.accepted_shards == [1]
    words = "1 shards have other bytes than were first written (`strainflow repair --accept`): 1"
    assert f"\n  accepted    {words}\n" in summary(facts)
    assert info(str(empty.folder), json=True) == 0
    assert json.loads(capsys.readouterr().out)["accepted_shards"] == [1]
