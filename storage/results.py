"""Posterior files: one an event, in the JSON form that `bilby.result.read_in_result` reads."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from jaxtyping import Float, Int64

from storage.arrays import Array
from storage.documents import parse_json
from storage.errors import DamagedDataError, InputError
from storage.files import write_atomically
from storage.posterior import Exact, Posterior

SUFFIX = "_result.json"
VERSION = "strainflow, in the form of bilby=2"  # PESummary looks for the word bilby
LOG_PROB = "log_prob"
LOG_LIKELIHOOD, LOG_PRIOR, WEIGHTS = "log_likelihood", "log_prior", "weights"
TURNING = ("geocent_time", "ra")  # that are others in the sky than in a data set cut out of frames
REWEIGHTED = "reweighted"  # the folder below that of the samples
# What of a result's provenance is the same in all results of one call, and how it is called.
MADE_FROM = {
    "checkpoint_sha256": "checkpoint",
    "data_sha256": "data set",
    "seed": "seed",
    "samples": "number of samples",
}


def result_path(folder: Path, event: int) -> Path:
    """Where the posterior of an event lies."""
    return folder / f"event_{event:09d}{SUFFIX}"


def write_posterior(folder: Path, posterior: Posterior) -> Path:
    """Write one posterior; return the file.

    Raises:
        ValueError: It holds what is no number.
    """
    counted, posterior = posterior, posterior.in_the_sky()
    frame = _frame(posterior, range(len(posterior.samples)))
    exact = posterior.exact
    if exact is None:
        frames: dict[str, Any] = {"posterior": frame}
    else:
        evidence = (exact.log_evidence, exact.log_evidence_error, exact.log_noise_evidence)
        if not np.isfinite(evidence).all():
            raise ValueError(f"{posterior.label}: its evidence is not finite")
        frames = {
            "posterior": _frame(posterior, posterior.equally_weighted()),
            "nested_samples": frame,
            "log_evidence": exact.log_evidence + exact.log_noise_evidence,
            "log_evidence_err": exact.log_evidence_error,
            "log_noise_evidence": exact.log_noise_evidence,
            "log_bayes_factor": exact.log_evidence,
        }
    content = {
        "label": posterior.label,
        "outdir": ".",
        "sampler": "strainflow",
        "version": VERSION,
        "search_parameter_keys": list(posterior.names),
        "fixed_parameter_keys": [n for n in posterior.priors if n not in posterior.names],
        "constraint_parameter_keys": [],
        "priors": dict(posterior.priors),
        **frames,
        "injection_parameters": dict(posterior.truth) or None,
        "meta_data": {
            "event": posterior.event,
            "optimal_snr": posterior.optimal_snr,
            "data": posterior.data,
            "strainflow": dict(posterior.provenance),
        },
    }
    if counted.sky:
        here = {name: counted.priors[name] for name in TURNING if name in counted.priors}
        content["meta_data"] |= {"sky": {**counted.sky, "counted": here}}
    path = result_path(folder, posterior.event)
    # Ten times as fast as Python's own, which took longer than a GPU takes to draw the samples.
    write_atomically(path, orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY))
    return path


def _frame(posterior: Posterior, rows: Sequence[int] | Int64[Array, "row"]) -> dict[str, Any]:
    """Some of the samples, as bilby writes a pandas frame.

    Raises:
        ValueError: A column holds what is no number, for which JSON has no word.
    """
    columns = dict(zip(posterior.names, posterior.samples.T, strict=True))
    columns[LOG_PROB] = posterior.log_prob
    if exact := posterior.exact:
        columns[LOG_LIKELIHOOD] = exact.log_likelihood
        columns[LOG_PRIOR] = exact.log_prior
        columns[WEIGHTS] = exact.weights
    chosen = np.asarray(rows, np.int64)
    content = {name: column.astype(np.float64)[chosen] for name, column in columns.items()}
    for name, column in content.items():
        if not np.isfinite(column).all():
            raise ValueError(f"{posterior.label}: {name} is not finite")
    return {"__dataframe__": True, "content": content}


def read_posterior(path: Path) -> Posterior:
    """Read one posterior back; a reweighted one with all samples and their weights.

    Raises:
        DamagedDataError: It is no posterior file of ours.
    """
    try:
        content = parse_json(path.read_bytes(), str(path))
        columns = content.get("nested_samples", content["posterior"])["content"]
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
            data=content["meta_data"].get("data", ""),
            exact=_exact(content, columns) if "nested_samples" in content else None,
            sky=content["meta_data"].get("sky", {}),
        )
        _refuse_impossible(posterior)
        if path.name != f"{posterior.label}{SUFFIX}":
            raise ValueError(f"it holds {posterior.label}, another event than its name says")
        return _as_counted(posterior) if posterior.sky else posterior
    except DamagedDataError as error:
        raise DamagedDataError(f"{error}; delete it and sample again") from None
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedDataError(
            f"{path}: is no posterior file that `strainflow sample` wrote whole "
            f"({type(error).__name__}: {error}); delete it and sample again"
        ) from None


def _as_counted(posterior: Posterior) -> Posterior:
    """A posterior of the sky, as the file holds it, as the data set counts it."""
    sky = dict(posterior.sky)
    priors = sky.pop("counted")
    if isinstance(priors, str):  # of the time alone, as files once had it
        priors = {"geocent_time": priors}
    if not isinstance(priors, dict) or not priors.keys() <= set(TURNING):
        raise ValueError("sky")
    if not all(type(sky[name]) in (int, float) for name in ("time_shift", "ra_shift")):
        raise ValueError("sky")
    if not all(isinstance(text, str) for text in (*priors.values(), sky["geocent_time"])):
        raise ValueError("sky")
    counted = posterior.moved(-1)
    return replace(counted, priors={**posterior.priors, **priors}, sky=sky)


def _exact(content: Mapping[str, Any], columns: Mapping[str, Any]) -> Exact:
    return Exact(
        log_likelihood=_numbers(columns[LOG_LIKELIHOOD]),
        log_prior=_numbers(columns[LOG_PRIOR]),
        weights=_numbers(columns[WEIGHTS]),
        log_evidence=float(content["log_bayes_factor"]),
        log_evidence_error=float(content["log_evidence_err"]),
        log_noise_evidence=float(content["log_noise_evidence"]),
    )


def _numbers(column: Any) -> Float[Array, "sample"]:  # noqa: ANN401  # of a JSON document
    return np.array(column, np.float64)


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
    if type(posterior.data) is not str:
        raise ValueError("data")
    if not (np.isfinite(samples).all() and np.isfinite(posterior.log_prob).all()):
        raise ValueError("a sample that is no number")
    if exact := posterior.exact:
        columns = (exact.log_likelihood, exact.log_prior, exact.weights)
        if any(column.shape != posterior.log_prob.shape for column in columns):
            raise ValueError("number of weights")
        evidence = (exact.log_evidence, exact.log_evidence_error, exact.log_noise_evidence)
        if not all(np.isfinite(column).all() for column in (*columns, evidence)):
            raise ValueError("a weight, likelihood, prior or evidence that is no number")
        if not (np.isfinite(exact.weights).all() and (exact.weights >= 0).all()):
            raise ValueError("weights")
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


def read_results(folder: str | Path) -> Iterator[Posterior]:
    """Read the posteriors in a folder, one at a time, by event.

    Args:
        folder: Of `strainflow sample`, or `strainflow reweight`.

    Raises:
        InputError: There are none.
        DamagedDataError: A file is damaged.
    """
    return map(read_posterior, result_files(folder))
