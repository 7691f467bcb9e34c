"""Detectors: where they stand, how they respond, and a signal's way from the geocentre to each."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import lal
import numpy as np
from jaxtyping import Complex, Float

from storage.arrays import Array
from storage.errors import InputError


@dataclass(frozen=True)
class Detector:
    """A detector's geometry, in Earth-fixed coordinates.

    Attributes:
        name: PyCBC's and LAL's name.
        response: Response tensor d_ij = (u_i u_j - v_i v_j) / 2 of the arms u and v.
        location: Of the vertex [m].
    """

    name: str
    response: Float[Array, "3 3"]
    location: Float[Array, "3"]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for the data set's metadata."""
        return {
            "name": self.name,
            "response": self.response.tolist(),
            "location": self.location.tolist(),
        }

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> "Detector":
        """Read it back; the inverse of `to_dict`."""
        return cls(document["name"], np.array(document["response"]), np.array(document["location"]))


def known_detectors() -> list[str]:
    """The names of PyCBC's and LAL's detectors."""
    from pycbc.detector import get_available_detectors

    return sorted(name for name in get_available_detectors() if " " not in name)


def detector_named(name: str) -> Detector:
    """Take a detector's geometry from PyCBC.

    Raises:
        InputError: PyCBC knows none of that name.
    """
    from pycbc.detector import Detector as KnownDetector

    if name not in known_detectors():
        raise InputError(f"detectors: got {name!r}, known are {', '.join(known_detectors())}")
    known_detector = KnownDetector(name)
    return Detector(
        name, np.array(known_detector.response), np.array(known_detector.location, np.float64)
    )


@dataclass(frozen=True)
class SkyPosition:
    """Where a source stands and when its signal passes the geocentre.

    Attributes:
        ra: Right ascension [rad].
        dec: Declination [rad].
        psi: Polarisation angle [rad].
        geocent_time: [GPS s].
    """

    ra: float
    dec: float
    psi: float
    geocent_time: float

    def antenna_factors(self, detector: Detector) -> tuple[float, float]:
        """F+ and Fx. Source: arXiv:gr-qc/0008066 eq. (B7), as in LAL."""
        sidereal_time = lal.GreenwichMeanSiderealTime(lal.LIGOTimeGPS(self.geocent_time))
        plus, cross = lal.ComputeDetAMResponse(
            detector.response, self.ra, self.dec, self.psi, sidereal_time
        )
        return plus, cross

    def delay(self, detector: Detector) -> float:
        """Arrival at the detector minus arrival at the geocentre [s]."""
        return float(
            lal.TimeDelayFromEarthCenter(
                detector.location, self.ra, self.dec, lal.LIGOTimeGPS(self.geocent_time)
            )
        )


def project(
    plus: Complex[Array, "frequency"],
    cross: Complex[Array, "frequency"],
    first_bin: int,
    frequency_step: float,
    source: SkyPosition,
    detectors: Sequence[Detector],
    start_time: float,
) -> Iterator[Complex[Array, "frequency"]]:
    """Turn polarisations into the strain at one detector after the other.

    h = (F+ h+ + Fx hx) exp(-2 pi i f (delay + geocent_time - start_time))

    Args:
        plus: h+ [1/Hz] for a signal that coalesces at time zero.
        cross: hx [1/Hz] likewise.
        first_bin: Number of the first frequency bin of both.
        frequency_step: Spacing of the bins [Hz].
        source: Where the source stands.
        detectors: Their geometry.
        start_time: Time of the first sample of the strain [GPS s].
    """
    # GPS times as doubles resolve 2e-7 s: take the difference before anything small is added.
    since_start = source.geocent_time - start_time
    for detector in detectors:
        f_plus, f_cross = source.antenna_factors(detector)
        delay = source.delay(detector)
        strain = time_shift(since_start + delay, first_bin, len(plus), frequency_step)
        strain *= f_plus * plus + f_cross * cross
        yield strain


def time_shift(
    time: float, first_bin: int, count: int, frequency_step: float
) -> Complex[Array, "frequency"]:
    """exp(-2 pi i f time) for consecutive frequency bins, as an outer product of two short arrays.

    Args:
        time: By how much the signal is delayed [s].
        first_bin: Number of the first bin.
        count: Number of bins.
        frequency_step: Spacing of the bins [Hz].
    """
    width = 256
    turn = -2j * np.pi * frequency_step * time
    coarse = np.exp(turn * (first_bin + width * np.arange(-(-count // width))))
    fine = np.exp(turn * np.arange(width))
    return np.outer(coarse, fine).ravel()[:count]
