"""Many tasks on Dask, a few at a time: the client's memory does not grow with their number.

Workers may come late, leave, and be replaced while it runs.
"""

import sys
import time
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from itertools import islice
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, TypeVar

from pipeline.cluster import Cluster
from storage.errors import InputError

if TYPE_CHECKING:
    from distributed import Future

Item = TypeVar("Item")
Result = TypeVar("Result")

TASKS_PER_WORKER = 3  # in flight: enough that no worker waits, few enough for any data set
LOOK_SECONDS = 5.0  # between two looks after the workers
TELL_SECONDS = 60.0  # between two messages that there are none
# So many jobs in place of each worker may end without one task done, then something is wrong.
MOST_REPLACEMENTS = 3

STAYS = "what is finished stays, run it again to go on"


def map_window(
    cluster: Cluster, task: Callable[[Item], Result], items: Iterable[Item], patience: float
) -> Generator[Result, None, None]:
    """Run a task on each item and yield the results as they come.

    Args:
        cluster: Where they run.
        task: A function of one item that the workers can import.
        items: Consumed as results come.
        patience: For how long no worker at all is waited for [s].

    Raises:
        InputError: The workers do not come, or die again and again, or the scheduler is lost.
    """
    from distributed import KilledWorker
    from distributed.comm import CommClosedError

    watch = _Watch(cluster, patience)
    waiting = iter(items)
    running: set[Future] = set()
    done: SimpleQueue[Future] = SimpleQueue()

    def submit() -> None:
        room = TASKS_PER_WORKER * max(watch.workers, cluster.wanted, 1) - len(running)
        for item in islice(waiting, max(room, 0)):  # negative when workers have left
            future = cluster.client.submit(task, item, pure=False)
            running.add(future)
            future.add_done_callback(done.put)

    try:
        submit()
        while running:
            watch.look_if_due()
            try:
                future = done.get(timeout=LOOK_SECONDS)
            except Empty:
                continue
            running.discard(future)
            result = future.result()
            # Left to the garbage collector, this would swallow a Ctrl-C that comes just then.
            future.release()
            yield result
            watch.progress()
            submit()
    except KilledWorker:
        raise InputError(
            "cluster: the workers that took one of the tasks died again and again, most likely for "
            f"lack of memory; give fewer cluster.workers or more cluster.memory; {STAYS}"
        ) from None
    except (CancelledError, CommClosedError):
        raise InputError(f"cluster: Dask's scheduler was lost; {STAYS}") from None
    finally:
        if cluster.client.status == "running":
            cluster.client.cancel(list(running))


@dataclass
class _Watch:
    """Looks after the workers while tasks run.

    Attributes:
        cluster: The workers.
        patience: For how long no worker at all is waited for [s].
        workers: How many threads there were at the last look.
    """

    cluster: Cluster
    patience: float
    workers: int = 0
    _looked: float = field(default_factory=time.monotonic)
    _seen: float = field(default_factory=time.monotonic)  # when there was a worker
    _told: float = field(default_factory=time.monotonic)
    _replaced: int = 0  # jobs, since the last task that was done

    def progress(self) -> None:
        """Take note that a task was done."""
        self._replaced = 0

    def look_if_due(self) -> None:
        """Count the workers, have lost ones replaced, and say when there are none.

        Raises:
            InputError: There were none for too long, or they end one after the other.
        """
        now = time.monotonic()
        if now < self._looked + LOOK_SECONDS:
            return
        if self.cluster.client.status != "running":
            raise InputError(f"cluster: Dask's scheduler was lost; {STAYS}")
        try:
            self.workers = sum(self.cluster.client.nthreads().values())
        except OSError:
            raise InputError(f"cluster: Dask's scheduler was lost; {STAYS}") from None
        self._replaced += self.cluster.refill()
        if self._replaced > MOST_REPLACEMENTS * max(self.cluster.wanted, 1):
            raise InputError(
                f"cluster: {self._replaced} workers ended before one task was done; "
                f"{self.cluster.explain()}; {STAYS}"
            )
        self._looked = time.monotonic()
        if self.workers:
            self._seen = now
        elif now > self._seen + self.patience:
            raise InputError(
                f"cluster: no worker came within {self.patience:g} s; {self.cluster.explain()}; "
                f"{STAYS}"
            )
        elif now > self._told + TELL_SECONDS:
            print(f"waiting for workers: {self.cluster.explain()}", file=sys.stderr)
            self._told = now
