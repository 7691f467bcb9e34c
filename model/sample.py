"""Posterior samples for the events of a data set, one file an event."""

import hashlib
import re
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float64, Int64, Num

from model.checkpoint import Which, checkpoint_path, load
from model.estimator import DataFacts, Estimator
from model.folder import require_place
from model.polarisations import refuse_polarisations
from storage.arrays import Array
from storage.dataset import dataset_digest, read_optimal_snr, read_schema
from storage.errors import InputError
from storage.posterior import Posterior
from storage.progress import progress_bar
from storage.results import (
    MADE_FROM,
    SUFFIX,
    read_posterior,
    result_files,
    result_path,
    write_posterior,
)
from storage.schema import Schema
from storage.stream import EventStream

# What is drawn together, while what was drawn before is written: no more than so many events and
# samples, unless one event has more. An interruption loses what is being drawn: on a CPU, where a
# pass is one small tile anyway, a block takes seconds, and has eight tiles for every thread.
EVENTS_AT_ONCE = 32
SAMPLES_AT_ONCE = 2**20
SAMPLES_AT_ONCE_ON_CPU, SAMPLES_A_THREAD = 2**17, 2**14


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """What to draw.

    Args:
        events: A range of the data set's events, such as 0:32; all by default.
        samples: Posterior samples an event.
        seed: Of the samples, and of the noise where the data set holds none.
        device: auto: a GPU where there is one.
        checkpoint: best: of the epoch with the lowest validation loss; newest: of the last step.
        compile: Whether the flow's splines are compiled, which pays for long runs and needs a C++
            compiler, or Triton on a GPU; samples then differ by rounding. By default on a GPU.
    """

    events: str = ""
    samples: int = 10000
    seed: int = 0
    device: str = "auto"
    checkpoint: Which = "best"
    compile: bool | None = None

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise InputError(f"samples: got {self.samples}, at least 1 is needed")
        if not 0 <= self.seed < 2**63:
            raise InputError(f"seed: got {self.seed}, must lie in 0 to 2^63 - 1")


@dataclass(frozen=True)
class SampleReport:
    """What was drawn.

    Attributes:
        out: Folder of the result files.
        events: Events asked for.
        sampled: Events sampled by this call; the others were there.
        samples: Posterior samples an event.
        seconds: Time that the drawing took, files excluded [s].
    """

    out: str
    events: int
    sampled: int
    samples: int
    seconds: float

    @property
    def microseconds(self) -> float:
        """Microseconds a sample an event."""
        return 1e6 * self.seconds / max(1, self.sampled * self.samples)


def sample_dataset(
    config: SampleConfig, run: str | Path, data: str | Path, out: str | Path
) -> SampleReport:
    """Draw posterior samples for events of a data set; events whose file is there are passed over.

    Args:
        config: What to draw.
        run: Folder of the trained run.
        data: The data set.
        out: Folder of the result files.

    Raises:
        InputError: The run does not fit the data, or the folder holds other results.
        DamagedDataError: The data set or the checkpoint is damaged.
    """
    folder = Path(out)
    require_place(folder)
    estimator = load(run, config.device, config.checkpoint)
    schema = read_schema(data)
    _refuse_other_data(estimator, schema, run, data)
    wanted = parse_range(config.events, schema.events)
    weights = checkpoint_path(run, config.checkpoint)
    provenance = {
        "checkpoint_sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "data_sha256": dataset_digest(data),
        "seed": config.seed,
        "samples": config.samples,
        "version": version("strainflow"),
    }
    _refuse_other_results(folder, provenance)
    priors = {parameter.name: parameter.prior for parameter in schema.parameters}
    snrs = np.linalg.norm(read_optimal_snr(data), axis=1)
    sampler = _Sampler(config, estimator, DataFacts.of(schema))
    together = max(1, min(EVENTS_AT_ONCE, _samples_at_once(estimator.device) // config.samples))
    stream = EventStream(
        data, batch_size=together, shuffle=False, start=wanted.start, stop=wanted.stop
    )
    sampled = 0
    with progress_bar(len(wanted), "event") as bar, _Writer(folder, bar.update) as writer:
        for batch in stream:
            rows = [
                row
                for row, event in enumerate(batch.event)
                if not result_path(folder, int(event)).exists()
            ]
            writer.pass_over(len(batch.event) - len(rows))
            if not rows:
                continue
            theta, log_prob = sampler.draw(batch.strain[rows], batch.event[rows])
            drawn = [
                Posterior(
                    event=int(batch.event[row]),
                    names=estimator.theta.names,
                    samples=samples,
                    log_prob=density,
                    truth=_known(schema, batch.parameters[row]),
                    priors=priors,
                    optimal_snr=_finite(snrs[batch.event[row]]),
                    provenance=provenance,
                    data=str(data),
                    sky=schema.moment_of(int(batch.event[row])),
                )
                for row, samples, density in zip(rows, theta, log_prob, strict=True)
            ]
            writer.write(drawn)
            sampled += len(rows)
    return SampleReport(str(folder), len(wanted), sampled, config.samples, sampler.seconds)


@dataclass
class _Writer:
    """Writes posteriors while the next are drawn; at its end all are written, or it raises.

    Attributes:
        folder: Where to.
        done: Told, by the thread that writes, how many events more are there.
    """

    folder: Path
    done: Callable[[int], object]
    _pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1))
    _pending: list[Future[None]] = field(default_factory=list)

    def write(self, posteriors: list[Posterior]) -> None:
        """Wait for those that came before, then begin with these."""
        self.finish()
        self._pending = [self._pool.submit(self._write, posterior) for posterior in posteriors]

    def pass_over(self, events: int) -> None:
        """Count events whose files were there."""
        self._pool.submit(self.done, events)

    def _write(self, posterior: Posterior) -> None:
        write_posterior(self.folder, posterior)
        self.done(1)

    def finish(self) -> None:
        """Wait until all are written."""
        for future in self._pending:
            future.result()

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._pool.shutdown()  # interrupted too: what was drawn is kept
        if kind is None:
            self.finish()


