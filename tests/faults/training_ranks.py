"""Starts groups of ranks that train together, as torchrun does, but in a second each.

Run by tests/model/conftest.py as `python training_ranks.py`. It imports, then forks the ranks of
each group that a line of its input describes (see `Group`), and answers with a line when all of
them have ended. Unlike torchrun it ends no rank because another one ended: all have to by
themselves. Every rank notes the events that it learns from, step by step.
"""

import json
import os
import signal
import socket
import sys
import time
import traceback
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

import strainflow
from model.trainer import Trainer

# What ranks would import when they first need it, as PyTorch's optimisers do.
for name in ("torch._dynamo", "model.commands", "model.train"):
    import_module(name)


@dataclass(frozen=True)
class Group:
    """What a group has to do.

    Attributes:
        folder: For what each rank says and learns from.
        ranks: How many.
        words: Of the command line, after `strainflow`.
        at: What a rank does to itself before it takes a step: (rank, step, signal).
        patience: After which the ranks are killed [s].
    """

    folder: str
    ranks: int
    words: list[str]
    at: list[int] | None = None
    patience: float = 60.0


@dataclass
class Outcome:
    """What became of it.

    Attributes:
        codes: How each rank ended: exit codes, or signals as negative numbers.
        seconds: From the first end of a rank to the last [s].
        said: What each rank said on the terminal.
        steps: By step, the events that each rank learnt from.
    """

    codes: list[int] = field(default_factory=list)
    seconds: float = 0.0
    said: list[str] = field(default_factory=list)
    steps: dict[int, list[list[int]]] = field(default_factory=dict)

    @property
    def sentences(self) -> list[str]:
        """What was said by any rank, without progress bars."""
        lines = "\n".join(self.said).replace("\r", "\n").splitlines()
        return [line for line in lines if line and "batch/s" not in line]


def be_a_rank(group: Group, rank: int, port: int) -> int:
    """Train, and note what is learnt from."""
    folder = Path(group.folder)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(group.ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": "lo",
    }
    said = os.open(folder / f"{rank}.said", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(said, 1)
    os.dup2(said, 2)
    log = os.open(folder / f"{rank}.events", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    learn = Trainer.learn

    def noted(self, batch, events=None):
        if group.at is not None and group.at[:2] == [rank, self.step]:
            os.kill(os.getpid(), group.at[2])
        loss = learn(self, batch, events)
        os.write(log, (json.dumps([self.step, batch.event.tolist()]) + "\n").encode())
        return loss

    Trainer.learn = noted
    return strainflow.main(group.words)


def start(group: Group) -> Outcome:
    """Fork the ranks, and wait for all of them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    Path(group.folder).mkdir(parents=True, exist_ok=True)
    ranks = {}
    for rank in range(group.ranks):
        if (process := os.fork()) == 0:
            code = 99
            try:
                code = be_a_rank(group, rank, port)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        ranks[process] = rank
    return wait(group, ranks)


def wait(group: Group, ranks: dict[int, int]) -> Outcome:
    outcome, ends = Outcome([99] * group.ranks), []
    deadline = time.monotonic() + group.patience
    while ranks:
        process, status = os.waitpid(-1, os.WNOHANG)
        if process:
            outcome.codes[ranks.pop(process)] = os.waitstatus_to_exitcode(status)
            ends.append(time.monotonic())
        elif time.monotonic() > deadline:
            for hanging in ranks:
                os.kill(hanging, signal.SIGKILL)
        time.sleep(0.005)
    outcome.seconds = ends[-1] - ends[0]
    return outcome


def main() -> None:
    for line in sys.stdin:
        outcome = start(Group(**json.loads(line)))
        print(json.dumps([outcome.codes, outcome.seconds]), flush=True)


if __name__ == "__main__":
    main()
