"""Where Dask's workers come from: this machine, a batch system, or an existing scheduler."""

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from storage.errors import InputError

if TYPE_CHECKING:
    from distributed import Client, Worker

DASK_SETTINGS = {
    # A worker that is preempted while it works on a shard counts as a failure of the shard.
    "distributed.scheduler.allowed-failures": 10,
    # A task is one call of ours: Dask's profiler would stop it a hundred times a second to look.
    "distributed.worker.profile.enabled": False,
}
CONNECT_SECONDS = 30.0
SHORTEST_WALLTIME = 600  # as a bare number of seconds
LONGEST_PART = 9  # digits of a walltime's hours


@dataclass(frozen=True)
class ClusterConfig:
    """Where the work is done. All from `queue` on is for batch systems alone.

    Args:
        kind: local: processes on this machine; htcondor, slurm: jobs of one core each; address: the
            workers of a Dask scheduler that runs already.
        workers: Number of workers; 0 for one a core (local), or however many there are (address).
        address: Of the scheduler, such as tcp://host:8786.
        queue: Slurm's partition.
        account: Slurm's account, HTCondor's accounting group.
        walltime: For how long a job may run, as hours:minutes:seconds, or in seconds; jobs are
            replaced until the data set is complete.
        memory: Of a job.
        disk: Of a job; HTCondor wants to know.
        setup: Shell commands before the worker starts, such as `module load python`.
        directives: Further lines of the job's description, such as --constraint=avx2 (Slurm) or
            requirements = HasAvx2 (HTCondor).
        interface: Network interface over which workers and scheduler talk, such as ib0.
        python: The Python of the workers; the one of this process where none is given.
        scratch: Folder on the nodes where workers may leave temporary files.
        patience: For how long no worker at all is waited for [s].
    """

    kind: str = "local"
    workers: int = 0
    address: str | None = None
    queue: str | None = None
    account: str | None = None
    walltime: str | int = "04:00:00"  # YAML takes 24:00:00 for a number of seconds
    memory: str = "3GB"
    disk: str = "1GB"
    setup: tuple[str, ...] = ()
    directives: tuple[str, ...] = ()
    interface: str | None = None
    python: str | None = None
    scratch: str | None = None
    patience: float = 3600.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"cluster.kind: got {self.kind!r}, known are {', '.join(KINDS)}")
        if self.workers < 0:
            raise InputError(f"cluster.workers: got {self.workers}, must not be negative")
        if self.kind in BATCH_SYSTEMS and not self.workers:
            raise InputError(f"cluster.workers: say how many jobs {self.kind} is to run")
        if (self.kind == "address") != (self.address is not None):
            raise InputError(
                f"cluster.address: got {self.address!r} with cluster.kind {self.kind}; an address "
                "goes with cluster.kind address, and only with that"
            )
        if not self.patience > 0:
            raise InputError(f"cluster.patience: got {self.patience:g} s, must be positive")
        if self.walltime_seconds <= 0:
            raise InputError(f"cluster.walltime: got {self.walltime!r}, must be positive")

    @property
    def worker_count(self) -> int:
        """Number of workers, resolved for this machine; 0 where the scheduler decides."""
        return self.workers or (len(os.sched_getaffinity(0)) if self.kind == "local" else 0)

    @property
    def walltime_seconds(self) -> int:
        """For how long a job may run [s].

        Raises:
            InputError: It is no time.
        """
        if isinstance(self.walltime, int):
            if 0 < self.walltime < SHORTEST_WALLTIME:
                raise InputError(
                    f"cluster.walltime: got {self.walltime} s, for which YAML also takes 4:30; "
                    'write hours:minutes:seconds in quotes, such as "00:04:30"'
                )
            return self.walltime
        parts = self.walltime.split(":")
        if len(parts) != 3 or not all(
            part.isdecimal() and len(part) <= LONGEST_PART for part in parts
        ):
            raise InputError(
                f"cluster.walltime: got {self.walltime!r}, write hours:minutes:seconds, such as "
                "04:00:00"
            )
        hours, minutes, seconds = (int(part) for part in parts)
        return 3600 * hours + 60 * minutes + seconds


@dataclass(frozen=True)
class Cluster:
    """Workers, and how to look after them.

    Attributes:
        client: Dask's client.
        wanted: How many workers there should be, 0 where that is not ours to say.
        refill: Ask for new workers in place of those that will not come back; returns how many.
        explain: Say in one sentence why there may be no workers.
    """

    client: "Client"
    wanted: int
    refill: Callable[[], int]
    explain: Callable[[], str]


def connect(config: ClusterConfig, logs: Path) -> AbstractContextManager[Cluster]:
    """Start the workers of a configuration; the context's end stops those that it started.

    Args:
        config: Where the work is done.
        logs: Folder for what batch jobs print.

    Raises:
        InputError: The batch system refuses, or the scheduler does not answer.
    """
    module, name = KINDS[config.kind].split(":")
    start: Callable[[ClusterConfig, Path], AbstractContextManager[Cluster]]
    start = getattr(import_module(module), name)
    return start(config, logs)


@contextmanager
def local(config: ClusterConfig, logs: Path) -> Iterator[Cluster]:
    """Start worker processes on this machine."""
    import dask
    from distributed import Client, LocalCluster

    with (
        dask.config.set(DASK_SETTINGS),
        LocalCluster(
            n_workers=config.worker_count,
            threads_per_worker=1,
            processes=True,
            dashboard_address="127.0.0.1:0",
            local_directory=config.scratch,
            preload=__name__,
        ) as cluster,
        Client(cluster) as client,
    ):
        yield Cluster(client, config.worker_count, lambda: 0, lambda: "those on this machine died")


@contextmanager
def existing(config: ClusterConfig, logs: Path) -> Iterator[Cluster]:
    """Use the workers of a scheduler that runs already, and leave them as they are."""
    from distributed import Client

    try:
        client = Client(config.address, timeout=CONNECT_SECONDS)
    except (OSError, TypeError, ValueError) as error:
        raise InputError(
            f"cluster.address: no Dask scheduler answers at {config.address} ({error}); give the "
            "address that `dask scheduler` prints"
        ) from None
    with client:
        _require_same_version(client)
        yield Cluster(
            client,
            config.workers,
            refill=lambda: 0,
            explain=lambda: f"the scheduler at {config.address} has no workers",
        )


def _require_same_version(client: "Client") -> None:
    """Refuse workers that would simulate with another strainflow, or have none.

    Raises:
        InputError: They do.
    """
    ours = version("strainflow")
    theirs = client.run(_installed_version, on_error="return")
    for worker, answer in theirs.items():
        if answer != ours:
            has = f"strainflow {answer}" if isinstance(answer, str) else "no strainflow"
            raise InputError(
                f"cluster: the worker {worker} has {has}, this is {ours}; install the same version "
                "there, or take the worker away"
            )


def _installed_version() -> str:
    return version("strainflow")


def dask_setup(worker: "Worker") -> None:
    """Prepare a worker; Dask calls this in each.

    Ctrl-C and messages are left to the process that started the worker: what a task raises comes
    back to that process, which says it once. And a worker whose parent was killed ends too, so that
    nothing writes to a data set when the next run begins.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.getLogger("distributed.worker").setLevel(logging.CRITICAL)
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()


def _end_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)


BATCH_SYSTEMS = ("htcondor", "slurm")

# Kind -> the context manager that starts it.
KINDS = {
    "local": "pipeline.cluster:local",
    "htcondor": "pipeline.batch:htcondor",
    "slurm": "pipeline.batch:slurm",
    "address": "pipeline.cluster:existing",
}
