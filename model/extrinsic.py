"""Events out of polarisations: other distances, directions and times for each waveform and step.

What the prior leaves free of what a waveform does not hold is drawn anew from it, for each event in
each step. Where network SNRs have a window, some candidates are drawn, and the first within it is
taken; where none is, the source with which the waveform was accepted in simulation. Given its
waveform, that one too is a draw from the prior within the window, and waveforms were accepted with
the probability that the window gives them: so events have the distribution of the data set of
strain of the same configuration, however few of the candidates the window lets through.
"""

import math
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, UInt64
from torch import Tensor

from model.polarisations import PolarisationFacts
from model.prior import Prior, read_prior
from model.projection import Projection, Sources, Stored, parts_of
from storage.arrays import Array
from storage.errors import InputError
from storage.order import mix64
from storage.schema import Parameter

CANDIDATES = 64  # an event, where there is a window: one that lets 5 % through refuses all in 4 %
# Samples, at most, over which power is taken as constant where an end of the segment lies in them.
BLOCK = 16


@dataclass(frozen=True)
class Extrinsic:
    """Makes events of polarisations.

    Attributes:
        facts: What it was made of.
        projection: Onto the detectors.
        columns: Of `Sources` in a batch's parameters.
        priors: Of each that is drawn, by name.
        window: Of network SNRs; None for none.
    """

    facts: PolarisationFacts
    projection: Projection
    columns: tuple[int, ...]
    priors: dict[str, Prior]
    window: tuple[float, float] | None

    @classmethod
    def of(cls, facts: PolarisationFacts, device: torch.device) -> Self:
        """For a data set of polarisations.

        Args:
            facts: Of the data set.
            device: Where events are made.

        Raises:
            InputError: A free parameter's prior cannot be drawn from here.
        """
        names = [parameter.name for parameter in facts.parameters]
        if lacking := [name for name in Sources._fields if name not in names]:
            raise InputError(
                f"{facts.data}: its table of parameters lacks {', '.join(lacking)}, without which "
                "polarisations cannot be projected; simulate it with this strainflow"
            )
        columns = tuple(names.index(name) for name in Sources._fields)
        chosen = [facts.parameters[column] for column in columns]
        return cls(
            facts,
            Projection.of(facts, device),
            columns,
            {item.name: _prior_of(item, facts.data) for item in chosen if not item.fixed},
            None if facts.network_snr == (0, math.inf) else facts.network_snr,
        )

    def __call__(
        self,
        series: Float[Tensor, "event polarisation time"],
        parameters: Float64[Tensor, "event parameter"],
        seeds: UInt64[Array, "event"] | None,
    ) -> tuple[Float[Tensor, "event detector time"], Float64[Tensor, "event parameter"]]:
        """Make events.

        Args:
            series: Stored polarisations, decoded [sigma].
            parameters: As they are stored: of the sources that were accepted in simulation.
            seeds: One an event, any 64 bits; None for the sources as they are stored.

        Returns:
            Whitened signals [sigma], and their parameters.
        """
        sources = Sources(*(parameters[:, column] for column in self.columns))
        if seeds is None or not self.priors:
            return self.projection(series, sources), parameters
        candidates = self._candidates(sources, seeds)
        strain, drawn = [], []
        for part, stored in parts_of(series):
            drawn.append(self._choose(stored, _rows(sources, part), _rows(candidates, part)))
            strain.append(self.projection.project(stored, drawn[-1]))
        columns = torch.stack([torch.cat(pieces) for pieces in zip(*drawn, strict=True)], 1)
        places = torch.tensor(self.columns, device=parameters.device)
        return torch.cat(strain), parameters.index_copy(1, places, columns)

    def network_snr(self, stored: Stored, sources: Sources) -> Float64[Tensor, "event candidate"]:
        """Optimal SNR of the network in the segment, without projecting.

        Of each PSD, the power of both polarisations and their product are added up along the
        series. How much of them a detector has in the segment follows from the shift in time.

        Args:
            stored: Of a few events.
            sources: Some candidates an event.
        """
        facts, way = self.projection.facts, self.projection.way(sources)
        sums = [_Sums.of(series) for series in self._whitened_anew(stored)]
        squares = torch.zeros_like(sources.ra)
        for detector, number in enumerate(self.projection.psd_of):
            plus, cross, shift = (column[..., detector] for column in way)
            start = stored.series.shape[-1] - facts.samples - shift * facts.sample_rate
            powers = sums[number].between(start, start + facts.samples)
            for factor, power in zip((plus**2, cross**2, 2 * plus * cross), powers, strict=True):
                squares += factor * power
        return squares.clamp(min=0).sqrt()

    def _choose(self, stored: Stored, known: Sources, candidates: Sources) -> Sources:
        """Take the first candidate of each event within the window, or else the known source."""
        if self.window is None:
            return Sources(*(column[:, 0] for column in candidates))
        low, high = self.window
        snr = self.network_snr(stored, candidates)
        inside: Bool[Tensor, "event candidate"] = (snr >= low) & (snr <= high)
        found, first = inside.any(1), inside.int().argmax(1, keepdim=True)
        return Sources(
            *(
                torch.where(found, drawn.gather(1, first)[:, 0], own)
                for drawn, own in zip(candidates, known, strict=True)
            )
        )

    def _candidates(self, known: Sources, seeds: UInt64[Array, "event"]) -> Sources:
        """Draw from the priors; what is fixed stays."""
        device, count = known.ra.device, 1 if self.window is None else CANDIDATES
        drawn = {}
        for number, (name, prior) in enumerate(self.priors.items()):
            counters = np.arange(count, dtype=np.uint64) * np.uint64(16) + np.uint64(number)
            bits = mix64(seeds[:, None] + counters) >> np.uint64(12)
            shares = (bits.astype(np.float64) + 0.5) / 2.0**52  # never 0 or 1
            drawn[name] = prior.quantile(torch.from_numpy(shares)).to(device)
        return Sources(
            *(
                drawn[name] if name in drawn else own[:, None].expand(-1, count)
                for name, own in zip(Sources._fields, known, strict=True)
            )
        )

    def _whitened_anew(self, stored: Stored) -> list[Float[Tensor, "event polarisation time"]]:
        """The series, whitened with each of the different PSDs; they are with the first one's."""
        projection, samples = self.projection, stored.series.shape[-1]
        return [
            stored.series
            if number == projection.psd_of[0]
            else torch.fft.irfft(stored.spectrum * weight, n=samples)
            for number, weight in enumerate(projection.weights)
        ]


