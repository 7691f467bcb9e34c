"""Polarisations to the strain of the detectors, on the device, as the simulator projects them.

    h = (F+ h+ + Fx hx) exp(-2 pi i f (delay + geocent_time - reference_time))
        reference_distance / luminosity_distance

over all of the stretch that a data set of polarisations stores, on which a shift in time loses
nothing; the segment is its end. Series are whitened with the first detector's PSD, those of a
detector with another one by the ratio of the two.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Self

import torch
from jaxtyping import Complex64, Float, Float64
from torch import Tensor

from model.polarisations import PolarisationFacts

LIGHT = 299_792_458.0  # [m/s]
# Samples of the series that are projected together, of one event at least: on a CPU so many as stay
# in its cache, one event of 16 s at 8192 Hz, which is 1.5 times faster than 16 of them.
TOGETHER, TOGETHER_ON_CPU = 2**22, 2**17
_FINE = 256  # bins over which a phase is worked out; the others by products


class Sources(NamedTuple):
    """What a waveform does not hold; bilby's names and units, double, all of one shape."""

    luminosity_distance: Float64[Tensor, "*source"]
    ra: Float64[Tensor, "*source"]
    dec: Float64[Tensor, "*source"]
    psi: Float64[Tensor, "*source"]
    geocent_time: Float64[Tensor, "*source"]


class Way(NamedTuple):
    """How a source's polarisations come to each detector.

    Attributes:
        plus: F+ times the ratio of distances.
        cross: Fx likewise.
        shift: Arrival after that of the stored series [s].
    """

    plus: Float64[Tensor, "*source detector"]
    cross: Float64[Tensor, "*source detector"]
    shift: Float64[Tensor, "*source detector"]


@dataclass(frozen=True)
class Stored:
    """Stored polarisations of a few events.

    Attributes:
        series: Decoded [sigma].
    """

    series: Float[Tensor, "event polarisation time"]

    @cached_property
    def spectrum(self) -> Complex64[Tensor, "event polarisation frequency"]:
        """Their transforms, worked out once."""
        spectrum: Tensor = torch.fft.rfft(self.series)
        return spectrum


@dataclass(frozen=True)
class Projection:
    """The detectors on the device, and what the stored series are.

    Attributes:
        facts: Of the data set.
        responses: Tensors of the detectors.
        locations: Of the vertices [m].
        weights: By which whitening with each of the different PSDs differs from the stored one;
            complex, as are the spectra.
        psd_of: Which of these PSDs each detector has.
    """

    facts: PolarisationFacts
    responses: Float64[Tensor, "detector 3 3"]
    locations: Float64[Tensor, "detector 3"]
    weights: Complex64[Tensor, "psd frequency"]
    psd_of: tuple[int, ...]

    @classmethod
    def of(cls, facts: PolarisationFacts, device: torch.device) -> Self:
        """That of a data set.

        Args:
            facts: Of the data set.
            device: Where it projects.
        """
        psds, psd_of = torch.unique(facts.psd, dim=0, return_inverse=True)
        weights = torch.where(psds > 0, (facts.psd[0] / psds).sqrt(), 0.0)
        return cls(
            facts=facts,
            responses=facts.responses.to(device),
            locations=facts.locations.to(device),
            weights=weights.to(device, torch.complex64),
            psd_of=tuple(psd_of.tolist()),
        )

    @property
    def is_reweighted(self) -> bool:
        """Whether a detector has another PSD than the first."""
        return len(self.weights) > 1

    def way(self, sources: Sources) -> Way:
        """The antenna factors and delays of sources.

        Source: arXiv:gr-qc/0008066 eqs. (B4) to (B7), as in LAL.
        """
        late = sources.geocent_time - self.facts.reference_time
        hour_angle = self.facts.sidereal_time + self.facts.sidereal_rate * late - sources.ra
        sin_hour, cos_hour = hour_angle.sin(), hour_angle.cos()
        sin_dec, cos_dec = sources.dec.sin(), sources.dec.cos()
        sin_psi, cos_psi = sources.psi.sin(), sources.psi.cos()
        x = torch.stack(
            [
                -cos_psi * sin_hour - sin_psi * cos_hour * sin_dec,
                -cos_psi * cos_hour + sin_psi * sin_hour * sin_dec,
                sin_psi * cos_dec,
            ],
            -1,
        )
        y = torch.stack(
            [
                sin_psi * sin_hour - cos_psi * cos_hour * sin_dec,
                sin_psi * cos_hour + cos_psi * sin_hour * sin_dec,
                cos_psi * cos_dec,
            ],
            -1,
        )
        towards = torch.stack([cos_dec * cos_hour, -cos_dec * sin_hour, sin_dec], -1)
        xx, yy, xy = (
            torch.einsum("...i,dij,...j->...d", left, self.responses, right)
            for left, right in ((x, x), (y, y), (x, y))
        )
        nearer = (self.facts.reference_distance / sources.luminosity_distance)[..., None]
        delay = -(towards @ self.locations.T) / LIGHT
        return Way((xx - yy) * nearer, 2 * xy * nearer, delay + late[..., None])

    def __call__(
        self, series: Float[Tensor, "event polarisation time"], sources: Sources
    ) -> Float[Tensor, "event detector time"]:
        """The whitened strain of sources in the segment [sigma].

        Args:
            series: As they are stored, decoded [sigma].
            sources: One an event.
        """
        strain = series.new_empty((len(series), len(self.responses), self.facts.samples))
        for part, stored in parts_of(series):
            strain[part] = self.project(stored, Sources(*(column[part] for column in sources)))
        return strain

    def project(self, stored: Stored, sources: Sources) -> Float[Tensor, "event detector time"]:
        """The same of a few events."""
        way, samples = self.way(sources), stored.series.shape[-1]
        plus, cross = stored.spectrum[:, :, None].unbind(1)
        spectrum = way.plus.float()[..., None] * plus + way.cross.float()[..., None] * cross
        spectrum *= _phases(way.shift * (self.facts.sample_rate / samples), spectrum.shape[-1])
        if self.is_reweighted:
            for detector, psd in enumerate(self.psd_of):
                spectrum[:, detector] *= self.weights[psd]
        whole: Tensor = torch.fft.irfft(spectrum, n=samples)
        return whole[..., -self.facts.samples :]


def parts_of(
    series: Float[Tensor, "event polarisation time"],
) -> Iterator[tuple[slice, Stored]]:
    """The events that are worked on together."""
    most = TOGETHER_ON_CPU if series.device.type == "cpu" else TOGETHER
    together = max(1, most // series.shape[-1])
    for first in range(0, len(series), together):
        part = slice(first, first + together)
        yield part, Stored(series[part])


def _phases(
    turns: Float64[Tensor, "event detector"], bins: int
) -> Complex64[Tensor, "event detector frequency"]:
    """exp(-2 pi i k turns) for bins k = 0, 1, ..., as the products of two short series."""
    coarse = torch.arange(0, bins, _FINE, dtype=torch.float64, device=turns.device)
    fine = torch.arange(_FINE, dtype=torch.float64, device=turns.device)
    first, second = (_unit(turns[..., None] * numbers) for numbers in (coarse, fine))
    return (first[..., None] * second[..., None, :]).flatten(-2)[..., :bins]


def _unit(turns: Float64[Tensor, "*n"]) -> Complex64[Tensor, "*n"]:
    angles = (-2 * math.pi * (turns - turns.round())).float()
    return torch.polar(torch.ones_like(angles), angles)
