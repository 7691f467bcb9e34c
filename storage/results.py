"""Posterior files: one a event, in the JSON form that `bilby.result.read_in_result` reads."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from storage.arrays import Array
from storage.documents import parse_json
from storage.errors import DamagedDataError, InputError
from storage.files import write_atomically

SUFFIX = "_result.json"
LOG_PROB = "log_prob"


@dataclass(frozen=True)
class Posterior:
    """Posterior samples of one event.

    Attributes:
        event: Its number in the data set.
        names: The inferred parameters.
        samples: In the order of `names`, in bilby's units.
        log_prob: Log density that the estimator gave each sample.
        truth: The event's true parameters, all of them; empty where they are not known.
        priors: Every parameter's prior, as in a bilby prior file.
        optimal_snr: Of the network; None where it is not known.
        provenance: What the samples were made from (digests, seed, versions).
    """

    event: int
    names: tuple[str, ...]
    samples: Float[Array, "sample parameter"]
    log_prob: Float[Array, "sample"]
    truth: Mapping[str, float]
    priors: Mapping[str, str]
    optimal_snr: float | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """Bilby's label: the file's name without its ending."""
        return f"event_{self.event:09d}"


def result_path(folder: Path, event: int) -> Path:
    """Where the posterior of an event lies."""
    return folder / f"event_{event:09d}{SUFFIX}"


def write_posterior(folder: Path, posterior: Posterior) -> Path:
    """Write one posterior; return the file."""
    columns = dict(zip(posterior.names, posterior.samples.T.tolist(), strict=True))
    columns[LOG_PROB] = posterior.log_prob.tolist()
    content = {
        "label": posterior.label,
        "outdir": ".",
        "sampler": "strainflow",
        "search_parameter_keys": list(posterior.names),
        "fixed_parameter_keys": [n for n in posterior.priors if n not in posterior.names],
        "constraint_parameter_keys": [],
        "priors": dict(posterior.priors),
        "posterior": {"__dataframe__": True, "content": columns},
        "injection_parameters": dict(posterior.truth) or None,
        "meta_data": {
            "event": posterior.event,
            "optimal_snr": posterior.optimal_snr,
            "strainflow": dict(posterior.provenance),
        },
    }
    path = result_path(folder, posterior.event)
    write_atomically(path, json.dumps(content, allow_nan=False).encode())
    return path


def read_posterior(path: Path) -> Posterior:
    """Read one posterior back.

    Raises:
        DamagedDataError: It is no posterior file of ours.
    """
    try:
        content = parse_json(path.read_bytes(), str(path))
        columns = content["posterior"]["content"]
        names = tuple(content["search_parameter_keys"])
        posterior = Posterior(
            event=content["meta_data"]["event"],
            names=names,
            samples=np.array([columns[name] for name in names], np.float64).T,
            log_prob=np.array(columns[LOG_PROB], np.float64),
            truth=content["injection_parameters"] or {},
            priors=content["priors"],
            optimal_snr=content["meta_data"]["optimal_snr"],
            provenance=content["meta_data"]["strainflow"],
        )
        _refuse_impossible(posterior)
        return posterior
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedDataError(
            f"{path}: is no posterior file that `strainflow sample` wrote whole "
            f"({type(error).__name__}: {error}); delete it and sample again"
        ) from None


def _refuse_impossible(posterior: Posterior) -> None:
    """Refuse what `write_posterior` does not write.

    Raises:
        ValueError: Something is of another kind or length.
    """
    snr, (samples, names) = posterior.optimal_snr, (posterior.samples, posterior.names)
    if type(posterior.event) is not int or not 0 <= posterior.event < 2**62:
        raise ValueError("event")
    if not all(isinstance(name, str) for name in names):
        raise ValueError("names")
    if samples.ndim != 2 or posterior.log_prob.shape != samples.shape[:1]:
        raise ValueError("number of samples")
    if not all(
        isinstance(m, dict) for m in (posterior.truth, posterior.priors, posterior.provenance)
    ):
        raise ValueError("truth, priors or provenance")
    if not all(type(value) in (int, float) for value in posterior.truth.values()):
        raise ValueError("truth")
    if not all(isinstance(text, str) for text in posterior.priors.values()):
        raise ValueError("priors")
    if snr is not None and type(snr) not in (int, float):
        raise ValueError("optimal_snr")


def result_files(folder: str | Path) -> list[Path]:
    """The posterior files in a folder, by event.

    Raises:
        InputError: There are none.
    """
    files = sorted(Path(folder).glob(f"event_*{SUFFIX}"))
    if not files:
        raise InputError(
            f"{folder}: no posterior files there (event_*{SUFFIX}); give a folder that "
            "`strainflow sample` made"
        )
    return files


def parse_range(text: str, events: int) -> range:
    """Read a range of events such as `0:32`, `5` or `100:`.

    Args:
        text: What was given; empty for all.
        events: How many there are.

    Raises:
        InputError: It is no range, or reaches beyond the data set.
    """
    match = re.fullmatch(r"(\d*)(:?)(\d*)", text.strip())
    if match is None:
        raise InputError(f"events: got {text!r}, write a range such as 0:32, or one number")
    first, colon, last = match.groups()
    start = int(first or 0)
    stop = (int(last) if last else events) if colon or not first else start + 1
    if not 0 <= start < stop <= events:
        raise InputError(f"events: {text!r} does not lie within the data set's 0:{events}")
    return range(start, stop)
