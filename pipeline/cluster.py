"""Where Dask's workers come from. Not covered yet: batch systems and existing schedulers."""

import logging
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from storage.errors import InputError

if TYPE_CHECKING:
    from distributed import Client, Worker


@dataclass(frozen=True)
class ClusterConfig:
    """Where the work is done.

    Args:
        kind: local: processes on this machine.
        workers: Number of workers; 0 for one a core.
    """

    kind: str = "local"
    workers: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"cluster.kind: got {self.kind!r}, known are {', '.join(KINDS)}")
        if self.workers < 0:
            raise InputError(f"cluster.workers: got {self.workers}, must not be negative")

    @property
    def worker_count(self) -> int:
        """Number of workers, resolved for this machine."""
        return self.workers or len(os.sched_getaffinity(0))


def dask_setup(worker: "Worker") -> None:
    """Leave Ctrl-C and messages to the process that started the worker; Dask calls this in each.

    What a task raises comes back to that process, which says it once. A worker would say it too,
    and that it lost its scheduler when it is stopped in the middle of a task.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.getLogger("distributed.worker").setLevel(logging.CRITICAL)


@contextmanager
def _local(config: ClusterConfig) -> Iterator["Client"]:
    from distributed import Client, LocalCluster

    with (
        LocalCluster(
            n_workers=config.worker_count,
            threads_per_worker=1,
            processes=True,
            dashboard_address="127.0.0.1:0",
            preload=__name__,
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


KINDS: dict[str, Callable[[ClusterConfig], AbstractContextManager["Client"]]] = {"local": _local}


def connect(config: ClusterConfig) -> AbstractContextManager["Client"]:
    """Start the workers of a configuration; the context's end stops them."""
    return KINDS[config.kind](config)
