"""The prior of a simulation: a distribution for each parameter, and constraints on masses.

Written as in bilby's prior files, see `pipeline/prior_text.py`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from pipeline.distributions import Distribution
from pipeline.masses import DERIVED_MASSES, derived_masses
from pipeline.prior_text import (
    Constraint,
    describe,
    is_constraint,
    parse_constraint,
    parse_prior,
    read_prior_file,
)
from storage.errors import InputError


@dataclass(frozen=True)
class ParameterFacts:
    """What is possible for a source parameter: its unit and the range of its values."""

    unit: str
    minimum: float
    maximum: float
    excluded: tuple[float, ...] = ()


# In the order in which random numbers are used up: never change it.
PARAMETERS: dict[str, ParameterFacts] = {
    "chirp_mass": ParameterFacts("Msun", 0, math.inf, excluded=(0, math.inf)),
    "mass_ratio": ParameterFacts("", 0, 1, excluded=(0,)),
    "luminosity_distance": ParameterFacts("Mpc", 0, math.inf, excluded=(0, math.inf)),
    "ra": ParameterFacts("rad", 0, 2 * math.pi),
    "dec": ParameterFacts("rad", -math.pi / 2, math.pi / 2),
    "a_1": ParameterFacts("", 0, 1, excluded=(1,)),
    "a_2": ParameterFacts("", 0, 1, excluded=(1,)),
    "tilt_1": ParameterFacts("rad", 0, math.pi),
    "tilt_2": ParameterFacts("rad", 0, math.pi),
    "theta_jn": ParameterFacts("rad", 0, math.pi),
    "psi": ParameterFacts("rad", 0, math.pi),
    "phi_12": ParameterFacts("rad", 0, 2 * math.pi),
    "phi_jl": ParameterFacts("rad", 0, 2 * math.pi),
    "phase": ParameterFacts("rad", 0, 2 * math.pi),
    "geocent_time": ParameterFacts("s", 0, math.inf),
}


_MASSES = (
    "write chirp_mass and mass_ratio, e.g. as UniformInComponentsChirpMass and "
    "UniformInComponentsMassRatio, and {name} = Constraint(...) for its bounds"
)
_SPIN = "write a_{end} = Uniform(...) and tilt_{end} = Sine(), or tilt_{end} = 0 for aligned spins"
_TIDES = "tides are not simulated: take the line out"

# A name that a bilby prior file may hold -> what takes its place here.
_ADVICE = {
    **dict.fromkeys(("mass_1", "mass_2", "total_mass", "symmetric_mass_ratio"), _MASSES),
    **{f"chi_{end}": _SPIN.format(end=end) for end in "12"},
    **{f"cos_tilt_{end}": f"write tilt_{end} = Sine()" for end in "12"},
    **dict.fromkeys(("lambda_1", "lambda_2", "lambda_tilde", "delta_lambda_tilde"), _TIDES),
    **dict.fromkeys(("cos_theta_jn", "iota", "cos_iota"), "write theta_jn = Sine()"),
    **dict.fromkeys(
        ("redshift", "comoving_distance"), "write luminosity_distance = UniformSourceFrame(...)"
    ),
    **dict.fromkeys(("zenith", "azimuth"), "write ra = Uniform(0, 2 * pi) and dec = Cosine()"),
    "delta_phase": "write phase = Uniform(0, 2 * pi)",
}


@dataclass(frozen=True, kw_only=True)
class PriorConfig:
    """The prior over the source parameters, each as in a bilby prior file or a fixed number.

    Args:
        file: A bilby prior file, for what is not given here; read once, its path is not kept.
        chirp_mass: Chirp mass in the detector frame [Msun].
        mass_ratio: m2/m1, at most 1.
        luminosity_distance: [Mpc].
        ra: Right ascension [rad].
        dec: Declination [rad].
        a_1: Dimensionless spin of the heavier body.
        a_2: Dimensionless spin of the lighter body.
        tilt_1: Angle between spin 1 and the orbital angular momentum at f_ref [rad].
        tilt_2: The same for spin 2 [rad].
        theta_jn: Angle between the total angular momentum and the line of sight [rad].
        psi: Polarisation angle [rad].
        phi_12: Azimuth between the spins at f_ref [rad].
        phi_jl: Azimuth of the orbital about the total angular momentum at f_ref [rad].
        phase: Phase at f_ref [rad].
        geocent_time: Time of coalescence at the geocentre [GPS s].
        constraints: Bounds such as `Constraint(5, 100)` on mass_1, mass_2, total_mass [Msun] or
            symmetric_mass_ratio, in the detector frame; draws outside are drawn again.
    """

    file: str | None = None
    chirp_mass: str | float | None = None
    mass_ratio: str | float | None = None
    luminosity_distance: str | float | None = None
    ra: str | float | None = None
    dec: str | float | None = None
    a_1: str | float | None = None
    a_2: str | float | None = None
    tilt_1: str | float | None = None
    tilt_2: str | float | None = None
    theta_jn: str | float | None = None
    psi: str | float | None = None
    phi_12: str | float | None = None
    phi_jl: str | float | None = None
    phase: str | float | None = None
    geocent_time: str | float | None = None
    constraints: dict[str, str] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if self.file is not None:
            self._take_over(self.file)
        self.distributions()
        for name, text in self.constraints.items():
            _parse_constraint_on(name, text)

    def distributions(self) -> dict[str, Distribution]:
        """Parse every entry, in the order of `PARAMETERS`.

        Raises:
            InputError: An entry is missing, not understood, or reaches values that are impossible.
        """
        missing = [name for name in PARAMETERS if getattr(self, name) is None]
        if missing:
            raise InputError(
                f"prior.{missing[0]}: is missing"
                + (f", and so are {', '.join(missing[1:])}" if missing[1:] else "")
                + "; give a distribution such as Uniform(0, 1), or a number"
            )
        return {name: _parse_entry(name, getattr(self, name)) for name in PARAMETERS}

    def allows(self, parameters: Mapping[str, float]) -> bool:
        """Whether a draw, by bilby's names, lies inside every constraint."""
        if not self.constraints:
            return True
        masses = derived_masses(parameters["chirp_mass"], parameters["mass_ratio"])
        return all(
            parse_constraint(text).allows(masses[name]) for name, text in self.constraints.items()
        )

    def _take_over(self, file: str) -> None:
        """Replace the file by those of its entries that are not given already.

        Afterwards the configuration is as if they had been written into it.
        """
        entries = read_prior_file(file)
        given = {name for name in PARAMETERS if getattr(self, name) is not None}
        in_file = set(entries) & set(PARAMETERS)
        if in_file and in_file <= given:
            raise InputError(
                f"prior.file: every parameter of {file} is given beside it too, which counts more; "
                "take out of the recipe, or set to null, what the file shall give"
            )
        constraints = {}
        for name, text in entries.items():
            try:
                if name not in PARAMETERS:
                    constraints[name] = _constraint_of_file(name, text)
                elif name not in given:
                    object.__setattr__(self, name, describe(_parse_entry(name, text)))
            except InputError as error:
                raise InputError(f"prior.file: {file}: {error}") from None
        object.__setattr__(self, "constraints", {**constraints, **self.constraints})
        object.__setattr__(self, "file", None)


