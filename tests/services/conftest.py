"""The services, each started once; skipped where they cannot be had, but never in CI."""

import os

import pytest
import s3fs
from daemons import ServiceMissingError
from htcondor import HTCondor
from proxy import FlakyProxy
from runs import Run, digests
from s3 import S3
from slurm import Slurm


@pytest.fixture(scope="session")
def htcondor_pool():
    with started(HTCondor) as pool:
        yield pool


@pytest.fixture(scope="session")
def slurm_cluster():
    with started(Slurm) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def s3():
    """A real S3 server; each test makes buckets of its own."""
    with started(S3) as server:
        yield server


@pytest.fixture
def s3_environment(s3, monkeypatch, tmp_path):
    """The variables of the server and no others of S3; an empty working directory."""
    for name in os.environ.keys() - s3.environment.keys():
        monkeypatch.delenv(name)
    for name, value in s3.variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def proxy(s3, s3_environment, monkeypatch):
    """A proxy before the server, that clients take for the server."""
    with FlakyProxy(int(s3.endpoint.rpartition(":")[2])) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        s3fs.S3FileSystem.clear_instance_cache()
        yield proxy
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def htcondor(htcondor_pool):
    """HTCondor without a job."""
    htcondor_pool.restore()
    return htcondor_pool


@pytest.fixture
def slurm(slurm_cluster):
    """Slurm without a job, all nodes up."""
    slurm_cluster.restore()
    return slurm_cluster


@pytest.fixture(params=["htcondor", "slurm"])
def batch_system(request):
    """One batch system after the other."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session")
def by_one_local_worker(tmp_path_factory):
    """The files of a run on this machine: what all others are compared with."""
    out = tmp_path_factory.mktemp("local") / "x.zarr"
    with Run(out, os.environ, "--cluster.workers=1") as run:
        assert run.end()[0] == 0
    return digests(out)


def started(service):
    try:
        return service()
    except ServiceMissingError as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(error))
