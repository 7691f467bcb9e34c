"""The batch systems of the tests, each started once; skipped where they cannot be had, except in CI."""

import os

import pytest
from daemons import ServiceMissingError
from htcondor import HTCondor
from slurm import Slurm


@pytest.fixture(scope="session")
def htcondor_pool():
    with _running(HTCondor) as pool:
        yield pool


@pytest.fixture(scope="session")
def slurm_cluster():
    with _running(Slurm) as cluster:
        yield cluster


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


def _running(service):
    try:
        return service()
    except ServiceMissingError as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(error))
