"""The training step of a run, to be fed and measured: `strainflow bench feed --run`.

The step is fed as in training: on a GPU from page-locked buffers, the next batch copied while the
device works on this one, so that only what a copy is waited for counts as waiting. Its end is that
of the work on the device. On the CPU nothing is copied.

Not covered yet: what is measured of a GPU has not been run on one.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from model.checkpoint import restore
from model.trainer import Trainer
from model.transfer import Copy, CudaCopies, DeviceBatch, DeviceBatches, pinned
from storage.arrays import aligned_empty
from storage.bench.feed_step import FedStep
from storage.bench.measure import Contestant, Rate, alternate
from storage.schema import Schema
from storage.stream import Batch

LINK_BYTES = 2**28  # of the buffer whose copies have the rate of the link
COPIES = 8  # of a batch, in a pass
ROUNDS = 5


@contextmanager
def step_of_run(run: str | Path, data: str | Path) -> Iterator[tuple[int, FedStep]]:
    """The training step of a run; what it learns is thrown away.

    Args:
        run: The run's folder.
        data: A data set as it was trained on.

    Yields:
        The batch size, and the step with the way in which the run feeds it.

    Raises:
        InputError: There is no run, or it does not fit the data.
    """
    config = restore(run).config
    with TemporaryDirectory() as folder:
        trainer = Trainer(config, data, Path(folder))
        device, size = trainer.device, config.batch_size
        on_gpu = device.type == "cuda"
        yield (
            size,
            FedStep(
                step=_until_done(trainer) if on_gpu else trainer.learn,
                stream=config.stream,
                allocate=pinned if on_gpu else aligned_empty,
                deliver=lambda stream: DeviceBatches(stream, device),
                to_device=(lambda: _cuda_rates(trainer.schema, size, device)) if on_gpu else None,
            ),
        )


def _until_done(trainer: Trainer) -> Callable[[DeviceBatch], None]:
    """A step that ends when the device has done it; copies of the next batch go on."""

    def step(batch: DeviceBatch) -> None:
        trainer.learn(batch)
        torch.cuda.current_stream(trainer.device).synchronize()

    return step


@dataclass(frozen=True)
class PlainCopy:
    """Copies one large buffer to a device: what the link gives.

    Attributes:
        source: On the host, page-locked for a GPU.
        target: On the device, as large.
        wait: Returns when the device has it.
    """

    source: torch.Tensor
    target: torch.Tensor
    wait: Callable[[], object]

    def __call__(self) -> int:
        """Copy; return how many bytes."""
        self.target.copy_(self.source, non_blocking=True)
        self.wait()
        return self.source.nbytes


def to_device_rates(
    start_copy: Callable[[Batch], Copy], batch: Batch, plain_copy: Callable[[], int]
) -> tuple[Rate, Rate]:
    """Measure how fast a batch comes to a device, beside plain copies.

    Args:
        start_copy: As batches are copied in training.
        batch: In buffers as those of training.
        plain_copy: Copies something large; returns how many bytes.

    Returns:
        The rate of the batch's strain, and that of the plain copies.
    """

    def copy_batches() -> int:
        for _ in range(COPIES):
            start_copy(batch).wait()
        return COPIES * batch.strain.nbytes

    contestants = (
        Contestant("a batch to the GPU, from pinned buffers", copy_batches),
        Contestant("one large pinned buffer to the GPU", plain_copy, limit=True),
    )
    for contestant in contestants:  # memory on the device, and what is made once
        contestant.work()
    ours, link = alternate(contestants, ROUNDS, batch.strain[0].nbytes)
    return ours, link


def _cuda_rates(schema: Schema, batch_size: int, device: torch.device) -> tuple[Rate, Rate]:
    """The rates on a GPU."""
    strain = pinned((batch_size, *schema.strain_shape), schema.encoding.dtype)
    strain[:] = 0
    parameters = np.zeros((batch_size, len(schema.parameters)))
    plain = PlainCopy(
        torch.zeros(LINK_BYTES, dtype=torch.uint8).pin_memory(),
        torch.empty(LINK_BYTES, dtype=torch.uint8, device=device),
        torch.cuda.current_stream(device).synchronize,
    )
    return to_device_rates(
        CudaCopies(device).start, Batch(strain, parameters, np.arange(batch_size)), plain
    )
