"""What a posterior sample costs: nflows' own modules, the fast path, and the whole of `sample`.

python tests/bench/sampling.py [ROUNDS] [EVENTS]

The flow of model/recipes/resnet-nsf.yaml over the 15 parameters of et-bbh, five of them angles,
with weights at random. First EVENTS full-size events x 10,000 samples in one call of
`Estimator.sample`, and what writing their files takes. Then the flow alone, in alternation, the
least of each: nflows' modules an event a call (as `sample` went before) and the fast path, without
and with a compiler, on all cores and on one. Beside the time by the clock stands that of the
processors: on one core it is the cost itself, whoever else uses the machine; on more it holds the
waiting of threads for threads.
"""

import resource
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from model.config import TrainConfig
from model.estimator import DataFacts, Estimator
from model.fastflow import FastFlow
from model.flow import ConditionalFlow
from model.parameters import Coordinate, ParameterMap
from storage.posterior import Posterior
from storage.results import write_posterior
from strainflow import read_config

SAMPLES = 10_000
FACTS = DataFacts(("E1", "E2", "E3"), 65_536, 8192.0, 10.0, 1.0, noisy=True)
ANGLES = {"ra": 2 * np.pi, "psi": np.pi, "phase": 2 * np.pi, "phi_12": 2 * np.pi,
          "phi_jl": 2 * np.pi}  # fmt: skip
LINES = ("chirp_mass", "mass_ratio", "luminosity_distance", "dec", "a_1", "a_2", "tilt_1", "tilt_2",
         "theta_jn", "geocent_time")  # fmt: skip
THETA = ParameterMap(
    (*(Coordinate(name, 0.0, 1.0, "Uniform(0, 1)") for name in LINES),
     *(Coordinate(name, 0.0, end, f"Uniform(0, {end!r})", periodic=True)
       for name, end in ANGLES.items()))
)  # fmt: skip


@torch.no_grad()
def make_estimator() -> Estimator:
    """The recipe's, on random weights that bend every spline."""
    torch.manual_seed(0)
    estimator = Estimator(read_config(TrainConfig, "model/recipes/resnet-nsf.yaml"), FACTS, THETA)
    for name, weights in estimator.flow.named_parameters():
        width = weights.shape[1] if weights.dim() > 1 else 1
        spread = 0.5 if "final_layer" in name else 0.2
        weights.add_(spread * torch.randn_like(weights) / width**0.5)
    return estimator.eval()


def plainly(flow: ConditionalFlow, base: Tensor, conditions: Tensor) -> None:
    """Through nflows' modules, an event a call."""
    for rows, given in zip(base, conditions, strict=True):
        flow.from_base(rows, given.expand(len(rows), -1))


def cost(call: Callable[[], object], samples: int) -> tuple[float, float]:
    """Microseconds a sample: by the clock, and of the processors."""
    clock, processors = time.perf_counter(), time.process_time()
    call()
    seconds = time.perf_counter() - clock, time.process_time() - processors
    return 1e6 * seconds[0] / samples, 1e6 * seconds[1] / samples


def compare(estimator: Estimator, rounds: int, events: int = 4) -> None:
    """The flow alone on the threads there are, each way in turn; the least of each."""
    flow, generator = estimator.flow, torch.Generator().manual_seed(0)
    base = torch.stack([flow.draw_base(SAMPLES, generator) for _ in range(events)])
    conditions = torch.randn(events, 128)
    calls: dict[str, tuple[Callable[[], object], int]] = {
        "nflows": (lambda: plainly(flow, base[:1], conditions[:1]), 1)
    }
    for name, wanted in (("fast", False), ("fast, compiled", True)):
        start = time.perf_counter()
        fast = FastFlow(flow, wanted)
        if fast.compiled == wanted:
            print(f"{name}: ready after {time.perf_counter() - start:.2f} s", flush=True)
            calls[name] = partial(fast.from_base, base, conditions), events
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, (call, count) in calls.items():
            found[name].append(cost(call, count * SAMPLES))
    least = {
        name: [min(column) for column in zip(*pairs, strict=True)] for name, pairs in found.items()
    }
    print(f"the flow alone, {torch.get_num_threads()} threads [us a sample an event]")
    print(f"{'':18}{'clock':>10}{'processors':>12}{'nflows over it':>22}")
    for name, (clock, processors) in least.items():
        ratios = f"{least['nflows'][0] / clock:10.2f}{least['nflows'][1] / processors:12.2f}"
        print(f"{name:18}{clock:10.1f}{processors:12.1f}{ratios}", flush=True)


def whole(estimator: Estimator, events: int) -> None:
    """One call for all events, and their files."""
    strain = torch.randn(events, 3, 65_536)
    before = peak()
    drawn: list[tuple[Tensor, Tensor]] = []
    for compiled in (False, True):
        drawn.clear()

        def draw(compiled: bool = compiled) -> None:
            drawn.append(estimator.sample(strain, SAMPLES, compiled=compiled))

        figures = cost(draw, events * SAMPLES)
        print(
            f"{events} events x {SAMPLES}, {'compiled' if compiled else 'not compiled'}: "
            f"{figures[0]:.1f} us a sample an event, {figures[1]:.1f} of the processors; "
            f"memory {peak() - before:.2f} GB",
            flush=True,
        )
    theta, density = (item.numpy() for item in drawn[0])
    with tempfile.TemporaryDirectory() as folder:
        posteriors = [
            Posterior(event, THETA.names, theta[event], density[event], {}, {})
            for event in range(min(4, events))
        ]
        clock, _ = cost(
            lambda: [write_posterior(Path(folder), posterior) for posterior in posteriors],
            len(posteriors) * SAMPLES,
        )
    print(f"files: {clock:.1f} us a sample an event")


def peak() -> float:
    """The most memory that this process had [GB]."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def main(rounds: int = 3, events: int = 32) -> None:
    torch.set_grad_enabled(False)
    print(f"{torch.get_num_threads()} threads")
    estimator = make_estimator()
    whole(estimator, events)
    for threads in dict.fromkeys((torch.get_num_threads(), 1)):
        torch.set_num_threads(threads)
        compare(estimator, rounds)


if __name__ == "__main__":
    main(*(int(word) for word in sys.argv[1:]))
