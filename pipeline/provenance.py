"""From what a data set records of its making back to the simulator that made it.

Workers, repair and likelihoods have the metadata alone to go by. They say with which versions of
the libraries events were made, too: with others the bits may differ, and whoever writes is refused.
"""

import socket
from collections.abc import Mapping
from functools import lru_cache
from importlib.metadata import version

from pipeline.config import simulation_from_dict
from pipeline.detector import Detector
from pipeline.simulate import Simulator
from storage.dataset import read_psd, read_schema
from storage.errors import InputError
from storage.schema import Schema

# What the metadata have to hold so that events can be simulated again.
RECORDED = ("configuration", "detectors", "versions")


def simulator_of_dataset(url: str) -> tuple[Simulator, Schema]:
    """The simulator of a data set's events, and what the data set is.

    Whatever versions the libraries here have: good for predictions, while the bits of the data
    set's own events come only from those that it records.

    Raises:
        InputError: The data set does not say how it was simulated.
    """
    schema = read_schema(url)
    _require_provenance(schema, url)
    detectors = tuple(map(Detector.from_dict, schema.provenance["detectors"]))
    config = simulation_from_dict(schema.provenance["configuration"])
    return Simulator(config, detectors, read_psd(url)), schema


@lru_cache(maxsize=1)
def simulator_of_same_libraries(url: str, identity: str) -> tuple[Simulator, Schema]:
    """The same for who writes events, once a worker and content of the metadata.

    Args:
        url: The data set.
        identity: Digest of its metadata.

    Raises:
        InputError: A library here has another version than the data set says.
    """
    schema = read_schema(url)
    _require_provenance(schema, url)
    _require_same_libraries(schema.provenance["versions"], url)
    return simulator_of_dataset(url)


def library_versions() -> dict[str, str]:
    """Of all that the bits of an event come from."""
    names = ("strainflow", "pycbc", "lalsuite", "numpy", "pyfftw", "scipy", "astropy", "numcodecs")
    return {name: version(name) for name in names}


def _require_provenance(schema: Schema, url: str) -> None:
    """Refuse a data set of another writer, who need not say how it was made.

    Raises:
        InputError: It does not say how it was simulated.
    """
    for name in RECORDED:
        if name not in schema.provenance:
            raise InputError(
                f"{url}: its metadata do not say how it was simulated (no {name!r}), so no "
                "event of it can be simulated again; to recode it, name an --encoding"
            )


def _require_same_libraries(recorded: Mapping[str, str], url: str) -> None:
    """Refuse to write events that other libraries may round in another way.

    Raises:
        InputError: A library here has another version than the data set says.
    """
    for name, here in library_versions().items():
        if recorded.get(name) != here:
            raise InputError(
                f"{url}: is made with {name} {recorded.get(name)}, the worker on "
                f"{socket.gethostname()} has {here}; install the same versions there"
            )
