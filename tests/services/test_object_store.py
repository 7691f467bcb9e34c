"""Data sets on a real S3 server: the bytes of a disk, whatever happens to the connection."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import s3fs
import xarray
from buckets import PATIENCE, call, download, fresh_client, refused, start, upload
from daemons import wait_until
from runs import ROOT, digests

from storage import EventStream, open_dataset

pytestmark = [pytest.mark.services, pytest.mark.usefixtures("s3_environment")]

EVENTS = 48
FLAGS = [
    f"--config={ROOT}/pipeline/recipes/et-bbh.yaml",
    f"--events={EVENTS}",
    "--events_per_shard=16",
    "--seed=5",
    "--cluster.workers=2",
]


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory):
    """Data sets of a run on this machine's disk, by encoding."""
    made = {}

    def make(encoding):
        if encoding not in made:
            folder = tmp_path_factory.mktemp("disk") / "events.zarr"
            code, _, errors = call("simulate", *FLAGS, f"--encoding={encoding}", f"--out={folder}")
            assert code == 0, errors
            made[encoding] = folder
        return made[encoding]

    return make


ENCODINGS = ["float32", "int16+blosc"]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_simulate_leaves_the_objects_that_a_disk_has_as_files(s3, on_disk, encoding, tmp_path):
    url = f"s3://{s3.bucket()}/some/where/events.zarr"
    code, said, errors = call("simulate", *FLAGS, f"--encoding={encoding}", f"--out={url}")
    assert code == 0, errors
    assert f"{url}: complete, {EVENTS} of {EVENTS} events simulated" in said
    assert digests(download(url, tmp_path / "copy.zarr")) == digests(on_disk(encoding))
    code, said, _ = call("simulate", *FLAGS, f"--encoding={encoding}", f"--out={url}", "--json")
    assert (code, json.loads(said)["simulated"]) == (0, 0)
    for words in (["info", url], ["verify", url], ["verify", url, "--quick"], ["repair", url]):
        code, said, errors = call(*words)
        assert code == 0, (words, said, errors)
        assert said.startswith(f"{url}: {'complete' if words[0] == 'info' else 'sound'}")


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_the_stream_and_xarray_read_it_from_there(s3, on_disk, encoding):
    folder = on_disk(encoding)
    url = upload(s3, folder)
    there, here = (EventStream(place, batch_size=7, seed=3) for place in (url, folder))
    batches = zip(there, here, strict=True)
    for count, (far, near) in enumerate(batches):
        assert np.array_equal(far.event, near.event)
        assert np.array_equal(far.strain, near.strain)
        assert np.array_equal(far.parameters, near.parameters)
        if count == 2:
            state = there.state_dict()
    resumed = EventStream(url, batch_size=7, seed=3)
    resumed.load_state_dict(state)
    rest = [batch.event.copy() for batch in resumed]
    assert sum(map(len, rest)) == EVENTS - 3 * 7
    local = open_dataset(folder).strain[[3, 40]].values
    assert np.array_equal(open_dataset(url).strain[[3, 40]].values, local)
    assert np.allclose(xarray.open_zarr(url).strain[[3, 40]].values, local)


