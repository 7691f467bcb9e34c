"""Posterior files: one a event, in the JSON form that `bilby.result.read_in_result` reads."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from jaxtyping import Float, Int64

from storage.arrays import Array
from storage.documents import parse_json
from storage.errors import DamagedDataError, InputError
from storage.files import write_atomically

SUFFIX = "_result.json"
VERSION = "strainflow, in the form of bilby=2"  # PESummary looks for the word bilby
LOG_PROB = "log_prob"
LOG_LIKELIHOOD, LOG_PRIOR, WEIGHTS = "log_likelihood", "log_prior", "weights"
TURNING = ("geocent_time", "ra")  # that are others in the sky than in a data set cut out of frames
CIRCLE = 2 * math.pi
REWEIGHTED = "reweighted"  # the folder below that of the samples
# What of a result's provenance is the same in all results of one call, and how it is called.
MADE_FROM = {
    "checkpoint_sha256": "checkpoint",
    "data_sha256": "data set",
    "seed": "seed",
    "samples": "number of samples",
}
# Stands for the logarithm of zero, as bilby writes it: JSON has no infinity.
IMPOSSIBLE = -float(np.finfo(np.float64).max)


@dataclass(frozen=True)
class Exact:
    """What the exact likelihood says of samples that an estimator drew.

    The logarithm of zero is `IMPOSSIBLE`, the smallest finite number: the likelihood of a sample
    without a waveform or outside the prior, the prior density where no event can be. Such a sample
    has weight 0.

    Source: arXiv:2210.05686 (DINGO-IS), equations 2 to 4.

    Attributes:
        log_likelihood: Of each sample, minus that of noise alone (log likelihood ratio).
        log_prior: Log density of each sample, over the sampled parameters, of the distribution
            that the data set's events come from: prior, constraints and SNR window, normalised.
        weights: Importance weight of each sample: likelihood times prior over the estimator's
            density; their mean is 1, or 0 where no sample is possible.
        log_evidence: log Bayes factor of a signal against noise, from the weights' mean;
            `IMPOSSIBLE` where all are 0.
        log_evidence_error: Its standard error; `-IMPOSSIBLE` where it has none.
        log_noise_evidence: Log likelihood of noise alone, without the constant of its
            normalisation.
    """

    log_likelihood: Float[Array, "sample"]
    log_prior: Float[Array, "sample"]
    weights: Float[Array, "sample"]
    log_evidence: float
    log_evidence_error: float
    log_noise_evidence: float

    @property
    def effective_samples(self) -> float:
        """(sum w)^2 / sum w^2; 0 where all weights are."""
        squares = float((self.weights**2).sum())
        return float(self.weights.sum()) ** 2 / squares if squares else 0.0

    @property
    def efficiency(self) -> float:
        """Effective samples a sample."""
        return self.effective_samples / len(self.weights)


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
        data: The data set that holds the event, as it was called; empty where it is not known.
        exact: What reweighting found; None before.
        sky: Of an event that was cut out of frames, how its time and right ascension are counted
            here: `Schema.moment_of`. Samples, truth and priors are the data set's here; a file
            holds those in the sky. Empty where there is nothing to shift.
    """

    event: int
    names: tuple[str, ...]
    samples: Float[Array, "sample parameter"]
    log_prob: Float[Array, "sample"]
    truth: Mapping[str, float]
    priors: Mapping[str, str]
    optimal_snr: float | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    data: str = ""
    exact: Exact | None = None
    sky: Mapping[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """Bilby's label: the file's name without its ending."""
        return f"event_{self.event:09d}"

    def in_the_sky(self) -> "Posterior":
        """The same with the time and right ascension that the event has in the sky.

        Samples, truth and priors; what is in the sky already stays as it is.
        """
        if not self.sky:
            return self
        priors = dict(self.priors)
        if "geocent_time" in priors:
            priors["geocent_time"] = self.sky["geocent_time"]
        if "ra" in priors:
            priors["ra"] = _turned(priors["ra"], self.sky["ra_shift"])
        return replace(self._moved(1), priors=priors, sky={})

    def _moved(self, sign: int) -> "Posterior":
        """To the sky (1), or back to the data set (-1)."""
        truth, samples = dict(self.truth), self.samples.copy()
        for name, key, period in (
            ("geocent_time", "time_shift", math.inf),
            ("ra", "ra_shift", CIRCLE),
        ):
            shift = sign * self.sky[key]
            if name in truth:
                truth[name] = float(np.mod(truth[name] + shift, period))
            if name in self.names:
                column = self.names.index(name)
                samples[:, column] = np.mod(samples[:, column] + shift, period)
        return replace(self, samples=samples, truth=truth)

    def equally_weighted(self) -> Int64[Array, "row"]:
        """Rows of the samples to take for samples of equal weight, as many as are effective.

        Systematic resampling, by a random number of the event's own: the same each time. Before
        reweighting, all of them.
        """
        if self.exact is None:
            return np.arange(len(self.samples))
        count = math.ceil(self.exact.effective_samples)
        offset = np.random.default_rng(self.event).random()
        shares = np.cumsum(self.exact.weights)
        marks = (np.arange(count) + offset) / count * shares[-1]
        rows = np.searchsorted(shares, marks, "right").clip(max=len(shares) - 1)
        return np.asarray(rows, np.int64)

    def to_frame(self) -> Any:  # noqa: ANN401  # a pandas.DataFrame, which may not be installed
        """All samples as a pandas frame, a column a parameter, and `log_prob`.

        After reweighting also `log_likelihood`, `log_prior` and `weights`; the rows are then not
        of equal weight, those of `equally_weighted` are. Time and right ascension are those in the
        sky, as in the file.

        Raises:
            InputError: pandas is not installed.
        """
        from storage.interchange import to_frame

        return to_frame(self)

    def to_bilby(self, derived: bool = False) -> Any:  # noqa: ANN401  # nor bilby
        """A `bilby.result.Result` of equally weighted samples, as bilby reads it from our file.

        Args:
            derived: With component masses, redshift, effective spins and all else that
                `bilby.gw.conversion.generate_all_bbh_parameters` makes of the samples.

        Raises:
            InputError: bilby is not installed.
        """
        from storage.interchange import to_bilby

        return to_bilby(self, derived)


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
    counted = posterior._moved(-1)
    return replace(counted, priors={**posterior.priors, **priors}, sky=sky)


def _turned(text: str, shift: float) -> str:
    """The prior of a right ascension, moved: a number, or the ends of a uniform one.

    Another shape stays as it is, and so does what spans the circle. An interval begins below 2 pi,
    and may end beyond.
    """
    match = re.fullmatch(r"Uniform\((?:minimum=)?([^,=]+), *(?:maximum=)?([^,=]+)\)", text)
    try:
        low, *high = [float(number) for number in (match.groups() if match else (text,))]
    except ValueError:
        return text
    start = float(np.mod(low + shift, CIRCLE))
    if not high:
        return repr(start)
    width = high[0] - low
    return (
        text if width > CIRCLE - 1e-9 else f"Uniform(minimum={start!r}, maximum={start + width!r})"
    )


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
    if exact := posterior.exact:
        columns = (exact.log_likelihood, exact.log_prior, exact.weights)
        if any(column.shape != posterior.log_prob.shape for column in columns):
            raise ValueError("number of weights")
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
