"""Shards so large that they are uploaded in parts, and what becomes of them when something dies."""

import hashlib
import os
import signal
import socket
import time
from threading import Timer

import numpy as np
import psutil
import pytest
import s3fs
import zarr
from buckets import PATIENCE, call, fresh_client, refused, start, upload, uploads
from daemons import wait_until
from runs import ROOT, digests

from storage.dataset import read_parameters
from storage.errors import InputError
from storage.uploads import PART
from storage.urls import store_of

pytestmark = [pytest.mark.services, pytest.mark.usefixtures("s3_environment")]

MIB = 2**20
EVENTS, EVENTS_PER_SHARD = 130, 64  # 50 MB a shard, the last one small
FLAGS = [
    f"--config={ROOT}/pipeline/recipes/et-bbh.yaml",
    f"--events={EVENTS}",
    f"--events_per_shard={EVENTS_PER_SHARD}",
    "--encoding=float32",
    "--seed=6",
    "--cluster.workers=2",
]


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory):
    """The data set on this machine's disk."""
    folder = tmp_path_factory.mktemp("disk") / "events.zarr"
    code, _, errors = call("simulate", *FLAGS, f"--out={folder}")
    assert code == 0, errors
    return folder


@pytest.fixture
def url(s3):
    """A place where nothing is yet."""
    return f"s3://{s3.bucket()}/events.zarr"


@pytest.fixture
def run(url):
    """A run that writes there, begun to upload the parts of a shard; ended after the test."""
    for _ in range(5):  # it may be through before anybody has looked, where a look takes long
        process = start("simulate", *FLAGS, f"--out={url}")
        wait_until(lambda p=process: uploads(url) or p.poll() is not None, "upload", PATIENCE, 0.02)
        if process.poll() is None:
            break
        assert process.returncode == 0, process.communicate()
        process.communicate()
        fresh_client().rm(url, recursive=True)
    assert process.poll() is None, process.communicate()
    yield process
    process.kill()
    process.communicate()


def objects(url):
    """SHA-256 of every object of a data set, by its path."""
    client, root = fresh_client(), url.removeprefix("s3://")
    return {
        name.removeprefix(f"{root}/"): hashlib.sha256(client.cat_file(name)).hexdigest()
        for name in client.find(root)
    }


def written(url):
    """When each object was written, by its path."""
    return {
        name: facts["LastModified"] for name, facts in fresh_client().find(url, detail=True).items()
    }


def test_a_large_shard_goes_up_in_parts_and_nothing_else_is_in_the_bucket(url, on_disk):
    code, _, errors = call("simulate", *FLAGS, f"--out={url}")
    assert code == 0, errors
    bucket = url.removeprefix("s3://").partition("/")[0]
    names = fresh_client().find(bucket)
    assert objects(url) == digests(on_disk)
    assert len(names) == len(digests(on_disk))  # the lease is gone
    facts = fresh_client().info(f"{url}/strain/c/0/0/0")
    assert facts["ETag"].strip('"').endswith("-3")
    assert facts["size"] > 3 * PART
    assert uploads(url) == []


def test_a_rerun_does_only_what_is_missing(s3, on_disk):
    url = upload(s3, on_disk)
    fresh_client().rm_file(f"{url}/manifest/000001.json")
    before = written(url)
    code, said, errors = call("simulate", *FLAGS, f"--out={url}")
    assert code == 0, errors
    assert f"{EVENTS_PER_SHARD} of {EVENTS} events simulated" in said
    after = written(url)
    touched = {name for name in after if after[name] != before.get(name)}
    assert {name.removeprefix(url[5:] + "/") for name in touched} == {
        "strain/c/1/0/0",
        "parameters/c/1/0",
        "optimal_snr/c/1/0",
        "manifest/000001.json",
    }
    assert objects(url) == digests(on_disk)
    code, said, _ = call("simulate", *FLAGS, f"--out={url}")
    assert (code, "were there" in said) == (0, True)
    assert written(url) == after


def test_zarr_reads_it_as_it_is(s3, on_disk):
    group = zarr.open_group(upload(s3, on_disk), mode="r")
    near = zarr.open_group(str(on_disk), mode="r")
    assert np.array_equal(group["strain"][63:66], near["strain"][63:66])
    assert np.array_equal(group["parameters"][:], read_parameters(on_disk))


# What dies


def test_a_client_killed_in_mid_upload_is_followed_at_once_and_its_uploads_are_aborted(
    url, run, on_disk
):
    bucket = url.removeprefix("s3://").partition("/")[0]
    client = fresh_client()
    # One that its workers, which end a moment later, cannot complete; and one of somebody else.
    for key in ("events.zarr/strain/c/0/0/0", "events.zarr2/strain/c/0/0/0"):
        client.call_s3("create_multipart_upload", Bucket=bucket, Key=key)
    run.send_signal(signal.SIGKILL)
    run.communicate()
    assert client.exists(f"{url}.writer.json")
    whole = digests(on_disk)
    assert (
        objects(url).items() <= whole.items()
    )  # of a shard that was not completed nothing is seen
    code, _, errors = call("simulate", *FLAGS, f"--out={url}")
    assert code == 0, errors
    assert objects(url) == whole
    assert uploads(url) == ["events.zarr2/strain/c/0/0/0"]
    assert not client.exists(f"{url}.writer.json")


