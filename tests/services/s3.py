"""A real S3 server (Ceph's radosgw) on the loopback of this machine, for tests and to try things.

By hand: `python tests/services/s3.py` keeps it up until Ctrl-C and says how to reach it;
`python tests/services/s3.py COMMAND ...` runs one command beside it. Its bucket is s3://events.
What is stored lies in memory, 8 GB at most, and is lost at the end.
"""

import itertools
import os
import subprocess
import sys
import tempfile
import urllib.request
import uuid
from pathlib import Path
from types import TracebackType
from typing import Self

import botocore.session
from daemons import (
    Daemons,
    ServiceMissingError,
    find_program,
    free_ports,
    install_packages,
    try_by_hand,
    wait_until,
)

PACKAGES = {
    "ceph": "ceph-common",
    "ceph-mon": "ceph-mon",
    "ceph-osd": "ceph-osd",
    "monmaptool": "ceph-base",
    "radosgw": "radosgw",
    "radosgw-admin": "radosgw",
    "setpriv": "util-linux",
}
KEY, SECRET = "STRAINFLOW", "a secret of the tests only"
CONFIGURATION = """\
[global]
fsid = {cluster}
mon host = [v2:127.0.0.1:{ports[0]}]
public addr = 127.0.0.1
cluster addr = 127.0.0.1
auth cluster required = none
auth service required = none
auth client required = none
# Without authentication no connection can be encrypted; radosgw would hang.
ms bind msgr1 = false
ms mon client mode = crc
ms mon service mode = crc
ms mon cluster mode = crc
keyring = {folder}/keyring
log file = {folder}/$name.log
mon cluster log file = {folder}/cluster.log
run dir = {folder}
crash dir = {folder}/crash
admin socket =
mon data = {folder}/mon
# The monitor ends where the disk is fuller than this [% free].
mon data avail crit = 1
mon allow pool size one = true
paxos propose interval = 0.05
osd data = {folder}/osd
osd objectstore = memstore
memstore device bytes = 8589934592
osd crush chooseleaf type = 0
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 1
osd pool default pgp num = 1
osd pool default pg autoscale mode = off
rgw data = {folder}/rgw
rgw frontends = beast endpoint=127.0.0.1:{ports[1]}
rgw thread pool size = 32
# Memory of what was deleted is free after a minute, not hours.
rgw gc obj min wait = 60
rgw gc processor period = 60
"""


class S3:
    """An S3 server in a scratch folder, while the context lasts.

    Attributes:
        folder: Where its files are.
        endpoint: Its address.
        variables: Variables with which botocore, s3fs and fsspec use it, and nothing of the user's.
        environment: These, with those of this process that do not belong to S3.
    """

    def __init__(self) -> None:
        install_packages(PACKAGES)
        self._scratch = tempfile.TemporaryDirectory(prefix="s3-", ignore_cleanup_errors=True)
        self.folder = Path(self._scratch.name)
        self._ports = free_ports(2)
        self.endpoint = f"http://127.0.0.1:{self._ports[1]}"
        self.variables = {
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }
        foreign = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        self.environment = {**foreign, **self.variables}
        # Ceph's commands are Python programs of the system.
        system = {name: value for name, value in foreign.items() if not name.startswith("PYTHON")}
        system["CEPH_CONF"] = str(self.folder / "ceph.conf")
        self._daemons = Daemons(self.folder, system)
        self._names = (f"bucket-{number}" for number in itertools.count(1))

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def bucket(self, name: str | None = None) -> str:
        """Make an empty bucket and return its name, a new one if none is given."""
        name = name or next(self._names)
        client = botocore.session.Session().create_client(
            "s3",
            region_name="us-east-1",
            endpoint_url=self.endpoint,
            aws_access_key_id=KEY,
            aws_secret_access_key=SECRET,
        )
        client.create_bucket(Bucket=name)
        client.close()
        return name

    def stop(self) -> None:
        """End the server and forget what it stored."""
        self._daemons.stop()
        self._scratch.cleanup()

    def _start(self) -> None:
        for name in ("mon", "osd", "rgw", "crash"):
            (self.folder / name).mkdir()
        cluster, disk = str(uuid.uuid4()), str(uuid.uuid4())
        (self.folder / "ceph.conf").write_text(
            CONFIGURATION.format(cluster=cluster, folder=self.folder, ports=self._ports)
        )
        monitors = str(self.folder / "monmap")
        address = f"[v2:127.0.0.1:{self._ports[0]}]"
        self._run("monmaptool", "--create", "--addv", "a", address, "--fsid", cluster, monitors)
        self._run("ceph-mon", "--mkfs", "-i", "a", "--monmap", monitors)
        self._daemons.start(_path("ceph-mon"), "-f", "-i", "a")
        self._run("ceph", "osd", "new", disk, "0")
        self._run("ceph-osd", "--mkfs", "-i", "0", "--osd-uuid", disk)
        self._daemons.start(_path("ceph-osd"), "-f", "-i", "0")
        user = ["--uid=strainflow", "--display-name=strainflow"]
        keys = [f"--access-key={KEY}", f"--secret={SECRET}"]
        self._run("radosgw-admin", "user", "create", *user, *keys)
        self._daemons.start(_path("radosgw"), "-f", "-n", "client.rgw")
        wait_until(self._is_ready, "answer of radosgw")

    def _run(self, *command: str) -> None:
        try:
            answer = subprocess.run(
                [_path(command[0]), *command[1:]],
                env=self._daemons.environment,
                cwd=self.folder,
                check=False,
                capture_output=True,
                text=True,
                timeout=60,
            )
        except subprocess.TimeoutExpired as error:
            self._daemons.check()
            said = self._daemons.last_words()
            raise ServiceMissingError(f"{command[0]}: no end after 60 s: {said}") from error
        if answer.returncode != 0:
            raise ServiceMissingError(f"{command[0]}: {answer.stderr.strip()[-1500:]}")

    def _is_ready(self) -> bool:
        self._daemons.check()
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with direct.open(self.endpoint, timeout=5) as answer:
                return answer.status == 200
        except OSError:
            return False


def _path(name: str) -> str:
    return find_program(name) or name


def main() -> int:
    """Keep S3 up until Ctrl-C, or while the command on the command line runs."""
    with S3() as s3:
        out = f"s3://{s3.bucket('events')}/events.zarr"
        return try_by_hand("S3", s3.environment, list(s3.variables), flags=(), out=out)


if __name__ == "__main__":
    sys.exit(main())
