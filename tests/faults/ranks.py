"""A group of ranks that take an EventStream together, step by step, as DDP does.

Run by tests/storage/test_ranks.py as `python ranks.py '{"data": ..., ...}'` (see `Task`). The
process imports, then forks the ranks; where one of them fails, it kills the others, as torchrun
does. Every rank notes each step before all ranks meet, rank 0 writes the checkpoint after they met:
what is in a checkpoint is in all logs, whenever any of them is killed.
"""

import json
import os
import signal
import sys
import traceback
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed

from storage.order import Window
from storage.stream import EventStream
from storage.stream_config import StreamConfig


@dataclass(frozen=True)
class Task:
    """What a group has to do.

    Attributes:
        data: The data set.
        folder: For logs and the checkpoint.
        group: Its number.
        world_size: Ranks.
        batch_size: Events a batch and rank.
        epochs: How many there are in all; a growing set is read until an epoch had everything.
        resume: The checkpoint to go on from.
        window: Of a windowed order.
        growing: Whether shards may be missing.
        save_every: Steps from checkpoint to checkpoint.
        patience: How long a rank waits for the others [s].
        stream: The kind of stream: as it is, or broken.
    """

    data: str
    folder: str
    group: int
    world_size: int
    batch_size: int
    epochs: int
    resume: str | None = None
    window: tuple[int, int] | None = None
    growing: bool = False
    save_every: int = 3
    patience: float = 60.0
    stream: str = "sound"

    @property
    def text(self) -> str:
        """For the command line."""
        return json.dumps(asdict(self))

    def log(self, rank: int) -> Path:
        """Where a rank notes what it was given."""
        return Path(self.folder) / f"{self.group}-{rank}.log"

    @property
    def checkpoint(self) -> Path:
        """Where the state of all ranks is, every few steps."""
        return Path(self.folder) / f"{self.group}.json"


class StateOfWhatWasReadAhead(EventStream):
    """Saves the place of the batch that will be delivered next."""

    def state_dict(self):
        state = super().state_dict()
        ahead = state["position"] + self._batch_size * self._world_size
        return {**state, "position": ahead, "events": self.events} if ahead < self.events else state


class OneBatchMore(EventStream):
    """Gives the last rank its last batch twice."""

    def __iter__(self):
        for batch in super().__iter__():
            yield batch
        if self._rank == self._world_size - 1:
            yield batch


STREAMS = {"sound": EventStream, "ahead": StateOfWhatWasReadAhead, "more": OneBatchMore}


def take_part(task: Task, rank: int) -> None:
    """Be one rank: take batches until the last epoch is over."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{task.folder}/{task.group}.rendezvous",
        rank=rank,
        world_size=task.world_size,
        timeout=timedelta(seconds=task.patience),
    )
    stream = STREAMS[task.stream](
        task.data,
        batch_size=task.batch_size,
        rank=rank,
        world_size=task.world_size,
        config=StreamConfig(
            window=Window(*task.window) if task.window else None, growing=task.growing
        ),
        agree=what_the_first_says,
    )
    if task.resume is not None:
        stream.load_state_dict(json.loads(Path(task.resume).read_text())["state"])
    log = os.open(task.log(rank), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    step, had_everything = 0, not task.growing
    while stream.state_dict()["epoch"] < task.epochs or not had_everything:
        for batch in stream:
            step += 1
            note(log, {"step": step, "of_step": batch.event.tolist(), **asdict(stream.audit)})
            meet(stream)
            if rank == 0 and step % task.save_every == 0:
                save(task, step, stream)
        had_everything = stream.events == stream.schema.events
    if rank == 0:
        save(task, step, stream)
    distributed.barrier()


def what_the_first_says(text: str) -> str:
    """Hand a text of rank 0 to all ranks."""
    said = [text]
    distributed.broadcast_object_list(said, src=0)
    return said[0]


def meet(stream: EventStream) -> None:
    """Wait until all ranks are here; a step of one is never one of another epoch or place."""
    state = stream.state_dict()
    here = torch.tensor([state["epoch"], state["position"], stream.events])
    theirs = [torch.empty_like(here) for _ in range(distributed.get_world_size())]
    distributed.all_gather(theirs, here)
    if any(not torch.equal(here, there) for there in theirs):
        raise RuntimeError(f"ranks stand at different places: {theirs}")


def note(log: int, line: dict) -> None:
    """Append a line to a log: it is there even if the process is killed right afterwards."""
    os.write(log, (json.dumps(line) + "\n").encode())


def save(task: Task, step: int, stream: EventStream) -> None:
    """Write the checkpoint, so that there is the old one or the new one."""
    partial = task.checkpoint.with_suffix(".partial")
    partial.write_text(json.dumps({"step": step, "state": stream.state_dict()}))
    partial.rename(task.checkpoint)


def main() -> int:
    task = Task(**json.loads(sys.argv[1]))
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    ranks = {}
    for rank in range(task.world_size):
        process = os.fork()
        if process == 0:
            try:
                take_part(task, rank)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        ranks[process] = rank
    (Path(task.folder) / f"{task.group}.pids").write_text(json.dumps(list(ranks)))
    while ranks:
        process, status = os.wait()
        del ranks[process]
        if status:
            for other in ranks:
                os.kill(other, signal.SIGKILL)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
