"""The distribution that a data set's events come from, as a density.

A draw from the prior is thrown away where a constraint, the window of network SNRs or the waveform
model refuses it. So the events' density is the prior's product of densities, zero at what is
refused, divided by the share of draws that were accepted. An estimator that was trained on such
events approximates the posterior under this density, and samples are reweighted to no other: where
the window lets nothing through it was never trained.

The share is counted in the manifests of simulated events. Events that were cut out of frames have
that of the data set that they are like, where that was known; if not, it is found by drawing.
"""

import math
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from jaxtyping import Float

from pipeline.config import SimulationConfig
from pipeline.distributions import DeltaFunction, Distribution, Uniform
from pipeline.frame_noise import INCOMPLETE
from pipeline.noise import optimal_snr
from pipeline.simulate import Simulator
from pipeline.waveform import WaveformError
from storage.arrays import Array
from storage.dataset import read_schema
from storage.errors import DamagedDataError, InputError
from storage.manifest import Manifest, iterate_manifests, manifests_or_damage
from storage.progress import progress_bar
from storage.schema import Schema
from storage.urls import Store, store_of

OF_WINDOW = ("snr_below_minimum", "snr_above_maximum")
ACCEPTED = "accepted_share"  # the key, in what a data set records of its frames

DRAWS = 2000  # inside the constraints: they know a share of 0.15 to 5 %
FIRST_DRAWS = 20  # which tell how long all will take
LONGEST = 600.0  # that the draws may take [s of CPU]
_ADVICE = "cut with a --like that has its manifests, and with its PSD"


@dataclass(frozen=True)
class EventPrior:
    """The density of a data set's sources, but for what the SNR window refuses.

    Attributes:
        config: The physics.
        share: The share of draws from the prior that were accepted.
        share_error: Its standard error, relative to it.
    """

    config: SimulationConfig
    share: float
    share_error: float

    @classmethod
    def of(cls, simulator: Simulator, url: str | Path | Store, schema: Schema) -> Self:
        """The density, with the share from the draws that the manifests count as thrown away.

        Of a data set that was cut out of frames it is the recorded one, or drawn.

        Raises:
            InputError: There is no finished shard, or drawing takes too long.
            DamagedDataError: A manifest was altered.
        """
        store, config = store_of(url), simulator.config
        share = _counted_share(iterate_manifests(store, schema), config)
        was_cut = "frames" in schema.provenance
        if share is None:
            verb = "cut" if was_cut else "simulate"
            raise InputError(
                f"{store.url}: holds no finished shard; finish it with `strainflow {verb}`"
            )
        if was_cut:
            share = recorded_share(schema) or drawn_share(simulator)
        return cls(config, *share)

    @cached_property
    def distributions(self) -> dict[str, Distribution]:
        """Each parameter's."""
        return self.config.prior.distributions()

    @cached_property
    def fixed(self) -> dict[str, float]:
        """The parameters that have one value."""
        found = self.distributions.items()
        return {name: item.peak for name, item in found if isinstance(item, DeltaFunction)}

    def needs_phase(self, names: Sequence[str]) -> bool:
        """Whether the phase is free but was not sampled.

        Raises:
            InputError: Another parameter is, the phase's prior is not uniform over the circle, or a
                parameter was sampled that the data set does not vary.
        """
        strangers = [name for name in names if name not in self.distributions or name in self.fixed]
        if strangers:
            raise InputError(
                f"results: {', '.join(strangers)} were sampled, but are fixed in the data set or "
                "unknown to it, so that samples have no prior density; give a data set in which "
                "they vary"
            )
        left = [name for name in self.distributions if name not in {*names, *self.fixed}]
        others = [name for name in left if name != "phase"]
        if others:
            raise InputError(
                f"results: {', '.join(others)} vary in the data set but were not sampled, so that "
                "no sample has a likelihood; train a network that infers all that the prior "
                "leaves free (phase may be left out)"
            )
        if not left:
            return False
        phase = self.distributions["phase"]
        turn = 2 * math.pi
        if not isinstance(phase, Uniform) or not math.isclose(phase.maximum - phase.minimum, turn):
            raise InputError(
                "results: phase was not sampled, and its prior is not uniform from 0 to 2 pi, so "
                "that it cannot be integrated over; train a network that infers it"
            )
        return True

    def log_density(
        self, names: Sequence[str], samples: Float[Array, "sample parameter"]
    ) -> Float[Array, "sample"]:
        """Log density of samples, over the sampled parameters; -inf where there are no events.

        What the window refuses is not seen here.

        Args:
            names: Of the samples' columns.
            samples: In bilby's units.
        """
        columns = dict(zip(names, samples.T, strict=True))
        density = np.full(len(samples), -math.log(self.share))
        for name, column in columns.items():
            density += self.distributions[name].log_prob(column)
        if self.config.prior.constraints:
            masses = [self._column(columns, name) for name in ("chirp_mass", "mass_ratio")]
            for row in np.flatnonzero(np.isfinite(density)):
                chirp_mass, ratio = (float(column[row]) for column in masses)
                if not self.config.prior.allows({"chirp_mass": chirp_mass, "mass_ratio": ratio}):
                    density[row] = -np.inf
        return density

    def _column(
        self, columns: dict[str, Float[Array, "sample"]], name: str
    ) -> Float[Array, "sample"]:
        if name in columns:
            return columns[name]
        (any_column, *_) = columns.values()
        return np.full_like(any_column, self.fixed[name])


