"""Polarisations to the strain of the detectors, on the device, as the simulator projects them.

    h = (F+ h+ + Fx hx) exp(-2 pi i f (delay + geocent_time - reference_time))
        reference_distance / luminosity_distance

over all of the stretch that a data set of polarisations stores, on which a shift in time loses
nothing; the segment is its end. Series are whitened with the first detector's PSD, those of a
detector with another one by the ratio of the two.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from jaxtyping import Complex64, Float, Float64
from torch import Tensor

from storage.dataset import read_psd
from storage.errors import DamagedDataError, InputError
from storage.schema import Schema

LIGHT = 299_792_458.0  # [m/s]
# Events projected together. One by one on a CPU: they stay in its cache, which is 1.5 times faster
# than 16, and no bit of them depends on the events beside them.
TOGETHER, TOGETHER_ON_CPU = 32, 1
_FINE = 256  # bins over which a phase is worked out; the others by products
_NUMBERS = ("reference_distance", "reference_time", "sidereal_time", "sidereal_rate")
_ALTERED = (
    "the metadata do not say how polarisations are projected ({} is missing or wrong), so they "
    "were altered; `strainflow repair` restores them from their copy"
)

Facts = Mapping[str, Any]


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


def projection_facts(schema: Schema, data: str | Path) -> Facts | None:
    """What a projection has to know of a data set, in plain values and tensors.

    Args:
        schema: What the data set is.
        data: Where it is.

    Returns:
        None where it holds the detectors' strain.

    Raises:
        DamagedDataError: Its PSD is not there, or was altered.
    """
    if not schema.polarisations:
        return None
    return {
        "data": str(data),
        "sample_rate": schema.sample_rate,
        "projection": schema.provenance.get("projection"),
        "detectors": schema.provenance.get("detectors"),
        "parameters": [vars(parameter) for parameter in schema.parameters],
        "psd": torch.from_numpy(read_psd(data).astype(float)),
    }


def samples_of_events(schema: Schema) -> int:
    """Samples of an event in each detector, stored or to be made of polarisations.

    Raises:
        DamagedDataError: The metadata of polarisations do not say it.
    """
    if not schema.polarisations:
        return schema.samples
    projection = schema.provenance.get("projection")
    samples = projection.get("samples") if isinstance(projection, dict) else None
    if type(samples) is not int or not 0 < samples <= schema.samples:
        raise DamagedDataError(_ALTERED.format(f"the number of samples {samples!r}"))
    return samples


def refuse_polarisations(schema: Schema, data: str | Path) -> None:
    """Refuse a data set that holds no events of detectors.

    Raises:
        InputError: It holds polarisations.
    """
    if schema.polarisations:
        raise InputError(
            f"{data}: holds polarisations, of which training makes events, and no event of "
            "detectors to sample; simulate a test set with stored: strain"
        )


@dataclass(frozen=True)
class Projection:
    """The detectors, and what the stored series are.

    Attributes:
        responses: Tensors of the detectors.
        locations: Of the vertices [m].
        weights: By which whitening with each of the different PSDs differs from the stored one;
            complex, as are the spectra.
        psd_of: Which of these PSDs each detector has.
        samples: Of the segment, the end of the stored series.
        sample_rate: [Hz].
        reference_distance: Of the stored series [Mpc].
        reference_time: Of their coalescence at the geocentre [GPS s].
        sidereal_time: Greenwich's, at the reference time [rad].
        sidereal_rate: By which it grows [rad/s].
    """

    responses: Float64[Tensor, "detector 3 3"]
    locations: Float64[Tensor, "detector 3"]
    weights: Complex64[Tensor, "psd frequency"]
    psd_of: tuple[int, ...]
    samples: int
    sample_rate: float
    reference_distance: float
    reference_time: float
    sidereal_time: float
    sidereal_rate: float

    @classmethod
    def of(cls, facts: Facts, device: torch.device) -> Self:
        """That of a data set.

        Args:
            facts: Of `projection_facts`.
            device: Where it projects.

        Raises:
            DamagedDataError: They are not what a data set of polarisations records.
        """

        def tensor(name: str, shape: tuple[int, ...]) -> Tensor:
            rows = [item[name] for item in facts["detectors"]]
            return torch.tensor(rows, dtype=torch.float64, device=device).reshape(-1, *shape)

        try:
            numbers = {name: float(facts["projection"][name]) for name in _NUMBERS}
            samples = int(facts["projection"]["samples"])
            responses, locations = tensor("response", (3, 3)), tensor("location", (3,))
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise DamagedDataError(f"{facts['data']}: {_ALTERED.format(error)}") from None
        psds, psd_of = torch.unique(facts["psd"], dim=0, return_inverse=True)
        stored = facts["psd"][0]
        weights = torch.where(psds > 0, (stored / psds).sqrt(), 0.0)
        return cls(
            responses,
            locations,
            weights.to(device, torch.complex64),
            tuple(psd_of.tolist()),
            samples=samples,
            sample_rate=facts["sample_rate"],
            **numbers,
        )

    @property
    def is_reweighted(self) -> bool:
        """Whether a detector has another PSD than the first."""
        return len(self.weights) > 1

    def way(self, sources: Sources) -> Way:
        """The antenna factors and delays of sources.

        Source: arXiv:gr-qc/0008066 eqs. (B4) to (B7), as in LAL.
        """
        late = sources.geocent_time - self.reference_time
        hour_angle = self.sidereal_time + self.sidereal_rate * late - sources.ra
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
        nearer = (self.reference_distance / sources.luminosity_distance)[..., None]
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
        strain = series.new_empty((len(series), len(self.responses), self.samples))
        for part, stored in parts_of(series):
            strain[part] = self.project(stored, Sources(*(column[part] for column in sources)))
        return strain

    def project(self, stored: Stored, sources: Sources) -> Float[Tensor, "event detector time"]:
        """The same of a few events."""
        way, samples = self.way(sources), stored.series.shape[-1]
        plus, cross = stored.spectrum[:, :, None].unbind(1)
        spectrum = way.plus.float()[..., None] * plus + way.cross.float()[..., None] * cross
        spectrum *= _phases(way.shift * (self.sample_rate / samples), spectrum.shape[-1])
        if self.is_reweighted:
            for detector, psd in enumerate(self.psd_of):
                spectrum[:, detector] *= self.weights[psd]
        whole: Tensor = torch.fft.irfft(spectrum, n=samples)
        return whole[..., -self.samples :]


def parts_of(
    series: Float[Tensor, "event polarisation time"],
) -> Iterator[tuple[slice, Stored]]:
    """The events that are worked on together."""
    together = TOGETHER_ON_CPU if series.device.type == "cpu" else TOGETHER
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
