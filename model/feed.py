"""The training step of a run, to be fed and measured: `strainflow bench feed --run`."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from model.checkpoint import restore
from model.trainer import Trainer
from model.transfer import put
from storage.stream import Batch


@contextmanager
def step_of_run(
    run: str | Path, data: str | Path
) -> Iterator[tuple[int, Callable[[Batch], float]]]:
    """The training step of a run; what it learns is thrown away.

    Args:
        run: The run's folder.
        data: A data set as it was trained on.

    Yields:
        The batch size, and the step.

    Raises:
        InputError: There is no run, or it does not fit the data.
    """
    config = restore(run).config
    with TemporaryDirectory() as folder:
        trainer = Trainer(config, data, Path(folder))
        yield config.batch_size, lambda batch: trainer.learn(put(batch, trainer.device))