def accepted_share(events: int, rejected: Counter[str], together: int) -> tuple[float, float]:
    """The share of draws from the prior that are accepted, and its relative standard error.

    From the numbers of draws until an acceptance. Where events share a waveform, only the first of
    a group meets constraints and failing waveforms; at the window each meets as many refusals as an
    event by itself: waveforms come with the probability that the window accepts them.

    Args:
        events: That were accepted.
        rejected: Draws before them, by reason.
        together: Events that share a waveform.
    """
    first = -(-events // together)
    window = events / (events + sum(rejected[name] for name in OF_WINDOW))
    elsewhere = (*OF_WINDOW, INCOMPLETE)  # stretches of noise are no draws from the prior
    before = sum(count for name, count in rejected.items() if name not in elsewhere)
    share = window / (1 + before * window / first)
    return share, math.sqrt((1 - share) / first)


def share_of_dataset(
    url: str | Path | Store, config: SimulationConfig
) -> tuple[float, float] | None:
    """The accepted share and its relative error, as far as a data set knows it.

    From the manifests of simulated events that can be read. Of a data set that was cut itself, the
    recorded one.
    """
    store = store_of(url)
    schema = read_schema(store)
    if "frames" in schema.provenance:
        return recorded_share(schema)
    found = (item for _, item in manifests_or_damage(store, schema))
    return _counted_share((item for item in found if isinstance(item, Manifest)), config)


def recorded_share(schema: Schema) -> tuple[float, float] | None:
    """The share, and its relative error, that a data set recorded when it was cut.

    Raises:
        DamagedDataError: They are none.
    """
    facts: Any = schema.provenance.get("frames")
    if not isinstance(facts, dict) or ACCEPTED not in facts:
        return None
    found: Any = facts[ACCEPTED]
    try:
        share, error = float(found["share"]), float(found["error"])
    except (KeyError, TypeError, ValueError):
        share, error = math.nan, math.nan
    if not (0 < share <= 1 and 0 <= error < math.inf):
        raise DamagedDataError(
            f"zarr.json: its frames.{ACCEPTED} is no share and error, so it was altered; "
            "`strainflow repair` restores it"
        )
    return share, error


def recorded(share: tuple[float, float] | None) -> dict[str, dict[str, float]]:
    """What a data set records of a share, for `recorded_share`; nothing where it is not known."""
    return {} if share is None else {ACCEPTED: {"share": share[0], "error": share[1]}}


def drawn_share(simulator: Simulator) -> tuple[float, float]:
    """The share, and its relative error, of a fixed number of draws: a function of configuration.

    Nothing is drawn where there is neither a window nor a constraint: the share is then 1, though
    the waveform model may refuse a draw.

    Raises:
        InputError: The waveforms take too long, or none is accepted.
    """
    config = simulator.config
    if not (has_window(config) or config.prior.constraints):
        return 1.0, 0.0
    generator = np.random.default_rng(np.random.SeedSequence(config.seed, spawn_key=(0, 3)))
    accepted, rejected, start = 0, Counter[str](), time.process_time()
    with progress_bar(DRAWS, "draw from the prior") as bar:
        for number in range(DRAWS):
            if number == FIRST_DRAWS:
                _refuse_if_slow(config, time.process_time() - start)
            parameters = simulator.draw_allowed(0, generator, rejected)
            try:
                snr = optimal_snr(simulator.signal(parameters))
            except WaveformError:
                rejected["waveform_failed"] += 1
            else:
                inside = simulator.accepts(float(np.linalg.norm(snr)))
                accepted += inside
                rejected[OF_WINDOW[0]] += not inside
            bar.update()
    if not accepted:
        raise InputError(
            f"network_snr: accepts none of {DRAWS} draws from the prior, so that its share is not "
            f"known; {_ADVICE}"
        )
    return accepted_share(accepted, rejected, 1)


def _refuse_if_slow(config: SimulationConfig, seconds: float) -> None:
    """Refuse to draw what would take too long.

    Args:
        config: Names the waveform model.
        seconds: That the first draws took.
    """
    expected = seconds / FIRST_DRAWS * DRAWS
    if expected > LONGEST:
        raise InputError(
            f"the share of the prior that window and constraints accept is not recorded, and "
            f"{DRAWS} draws of {config.waveform.approximant} would take {expected / 60:.0f} min to "
            f"find it; {_ADVICE}"
        )


def has_window(config: SimulationConfig) -> bool:
    """Whether any network SNR is refused."""
    return config.network_snr.minimum > 0 or math.isfinite(config.network_snr.maximum)


def _counted_share(
    manifests: Iterable[Manifest], config: SimulationConfig
) -> tuple[float, float] | None:
    """The share, and its relative error, that manifests count; None where there are none."""
    events, rejected = 0, Counter[str]()
    for manifest in manifests:
        events += manifest.events
        rejected.update(manifest.rejected)
    if not events:
        return None
    return accepted_share(events, rejected, config.extrinsic_draws_per_waveform)
