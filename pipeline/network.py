"""The entries of `detectors:`, names of detectors, of networks, or own ones, to their geometry."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from pipeline.config import DetectorConfig
from pipeline.detector import Detector, detector_named, known_detectors
from storage.errors import InputError

# Candidate sites. Source: arXiv:2303.15923, and gwfast (arXiv:2207.06910), which it computes with.
# Their elevation is left at zero.
SARDINIA = DetectorConfig(
    name="ETS",
    latitude=40 + 31 / 60,
    longitude=9 + 25 / 60,
    xarm_azimuth=70.567,
    yarm_azimuth=130.567,
    length=10.0,
)
EMR = replace(
    SARDINIA, name="ETM", latitude=50 + 43 / 60 + 23 / 3600, longitude=5 + 55 / 60 + 14 / 3600
)

_SCRATCH = "strainflow's own entry"  # in PyCBC's table, overwritten by each own entry


def detectors_of(entries: Sequence[str | DetectorConfig]) -> tuple[Detector, ...]:
    """Turn the configuration's entries into geometry; a network becomes its detectors.

    Raises:
        InputError: A name is not known, or two detectors have the same.
    """
    detectors: list[Detector] = []
    for entry in entries:
        if isinstance(entry, DetectorConfig):
            detectors.append(own_detector(entry))
        elif entry in NETWORKS:
            detectors += NETWORKS[entry]()
        elif entry in known_detectors():
            detectors.append(detector_named(entry))
        elif member := _member_named(entry):
            detectors.append(member)
        else:
            raise InputError(
                f"detectors: got {entry!r}, known are {', '.join(known_detectors())} and the "
                f"networks {', '.join(NETWORKS)}; or give name, latitude, longitude, ..."
            )
    names = [detector.name for detector in detectors]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(
            f"detectors: {', '.join(twice)} would be there twice; name each detector once"
        )
    return tuple(detectors)


def own_detector(config: DetectorConfig) -> Detector:
    """A detector's response and vertex, worked out with PyCBC.

    Raises:
        InputError: PyCBC knows a detector of that name.
    """
    if config.name in known_detectors() or config.name in NETWORKS or _member_named(config.name):
        raise InputError(
            f"detectors: an own entry is called {config.name}, as a known one; give another name"
        )
    return _on_earth(config)


def _on_earth(config: DetectorConfig) -> Detector:
    facts = _earth_fixed(config)
    return Detector(config.name, np.array(facts["response"]), np.array(facts["location"]))


def triangle(first: DetectorConfig) -> list[Detector]:
    """Three interferometers in an exact equilateral triangle in space, called NAME1 to NAME3.

    The first stands at the given vertex with its arms along two sides; the x arm of each points to
    the vertex of the next, its y arm to that of the one before. Vertices are where bilby's
    `TriangularInterferometer` has them, to 30 m: it walks on a sphere. bilby turns the arms by
    240 degrees from one to the next where the triangle turns by 120, so that its second and third
    interferometers have each other's arms. Arms here are straight lines between the vertices, as
    in LAL's E1, E2, E3: the response tensors add up to zero.
    """
    facts = _earth_fixed(first)
    length = 1e3 * first.length
    corner = np.array(facts["location"])
    vertices = [corner, corner + length * facts["xvec"], corner + length * facts["yvec"]]
    detectors = []
    for number, vertex in enumerate(vertices):
        x_arm = (vertices[(number + 1) % 3] - vertex) / length
        y_arm = (vertices[(number + 2) % 3] - vertex) / length
        response = (np.outer(x_arm, x_arm) - np.outer(y_arm, y_arm)) / 2
        detectors.append(Detector(f"{first.name}{number + 1}", response, vertex))
    return detectors


def two_ls() -> list[Detector]:
    """Two L-shaped interferometers of 15 km, the "2L at 45 degrees" of arXiv:2303.15923.

    Taken from there: the sites, the length, and that the second is turned by 45 degrees against
    the first, both measured from the great circle that joins them. At Sardinia the arms point East
    and North, as in gwfast's ETSL. From this follows the second's x arm, at 47.5 degrees: East of
    the two sites differs by 2.5 degrees with respect to that circle.
    """
    turn = _azimuth(EMR, SARDINIA) - 180 - _azimuth(SARDINIA, EMR)
    sardinia = replace(SARDINIA, name="ETSL", xarm_azimuth=0.0, yarm_azimuth=90.0, length=15.0)
    emr = replace(
        EMR, name="ETML", xarm_azimuth=45.0 + turn, yarm_azimuth=135.0 + turn, length=15.0
    )
    return [_on_earth(sardinia), _on_earth(emr)]


def _member_named(name: str) -> Detector | None:
    """A detector that a network brings, such as ETM2."""
    members = (detector for network in NETWORKS.values() for detector in network())
    return next((detector for detector in members if detector.name == name), None)


def _azimuth(here: DetectorConfig, there: DetectorConfig) -> float:
    """Direction of the great circle to another site, counter-clockwise from East [degrees]."""
    latitude, other = math.radians(here.latitude), math.radians(there.latitude)
    east = math.radians(there.longitude - here.longitude)
    x = math.cos(other) * math.sin(east)
    y = math.cos(latitude) * math.sin(other) - math.sin(latitude) * math.cos(other) * math.cos(east)
    return math.degrees(math.atan2(y, x)) % 360


def _earth_fixed(config: DetectorConfig) -> dict[str, Any]:
    """PyCBC's facts of a detector; it counts azimuths from North clockwise, in radians."""
    from pycbc.detector import Detector as KnownDetector
    from pycbc.detector import add_detector_on_earth

    add_detector_on_earth(
        _SCRATCH,
        longitude=math.radians(config.longitude),
        latitude=math.radians(config.latitude),
        height=config.elevation,
        xangle=math.radians(90 - config.xarm_azimuth),
        yangle=math.radians(90 - config.yarm_azimuth),
        xaltitude=config.xarm_tilt,
        yaltitude=config.yarm_tilt,
        xlength=1e3 * config.length,
        ylength=1e3 * config.length,
    )
    facts: dict[str, Any] = KnownDetector(_SCRATCH).info
    return facts


def _named(*names: str) -> Callable[[], list[Detector]]:
    return lambda: [detector_named(name) for name in names]


# A name that stands for several detectors.
NETWORKS: dict[str, Callable[[], list[Detector]]] = {
    "ET": _named("E1", "E2", "E3"),
    "ET-Sardinia": lambda: triangle(SARDINIA),
    "ET-EMR": lambda: triangle(EMR),
    "2L": two_ls,
    "HLV": _named("H1", "L1", "V1"),
}
