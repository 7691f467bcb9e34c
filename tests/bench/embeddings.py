"""Which front end learns most at equal cost: validation losses after as many core-seconds each.

python tests/bench/embeddings.py DATA RUNS [CORE_MINUTES]

DATA holds full-size signals without noise, such as

    strainflow simulate --config pipeline/recipes/et-demo.yaml --out DATA --events 16384

The core-seconds of a step are measured first and give each front end its epochs. All else is the
same, the noise of the validation events too: the last column is the mean difference of their losses
from those of the first front end, with its standard error. RUNS gets a run of each; those that are
there already, and finished, are not trained again, and what they took is not known.
"""

import itertools
import math
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from jaxtyping import Float

from model.checkpoint import checkpoint_path, restore
from model.config import EmbeddingConfig, FlowConfig, OptimiserConfig, TrainConfig
from model.embedding import EMBEDDINGS
from model.trainer import Trainer
from model.validation import losses_of_share
from storage.arrays import Array

STEPS = 8  # of which the cost is taken
CONFIG = TrainConfig(
    parameters=("chirp_mass", "mass_ratio", "luminosity_distance", "geocent_time"),
    batch_size=64,
    validation=0.0625,
    embedding=EmbeddingConfig(channels=(24, 48, 96), condition=64),
    flow=FlowConfig(transforms=6, hidden=64, blocks=1),
    optimiser=OptimiserConfig(learning_rate=1e-3),
    device="cpu",
)


def with_front_end(kind: str, epochs: int = 1) -> TrainConfig:
    return replace(CONFIG, embedding=replace(CONFIG.embedding, kind=kind), epochs=epochs)


def cost(kind: str, data: str) -> tuple[float, int]:
    """Core-seconds of a training event, loading included; training events."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(with_front_end(kind), data, Path(folder))
        batches = trainer.training.epochs(1)
        trainer.learn(next(batches))  # memory
        start = time.process_time()
        for batch in itertools.islice(batches, STEPS):
            trainer.learn(batch)
        seconds = time.process_time() - start
        return seconds / (STEPS * CONFIG.batch_size), trainer.training.stream.events


def losses(trainer: Trainer) -> Float[Array, "event"]:
    """Of the validation events, with the best weights [nats]."""
    trainer.estimator.load_state_dict(restore(trainer.run, which="best").network)
    trainer.estimator.eval()
    return losses_of_share(trainer.validation, trainer.loss).values.astype(float)


def main(data: str, runs: Path, core_minutes: float) -> None:
    print(
        f"{'front end':16}{'weights':>10}{'ms/event':>10}{'epochs':>8}{'core-min':>10}{'loss':>8}"
        f"{'above the first':>20}"
    )
    first = None
    for kind in EMBEDDINGS:
        of_event, events = cost(kind, data)
        epochs = max(1, round(60 * core_minutes / (of_event * events)))
        if checkpoint_path(runs / kind, "newest").is_file():
            epochs = restore(runs / kind).config.epochs
        start = time.process_time()
        trainer = Trainer(with_front_end(kind, epochs), data, runs / kind)
        begun = trainer.step
        trainer.fit()
        minutes = math.nan if begun else (time.process_time() - start) / 60
        weights = sum(part.numel() for part in trainer.estimator.embedding.parameters())
        found = losses(trainer)
        first = found if first is None else first
        apart = found - first
        error = apart.std() / math.sqrt(len(apart))
        figures = f"{weights:10,}{1e3 * of_event:10.2f}{epochs:8}{minutes:10.1f}{found.mean():8.3f}"
        print(f"{kind:16}{figures}{apart.mean():12.3f} +- {error:.3f}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), float(sys.argv[3]) if len(sys.argv) > 3 else 12.0)
