"""The S3 server of the tests is one, and the proxy before it loses connections as it is told to."""

import os
import subprocess
import sys
import time
import uuid

import aiohttp
import botocore.session
import numpy as np
import pytest
import s3fs
from botocore.config import Config
from botocore.exceptions import EndpointConnectionError, ReadTimeoutError
from daemons import wait_until
from proxy import FlakyProxy

pytestmark = pytest.mark.services

MIB = 1 << 20
PART = 5 * MIB  # the least that S3 takes
DATA = np.random.default_rng(0).bytes(12 * MIB)


@pytest.fixture(autouse=True)
def environment(s3, monkeypatch):
    """The variables of the server and no others of S3: nothing else tells clients where it is."""
    for name in os.environ.keys() - s3.environment.keys():
        monkeypatch.delenv(name)
    for name, value in s3.variables.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def proxy(s3, monkeypatch):
    """A proxy before the server, that clients take for the server."""
    with FlakyProxy(int(s3.endpoint.rpartition(":")[2])) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        yield proxy


def client(attempts=5, requests=1, **settings):
    """An S3 file system that shares no connection with another.

    Args:
        attempts: How often s3fs makes a call.
        requests: How often botocore sends its request.
        settings: Further ones of s3fs.
    """
    retries = {"total_max_attempts": requests}
    config = {"retries": retries, "connect_timeout": 2, "read_timeout": 2}
    fs = s3fs.S3FileSystem(config_kwargs=config, skip_instance_cache=True, **settings)
    fs.retries = attempts
    return fs


def test_a_wrong_secret_is_refused(s3):
    path = f"{s3.bucket()}/x"
    client().pipe_file(path, b"x")
    wrong = client(key=s3.variables["AWS_ACCESS_KEY_ID"], secret="wrong")
    with pytest.raises(PermissionError):
        wrong.cat_file(path)
    with pytest.raises(PermissionError):
        wrong.pipe_file(path, b"y")
    assert client().cat_file(path) == b"x"


def test_each_bucket_is_new_and_empty(s3):
    first, second = s3.bucket(), s3.bucket()
    assert first != second
    assert client().ls(first) == client().ls(second) == []


def test_bytes_come_back_by_one_put_and_in_parts(s3):
    fs, bucket = client(), s3.bucket()
    fs.pipe_file(f"{bucket}/one", DATA)
    fs.pipe_file(f"{bucket}/parts", DATA, chunksize=PART)
    with fs.open(f"{bucket}/written", "wb", block_size=PART) as file:
        file.write(DATA)
    found = client().find(bucket, detail=True)
    assert {path: item["size"] for path, item in found.items()} == {
        f"{bucket}/{name}": len(DATA) for name in ("one", "parts", "written")
    }
    assert all(client().cat_file(path) == DATA for path in found)
    tags = {path: item["ETag"].strip('"') for path, item in found.items()}
    assert tags[f"{bucket}/parts"].endswith("-3")  # parts
    assert "-" not in tags[f"{bucket}/one"]