class _Sampler:
    """Stored strain to posterior samples, and how long the drawing takes."""

    def __init__(self, config: SampleConfig, estimator: Estimator, facts: DataFacts) -> None:
        self._config, self._estimator = config, estimator
        self._noisy, self._preprocess = facts.noisy, facts.preprocess()
        self.seconds = 0.0

    def draw(
        self,
        stored: Num[Array, "event detector time"],
        events: Int64[Array, "event"],
    ) -> tuple[Float64[Array, "event sample parameter"], Float64[Array, "event sample"]]:
        """Draw samples for some events; what is drawn is a function of (seed, event) alone.

        Args:
            stored: Their strain.
            events: Their numbers.

        Raises:
            InputError: The flow gives samples that are not finite.
        """
        start = time.perf_counter()
        device = self._estimator.device
        strain = self._preprocess(torch.from_numpy(stored).to(device))
        if not self._noisy:
            for row, event in zip(strain, events, strict=True):
                row += self._preprocess.noise(len(row), [self._seed(event, "noise")], device)[0]
        seeds = [self._seed(event, "samples") for event in events]
        theta, log_prob = self._estimator.sample(
            strain, self._config.samples, seeds, self._config.compile
        )
        drawn = theta.cpu().numpy(), log_prob.cpu().numpy()
        finite = np.isfinite(drawn[0]).all((1, 2)) & np.isfinite(drawn[1]).all(1)
        if not finite.all():
            raise InputError(
                f"event {events[~finite][0]}: the flow gave samples that are not finite; train the "
                "run longer or with a lower optimiser.learning_rate into another --out"
            )
        self.seconds += time.perf_counter() - start
        return drawn

    def _seed(self, event: int, purpose: str) -> int:
        key = (int(event), purpose == "noise")
        sequence = np.random.SeedSequence(self._config.seed, spawn_key=key)
        return int(sequence.generate_state(1, np.uint64)[0]) % 2**63


def _samples_at_once(device: torch.device) -> int:
    if device.type != "cpu":
        return SAMPLES_AT_ONCE
    for_all_threads = max(SAMPLES_AT_ONCE_ON_CPU, SAMPLES_A_THREAD * torch.get_num_threads())
    return min(SAMPLES_AT_ONCE, for_all_threads)


def _known(schema: Schema, parameters: Float64[Array, "parameter"]) -> dict[str, float]:
    """The parameters of an event by name; of a real one they are not known, or not all."""
    values = zip(schema.parameter_names, parameters.tolist(), strict=True)
    return {name: value for name, value in values if np.isfinite(value)}


def _finite(number: float) -> float | None:
    """A number, if it is one."""
    return float(number) if np.isfinite(number) else None


def _refuse_other_data(
    estimator: Estimator, schema: Schema, run: str | Path, data: str | Path
) -> None:
    """Refuse data that the network cannot read, or that do not hold what it infers."""
    refuse_polarisations(schema, data)
    trained, given = estimator.facts, DataFacts.of(schema)
    for name in ("detectors", "samples", "sample_rate", "f_lower", "start_time"):
        there, here = getattr(trained, name), getattr(given, name)
        if there != here and None not in (there, here):
            raise InputError(
                f"{data}: its {name} is {here}, the run {run} was trained on {there}; give data "
                "of the same kind"
            )
    if lacking := set(estimator.theta.names) - set(schema.parameter_names):
        raise InputError(f"{data}: lacks the parameters {', '.join(sorted(lacking))} of {run}")


def _refuse_other_results(folder: Path, provenance: dict[str, object]) -> None:
    """Refuse to mix results of different runs, data or seeds in one folder.

    Of the files there the first and the last are read: all would take minutes where there are
    thousands, and `diagnose`, which reads all, refuses a mixture.
    """
    if not any(folder.glob(f"event_*{SUFFIX}")):
        return
    files = result_files(folder)
    for path in dict.fromkeys((files[0], files[-1])):
        there = read_posterior(path).provenance
        for name, value in provenance.items():
            if there.get(name) != value:
                raise InputError(
                    f"{folder}: holds results made from another {MADE_FROM.get(name, name)} "
                    f"({there.get(name)} there, {value} asked for); give another --out"
                )


def parse_range(text: str, events: int) -> range:
    """Read a range of events such as `0:32`, `5` or `100:`.

    Args:
        text: What was given; empty for all.
        events: How many there are.

    Raises:
        InputError: It is no range, or reaches beyond the data set.
    """
    match = re.fullmatch(r"(\d*)(:?)(\d*)", text.strip())
    if match is None:
        raise InputError(f"events: got {text!r}, write a range such as 0:32, or one number")
    first, colon, last = match.groups()
    start = int(first or 0)
    stop = (int(last) if last else events) if colon or not first else start + 1
    if not 0 <= start < stop <= events:
        raise InputError(f"events: {text!r} does not lie within the data set's 0:{events}")
    return range(start, stop)
