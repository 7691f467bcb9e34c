"""The masses that follow from chirp mass and mass ratio, in the detector frame."""

# bilby's names of what a constraint may be on.
DERIVED_MASSES = ("mass_1", "mass_2", "total_mass", "symmetric_mass_ratio")


def component_masses(chirp_mass: float, mass_ratio: float) -> tuple[float, float]:
    """m1 >= m2 from the chirp mass and m2/m1, in the unit of the chirp mass.

    By bilby's formulae in bilby's order, to the last bit: IMRPhenomXPHM with its default
    multibanding is not continuous, and a mass that differs by 10^-13 can move the strain by 10^-3.
    """
    total_mass = chirp_mass * (1 + mass_ratio) ** 1.2 / mass_ratio**0.6
    mass_1 = total_mass / (1 + mass_ratio)
    return mass_1, mass_1 * mass_ratio


def chirp_mass_and_ratio(mass_1: float, mass_2: float) -> tuple[float, float]:
    """The chirp mass, and the smaller mass over the larger."""
    product, total = mass_1 * mass_2, mass_1 + mass_2
    return product**0.6 / total**0.2, min(mass_1, mass_2) / max(mass_1, mass_2)


def derived_masses(chirp_mass: float, mass_ratio: float) -> dict[str, float]:
    """`DERIVED_MASSES` in the unit of the chirp mass."""
    mass_1, mass_2 = component_masses(chirp_mass, mass_ratio)
    values = (mass_1, mass_2, mass_1 + mass_2, mass_ratio / (1 + mass_ratio) ** 2)
    return dict(zip(DERIVED_MASSES, values, strict=True))
