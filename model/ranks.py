"""The processes of a run, one a GPU: who they are, and what they say to each other.

torchrun, or a line of a job script, tells each in its environment: RANK, WORLD_SIZE, LOCAL_RANK,
MASTER_ADDR and MASTER_PORT. Without them a process is alone, and nothing here costs it anything.

Gradients go by NCCL between GPUs. All else goes by gloo from host to host, so that it waits for no
GPU: a few whole numbers a step, and whatever is said when something ends.

Not covered yet: NCCL has not been run on GPUs; gradients do not travel while they are computed.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from importlib import import_module
from typing import TypeVar

import torch
from torch import Tensor, distributed

from storage.errors import InputError

T = TypeVar("T")

# For a rank that says nothing. One that died is noticed at once by gloo; where gradients go by NCCL
# it may take this long.
PATIENCE = timedelta(minutes=10)
VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
WRONG_CALL, DAMAGED = 2, 1  # exit codes


class EndedElsewhereError(RuntimeError):
    """Another rank ended the run, and says why: this one has nothing to add.

    Args:
        code: The exit code of all ranks.
    """

    def __init__(self, code: int) -> None:
        super().__init__("another rank ended the run; its message says why")
        self.code = code


class LostRankError(RuntimeError):
    """A rank is gone without a word, or says nothing any more.

    Attributes:
        moved: Whether the run is further than when this call began, as far as it was saved: then it
            is worth running again.
    """

    moved = False


@dataclass(frozen=True)
class Ranks:
    """The processes of a run, seen from one of them.

    Attributes:
        rank: Number of this process.
        world_size: Number of processes.
        local_rank: Number of this process on its machine.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes files and shows progress."""
        return self.rank == 0

    def add_up(self, numbers: Sequence[int], error: BaseException | None = None) -> list[int]:
        """Add whole numbers over all ranks, each below 2^62; or end together.

        Args:
            numbers: As many on each rank.
            error: What ends the run here.

        Raises:
            EndedElsewhereError: Another rank has an error and this one has none.
        """
        if error is not None and self.world_size == 1:
            raise error
        if self.world_size == 1:
            return list(numbers)
        codes = [0, 0]
        if error is not None:
            codes[_code(error) - 1] = 1
        *found, damaged, wrong = self._reduced([*numbers, *codes], distributed.ReduceOp.SUM)
        if error is not None:
            raise error
        if damaged or wrong:
            raise EndedElsewhereError(WRONG_CALL if wrong else DAMAGED)
        return found

    def most(self, numbers: Sequence[int]) -> list[int]:
        """The largest of each number over all ranks."""
        if self.world_size == 1:
            return list(numbers)
        return self._reduced(numbers, distributed.ReduceOp.MAX)

    def meet(self) -> None:
        """Return when all ranks are here."""
        self.add_up([])

    @contextmanager
    def together(self) -> Iterator[None]:
        """Do something on each rank; an error of one ends all."""
        error: Exception | None = None
        try:
            yield
        except LostRankError:
            raise
        except Exception as caught:
            error = caught
        self.add_up([], error)

    def of_first(self, make: Callable[[], T]) -> T:
        """What the first rank makes, on all ranks; an error of it ends all."""
        if self.world_size == 1:
            return make()
        made: list[T | None] = [None]
        with self.together():
            if self.is_first:
                made[0] = make()
        with _noticing_losses():
            distributed.broadcast_object_list(made, src=0)
        return made[0]  # type: ignore[return-value]  # it may be None where T is

    @contextmanager
    def of_first_only(self, make: Callable[[], AbstractContextManager[T]]) -> Iterator[T | None]:
        """Enter what the first rank makes, on the first rank; None on the others."""
        with ExitStack() as stack:
            entered: list[T] = []
            self.of_first(lambda: entered.append(stack.enter_context(make())))
            yield entered[0] if self.is_first else None

    def say_of_first(self, text: str) -> str:
        """What the first rank says; for `EventStream(agree=...)`."""
        said = [text]
        if self.world_size > 1:
            with _noticing_losses():
                distributed.broadcast_object_list(said, src=0)
        return said[0]

    def gather(self, item: T) -> list[T]:
        """What each rank has, on all ranks, in the order of the ranks."""
        found = [item] * self.world_size
        if self.world_size > 1:
            with _noticing_losses():
                distributed.all_gather_object(found, item)
        return found

    def gather_on_first(self, item: T) -> list[T]:
        """What each rank has, on the first rank; nothing on the others."""
        if self.world_size == 1:
            return [item]
        found: list[T] | None = [item] * self.world_size if self.is_first else None
        with _noticing_losses():
            distributed.gather_object(item, found, dst=0)
        return found or []

    def add_up_on_device(self, tensor: Tensor) -> None:
        """Add a tensor over all ranks, in place; every rank gets the same bits."""
        if self.world_size > 1:
            with _noticing_losses():
                distributed.all_reduce(tensor)

    def _reduced(self, numbers: Sequence[int], how: distributed.ReduceOp.RedOpType) -> list[int]:
        tensor = torch.tensor(list(numbers), dtype=torch.int64)
        with _noticing_losses():
            distributed.all_reduce(tensor, how)
        found: list[int] = tensor.tolist()
        return found


ALONE = Ranks()


@contextmanager
def joined(ranks: Ranks, device: torch.device) -> Iterator[None]:
    """Join the other processes of a run; leave them with all together.

    Args:
        ranks: Who this process is, as the environment says.
        device: Where it trains.

    Raises:
        InputError: The others are not there.
    """
    if ranks.world_size == 1:
        yield
        return
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    # What optimisers import has the group as it is then for a default of its functions. A group
    # that they hold outlives its destruction, and its threads abort the process as that ends.
    import_module("torch.distributed.nn.functional")
    try:
        distributed.init_process_group(backend, timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"MASTER_ADDR: rank {ranks.rank} of {ranks.world_size} could not join the others at "
            f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']} ("
            f"{str(error).splitlines()[0]}); start all ranks at the same time, with an address "
            "of the machine of rank 0"
        ) from None
    try:
        yield
    except Exception:
        if device.type == "cpu":  # NCCL may wait for ranks that are gone
            distributed.destroy_process_group()
        raise
    ranks.meet()  # whoever leaves first would have the others ended before they are through
    distributed.destroy_process_group()


def from_environment(environment: Mapping[str, str]) -> Ranks:
    """Read who this process is.

    Raises:
        InputError: It is one of several, and something is missing or no number.
    """
    if environment.get("WORLD_SIZE", "1") == "1":
        return ALONE
    if missing := [name for name in VARIABLES if not environment.get(name)]:
        raise InputError(
            f"WORLD_SIZE: is {environment['WORLD_SIZE']}, but {missing[0]} is not set; start with "
            "torchrun, or set all of " + ", ".join(VARIABLES)
        )
    try:
        rank, world_size, local_rank = (int(environment[name]) for name in VARIABLES[:3])
    except ValueError as error:
        raise InputError(f"RANK, WORLD_SIZE, LOCAL_RANK: {error}; give whole numbers") from None
    if not 0 <= rank < world_size:
        raise InputError(f"RANK: got {rank}, must lie in [0, {world_size}) (WORLD_SIZE)")
    return Ranks(rank, world_size, local_rank)


def _code(error: BaseException) -> int:
    """The exit code that an error becomes."""
    return WRONG_CALL if isinstance(error, InputError | OSError) else DAMAGED


@contextmanager
def _noticing_losses() -> Iterator[None]:
    """Say it in a sentence where a rank is gone.

    Raises:
        LostRankError: One is.
    """
    try:
        yield
    except RuntimeError as error:
        cause = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise LostRankError(
            f"another rank is gone, or has said nothing for {PATIENCE.total_seconds():.0f} s "
            f"({cause}); its message may say why, and the same command again goes on from the last "
            "checkpoint"
        ) from error
