"""The same events in another encoding: as simulate writes them, or with a certified loss."""

import hashlib
import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import storage
import strainflow
from pipeline.cluster import ClusterConfig
from pipeline.description import describe_dataset
from pipeline.recode import RecodeConfig, recode_dataset
from pipeline.repair import repair_dataset
from pipeline.run import simulate_dataset
from pipeline.shard_task import simulate_shard
from pipeline.simulate import Simulator
from pipeline.verify import verify_dataset
from storage.dataset import create_dataset, read_schema
from storage.documents import canonical_json
from storage.errors import DamagedDataError, InputError
from storage.info import describe, summary, words_on_sources
from storage.manifest import finished_shards, read_manifests
from storage.schema import Source, shard_files
from storage.writer import write_shard

EVENTS, PER_SHARD = 12, 8
NOISE_FREE = "--noise=none"
GOLDEN = Path(__file__).parents[1] / "golden"


def slow(*values):
    """Values of parameters with which a test is a slow one."""
    return pytest.param(*values, marks=pytest.mark.slow)


def digests(folder):
    """SHA-256 of every file of a folder, by its path."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def flip(path, offset, bit=0):
    """Turn one bit around."""
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1 << bit]))


def loss_of_noisy(exact, stored):
    """The error acts as more noise: sigma grows from 1 to sqrt(1 + e^2)."""
    error = stored.astype(np.float64) - exact
    return 1 - 1 / np.sqrt(1 + (error**2).mean())


def loss_of_signal(exact, stored):
    """What a matched filter with the stored signal misses of the exact one."""
    exact, stored = exact.astype(np.float64).ravel(), stored.astype(np.float64).ravel()
    return 1 - exact @ stored / np.sqrt((exact @ exact) * (stored @ stored))


def largest_loss(loss, source, target):
    """Of all events of a data set, against those of another."""
    strain = [storage.open_dataset(folder).strain.values for folder in (source, target)]
    return max(loss(one, other) for one, other in zip(*strain, strict=True))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def simulate(et_bbh, running_cluster, folders):
    """Simulate a data set with some flags, once."""

    def simulate(*flags):
        if flags not in done:
            folder = folders / f"{len(done)}.zarr"
            sizes = (f"--events={EVENTS}", f"--events_per_shard={PER_SHARD}", "--seed=3")
            config = et_bbh(*sizes, *flags)
            simulate_dataset(replace(config, cluster=running_cluster), folder)
            done[flags] = folder
        return done[flags]

    done = {}
    return simulate


@pytest.fixture
def recode(running_cluster, tmp_path):
    """Recode a data set."""

    def recode(source, name="recoded.zarr", **into):
        config = RecodeConfig(cluster=running_cluster, **into)
        report = recode_dataset(config, source, tmp_path / name)
        return tmp_path / name, report

    return recode


@pytest.fixture
def command(running_cluster, capsys):
    """Call `strainflow recode`; its exit code, and what it printed."""

    def command(source, out, *flags):
        where = ("--cluster.kind=address", f"--cluster.address={running_cluster.address}")
        code = strainflow.main(["recode", str(source), "--out", str(out), *where, *flags])
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return code, said.out, said.err.splitlines()[-1]

    return command


# From float32


@pytest.mark.parametrize("noise", ["--noise=gaussian", slow(NOISE_FREE)])
@pytest.mark.parametrize(
    "into",
    [
        {},
        {"encoding": "float16+blosc", "max_snr_loss": 1e-6},
        slow({"max_snr_loss": 1e-2}),
        slow({"encoding": "int16"}),
        slow({"encoding": "float32+blosc"}),
        slow({"encoding": "float32"}),
    ],
    ids=str,
)
def test_from_float32_the_files_are_those_that_simulate_writes(simulate, recode, noise, into):
    source = simulate("--encoding=float32", noise)
    encoding = into.get("encoding", "null")
    loss = into.get("max_snr_loss", "null")
    wanted = simulate(f"--encoding={encoding}", f"--max_snr_loss={loss}", noise)
    folder, report = recode(source, **into)
    assert report.simulated == EVENTS
    assert digests(folder) == digests(wanted)


def test_the_comparison_sees_another_loss_that_is_promised(simulate, recode):
    source = simulate("--encoding=float32", "--noise=gaussian")
    folder, _ = recode(source, max_snr_loss=1e-3)
    other, _ = recode(source, "other.zarr", max_snr_loss=2e-3)
    assert len(set(digests(folder).items()) ^ set(digests(other).items())) > 8


def test_float32_that_was_compressed_has_lost_nothing_either(simulate, recode):
    source = simulate("--encoding=float32+blosc", "--max_snr_loss=null", "--noise=gaussian")
    folder, _ = recode(source, encoding="int16")
    wanted = simulate("--encoding=int16", "--max_snr_loss=null", "--noise=gaussian")
    assert digests(folder) == digests(wanted)


# From what has lost something


@pytest.fixture
def of_int16(simulate):
    return simulate("--encoding=int16", "--max_snr_loss=null", "--noise=gaussian")


def certified_losses(folder):
    manifests = read_manifests(folder, read_schema(folder)).values()
    return max((item.largest_snr_loss, item.worst_event) for item in manifests)


def test_the_loss_is_certified_against_the_source(of_int16, recode):
    folder, _ = recode(of_int16, max_snr_loss=1e-3)
    largest, worst = certified_losses(folder)
    assert largest == pytest.approx(largest_loss(loss_of_noisy, of_int16, folder), rel=1e-5)
    assert 5e-4 < largest <= 1e-3
    one, other = (storage.open_dataset(at).strain[worst].values for at in (of_int16, folder))
    assert loss_of_noisy(one, other) == pytest.approx(largest, rel=1e-5)
    earlier = [(item.type, item.scale_factor) for item in read_schema(folder).encodings_before]
    assert earlier == [("int16", 1 / 64)]


@pytest.mark.parametrize("loss", [1e-6, 1e-3, slow(1.9e-3), 2.7e-3])
def test_any_promise_is_kept_for_what_has_a_step_already(simulate, recode, loss):
    """To twice the step of int8 it would lose 3.9e-3, and numbers without a step 2.6e-3."""
    source = simulate("--encoding=int8", "--max_snr_loss=null", "--noise=gaussian")
    folder, _ = recode(source, max_snr_loss=loss)
    assert certified_losses(folder)[0] <= loss
    encoding = read_schema(folder).encoding
    assert encoding.max_snr_loss == loss
    if loss < 2e-3:  # the source's own step, of which nothing is lost
        assert (encoding.name, encoding.scale_factor) == ("int8+blosc", 1 / 8)
        assert certified_losses(folder)[0] == 0


def test_the_loss_of_a_signal_is_its_overlap(simulate, recode):
    source = simulate("--encoding=float16", "--max_snr_loss=null", NOISE_FREE)
    folder, _ = recode(source, max_snr_loss=1e-4)
    largest, _ = certified_losses(folder)
    assert largest == pytest.approx(largest_loss(loss_of_signal, source, folder), rel=1e-3)
    assert 1e-5 < largest <= 1e-4


def test_the_losses_see_an_error_of_their_size():
    exact = np.random.default_rng(1).standard_normal((3, 65_536))
    error = np.random.default_rng(2).standard_normal(exact.shape)
    assert loss_of_noisy(exact, exact) == loss_of_signal(exact, exact) == pytest.approx(0)
    for size in (0.01, 0.1):
        assert loss_of_noisy(exact, exact + size * error) == pytest.approx(size**2 / 2, rel=0.02)
        assert loss_of_signal(exact, exact + size * error) == pytest.approx(size**2 / 2, rel=0.02)
        assert loss_of_signal(exact, (1 + size) * exact) == pytest.approx(0, abs=1e-12)


CHAINS = [
    ["int16", "float16", "int8+blosc"],
    slow(["int16", "int8+blosc"]),
    slow(["int8", "float32", "int16"]),
]


@pytest.mark.parametrize("chain", CHAINS, ids=str)
def test_a_shard_of_what_was_recoded_is_repaired_bit_for_bit(
    simulate, recode, running_cluster, chain
):
    source = simulate(f"--encoding={chain[0]}", "--max_snr_loss=null", "--noise=gaussian")
    for step, encoding in enumerate(chain[1:]):
        folder, _ = recode(source, f"{step}.zarr", encoding=encoding)
        source = folder
    assert [item.name for item in read_schema(folder).encodings_before] == [
        encoding
        for encoding in chain[:-1]
        if encoding != "float32"  # which loses nothing
    ]
    expected = digests(folder)
    flip(folder / "strain/c/0/0/0", 30_000)
    (folder / "parameters/c/1/0").unlink()
    (folder / "manifest/000001.json").unlink()
    report = repair_dataset(folder, running_cluster, accept=False)
    assert (report.shards, report.refused, report.remaining) == ([0, 1], {}, [])
    assert digests(folder) == expected
    assert verify_dataset(folder, running_cluster).findings == []


def test_what_the_sources_of_a_set_have_lost_is_recorded_and_told(recode, command, tmp_path):
    source = GOLDEN / "int16+blosc"
    middle, report = recode(source, "middle.zarr", encoding="int8+blosc")
    first, second = certified_losses(source)[0], certified_losses(middle)[0]
    assert report.largest_snr_loss == second != first > 0
    assert report.recoded_from == [Source("int16+blosc", first)]
    code, said, _ = command(middle, tmp_path / "x.zarr", "--encoding=float32")
    assert code == strainflow.DONE
    words = (
        f"recoded from int8+blosc (loss at most {second:.2g}), "
        f"itself from int16+blosc (loss at most {first:.2g})"
    )
    last = f"x.zarr: float32, largest SNR loss 0 against its source, {words}"
    assert said.splitlines()[-1].endswith(last)
    facts = describe(tmp_path / "x.zarr")
    assert facts.recoded_from == [Source("int8+blosc", second), Source("int16+blosc", first)]
    assert f"largest SNR loss 0, against its source\n  source      {words}\n" in summary(facts)
    code, said, _ = command(GOLDEN / "float32", tmp_path / "y.zarr", "--encoding=int8")
    assert said.splitlines()[-1].endswith("against its source, which had lost nothing")
    assert "\n  source" not in summary(describe(tmp_path / "y.zarr"))


def test_a_set_that_was_recoded_before_losses_were_recorded_says_that(recode):
    folder, _ = recode(GOLDEN / "int8", encoding="int16")
    schema = read_schema(folder)
    provenance = json.loads(json.dumps(dict(schema.provenance)))
    del provenance["recoded_from"]["largest_snr_loss"]
    old = replace(schema, provenance=provenance)
    assert words_on_sources(old.sources) == "recoded from int8 (loss not recorded)"


def test_a_source_whose_manifest_was_altered_tells_no_loss(recode, tmp_path):
    source = Path(shutil.copytree(GOLDEN / "int8", tmp_path / "source.zarr"))
    path = source / "manifest/000001.json"
    path.write_bytes(re.sub(rb'("largest_snr_loss": 0.0)', rb"\g<1>0", path.read_bytes()))
    with pytest.raises(DamagedDataError, match="000001.json: is not as it was written"):
        recode(source, encoding="int16")
    assert not (tmp_path / "recoded.zarr").exists()


@pytest.mark.parametrize(
    ("noise", "first", "chain"),
    [
        (NOISE_FREE, "--encoding=float16", [{}]),
        (NOISE_FREE, "--max_snr_loss=1e-2", [{"encoding": "float32"}, {"encoding": "float16"}]),
        slow(NOISE_FREE, "--encoding=int8", [{"encoding": "float32"}]),
        ("--noise=gaussian", "--max_snr_loss=3e-2", [{"encoding": "float32"}]),
        slow("--noise=gaussian", "--max_snr_loss=3e-2", [{"max_snr_loss": 3e-2}, {}]),
    ],
    ids=str,
)
def test_what_was_lost_on_the_way_is_no_fault_of_the_null_stream(
    simulate, recode, noise, first, chain
):
    source = simulate("--encoding=null", first, noise)
    for step, into in enumerate(chain):
        source, report = recode(source, f"{step}.zarr", **into)
        assert (report.simulated, report.failed_checks) == (EVENTS, 0)
        manifests = read_manifests(source, read_schema(source)).values()
        assert all(item.checks["null_stream"]["passed"] for item in manifests)


# Again, and what cannot be done


def test_a_rerun_recodes_only_what_is_missing(of_int16, recode):
    folder, _ = recode(of_int16, encoding="int8")
    expected = digests(folder)
    written = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    assert recode(of_int16, encoding="int8")[1].simulated == 0
    (folder / "manifest/000001.json").unlink()
    (folder / "strain/c/1/0/0.0123456789ab.partial").touch()
    assert recode(of_int16, encoding="int8")[1].simulated == EVENTS - PER_SHARD
    assert digests(folder) == expected
    again = {path for path, time in written.items() if path.stat().st_mtime_ns != time}
    assert again == {folder / name for name in (*shard_files(1).values(), "manifest/000001.json")}


def test_verify_of_a_recoded_set_that_is_not_finished_names_recode(recode):
    folder, _ = recode(GOLDEN / "int8", encoding="int16")
    (folder / "manifest/000001.json").unlink()
    report = verify_dataset(folder, ClusterConfig())
    assert "put those back from a copy" in report.advice[0]  # of golden sets nobody knows more
    rewrite = json.loads((folder / "zarr.json").read_text())
    ours = rewrite["attributes"]["strainflow"]
    ours |= {"detectors": [], "versions": {}}
    for path in folder.glob("manifest/0*.json"):
        path.unlink()
    for name in ("zarr.json", "manifest/dataset.json"):
        (folder / name).write_bytes(canonical_json(rewrite))
    report = verify_dataset(folder, ClusterConfig())
    again = "the same `strainflow recode` again writes what is missing"
    assert report.advice == (f"`strainflow repair {folder}` mends shards and metadata; {again}",)


def test_another_encoding_in_the_same_place_is_refused(of_int16, recode):
    folder, _ = recode(of_int16, encoding="int8")
    before = digests(folder)
    with pytest.raises(InputError, match="another configuration"):
        recode(of_int16, encoding="float16")
    for out in (folder, folder / "strain" / "y.zarr"):
        with pytest.raises(InputError, match="(is|lies in) the source"):
            recode_dataset(RecodeConfig(encoding="int8"), folder, out)
    assert digests(folder) == before


def test_a_broken_bound_stops_with_the_number_of_an_event_and_no_manifest(
    of_int16, command, tmp_path
):
    out = tmp_path / "x.zarr"
    code, said, last = command(of_int16, out, "--encoding=int8", "--max-snr-loss=6e-4")
    assert (code, said) == (strainflow.WRONG_CALL, "")
    assert last.startswith("strainflow recode: event ")
    assert int(last.split()[3].rstrip(":")) in (0, PER_SHARD)  # the first of a shard
    assert re.search("the encoding int8 takes 0.0006[5-7] of its SNR, 0.0006 was promised", last)
    assert finished_shards(out, read_schema(out)) == []
    assert not [name for name in digests(out) if "/c/" in name and "psd" not in name]


def test_a_bound_is_given_with_dashes_as_with_underscores(of_int16, command, tmp_path):
    for name, flags in {
        "a": ("--max-snr-loss", "2e-3", "--json"),
        "b": ("--max-snr-loss=2e-3", "--json"),
        "c": ("--max_snr_loss=2e-3", "--json"),
    }.items():
        code, said, _ = command(of_int16, tmp_path / name, *flags)
        assert code == strainflow.DONE
        assert json.loads(said)["simulated"] == EVENTS
        assert read_schema(tmp_path / name).encoding.max_snr_loss == 2e-3
    assert digests(tmp_path / "a") == digests(tmp_path / "b") == digests(tmp_path / "c")


@pytest.mark.parametrize("flag", ["--max-snr-loss=1", "--max-snr-loss=-1e-3", "--encoding=int4"])
def test_what_is_impossible_is_one_sentence(of_int16, command, tmp_path, flag):
    code, said, last = command(of_int16, tmp_path / "x.zarr", flag)
    assert (code, said) == (strainflow.WRONG_CALL, "")
    assert last.startswith("strainflow recode: ")
    assert not (tmp_path / "x.zarr").exists()


DAMAGES = {
    "strain": lambda at: flip(at / "strain/c/1/0/0", 300_000),
    "parameters": lambda at: flip(at / "parameters/c/1/0", 100),
    "optimal_snr": lambda at: flip(at / "optimal_snr/c/1/0", 20),
    "manifest": lambda at: flip(at / "manifest/000001.json", 20),
    "a manifest's white space": lambda at: (at / "manifest/000001.json").write_bytes(
        (at / "manifest/000001.json").read_bytes() + b"\n"
    ),
    "length": lambda at: os.truncate(at / "strain/c/1/0/0", 300_000),
    "a lost shard": lambda at: (at / "manifest/000001.json").unlink(),
}


@pytest.mark.parametrize("encoding", ["int16", slow("int16+blosc")])
@pytest.mark.parametrize("damage", DAMAGES)
def test_no_damage_of_a_source_finds_its_way_into_what_is_made_of_it(
    simulate, command, tmp_path, damage, encoding
):
    sound = simulate(f"--encoding={encoding}", "--max_snr_loss=null", "--noise=gaussian")
    source = Path(shutil.copytree(sound, tmp_path / "source.zarr"))
    DAMAGES[damage](source)
    code, said, last = command(source, tmp_path / "x.zarr", "--encoding=int8")
    assert (code, said) == (strainflow.ANSWER_IS_NO, "")
    assert "source.zarr" in last
    assert not list(tmp_path.glob("x.zarr/manifest/000001*"))


def test_a_source_that_is_none_is_refused(recode, tmp_path):
    with pytest.raises(InputError, match="no data set there"):
        recode(tmp_path / "nowhere.zarr", encoding="int8")
    assert not (tmp_path / "recoded.zarr").exists()


def test_a_shard_of_another_data_set_is_no_source(simulate, recode, et_bbh, running_cluster):
    sound = simulate("--encoding=int16", "--max_snr_loss=null", "--noise=gaussian")
    folder, _ = recode(sound, "a.zarr", encoding="float32")
    other, _ = recode(sound, "b.zarr", encoding="float32", max_snr_loss=1e-3)
    for name in (*shard_files(1).values(), "manifest/000001.json"):
        shutil.copy(other / name, folder / name)
    with pytest.raises(DamagedDataError, match="000001.json: is of another data set"):
        recode(folder, "c.zarr", encoding="int8")


# Of other writers, who need not say where the data come from


def test_a_set_that_does_not_say_how_it_was_simulated_is_recoded_into_a_named_encoding(
    recode, command, tmp_path
):
    out, report = recode(GOLDEN / "float32", encoding="float32+blosc")
    assert report.simulated == report.events
    assert np.array_equal(strain_of(out), strain_of(GOLDEN / "float32"))
    code, _, last = command(GOLDEN / "float32", tmp_path / "x.zarr")
    assert code == strainflow.WRONG_CALL
    assert "do not say how it was simulated (no 'detectors')" in last
    assert last.endswith("name an --encoding")


def test_a_source_in_int8_is_recoded_by_promise_without_a_prediction_of_peaks(recode):
    """It says nothing of its making; what int8 holds, int8 with a step that is no finer holds."""
    source = read_schema(GOLDEN / "int8").encoding
    for loss in (1e-7, 5e-3):
        out, report = recode(GOLDEN / "int8", f"{loss}.zarr", max_snr_loss=loss)
        assert report.simulated == report.events
        into = read_schema(out).encoding
        assert (into.name, into.max_snr_loss) == ("int8+blosc", loss)
        assert into.scale_factor >= source.scale_factor
        assert certified_losses(out)[0] <= loss


def test_a_source_that_other_libraries_made_is_recoded_by_promise(et_bbh, recode, tmp_path):
    """Whose peaks are predicted here; no event of it is simulated again."""
    config = et_bbh("--events=4", "--encoding=int16", "--noise=gaussian")
    simulator = Simulator.from_config(config.simulation)
    made = describe_dataset(config, simulator)
    versions = {**made.provenance["versions"], "lalsuite": "0.0.1"}
    schema = replace(made, provenance={**made.provenance, "versions": versions})
    folder = tmp_path / "source.zarr"
    create_dataset(folder, schema, simulator.psd)
    for shard in range(schema.shards):
        write_shard(folder, schema, shard, simulator.events(schema.events_of(shard)))
    with pytest.raises(InputError, match=r"is made with lalsuite 0.0.1"):
        simulate_shard(str(folder), 0)
    out, report = recode(folder, max_snr_loss=1e-3)
    assert report.simulated == report.events
    assert certified_losses(out)[0] <= 1e-3
    assert read_schema(out).provenance["versions"] == versions


def strain_of(folder):
    return storage.open_dataset(folder).strain.values
