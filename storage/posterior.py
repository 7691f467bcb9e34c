"""Posterior samples of one event, and what the exact likelihood says of them.

Where they lie in files is `storage.results`; other tools' forms of them are `storage.interchange`.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from jaxtyping import Float, Int64

from storage.arrays import Array

CIRCLE = 2 * math.pi
# Of weighted samples: among fewer, ranks of right weights are not uniform, and weights say little
# of themselves.
FEWEST_EFFECTIVE = 30
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
        largest = self.weights.max(initial=0.0)
        if not largest:
            return 0.0
        shares = self.weights / largest  # squares of weights may be more than a float holds
        return float(shares.sum() ** 2 / (shares**2).sum())

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
        moved = self.moved(1)
        if "ra" in priors:
            priors["ra"] = _turned(priors["ra"], self.sky["ra_shift"])
            moved = moved._with_ra_from(_ends(priors["ra"])[0])
        return replace(moved, priors=priors, sky={})

    def _with_ra_from(self, start: float) -> "Posterior":
        """The same right ascension, counted from where its prior begins: it may end beyond 2 pi."""
        first = start - 1e-9  # rounding takes none that lies at the beginning to the other end
        truth, samples = dict(self.truth), self.samples.copy()
        if "ra" in truth:
            truth["ra"] = float(first + np.mod(truth["ra"] - first, CIRCLE))
        if "ra" in self.names:
            column = self.names.index("ra")
            samples[:, column] = first + np.mod(samples[:, column] - first, CIRCLE)
        return replace(self, samples=samples, truth=truth)

    def moved(self, sign: int) -> "Posterior":
        """Samples and truth to the sky (1), or back to the data set (-1); priors stay."""
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


def _turned(text: str, shift: float) -> str:
    """The prior of a right ascension, moved: a number, or the ends of a uniform one.

    Another shape stays as it is, and so does what spans the circle. An interval begins below 2 pi,
    and may end beyond.
    """
    low, high = _ends(text)
    if not math.isfinite(high) or high - low > CIRCLE - 1e-9:
        return text
    start = float(np.mod(low + shift, CIRCLE))
    if high == low:
        return repr(start)
    return f"Uniform(minimum={start!r}, maximum={start + high - low!r})"


def _ends(text: str) -> tuple[float, float]:
    """Where a prior begins and ends, if it is a number or uniform; 0 and infinity of another."""
    match = re.fullmatch(r"Uniform\((?:minimum=)?([^,=]+), *(?:maximum=)?([^,=]+)\)", text)
    try:
        ends = [float(number) for number in (match.groups() if match else (text,))]
    except ValueError:
        return 0.0, math.inf
    return ends[0], ends[-1]