def damage(url):
    """Flip a bit of an object, remove another and cut a third; return their paths."""
    files, root = s3fs.S3FileSystem(), url.removeprefix("s3://")
    content = bytearray(files.cat_file(f"{root}/strain/c/0/0/0"))
    content[len(content) // 2] ^= 1
    files.pipe_file(f"{root}/strain/c/0/0/0", bytes(content))
    files.rm_file(f"{root}/parameters/c/1/0")
    files.pipe_file(f"{root}/zarr.json", files.cat_file(f"{root}/zarr.json")[:-9])
    return ["strain/c/0/0/0", "parameters/c/1/0", "zarr.json"]


def test_damage_is_found_and_mended_byte_for_byte(s3, on_disk, tmp_path):
    url = upload(s3, on_disk("int16+blosc"))
    paths = damage(url)
    code, said, _ = call("verify", url, "--json")
    assert code == 1
    assert {finding["file"] for finding in json.loads(said)["findings"]} == set(paths)
    code, said, errors = call("repair", url, "--cluster.workers=2")
    assert code == 0, said + errors
    assert digests(download(url, tmp_path / "copy.zarr")) == digests(on_disk("int16+blosc"))


def test_recoding_reads_from_there_and_writes_there(s3, on_disk, tmp_path):
    source = upload(s3, on_disk("float32"))
    far = source.replace("events", "recoded")
    near = tmp_path / "recoded.zarr"
    for place in (far, near):
        words = ["recode", source, f"--out={place}", "--encoding=int16+blosc"]
        code, _, errors = call(*words, "--cluster.workers=2")
        assert code == 0, errors
    assert digests(near) == digests(on_disk("int16+blosc"))
    assert digests(download(far, tmp_path / "copy.zarr")) == digests(near)


def test_a_client_killed_in_the_middle_leaves_what_a_rerun_completes(s3, on_disk, tmp_path):
    url = f"s3://{s3.bucket()}/events.zarr"
    words = ["simulate", *FLAGS, "--encoding=float32", f"--out={url}"]
    first = start(*words)
    files = fresh_client()
    wait_until(lambda: files.glob(f"{url}/manifest/0*.json"), "a shard", PATIENCE)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    code, _, errors = call(*words)
    assert code == 0, errors
    assert digests(download(url, tmp_path / "copy.zarr")) == digests(on_disk("float32"))


def test_a_second_run_is_refused_with_the_firsts_host_and_process(s3):
    url = f"s3://{s3.bucket()}/events.zarr"
    words = ["simulate", *FLAGS, "--events=512", f"--out={url}"]
    first = start(*words)
    try:
        files = fresh_client()
        wait_until(lambda: files.exists(f"{url}/zarr.json"), "a data set", PATIENCE)
        for verb in (words, ["repair", url]):
            line = refused(*verb)
            assert f"process {first.pid} on {os.uname().nodename} is writing there" in line
    finally:
        first.send_signal(signal.SIGINT)
        first.communicate(timeout=PATIENCE)
    assert first.returncode == 130


def test_connections_that_are_cut_are_made_again(s3, proxy, on_disk, tmp_path):
    folder = on_disk("float32")
    url = upload(s3, folder)
    proxy.cut(after=300_000, times=3)
    batches = EventStream(url, batch_size=16, seed=3)
    seen = {
        int(number): row.copy()
        for b in batches
        for number, row in zip(b.event, b.strain, strict=True)
    }
    codes = open_dataset(folder).strain.values
    assert all(np.array_equal(seen[number], codes[number]) for number in range(EVENTS))
    assert proxy.cuts >= 3
    before = proxy.cuts
    proxy.cut(after=1_000_000, times=2)
    code, said, errors = call("verify", url)
    assert code == 0, said + errors
    proxy.cut(after=2_000, times=3)
    out = url.replace("events", "again")
    code, _, errors = call("simulate", *FLAGS, "--encoding=float32", f"--out={out}")
    assert code == 0, errors
    assert proxy.cuts > before
    assert digests(download(out, tmp_path / "copy.zarr")) == digests(folder)


def test_ranges_are_fetched_over_several_connections_at_once(s3, proxy, on_disk):
    url = upload(s3, on_disk("float32"))
    s3fs.S3FileSystem.clear_instance_cache()
    before = proxy.connections
    for _ in EventStream(url, batch_size=EVENTS // 2, seed=3):
        pass
    assert proxy.connections - before >= 4


@pytest.mark.parametrize("fault", ["refuse", "silence"])
def test_a_server_that_is_gone_ends_the_run_with_one_sentence(s3, proxy, on_disk, fault):
    url = upload(s3, on_disk("int16+blosc"))
    getattr(proxy, fault)()
    begin = time.monotonic()
    code, _, errors = call("info", url)
    assert code == 2
    assert "no answer after" in errors.strip().splitlines()[-1]
    assert len(errors.strip().splitlines()) == 1
    assert time.monotonic() - begin < 150


def test_a_server_that_goes_in_mid_run_ends_it_with_one_sentence_and_what_is_there_stays(
    s3, proxy, on_disk, tmp_path
):
    url = f"s3://{s3.bucket()}/events.zarr"
    words = ["simulate", *FLAGS, "--encoding=float32", f"--out={url}"]
    process = start(*words)
    direct = fresh_client(endpoint_url=s3.endpoint)
    wait_until(lambda: direct.glob(f"{url}/manifest/0*.json"), "a shard", PATIENCE)
    proxy.refuse()
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2, errors
    assert "Traceback" not in errors
    assert "no answer after" in errors.strip().splitlines()[-1]
    proxy.accept()
    code, _, errors = call(*words)
    assert code == 0, errors
    assert digests(download(url, tmp_path / "copy.zarr")) == digests(on_disk("float32"))


WITHOUT_S3FS = """
import sys
sys.modules["s3fs"] = None
import strainflow
sys.exit(strainflow.main(["info", "s3://bucket/events.zarr"]))
"""


def test_what_the_user_gets_wrong_is_one_sentence_and_exit_code_2(s3, monkeypatch):
    bucket = s3.bucket()
    cases = {
        f"s3://{bucket}/nothing.zarr": "no data set there",
        "s3://no-such-bucket-here/events.zarr": "there is no such bucket",
        "floppy://a/events.zarr": "the scheme floppy:// is not known",
        f"s3://key:word@{bucket}/events.zarr": "the URL holds a secret",
    }
    for url, words in cases.items():
        code, _, errors = call("info", url)
        assert code == 2, url
        (line,) = errors.strip().splitlines()
        assert words in line
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    for verb in (["info"], ["verify"], ["repair"]):
        code, _, errors = call(*verb, f"s3://{bucket}/events.zarr")
        (line,) = errors.strip().splitlines()
        assert (code, "access is refused" in line) == (2, True), line
    code, _, errors = call("simulate", *FLAGS, f"--out=s3://{bucket}/events.zarr")
    assert (code, "access is refused" in errors) == (2, True)
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    code, _, errors = call("info", f"s3://{bucket}/events.zarr")
    (line,) = errors.strip().splitlines()
    assert (code, "access is refused" in line) == (2, True), line
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_S3FS],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "install strainflow[s3]" in done.stderr


def test_credentials_enter_no_file_of_ours(s3, tmp_path):
    url = f"s3://{s3.bucket()}/events.zarr"
    assert call("simulate", *FLAGS, f"--out={url}")[0] == 0
    assert call("recode", url, "--out=near.zarr", "--encoding=float32")[0] == 0
    assert call("verify", url)[0] == 0
    download(url, tmp_path / "copy.zarr")
    written = [path for path in Path(tmp_path).rglob("*") if path.is_file()]
    assert any(path.name == "shards.jsonl" for path in written)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        word = os.environ[name].encode()
        assert not [path for path in written if word in path.read_bytes()]