def test_an_upload_in_parts_whose_process_is_killed_leaves_nothing_that_can_be_seen(s3):
    bucket = s3.bucket()
    program = (
        "import os, signal, sys, s3fs\n"
        f"file = s3fs.S3FileSystem().open(sys.argv[1], 'wb', block_size={PART})\n"
        f"file.write(bytes({2 * PART + 1}))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    command = [sys.executable, "-c", program, f"{bucket}/x"]
    assert subprocess.run(command, env=s3.environment, check=False).returncode == -9
    fs = client()
    assert fs.find(bucket) == []
    assert [upload["Key"] for upload in fs.list_multipart_uploads(bucket)] == ["x"]


def test_create_refuses_the_second_writer(s3):
    path = f"{s3.bucket()}/x"
    client().pipe_file(path, b"first", mode="create")
    with pytest.raises(OSError, match="Errno 22") as refusal:
        client().pipe_file(path, b"second", mode="create")
    assert refusal.value.__cause__.response["Error"]["Code"] == "PreconditionFailed"
    assert client().cat_file(path) == b"first"


def test_ranges_are_the_right_bytes(s3):
    fs, bucket = client(), s3.bucket()
    small, large = f"{bucket}/small", f"{bucket}/large"
    fs.pipe_file(small, DATA[:100])
    fs.pipe_file(large, DATA, chunksize=PART)
    assert fs.cat_file(small, start=3, end=7) == DATA[3:7]
    assert fs.cat_file(large, start=PART - 3, end=PART + 3) == DATA[PART - 3 : PART + 3]
    starts, ends = [0, PART - 1, 7 * MIB], [1, 2 * PART + 1, 12 * MIB]
    parts = fs.cat_ranges([large] * 3, starts, ends)
    assert parts == [DATA[start:end] for start, end in zip(starts, ends, strict=True)]


def test_bytes_come_whole_through_the_proxy(s3, proxy):
    path = f"{s3.bucket()}/x"
    client().pipe_file(path, DATA, chunksize=PART)
    assert client().cat_file(path) == DATA
    assert proxy.connections >= 2
    assert proxy.passed > len(DATA)
    assert proxy.cuts == 0


def test_an_answer_that_is_cut_is_an_error_where_nothing_retries(s3, proxy):
    path = f"{s3.bucket()}/x"
    client().pipe_file(path, DATA)
    proxy.cut(100_000, times=1)
    with pytest.raises(aiohttp.ClientPayloadError):
        client(attempts=1).cat_file(path)
    assert proxy.cuts == 1
    assert client(attempts=1).cat_file(path) == DATA


def test_answers_that_are_cut_are_read_again_with_a_bound(s3, proxy):
    path = f"{s3.bucket()}/x"
    client().pipe_file(path, DATA)
    proxy.cut(100_000, times=2)
    assert client(attempts=3).cat_file(path) == DATA
    assert proxy.cuts == 2
    proxy.cut(100_000, times=9)
    with pytest.raises(aiohttp.ClientPayloadError):
        client(attempts=3).cat_file(path)
    assert proxy.cuts == 2 + 3


def test_requests_that_are_cut_are_sent_again_with_a_bound(s3, proxy):
    """Those are up to botocore; aiohttp repeats each of its attempts once."""
    path = f"{s3.bucket()}/x"
    client().pipe_file(path, DATA)
    proxy.cut(0, times=9)
    with pytest.raises(EndpointConnectionError):
        client().cat_file(path)
    assert proxy.cuts == 2
    proxy.cut(0, times=5)
    assert client(requests=3).cat_file(path) == DATA
    assert proxy.cuts == 2 + 5
    proxy.cut(0, times=9)
    with pytest.raises(EndpointConnectionError):
        client(requests=3).cat_file(path)
    assert proxy.cuts == 2 + 5 + 6


def test_a_server_that_refuses_is_an_error_until_it_accepts_again(s3, proxy):
    path, fs = f"{s3.bucket()}/x", client()
    fs.pipe_file(path, b"x")
    taken = proxy.connections
    proxy.refuse()
    with pytest.raises(EndpointConnectionError):
        fs.cat_file(path)
    assert proxy.connections == taken
    proxy.accept()
    assert fs.cat_file(path) == b"x"


def test_a_server_that_hangs_is_an_error_after_the_time_of_the_client(s3, proxy):
    path = f"{s3.bucket()}/x"
    client().pipe_file(path, b"x")
    proxy.silence()
    start = time.monotonic()
    with pytest.raises(ReadTimeoutError):
        client(attempts=1).cat_file(path)
    assert 2 <= time.monotonic() - start < 10
    proxy.accept()
    assert client().cat_file(path) == b"x"


def test_nothing_listens_elsewhere_than_on_the_loopback_and_nothing_is_left(s3):
    """A second server of its own, to see its end."""
    with type(s3)() as other:
        pids = [process.pid for process in other._daemons.processes]
        inodes = {socket for pid in pids for socket in sockets(pid)}
        addresses = {address for address, inode in listeners() if inode in inodes}
        assert addresses == {"0100007F"}
        mine = botocore.session.Session().create_client(
            "s3", endpoint_url=other.endpoint, config=Config(retries={"total_max_attempts": 1})
        )
        name = f"a-{uuid.uuid4()}"
        mine.create_bucket(Bucket=name)
        mine.close()
        assert not client().exists(name)  # in the other server
    wait_until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids), "end")
    assert not other.folder.exists()


def sockets(pid):
    """Inodes of the sockets of a process."""
    for descriptor in os.listdir(f"/proc/{pid}/fd"):
        target = os.readlink(f"/proc/{pid}/fd/{descriptor}")
        if target.startswith("socket:["):
            yield target[8:-1]


def listeners():
    """Addresses (hexadecimal) and inodes of the sockets that listen."""
    for table in ("tcp", "tcp6"):
        with open(f"/proc/net/{table}") as file:
            for line in list(file)[1:]:
                fields = line.split()
                if fields[3] == "0A":
                    yield fields[1].rpartition(":")[0], fields[9]
