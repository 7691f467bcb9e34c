"""Posteriors for other tools: a pandas frame, a bilby result.

pandas and bilby are imported when they are asked for; the extra `results` installs both.
"""

from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from storage import results
from storage.errors import InputError
from storage.posterior import Posterior

EXTRA = "results"
# What bilby fills in, or derives from it, where nothing says which waveform it was.
GUESSED = [
    *("waveform_approximant", "reference_frequency", "minimum_frequency", "iota"),
    *("spin_1x", "spin_1y", "spin_2x", "spin_2y", "phi_1", "phi_2"),
]


def to_frame(posterior: Posterior) -> Any:  # noqa: ANN401  # pandas may not be there
    """All samples as a pandas frame, as `Posterior.to_frame` says."""
    pandas = _need("pandas")
    posterior = posterior.in_the_sky()
    columns = dict(zip(posterior.names, posterior.samples.T, strict=True))
    columns[results.LOG_PROB] = posterior.log_prob
    if exact := posterior.exact:
        columns[results.LOG_LIKELIHOOD] = exact.log_likelihood
        columns[results.LOG_PRIOR] = exact.log_prior
        columns[results.WEIGHTS] = exact.weights
    return pandas.DataFrame(columns)


def to_bilby(posterior: Posterior, derived: bool) -> Any:  # noqa: ANN401  # nor bilby
    """A `bilby.result.Result`, as `Posterior.to_bilby` says.

    By way of a file, so that it is what bilby reads from ours: there is one definition of it.
    """
    bilby = _need("bilby")
    with TemporaryDirectory() as folder:
        path = results.write_posterior(Path(folder), posterior)
        result = bilby.result.read_in_result(str(path))
    if derived and result.posterior.empty:
        raise InputError(
            f"{posterior.label}: has no samples of positive weight to derive anything from; sample "
            "it again or leave it out"
        )
    if derived:
        conversion = import_module("bilby.gw.conversion")
        samples = result.posterior.assign(**_fixed(posterior.in_the_sky()))
        everything = conversion.generate_all_bbh_parameters(samples)
        result.posterior = everything.drop(columns=GUESSED, errors="ignore")
    return result


def _fixed(posterior: Posterior) -> dict[str, float]:
    """Parameters that were not inferred because their prior is one number, and that number."""
    found = {}
    for name, text in posterior.priors.items():
        try:
            value = float(text)
        except ValueError:
            continue
        if name not in posterior.names:
            found[name] = value
    return found


def _need(package: str) -> Any:  # noqa: ANN401  # a module
    """Import a package.

    Raises:
        InputError: It is not installed.
    """
    try:
        return import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise InputError(
            f"{package} is not installed; pip install 'strainflow[{EXTRA}]' has it"
        ) from None
