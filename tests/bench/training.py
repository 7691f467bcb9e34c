"""How long a training step takes by flag and by embedding, in alternation, as ratios.

python tests/bench/training.py [TIMES] [BATCH] [FLAG ...]

Each embedding with each flag alone beside the plain version, at the reference's size: 3 detectors,
65,536 samples, the networks of model/recipes/resnet-nsf.yaml. FLAG picks some of the flags.
"""

import math
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace

import torch

from model.checkpoint import choose_device
from model.config import SpeedConfig, TrainConfig
from model.embedding import EMBEDDINGS
from model.estimator import DataFacts, Estimator
from model.parameters import Coordinate, ParameterMap
from model.precision import set_tf32
from model.speed import prepare, resolve
from strainflow import read_config

PLAIN = SpeedConfig(precision="fp32", channels_last=False, fused=False, compile=False)
FLAGS = {
    "tf32": replace(PLAIN, precision="tf32"),
    "bf16": replace(PLAIN, precision="bf16"),
    "channels_last": replace(PLAIN, channels_last=True),
    "bf16+channels_last": replace(PLAIN, precision="bf16", channels_last=True),
    "fused": replace(PLAIN, fused=True),
    "compile": replace(PLAIN, compile=True),
    "default": SpeedConfig(),
}
CIRCLES = {"psi": math.pi, "phase": 2 * math.pi, "ra": 2 * math.pi}
FACTS = DataFacts(("E1", "E2", "E3"), 65_536, 8192.0, 10.0, 1.0, noisy=True)
THETA = ParameterMap(
    (
        *(Coordinate(f"theta_{number}", 0.0, 1.0) for number in range(12)),
        *(Coordinate(name, 0.0, end, periodic=True) for name, end in CIRCLES.items()),
    )
)


def make_step(
    kind: str, speed: SpeedConfig, batch: int, device: torch.device
) -> Callable[[], None]:
    """A training step on random numbers that are on the device."""
    recipe = read_config(TrainConfig, "model/recipes/resnet-nsf.yaml")
    config = replace(recipe, embedding=replace(recipe.embedding, kind=kind))
    torch.manual_seed(0)
    estimator = Estimator(config, FACTS, THETA)
    optimiser = prepare(estimator, device, config.optimiser, speed)
    strain = torch.randn(batch, 3, 65_536, device=device)
    theta = torch.rand(batch, 15, dtype=torch.float64, device=device)
    tf32 = resolve(speed, device).precision != "fp32"

    def step() -> None:
        set_tf32(tf32)  # which is the process's: the one that was made last would have its way
        loss = estimator.negative_log_prob(strain, theta).mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(estimator.parameters(), 5.0)
        optimiser.step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return step


def seconds(step: Callable[[], None]) -> float:
    """How long a call takes."""
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def main(times: int, batch: int, flags: list[str]) -> None:
    device = choose_device("auto")
    print(f"{device}, batches of {batch}, {times} pairs of steps; time over that of the plain step")
    print(f"{'embedding':16}{'flag':20}{'median':>8}{'smallest':>10}{'largest':>9}")
    first = make_step("folded-resnet", PLAIN, batch, device)
    for kind in EMBEDDINGS:
        plain = make_step(kind, PLAIN, batch, device)
        steps = {"over folded-resnet": (plain, first)}
        for flag in flags:
            if flag != "tf32" or device.type == "cuda":
                steps[flag] = make_step(kind, FLAGS[flag], batch, device), plain
        for name, (step, reference) in steps.items():
            step(), reference()  # memory, and compilation
            ratios = sorted(seconds(step) / seconds(reference) for _ in range(times))
            figures = f"{statistics.median(ratios):8.2f}{ratios[0]:10.2f}{ratios[-1]:9.2f}"
            print(f"{kind:16}{name:20}{figures}", flush=True)


if __name__ == "__main__":
    words = sys.argv[1:]
    times, batch = int(words[0]) if words else 10, int(words[1]) if words[1:] else 32
    main(times, batch, words[2:] or list(FLAGS))
