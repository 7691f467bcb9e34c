"""The command line: what is wrong is answered in one sentence, and nothing is written."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

import strainflow
from pipeline.config import DatasetConfig
from pipeline.description import describe_dataset
from pipeline.shard_task import simulate_shard
from pipeline.simulate import Simulator
from storage.dataset import create_dataset
from storage.errors import InputError

RECIPE = Path(strainflow.__file__).parents[1] / "pipeline/recipes/et-bbh.yaml"


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder to work in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def check_refused(code, expected, output, written):
    """Check what the front door did with something wrong; return its one sentence."""
    assert code == expected
    assert output.out == ""
    assert len(output.err.splitlines()) == 1, output.err
    assert "Traceback" not in output.err
    assert not written, f"something was written: {written}"
    return output.err.strip()


@pytest.fixture
def refusal(here, capfd):
    """Call the front door with something wrong; return its one sentence."""

    def call(*words, code=strainflow.WRONG_CALL):
        before = set(here.rglob("*"))
        returned = strainflow.main(words)
        return check_refused(returned, code, capfd.readouterr(), set(here.rglob("*")) - before)

    return call


@pytest.fixture(scope="session")
def two_shards(tmp_path_factory):
    """A complete data set of three events in two shards, made without Dask."""
    flags = ("--events=3", "--events_per_shard=2", "--noise=none", "--encoding=float16")
    config = strainflow.read_config(DatasetConfig, str(RECIPE), *flags)
    simulator = Simulator.from_config(config.simulation)
    folder = tmp_path_factory.mktemp("front-door") / "x.zarr"
    create_dataset(folder, describe_dataset(config, simulator), simulator.psd)
    for shard in range(2):
        simulate_shard(str(folder), shard)
    return folder


@pytest.fixture
def damageable(two_shards, here):
    """A copy of it, in the folder to work in."""
    folder = here / "x.zarr"
    for source in sorted(two_shards.rglob("*")):
        target = folder / source.relative_to(two_shards)
        if source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())
    return folder


def simulate(*flags, events=4):
    return ("simulate", "--config", str(RECIPE), "--out", "x.zarr", f"--events={events}", *flags)


def run(*words, cwd):
    """Run the command in a process of its own."""
    command = [sys.executable, "-m", "strainflow", *words]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("code", "out", "err", "written"),
    [
        (0, "", "sentence\n", ()),
        (1, "", "sentence\n", ()),
        (2, "text\n", "sentence\n", ()),
        (2, "", "two\nsentences\n", ()),
        (2, "", "", ()),
        (2, "", "Traceback (most recent call last):", ()),
        (2, "", "sentence\n", ("x.zarr",)),
    ],
)
def test_the_check_of_refusals_sees_each_fault(code, out, err, written):
    assert check_refused(2, 2, SimpleNamespace(out="", err="sentence\n"), ()) == "sentence"
    with pytest.raises(AssertionError):
        check_refused(code, 2, SimpleNamespace(out=out, err=err), written)


def _one_loud_event():
    """Refused only once Dask has started and the metadata are there."""
    return (
        "--events=1",
        "--encoding=int8",
        "--prior.luminosity_distance=50",
        "--network_snr.maximum=1e6",
        "--cluster.workers=1",
    )


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (("--unknown=3",), ["'unknown'", "no known key"]),
        (("--waveform.f_lowr=3",), ["'waveform.f_lowr'", "did you mean waveform.f_lower?"]),
        (("--events=abc",), ["events", "integer", "abc"]),
        (("--events=1.5",), ["events", "integer", "1.5"]),
        (("--events=0",), ["events: got 0, at least 1"]),
        (("--segment.duration=long",), ["segment.duration", "float", "long"]),
        (("--noise=loud",), ["noise", "gaussian", "none", "loud"]),
        (("--psd.quantity=power",), ["psd.quantity", "asd", "psd", "power"]),
        (("--prior.chirp_mass=Uniform(-25, 100)",), ["prior.chirp_mass", "-25 Msun"]),
        (("--prior.chirp_mass=__import__('os').system('touch pwned')",), ["prior.chirp_mass"]),
        (("--prior.ra=Uniform(0, 1 / 0)",), ["prior.ra", "division by zero"]),
        (("--waveform.f_lower=3",), ["ET-D is known from 5 Hz up, waveform.f_lower is 3 Hz"]),
        (("--psd.file=nowhere.txt",), ["psd.file: nowhere.txt cannot be read"]),
        (("--psd.name=ET-Z",), ["psd.name: got 'ET-Z', known are ET-D"]),
        (("--detectors=[E1,E9]",), ["detectors: got 'E9', known are", "E3"]),
        (("--waveform.approximant=Nope",), ["waveform.approximant: got 'Nope'"]),
        (("--waveform.approximant=SEOBNRv4",), ["SEOBNRv4 gives no signal", "tilts of 0"]),
        (("--encoding=int4",), ["encoding: got 'int4', known are float32, float16, int16, int8"]),
        (("--prior.geocent_time=5",), ["prior.geocent_time: 5", "1577491211 to 1577491219 s"]),
        (("--cluster.kind=cloud",), ["cluster.kind: got 'cloud', known are local"]),
        (("--network_snr={minimum: 9, maximum: 8}",), ["network_snr: minimum 9"]),
        (("--out=s4://bucket/x.zarr",), ["s4://bucket/x.zarr", "scheme s4:// is not known"]),
        (("--out=/proc/x.zarr",), ["/proc/x.zarr: No such file or directory"]),
        (("stray",), ["stray"]),
        *(
            (
                (f"--max-snr-loss={word}",),
                [f"max_snr_loss: got '{word}', a finite number was wanted"],
            )
            for word in ("nan", "inf", "-inf", "text", "")
        ),
        (("--max-snr-loss=-0.1",), ["max_snr_loss: got -0.1, the share"]),
        (("--max_snr_loss=.nan",), ["max_snr_loss: got nan, the share"]),
        (("--out=",), ["out: is empty", "give a path or a URL"]),
        (("--out=file://",), ["got 'file://'", "give a path or a URL"]),
    ],
)
def test_a_wrong_flag_is_named_in_one_sentence(refusal, flags, parts):
    sentence = refusal(*simulate(*flags))
    assert sentence.startswith("strainflow simulate: ")
    for part in parts:
        assert part in sentence


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (("seed: 0", "sed: 0"), ["'sed'", "did you mean seed?"]),
        (("f_lower: 10.0", "f_lowr: 10.0"), ["'waveform.f_lowr'", "waveform.f_lower?"]),
        (("events: 1000000", "events: many"), ["events", "integer", "many"]),
        (("f_ref: 20.0", "f_ref: [20.0]"), ["waveform", "f_ref"]),
        (("psi: Uniform(0, pi)", "psi: Uniform(0, 4)"), ["prior.psi", "reaches 4 rad"]),
        (("detectors: [E1, E2, E3]", "detectors: [E1, E2"), ["config"]),
    ],
)
def test_a_wrong_recipe_is_answered_in_one_sentence(refusal, here, change, parts):
    (here / "wrong.yaml").write_text(RECIPE.read_text().replace(*change))
    sentence = refusal("simulate", "--config", "wrong.yaml", "--out", "x.zarr")
    for part in parts:
        assert part in sentence


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "no keys and values"),
        (b"just text", "no keys and values"),
        (bytes(range(256)), "not text"),
        (b"events: {{{", "config"),
        (b"events: 4", "segment.start_time"),
        (b"events: 4\nsegment: {start_time: 9}", "prior.chirp_mass: is missing"),
    ],
)
def test_a_file_that_is_no_recipe_is_answered_in_one_sentence(refusal, here, content, part):
    (here / "wrong.yaml").write_bytes(content)
    assert part in refusal("simulate", "--config", "wrong.yaml", "--out", "x.zarr")


def test_a_recipe_that_is_not_there_is_named(refusal):
    assert "nowhere.yaml" in refusal("simulate", "--config=nowhere.yaml", "--out=x.zarr")
    assert "File does not exist" in refusal("simulate", "--config", "nowhere.yaml", "--out=x.zarr")


def test_a_psd_file_that_does_not_reach_f_lower_says_what_it_covers(refusal, here):
    (here / "psd.txt").write_text("15 1e-24\n5000 1e-24\n")
    sentence = refusal(*simulate("--psd.file=psd.txt"))
    assert "psd.txt covers 15 to 5000 Hz, the analysis band is 10 to 4095.94 Hz" in sentence


def test_an_output_folder_of_another_configuration_says_what_differs(refusal, damageable):
    flags = ("--events_per_shard=2", "--noise=none", "--encoding=float16")
    sentence = refusal(*simulate(*flags, "--seed=5", events=3))
    assert "holds a data set of another configuration" in sentence
    assert "seed" in sentence
    assert "0 there, 5 asked for" in sentence
    sentence = refusal(*simulate(*flags, "--prior.psi=Uniform(0, 1)", events=3))
    assert "prior.psi" in sentence


def test_an_output_folder_that_holds_other_things_is_left_alone(refusal, here):
    (here / "x.zarr").mkdir()
    (here / "x.zarr/thesis.tex").touch()
    assert "is not a data set but holds thesis.tex" in refusal(*simulate())
    (here / "file").touch()
    assert "file: is a file" in refusal(*simulate("--out=file"))


def test_an_output_folder_below_a_file_is_answered_in_one_sentence(refusal, here):
    (here / "file").touch()
    assert "Not a directory" in refusal(*simulate("--out=file/x.zarr"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_output_folder_without_permission_is_answered_in_one_sentence(refusal, here):
    (here / "locked").mkdir(mode=0o500)
    assert "Permission denied" in refusal(*simulate("--out=locked/x.zarr"))


def test_an_event_that_does_not_fit_is_named(here, capfd):
    words = ("simulate", f"--config={RECIPE}", "--out=x.zarr", *_one_loud_event())
    assert strainflow.main(words) == strainflow.WRONG_CALL
    errors = capfd.readouterr().err
    assert "Traceback" not in errors
    last = errors.splitlines()[-1]
    assert last.startswith("strainflow simulate: event 0: its peak of ")
    assert "does not fit the encoding int8" in last
    assert last.endswith(", or simulate with a lower maximum of network_snr")
    left = {str(path.relative_to(here / "x.zarr")) for path in here.rglob("*") if path.is_file()}
    assert {name for name in left if not name.endswith("zarr.json")} == {
        "psd/c/0/0",
        "manifest/dataset.json",
    }


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("frobnicate",), "'frobnicate' is no verb; known are plan, simulate, verify"),
        (("--frobnicate",), "'--frobnicate' is no verb"),
        (("bench",), "'bench' is no verb"),
        (("info",), "data"),
        (("info", "a", "b"), "b"),
        (("info", "nowhere.zarr"), "nowhere.zarr: no data set there"),
        (("info", "."), ".: no data set there"),
        (("info", ""), "data: is empty, as an unset variable of the shell is; give a path"),
        (("verify", ""), "data: is empty"),
        (("repair", ""), "data: is empty"),
        (("recode", "", "--out=x"), "data: is empty"),
        (("recode", "x", "--out="), "out: is empty"),
        (
            ("recode", "x", "--out=y", "--max-snr-loss=nan"),
            "max_snr_loss: got 'nan', a finite number",
        ),
        (("recode", "x", "--out=y", "--max-snr-loss=-1"), "max_snr_loss: got -1, the share"),
        (("bench", "read", ""), "data: is empty"),
        (("bench", "write", "--folder="), "folder: is empty"),
        (("diagnose", "", "--out=x"), "results: is empty"),
        (("reweight", ""), "results: is empty"),
        (("reweight", "x", "--data="), "data: is empty"),
        (("reweight", "nowhere"), "nowhere: no posterior files there"),
        (("simulate", "--config"), "--config"),
        (("simulate", "--out"), "--out"),
    ],
)
def test_a_wrong_call_is_answered_in_one_sentence(refusal, words, part):
    assert part in refusal(*words)


def test_info_of_a_complete_data_set_is_yes(damageable, capsys):
    assert strainflow.main(["info", "x.zarr"]) == strainflow.DONE
    text = capsys.readouterr().out
    assert "x.zarr: complete" in text
    assert "IMRPhenomXPHM" in text
    assert strainflow.main(["info", "x.zarr", "--json"]) == strainflow.DONE
    facts = json.loads(capsys.readouterr().out)
    assert (facts["events"], facts["complete"], facts["problems"]) == (3, True, [])


@pytest.mark.parametrize("name", ["strain/c/1/0/0", "parameters/c/1/0", "optimal_snr/c/1/0"])
def test_info_of_a_truncated_shard_is_no_and_names_the_file(damageable, capsys, name):
    os.truncate(damageable / name, 100)
    assert strainflow.main(["info", "x.zarr"]) == strainflow.ANSWER_IS_NO
    text = capsys.readouterr().out
    assert "NOT COMPLETE" in text
    assert f"x.zarr/{name}: has 100 bytes" in text
    assert "events 2 to 2" in text


def test_info_of_a_missing_shard_is_no(damageable, capsys):
    (damageable / "manifest/000001.json").unlink()
    assert strainflow.main(["info", "x.zarr", "--json"]) == strainflow.ANSWER_IS_NO
    facts = json.loads(capsys.readouterr().out)
    assert not facts["complete"]
    assert "1 of 2 shards" in facts["problems"][0]


NO_JSON_OF_OURS = (b"{", b"[]", b"3", b"\xff\xfe", b"")


@pytest.mark.parametrize("content", NO_JSON_OF_OURS)
def test_metadata_that_were_altered_are_damage_in_one_sentence(refusal, damageable, content):
    for name in ("zarr.json", "manifest/dataset.json"):
        (damageable / name).write_bytes(content)
    assert "zarr.json" in refusal("info", "x.zarr", code=strainflow.ANSWER_IS_NO)
    said = refusal("recode", "x.zarr", "--out=y.zarr", code=strainflow.ANSWER_IS_NO)
    assert "altered" in said


def test_metadata_that_lack_something_are_damage_in_one_sentence(refusal, damageable):
    content = b'{"attributes": {"strainflow": {"format_version": 1}}}'
    (damageable / "zarr.json").write_bytes(content)
    said = refusal("recode", "x.zarr", "--out=y.zarr", code=strainflow.ANSWER_IS_NO)
    assert "altered" in said
    assert said.endswith("`strainflow repair` restores them from their copy")


def test_a_set_whose_metadata_are_missing_is_damage_that_repair_mends_and_no_wrong_call(
    refusal, damageable
):
    (damageable / "zarr.json").unlink()
    said = refusal("recode", "x.zarr", "--out=y.zarr", code=strainflow.ANSWER_IS_NO)
    mend = "`strainflow repair x.zarr` restores it from its copy"
    assert said == f"strainflow recode: x.zarr/zarr.json: is missing; {mend}"


@pytest.mark.parametrize("content", [*NO_JSON_OF_OURS, b"{}"])
def test_info_of_a_damaged_manifest_is_no_and_names_it_and_tells_of_the_rest(
    damageable, capfd, content
):
    (damageable / "manifest/000001.json").write_bytes(content)
    assert strainflow.main(["info", "x.zarr"]) == strainflow.ANSWER_IS_NO
    said = capfd.readouterr()
    assert said.err == ""
    assert "problem: 1 of 2 manifests are damaged" in said.out
    assert "manifest/000001.json (the first: " in said.out
    assert "events      2 of 3 in 1 of 2 shards" in said.out


def test_a_data_set_that_is_there_is_not_simulated_again(damageable, capsys):
    flags = ("--events_per_shard=2", "--noise=none", "--encoding=float16")
    assert strainflow.main(simulate(*flags, events=3)) == strainflow.DONE
    assert capsys.readouterr().out == "x.zarr: complete, all 3 events were there\n"
    assert strainflow.main(simulate(*flags, "--json", events=3)) == strainflow.DONE
    report = json.loads(capsys.readouterr().out)
    assert (report["events"], report["simulated"]) == (3, 0)


def test_help_and_version_are_done(capsys):
    for words in ([], ["--help"], ["-h"], ["help"]):
        assert strainflow.main(words) == strainflow.DONE
        text = capsys.readouterr().out
        for verb in strainflow.VERBS:
            assert f"\n  {verb} " in text
    assert strainflow.main(["--version"]) == strainflow.DONE
    assert capsys.readouterr().out.startswith("strainflow 0.")


def test_the_help_of_simulate_explains_every_flag_with_its_unit(capsys):
    with pytest.raises(SystemExit) as done:
        strainflow.main(["simulate", "--help"])
    assert done.value.code == strainflow.DONE
    text = " ".join(capsys.readouterr().out.split())
    for part in ("--prior.chirp_mass", "--cluster.workers", "[Msun]", "[GPS s]", "--print_config"):
        assert part in text
    assert "Simulate a data set on Dask" in text
    assert "--json {" not in text  # a switch, not an option with a value


def test_print_config_prints_a_recipe_that_can_be_read_again(here, capsys):
    words = ["simulate", "--config", str(RECIPE), "--seed=5", "--print_config"]
    with pytest.raises(SystemExit) as done:
        strainflow.main(words)
    assert done.value.code == strainflow.DONE
    text = capsys.readouterr().out
    assert yaml.safe_load(text)["seed"] == 5
    (here / "again.yaml").write_text(text)
    with pytest.raises(SystemExit):
        strainflow.main(["simulate", "--config=again.yaml", "--print_config"])
    assert capsys.readouterr().out == text


@pytest.mark.parametrize("form", [["--config", "{}"], ["--config={}"]])
def test_an_installed_recipe_is_found_from_anywhere(here, capsys, form):
    words = [word.format("pipeline/recipes/et-bbh.yaml") for word in form]
    with pytest.raises(SystemExit) as done:
        strainflow.main(["simulate", *words, "--print_config"])
    assert done.value.code == strainflow.DONE
    assert "IMRPhenomXPHM" in capsys.readouterr().out


def test_a_recipe_of_the_same_name_here_comes_first(here, capsys):
    own = here / "pipeline/recipes/et-bbh.yaml"
    own.parent.mkdir(parents=True)
    own.write_text(RECIPE.read_text().replace("seed: 0", "seed: 99"))
    with pytest.raises(SystemExit):
        strainflow.main(["simulate", "--config=pipeline/recipes/et-bbh.yaml", "--print_config"])
    assert "seed: 99" in capsys.readouterr().out


def test_read_config_raises_one_sentence(here):
    with pytest.raises(InputError, match="'seeed' is no known key; did you mean seed"):
        strainflow.read_config(DatasetConfig, str(RECIPE), "--seeed=1")


def test_a_process_of_its_own_answers_in_one_sentence_too(here):
    done = run(*simulate("--seeed=3"), cwd=here)
    assert done.returncode == strainflow.WRONG_CALL
    assert done.stdout == ""
    assert done.stderr == ("strainflow simulate: 'seeed' is no known key; did you mean seed?\n")
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("verb", list(strainflow.VERBS))
def test_an_interrupted_verb_says_whether_it_goes_on(verb, capsys, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(strainflow, "call_of", interrupted)
    assert strainflow.main(verb.split()) == 130
    goes_on = verb in ("simulate", "repair", "recode", "cut", "train", "sample", "reweight")
    end = "what is finished stays, run it again to go on" if goes_on else "run it again from the"
    assert f"strainflow {verb}: interrupted; {end}" in capsys.readouterr().err


def stopped_by(*signals):
    """A verb to which signals come while it works."""

    def work(*_):
        def stopped():
            for number in signals:
                os.kill(os.getpid(), number)
            time.sleep(5)
            return strainflow.DONE

        return stopped

    return work


@pytest.mark.parametrize("verb", strainflow.SIGTERM_INTERRUPTS)
def test_sigterm_ends_a_verb_as_ctrl_c_does_but_for_the_code(verb, capsys, monkeypatch):
    monkeypatch.setattr(strainflow, "call_of", stopped_by(signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM)
    assert strainflow.main(verb.split()) == strainflow.TERMINATED == 143
    assert f"strainflow {verb}: interrupted; " in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_second_sigterm_does_not_end_what_the_first_began(capsys, monkeypatch):
    def work(*_):
        def stopped():
            try:
                stopped_by(signal.SIGTERM)()()
            finally:
                os.kill(os.getpid(), signal.SIGTERM)
                print("cleaned up")

        return stopped

    monkeypatch.setattr(strainflow, "call_of", work)
    assert strainflow.main(["simulate"]) == 143
    assert capsys.readouterr().out == "cleaned up\n"


def test_training_looks_after_sigterm_itself(monkeypatch):
    found = []
    answer = lambda *_: lambda: found.append(signal.getsignal(signal.SIGTERM)) or 0  # noqa: E731
    monkeypatch.setattr(strainflow, "call_of", answer)
    for verb in ("train", "simulate"):
        assert strainflow.main([verb]) == 0
    assert found[0] == signal.SIG_DFL != found[1]


def failing(error):
    """A verb that ends with an error."""

    def fail(*_):
        raise error

    return fail


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
@pytest.mark.parametrize(
    ("words", "place"),
    [
        (["simulate", "--events=8", "--out", "x.zarr"], "x.zarr"),
        (["recode", "y.zarr", "--out=x.zarr"], "x.zarr"),
        (["repair", "--accept", "x.zarr"], "x.zarr"),
        (["simulate"], "the disk"),
    ],
)
def test_a_full_disk_is_a_place_and_advice_and_no_number(capsys, monkeypatch, words, place, code):
    for name in (None, "x.zarr/strain/c/0/0/0"):
        error = OSError(code, os.strerror(code), name)
        monkeypatch.setattr(strainflow, "call_of", failing(error))
        assert strainflow.main(words) == strainflow.WRONG_CALL
        advice = "; make room, what is finished stays, run it again to go on"
        end = "" if code == errno.EROFS else advice
        said = f"strainflow {words[0]}: {name or place}: {os.strerror(code)}{end}\n"
        assert capsys.readouterr().err == said


def test_info_of_a_folder_that_may_not_be_read_names_the_folder(capsys, monkeypatch):
    def closed(path):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "is_file", closed)
    assert strainflow.main(["info", "x.zarr"]) == strainflow.WRONG_CALL
    assert capsys.readouterr().err == (
        "strainflow info: x.zarr: cannot be read (Permission denied); give yourself the right to "
        "read the folder\n"
    )
