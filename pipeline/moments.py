"""When real events are, and how their parameters are counted in the segment of a simulation.

A network knows one segment: it was trained at one time, `segment.start_time`. An event at another
time is the same data with other names for two of its parameters: its time is counted from the same
place in the segment, and the sky has turned against the Earth meanwhile, so that its right
ascension is counted from another meridian:

    geocent_time (in the sky) = geocent_time (of the data set) + time_shift
    ra (in the sky)           = ra (of the data set) + ra_shift, modulo 2 pi

Declination and polarisation angle stay: the response depends on right ascension and time only by
the hour angle. A data set holds its own, which fit its configuration; result files hold the sky's.
"""

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import lal
import numpy as np
from jaxtyping import Float

from pipeline.config import SimulationConfig
from pipeline.masses import chirp_mass_and_ratio
from pipeline.priors import PARAMETERS
from storage.arrays import Array
from storage.errors import InputError

MOST_APART = 1.0  # of an injection's time and the one that was given [s]


@dataclass(frozen=True)
class Moment:
    """When an event is.

    Attributes:
        gps: Its time of coalescence, as it was given [GPS s].
        start: Of the segment that is cut [GPS s].
        time_shift: Its time minus the one that the data set counts [s].
        ra_shift: Right ascension in the sky minus the one that the data set counts [rad].
        truth: Its parameters as the data set counts them, those that are known.
    """

    gps: float
    start: float
    time_shift: float
    ra_shift: float
    truth: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def at(
        cls, gps: float, config: SimulationConfig, source: Mapping[str, float] | None = None
    ) -> "Moment":
        """Put an event where the simulation has its mergers: at the median of the prior's times.

        Args:
            gps: Its time of coalescence [GPS s].
            config: The simulation.
            source: Its true parameters, in the sky, those that are known.
        """
        usual = usual_time(config)
        ra_shift = (_sidereal_time(gps) - _sidereal_time(usual)) % (2 * math.pi)
        time_shift = gps - usual
        truth = dict(source or {})
        if "geocent_time" in truth:
            truth["geocent_time"] -= time_shift
        if "ra" in truth:
            truth["ra"] = (truth["ra"] - ra_shift) % (2 * math.pi)
        return cls(gps, config.segment.start_time + time_shift, time_shift, ra_shift, truth)

    def to_dict(self) -> dict[str, float]:
        """What the data set's metadata say of it."""
        facts = asdict(self)
        del facts["truth"]
        return facts

    def parameters(self) -> Float[Array, "parameter"]:
        """In the order of the data set; NaN where one is not known."""
        return np.array([self.truth.get(name, math.nan) for name in PARAMETERS])


def usual_time(config: SimulationConfig) -> float:
    """The median of a simulation's prior of the time of coalescence [GPS s]."""
    return float(config.prior.distributions()["geocent_time"].rescale(np.array(0.5)))


def moments_of(
    gps: Sequence[float], injections: str | None, config: SimulationConfig
) -> tuple[Moment, ...]:
    """The events that are asked for, in order.

    Args:
        gps: Their times of coalescence [GPS s]; those of the injections where none is given.
        injections: A file of their true parameters; None where they are not known.
        config: The simulation.

    Raises:
        InputError: There is none, or times and injections do not belong together.
    """
    for time in gps:
        if not 0 < time < 1e10:
            raise InputError(f"gps: got {time:g}, a GPS time is a number of seconds since 1980")
    if injections is None:
        if not gps:
            raise InputError("gps: name at least one time of coalescence [GPS s], or --injections")
        return tuple(Moment.at(time, config) for time in gps)
    sources = read_injections(Path(injections))
    times = tuple(gps) or tuple(source.get("geocent_time", math.nan) for source in sources)
    if len(times) != len(sources):
        raise InputError(
            f"injections: {injections} holds {len(sources)} events, {len(times)} times are given "
            "with --gps; give one for each, or none"
        )
    for number, (time, source) in enumerate(zip(times, sources, strict=True)):
        if not abs(time - source.get("geocent_time", time)) <= MOST_APART:
            raise InputError(
                f"injections: number {number} of {injections} has no geocent_time, or one that is "
                f"more than {MOST_APART:g} s from the {time:.13g} of --gps; give them in one order"
            )
    return tuple(
        Moment.at(time, config, source) for time, source in zip(times, sources, strict=True)
    )


def read_injections(path: Path) -> list[dict[str, float]]:
    """Read true parameters by bilby's names: CSV with a header, or JSON as bilby writes it.

    Args:
        path: A `.csv`, or a `.json`: a list of objects, one object of lists, or bilby's own
            injection file. Component masses become chirp mass and mass ratio; what is no
            parameter of a data set is passed over.

    Raises:
        InputError: It cannot be read, or holds none.
    """
    try:
        text = path.read_text("utf-8")
        rows = _rows_of_json(text) if path.suffix == ".json" else list(_rows_of_csv(text))
        sources = [_source_of(row) for row in rows]
    except (OSError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"injections: {path} cannot be used ({' '.join(str(error).split())}); give CSV with a "
            "header of bilby's names, or JSON: a list of objects of names and numbers"
        ) from None
    if not sources or not any(sources):
        raise InputError(f"injections: {path} holds no parameter by a name of bilby's")
    return sources


def _rows_of_csv(text: str) -> list[dict[str, Any]]:
    return [dict(row) for row in csv.DictReader(text.splitlines(), strict=True)]


def _rows_of_json(text: str) -> list[dict[str, Any]]:
    document = json.loads(text)
    if isinstance(document, dict):
        document = document.get("injections", document)
    if isinstance(document, dict):  # of pandas, as bilby writes it
        document = document.get("content", document)
    if isinstance(document, dict):
        columns = {name: v if isinstance(v, list) else [v] for name, v in document.items()}
        rows = zip(*columns.values(), strict=True)
        return [dict(zip(columns, row, strict=True)) for row in rows]
    return [dict(row) for row in document]


def _source_of(row: Mapping[str, Any]) -> dict[str, float]:
    """The parameters of a data set in a row."""
    source = {name: float(row[name]) for name in PARAMETERS if row.get(name) not in (None, "")}
    if "mass_1" in row and "mass_2" in row:
        chirp_mass, ratio = chirp_mass_and_ratio(float(row["mass_1"]), float(row["mass_2"]))
        source = {"chirp_mass": chirp_mass, "mass_ratio": ratio, **source}
    for name, value in source.items():
        if not math.isfinite(value):
            raise ValueError(f"{name} is {value:g}")
    return source


def _sidereal_time(gps: float) -> float:
    return float(lal.GreenwichMeanSiderealTime(lal.LIGOTimeGPS(gps)))
