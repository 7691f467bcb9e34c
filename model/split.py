"""Which events of a data set are trained on, and which are kept for validation.

Those for validation come first. So they stay the same while a data set grows, and what is added to
it is trained on.
"""

import socket
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from model.config import TrainConfig
from model.ranks import ALONE, Ranks
from model.transfer import DeviceBatches, pinned
from storage.arrays import aligned_empty
from storage.dataset import dataset_digest, open_dataset, read_parameters, read_schema
from storage.errors import InputError
from storage.manifest import finished_shards
from storage.schema import Schema
from storage.stream import EventStream


@dataclass(frozen=True)
class Split:
    """The two parts of a data set.

    Attributes:
        training: Shuffled.
        validation: In the order of the data set.
        kept: Events for validation: those before this number.
    """

    training: DeviceBatches
    validation: DeviceBatches
    kept: int

    @property
    def schema(self) -> Schema:
        """What the data set is."""
        return self.training.stream.schema


def split(
    config: TrainConfig, data: str | Path, device: torch.device, ranks: Ranks = ALONE
) -> Split:
    """Divide a data set.

    Args:
        config: Of the run; the batch size is that of all ranks together.
        data: The data set.
        device: Where batches go.
        ranks: Between which each batch is shared out.

    Raises:
        InputError: A part has no events, or those for validation are not all there yet.
        DamagedDataError: The data set is damaged; without `stream.growing`, not complete.
    """
    schema = read_schema(data)
    kept = round(config.validation * schema.events)
    if not 0 < kept < schema.events:
        raise InputError(
            f"validation: {config.validation:g} of {schema.events} events are {kept} for "
            f"validation and {schema.events - kept} for training; neither may be none"
        )
    if config.stream.growing:
        _refuse_unfinished(schema, data, kept)

    def part(start: int, stop: int | None, shuffle: bool) -> DeviceBatches:
        whole = min(config.batch_size, (stop or schema.events) - start)
        stream = EventStream(
            data,
            batch_size=-(-whole // ranks.world_size),
            seed=config.seed,
            rank=ranks.rank,
            world_size=ranks.world_size,
            start=start,
            stop=stop,
            shuffle=shuffle,
            config=config.stream,
            allocate=pinned if device.type == "cuda" else aligned_empty,
            agree=ranks.say_of_first,
        )
        return DeviceBatches(stream, device)

    training = part(kept, None, shuffle=True)
    return Split(training, part(0, kept, shuffle=False), kept)


def same_data(data: str | Path, ranks: Ranks) -> str:
    """The digest of a data set's metadata.

    Raises:
        InputError: There is none, or this rank has another one than the first.
    """
    with ranks.together():
        digest = dataset_digest(data)
    of_first = ranks.say_of_first(digest)
    with ranks.together():
        if digest != of_first:
            raise InputError(
                f"{data}: is another data set on rank {ranks.rank} ({socket.gethostname()}) than "
                "on rank 0; give one that all machines share, or exact copies"
            )
    return digest


def refuse_uneven_shares(config: TrainConfig, ranks: Ranks) -> None:
    """Refuse a batch that ranks and parts do not divide.

    Raises:
        InputError: They do not.
    """
    shares = ranks.world_size * config.accumulate
    if config.batch_size % shares:
        raise InputError(
            f"batch_size: got {config.batch_size} events, which {ranks.world_size} ranks by "
            f"{config.accumulate} parts (accumulate) do not divide; give a multiple of {shares}, "
            "or another number of ranks"
        )


def training_parameters(
    config: TrainConfig, data: str | Path, kept: int
) -> Float[Tensor, "event parameter"]:
    """The parameters of the training events that are there now, in the units of the data set.

    Args:
        config: Of the run.
        data: The data set.
        kept: Events for validation.
    """
    if config.stream.growing:
        table = open_dataset(data, growing=True)["parameters"].values
    else:
        table = read_parameters(data)
    return torch.from_numpy(table[kept:])


def _refuse_unfinished(schema: Schema, data: str | Path, kept: int) -> None:
    """Refuse a growing set whose first events, which are those for validation, are not all there.

    A stream counts the events of the finished shards: a gap would move others among them.
    """
    finished = set(finished_shards(data, schema))
    needed = -(-kept // schema.events_per_shard)
    missing = sorted(set(range(needed)) - finished)
    if missing:
        raise InputError(
            f"{data}: shard {missing[0]} is not finished, and the first {kept} events are for "
            f"validation ({len(missing)} of their {needed} shards are missing); wait for them, or "
            "lower --validation"
        )
    if sum(len(schema.events_of(shard)) for shard in finished) <= kept:
        raise InputError(
            f"{data}: none but the {kept} events for validation are finished; wait for more"
        )
