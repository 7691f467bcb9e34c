"""Which events of a data set are trained on, and which are kept for validation.

Those for validation come first. So they stay the same while a data set grows, and what is added to
it is trained on.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from model.config import TrainConfig
from model.transfer import DeviceBatches, pinned
from storage.arrays import aligned_empty
from storage.dataset import open_dataset, read_parameters, read_schema
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


def split(config: TrainConfig, data: str | Path, device: torch.device) -> Split:
    """Divide a data set.

    Args:
        config: Of the run.
        data: The data set.
        device: Where batches go.

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
        stream = EventStream(
            data,
            batch_size=min(config.batch_size, (stop or schema.events) - start),
            seed=config.seed,
            start=start,
            stop=stop,
            shuffle=shuffle,
            config=config.stream,
            allocate=pinned if device.type == "cuda" else aligned_empty,
        )
        return DeviceBatches(stream, device)

    training = part(kept, None, shuffle=True)
    return Split(training, part(0, kept, shuffle=False), kept)


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