def _parse_entry(name: str, text: str | float) -> Distribution:
    facts = PARAMETERS[name]
    try:
        distribution = parse_prior(text)
    except InputError as error:
        raise InputError(f"prior.{name}: {error}") from None
    unit = f" {facts.unit}" if facts.unit else ""
    for end in (distribution.minimum, distribution.maximum):
        if not facts.minimum <= end <= facts.maximum or end in facts.excluded:
            raise InputError(
                f"prior.{name}: {text} reaches {end:g}{unit}, possible is "
                f"{facts.minimum:.4g} to {facts.maximum:.4g}{unit}"
                + "".join(f", {value:g} excluded" for value in facts.excluded)
            )
    return distribution


def _parse_constraint_on(name: str, text: str) -> Constraint:
    if name not in DERIVED_MASSES:
        why = "is drawn itself: narrow its prior" if name in PARAMETERS else "is not known"
        raise InputError(
            f"prior.constraints.{name}: {name} {why}; a constraint may be on "
            + ", ".join(DERIVED_MASSES)
        )
    try:
        return parse_constraint(text)
    except InputError as error:
        raise InputError(f"prior.constraints.{name}: {error}") from None


def _constraint_of_file(name: str, text: str) -> str:
    """Read an entry whose name is no parameter's."""
    if not is_constraint(text) or name not in DERIVED_MASSES:
        raise InputError(f"{name} = {text} is of no use here; {_advice_on(name)}")
    found = _parse_constraint_on(name, text)
    return f"Constraint(minimum={found.minimum!r}, maximum={found.maximum!r})"


def _advice_on(name: str) -> str:
    """What to write in place of a name that is not drawn here."""
    if name.endswith("_time"):
        return "write geocent_time = Uniform(...)"
    if name.endswith("_source"):
        return f"write {name.removesuffix('_source')} in the detector frame"
    return _ADVICE.get(name, "take the line out").format(name=name)
