"""The distribution that a data set's events come from, as a density.

A draw from the prior is thrown away where a constraint, the window of network SNRs or the waveform
model refuses it. So the events' density is the prior's product of densities, zero at what is
refused, divided by the share of draws that were accepted. An estimator that was trained on such
events approximates the posterior under this density, and samples are reweighted to no other: where
the window lets nothing through it was never trained.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
from jaxtyping import Float

from pipeline.config import SimulationConfig
from pipeline.distributions import DeltaFunction, Distribution, Uniform
from storage.arrays import Array
from storage.errors import InputError
from storage.manifest import iterate_manifests
from storage.schema import Schema
from storage.urls import Store

OF_WINDOW = ("snr_below_minimum", "snr_above_maximum")


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
    def of(cls, config: SimulationConfig, url: str | Path | Store, schema: Schema) -> Self:
        """The density, with the share from the draws that the manifests count as thrown away.

        Raises:
            InputError: There is no finished shard.
            DamagedDataError: A manifest was altered.
        """
        events, rejected = 0, Counter[str]()
        for manifest in iterate_manifests(url, schema):
            events += manifest.events
            rejected.update(manifest.rejected)
        if not events:
            raise InputError(
                f"{url}: holds no finished shard; finish it with `strainflow simulate`"
            )
        together = config.extrinsic_draws_per_waveform
        return cls(config, *accepted_share(events, rejected, together))

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
    before = sum(count for name, count in rejected.items() if name not in OF_WINDOW)
    share = window / (1 + before * window / first)
    return share, math.sqrt((1 - share) / first)