def test_a_worker_killed_in_mid_upload_is_replaced_and_its_upload_is_aborted(url, run, on_disk):
    children = psutil.Process(run.pid).children()
    workers = [child for child in children if "spawn_main" in " ".join(child.cmdline())]
    assert len(workers) == 2
    workers[0].kill()
    _, errors = run.communicate(timeout=PATIENCE)
    assert run.returncode == 0, errors
    assert objects(url) == digests(on_disk)
    assert uploads(url) == []


# Lost connections


def large_upload(store, data):
    """An upload of which all parts are sent, and nothing is left but to complete it."""
    file = store.create("x")
    file.write(data)
    file._send(len(file._unsent))
    return file


@pytest.mark.parametrize("lost", ["request", "answer"])
def test_an_upload_is_whole_where_its_completion_was_lost_on_the_way(url, proxy, lost):
    """fsspec's own file says that it is closed, and nothing is there."""
    store, data = store_of(url), os.urandom(40 * MIB)
    file = large_upload(store, data)
    if lost == "request":
        proxy.refuse()
        Timer(1.5, proxy.accept).start()
    else:
        proxy.cut(after=0, times=2)  # aiohttp's own second attempt, too
    file.finish()
    assert store.read("x") == data
    assert uploads(url) == []


def test_an_upload_that_somebody_aborted_is_no_success_although_an_older_object_is_there(url):
    store, data = store_of(url), os.urandom(40 * MIB)
    older = large_upload(store, bytes(40 * MIB))
    older.finish()
    file = large_upload(store, data)
    store.remove_partial_files()
    with pytest.raises(InputError):  # the server says once this, once that
        file.finish()
    assert store.read("x") == bytes(40 * MIB)
    file = large_upload(store, data)
    file.discard()
    assert uploads(url) == []


def test_parts_whose_connections_are_cut_are_sent_again(url, proxy):
    store, data = store_of(url), os.urandom(100 * MIB)
    file = store.create("x")
    for start_of in range(0, len(data), 10 * MIB):
        proxy.cut(after=0, times=3)
        file.write(data[start_of : start_of + 10 * MIB])
    file.finish()
    assert proxy.cuts >= 10
    assert store.read("x") == data


@pytest.mark.parametrize(
    ("fault", "most"), [("refuse", 90), pytest.param("silence", 400, marks=pytest.mark.long)]
)
def test_a_server_that_goes_in_mid_upload_ends_the_run_in_bounded_time(proxy, run, fault, most):
    getattr(proxy, fault)()
    begin = time.monotonic()
    _, errors = run.communicate(timeout=600)
    assert run.returncode == 2, errors
    assert "Traceback" not in errors
    assert "no answer after" in errors.strip().splitlines()[-1]
    assert time.monotonic() - begin < most


def test_a_server_that_takes_nothing_ends_a_write_in_bounded_time(url, monkeypatch):
    """S3's clients ask whether they may send, and wait for that answer for ever."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        s3fs.S3FileSystem.clear_instance_cache()
        begin = time.monotonic()
        with pytest.raises(InputError, match="no answer after 3 attempts .*it stays silent"):
            store_of(url).write("x", b"a few bytes")
        assert time.monotonic() - begin < 120
    s3fs.S3FileSystem.clear_instance_cache()


# Damage


def damaged(content, how):
    if how == "half":
        return content[: len(content) // 2]
    return {"empty": b"", "flipped": content[:-9] + bytes([content[-9] ^ 8]) + content[-8:]}[how]


@pytest.mark.parametrize(
    ("path", "how"),
    [
        ("strain/c/2/0/0", "half"),
        ("strain/c/2/0/0", "empty"),
        ("strain/c/2/0/0", "gone"),
        ("optimal_snr/c/2/0", "flipped"),
        ("parameters/zarr.json", "empty"),
        ("psd/c/0/0", "half"),
        ("zarr.json", "gone"),
    ],
)
def test_each_damage_is_found_and_mended(s3, on_disk, path, how):
    url = upload(s3, on_disk)
    client, name = fresh_client(), f"{url}/{path}"
    if how == "gone":
        client.rm_file(name)
    else:
        client.pipe_file(name, damaged(client.cat_file(name), how))
    code, said, errors = call("verify", url)
    assert (code, path in said) == (1, True), said + errors
    code, said, errors = call("verify", url, "--quick")
    assert code == (0 if path.startswith("optimal_snr") else 1), said + errors
    code, said, errors = call("repair", url, "--cluster.workers=1")
    assert code == 0, said + errors
    assert objects(url) == digests(on_disk)


# What is refused


def test_reading_is_measured_on_disks_alone(s3, on_disk):
    assert "needs a folder on a local or mounted disk" in refused("bench", "read", "s3://a/b.zarr")


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("AWS_ACCESS_KEY_ID", "nobody", "access is refused (InvalidAccessKeyId)"),
        ("AWS_SECRET_ACCESS_KEY", None, "access is refused"),
        ("AWS_PROFILE", "nobody", "the request is refused"),
        ("AWS_ENDPOINT_URL", "nonsense", "Invalid endpoint"),
    ],
)
def test_settings_that_cannot_be_are_one_sentence(url, monkeypatch, variable, value, words):
    if value is None:
        monkeypatch.delenv(variable)
    else:
        monkeypatch.setenv(variable, value)
    assert words in refused("info", url)
    assert words in refused("simulate", *FLAGS, f"--out={url}")
