"""The verbs that look after a data set: exit codes, one sentence, and JSON that says the same."""

import json
import os

import pytest
from unreadable import on_a_bad_sector

import strainflow
from pipeline.config import DatasetConfig
from pipeline.description import describe_dataset
from pipeline.repair import mend_shard
from pipeline.shard_task import simulate_shard
from pipeline.simulate import Simulator
from storage.dataset import create_dataset, read_schema
from storage.manifest import read_manifests

FLAGS = ("--events=3", "--events_per_shard=2", "--noise=none", "--encoding=float16")
VERBS = ("verify", "repair", "info")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A complete data set of three events in two shards, made without Dask."""
    config = strainflow.read_config(DatasetConfig, "pipeline/recipes/et-bbh.yaml", *FLAGS)
    simulator = Simulator.from_config(config.simulation)
    folder = tmp_path_factory.mktemp("made") / "x.zarr"
    create_dataset(folder, describe_dataset(config, simulator), simulator.psd)
    for shard in range(2):
        simulate_shard(str(folder), shard)
    return folder


@pytest.fixture
def here(made, tmp_path, monkeypatch):
    """A copy of it, in the folder to work in."""
    for source in sorted(path for path in made.rglob("*") if path.is_file()):
        target = tmp_path / "x.zarr" / source.relative_to(made)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read_bytes())
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def call(here, capsys):
    """Call the front door; exit code, what it printed, and its complaint if it had one."""

    def call(*words):
        code = strainflow.main(words)
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        complaints = [line for line in said.err.splitlines() if line.startswith("strainflow ")]
        return code, said.out, complaints

    return call


@pytest.mark.parametrize("verb", VERBS)
def test_of_a_sound_set_the_answer_is_yes(call, verb):
    code, text, complaints = call(verb, "x.zarr")
    assert (code, complaints) == (strainflow.DONE, [])
    assert text.startswith("x.zarr: complete" if verb == "info" else "x.zarr: sound")
    code, text, complaints = call(verb, "x.zarr", "--json")
    assert (code, complaints) == (strainflow.DONE, [])
    assert json.loads(text)["data"] == "x.zarr"


@pytest.mark.parametrize("quick", [(), ("--quick",)])
def test_verify_names_what_is_damaged_as_text_and_as_json(call, here, quick):
    os.truncate(here / "x.zarr/optimal_snr/c/1/0", 3)
    (here / "x.zarr/notes").touch()
    code, text, complaints = call("verify", "x.zarr", *quick)
    assert (code, complaints) == (strainflow.ANSWER_IS_NO, [])
    assert text.startswith("x.zarr: DAMAGED OR INCOMPLETE\n")
    assert "\n  notes: does not belong to the data set\n" in text
    assert "\n  optimal_snr/c/1/0: has 3 bytes, 48 were written" in text
    assert "`strainflow repair x.zarr` mends" in text
    code, text, complaints = call("verify", "x.zarr", "--json", *quick)
    report = json.loads(text)
    assert (code, complaints, report["quick"]) == (strainflow.ANSWER_IS_NO, [], bool(quick))
    assert [(item["file"], item["shard"]) for item in report["findings"]] == [
        ("notes", None),
        ("optimal_snr/c/1/0", 1),
    ]
    assert (report["shards"], report["events"]) == (2, 3)


def test_only_verify_without_quick_sees_a_flipped_bit(call, here):
    with (here / "x.zarr/strain/c/0/0/0").open("r+b") as file:
        file.seek(500_000)
        file.write(b"\x55")
    assert call("info", "x.zarr")[0] == strainflow.DONE
    assert call("verify", "x.zarr", "--quick")[0] == strainflow.DONE
    code, text, _ = call("verify", "x.zarr")
    assert code == strainflow.ANSWER_IS_NO
    assert "strain/c/0/0/0: the strain of 1 events is damaged (shard 0, event 1)" in text


def test_repair_mends_and_says_what(call, here, made):
    (here / "x.zarr/zarr.json").unlink()
    (here / "x.zarr/parameters/c/0/0").unlink()
    code, text, complaints = call("repair", "x.zarr", "--cluster.workers=1")
    assert (code, complaints) == (strainflow.DONE, [])
    assert text.startswith("x.zarr: sound\n")
    assert "\n  restored: zarr.json\n" in text
    assert "\n  simulated again: shards 0\n" in text
    for path in made.rglob("*.json"):
        assert (here / "x.zarr" / path.relative_to(made)).read_bytes() == path.read_bytes()
    assert call("verify", "x.zarr")[0] == strainflow.DONE


@pytest.mark.parametrize("name", ["zarr.json", "strain/zarr.json", "psd/c/0/0"])
def test_repair_writes_metadata_anew_that_the_disk_cannot_read(call, here, made, monkeypatch, name):
    on_a_bad_sector(monkeypatch, here / "x.zarr" / name)
    code, text, complaints = call("verify", "x.zarr")
    assert (code, complaints) == (strainflow.ANSWER_IS_NO, [])
    assert f"\n  {name}: cannot be read (Input/output error)\n" in text
    code, text, complaints = call("repair", "x.zarr")
    assert (code, complaints) == (strainflow.DONE, [])
    assert f"restored: {name}" in text
    assert (here / "x.zarr" / name).read_bytes() == (made / name).read_bytes()
    assert call("verify", "x.zarr")[0] == strainflow.DONE


def test_a_manifest_that_the_disk_cannot_read_is_proved_by_the_files_and_written_anew(
    here, made, monkeypatch
):
    path = here / "x.zarr/manifest/000001.json"
    on_a_bad_sector(monkeypatch, path)
    assert mend_shard(str(here / "x.zarr"), accept=False, shard=1).refusal == ""
    assert path.read_bytes() == (made / "manifest/000001.json").read_bytes()


def test_recode_writes_what_was_asked_for_and_says_so(call, here):
    words = ("recode", "x.zarr", "--out=y.zarr", "--cluster.workers=1", "--max-snr-loss=1e-4")
    code, text, complaints = call(*words)
    assert (code, complaints) == (strainflow.DONE, [])
    assert text.startswith("y.zarr: complete, 3 of 3 events recoded in ")
    assert " kB an event" in text
    assert read_schema("y.zarr").encoding.name == "float16+blosc"
    assert call("verify", "y.zarr")[0] == call("info", "y.zarr")[0] == strainflow.DONE
    losses = [m.largest_snr_loss for m in read_manifests("y.zarr", read_schema("y.zarr")).values()]
    assert 0 < max(losses) <= 1e-4
    code, text, _ = call(*words, "--json")
    report = json.loads(text)
    assert (code, report["events"], report["simulated"]) == (strainflow.DONE, 3, 0)


def of_damage(here, name, content):
    (here / "x.zarr" / name).write_bytes(content)


@pytest.mark.parametrize(
    ("words", "code", "part", "spoil"),
    [
        (("verify", "nowhere"), 2, "nowhere: no data set there", None),
        (("repair", "nowhere"), 2, "nowhere: no data set there", None),
        (("recode", "nowhere", "--out=y"), 2, "nowhere: no data set there", None),
        (("verify", "."), 2, ".: no data set there", None),
        (("repair", "."), 2, ".: no data set there", None),
        (("verify",), 2, "data", None),
        (("recode", "x.zarr"), 2, "out", None),
        (("recode", "x.zarr", "--out=x.zarr"), 2, "is the source; give another place", None),
        (("recode", "x.zarr", "--out=y", "--encoding=int4"), 2, "got 'int4', known are", None),
        (("recode", "x.zarr", "--out=y", "--max-snr-loss=7"), 2, "max_snr_loss: got 7", None),
        (("recode", "x.zarr", "--out=y", "--max-snr-lost=7"), 2, "mean max_snr_loss", None),
        (("repair", "x.zarr", "--acept"), 2, "accept", None),
        (("verify", "x.zarr", "--cluster.kind=cloud"), 2, "cluster.kind: got 'cloud'", None),
        (("recode", "x.zarr", "--out=y"), 1, "manifest/000001.json", ("manifest/000001.json", b"")),
        (("recode", "x.zarr", "--out=y"), 1, "has 0 bytes", ("strain/c/0/0/0", b"")),
    ],
)
def test_what_cannot_be_done_is_one_sentence_and_nothing_is_written(
    call, here, words, code, part, spoil
):
    if spoil:
        of_damage(here, *spoil)
    before = {path: path.stat().st_mtime_ns for path in here.rglob("*")}
    returned, text, complaints = call(*words)
    assert (returned, text) == (code, "")
    (sentence,) = complaints
    assert sentence.startswith(f"strainflow {words[0]}: ")
    assert part in sentence
    assert {path: path.stat().st_mtime_ns for path in here.rglob("*")} == before


def test_info_tells_what_a_set_is_whose_metadata_were_altered_and_what_restores_them(call, here):
    of_damage(here, "zarr.json", b"")
    code, text, complaints = call("info", "x.zarr")
    assert (code, complaints) == (strainflow.ANSWER_IS_NO, [])
    assert text.startswith(
        "x.zarr: NOT COMPLETE\n  problem: x.zarr/zarr.json: is not as it was written; `strainflow "
        "repair x.zarr` restores it\n"
    )
    assert "3 of 3 in 2 of 2 shards" in text


@pytest.mark.parametrize("verb", ["verify", "repair"])
def test_metadata_that_are_lost_altogether_are_damage(call, here, verb):
    for name in ("zarr.json", "manifest/dataset.json"):
        of_damage(here, name, b"{}")
    code, text, (sentence,) = call(verb, "x.zarr")
    assert (code, text) == (strainflow.ANSWER_IS_NO, "")
    assert "run the same `strainflow simulate` again to restore them" in sentence


def test_a_set_that_is_not_finished_is_no_and_says_which_shards(call, here):
    (here / "x.zarr/manifest/000001.json").unlink()
    for words in (("verify", "x.zarr"), ("verify", "x.zarr", "--quick"), ("info", "x.zarr")):
        code, text, complaints = call(*words)
        assert (code, complaints) == (strainflow.ANSWER_IS_NO, [])
        assert "000001.json: is missing" in text or "1 of 2 shards are missing" in text


@pytest.mark.parametrize("verb", ["verify", "repair", "recode"])
def test_help_explains_each_flag(call, verb, capsys):
    with pytest.raises(SystemExit) as done:
        strainflow.main([verb, "--help"])
    assert done.value.code == strainflow.DONE
    text = " ".join(capsys.readouterr().out.split())
    for flag in {"verify": ["--quick"], "repair": ["--accept"], "recode": ["--max_snr_loss"]}[verb]:
        assert flag in text
    assert "--json" in text