def _prior_of(parameter: Parameter, data: str) -> Prior:
    """What a parameter is drawn from.

    Raises:
        InputError: Its quantiles are not known here.
    """
    low = -math.inf if parameter.minimum is None else parameter.minimum
    high = math.inf if parameter.maximum is None else parameter.maximum
    prior = read_prior(parameter.prior, low, high)
    if prior is None:
        raise InputError(
            f"{data}: the prior of {parameter.name}, {parameter.prior!r}, has no closed form to "
            "draw from in training; simulate with another one, such as a PowerLaw, or with "
            "stored: strain"
        )
    return prior


def _rows(sources: Sources, part: slice) -> Sources:
    """Those of some events."""
    return Sources(*(column[part] for column in sources))


@dataclass(frozen=True)
class _Sums:
    """Power along a circle of samples, added up in blocks.

    Attributes:
        block: Samples of one.
        sums: Of h+^2, hx^2 and h+ hx up to the start of each block, and to the end of the last.
    """

    block: int
    sums: Float64[Tensor, "3 event block"]

    @classmethod
    def of(cls, series: Float[Tensor, "event polarisation time"]) -> Self:
        """Add up."""
        block = math.gcd(series.shape[-1], BLOCK)
        plus, cross = series.unflatten(-1, (-1, block)).unbind(1)
        products = (plus * plus, cross * cross, plus * cross)
        sums = torch.stack([item.sum(-1, dtype=torch.float64) for item in products]).cumsum(-1)
        return cls(block, torch.nn.functional.pad(sums, (1, 0)))

    def between(
        self, start: Float64[Tensor, "event candidate"], stop: Float64[Tensor, "event candidate"]
    ) -> Float64[Tensor, "3 event candidate"]:
        """The sums over a stretch.

        Args:
            start: Sample at which it begins, may be before the first and a fraction.
            stop: Sample at which it ends.
        """
        return self._up_to(stop) - self._up_to(start)

    def _up_to(
        self, sample: Float64[Tensor, "event candidate"]
    ) -> Float64[Tensor, "3 event candidate"]:
        blocks = self.sums.shape[-1] - 1
        rounds, place = (sample / (self.block * blocks)).floor(), sample / self.block
        place = place - rounds * blocks
        before = place.floor().clamp(0, blocks - 1)
        index = before.long().expand(3, -1, -1)
        low, high = self.sums.gather(-1, index), self.sums.gather(-1, index + 1)
        return rounds * self.sums[..., -1:] + low + (high - low) * (place - before)
