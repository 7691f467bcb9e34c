"""One event on its way to weights: its samples cut into tasks, and what comes back put together."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.evaluate import Evaluated, Samples
from pipeline.event_prior import EventPrior
from pipeline.importance import weigh
from pipeline.provenance import simulator_of_dataset
from storage.dataset import dataset_digest
from storage.errors import InputError
from storage.manifest import dataset_identity
from storage.posterior import Posterior
from storage.schema import Schema
from storage.urls import store_of

PIECE = 100  # samples of a task: 0.3 to 20 s
STAGE = "reweighted"  # the key, in a result's provenance, of what is recorded of it
PHASE = "phase"


@dataclass(frozen=True)
class Target:
    """The data set that results are of, and the density of its sources.

    Attributes:
        name: What the data set was called.
        url: Where it is, for workers.
        digest: SHA-256 of its metadata.
        identity: BLAKE3 of the same.
        schema: What it is.
        prior: The density.
    """

    name: str
    url: str
    digest: str
    identity: str
    schema: Schema
    prior: EventPrior

    @classmethod
    def of(cls, data: str) -> "Target":
        """Read it.

        Raises:
            InputError: There is no data set, or none whose events have a known likelihood.
        """
        store = store_of(data)
        simulator, schema = simulator_of_dataset(store.address)
        if schema.polarisations:
            raise InputError(
                f"{data}: holds polarisations, and no event of detectors that could have been "
                "sampled; give the data set that was"
            )
        if not schema.noisy:
            raise InputError(
                f"{data}: holds signals without noise; the noise that `strainflow sample` drew is "
                "stored nowhere, so that no likelihood can be computed; sample a data set that was "
                "simulated with noise: gaussian"
            )
        prior = EventPrior.of(simulator, store, schema)
        digests = dataset_digest(store), dataset_identity(store)
        return cls(data, store.address, *digests, schema, prior)

    def require(self, posterior: Posterior, path: Path) -> None:
        """Refuse a posterior that is of other data, or of nothing.

        Raises:
            InputError: It is.
        """
        if not len(posterior.samples):
            raise InputError(f"{path}: holds no samples; sample the event again")
        recorded = str(posterior.provenance.get("data_sha256"))
        if recorded != self.digest or posterior.event >= self.schema.events:
            raise InputError(
                f"{path}: was sampled from another data set than {self.name} (SHA-256 of the "
                f"metadata {recorded[:12]}... there, {self.digest[:12]}... here); give that one "
                "with --data"
            )


class Gathered:
    """The samples of an event, and what has been found for them so far.

    Args:
        posterior: As it was sampled.
        source: SHA-256 of its file.
        target: The data set.

    Raises:
        InputError: Its samples do not say all that a likelihood needs.
    """

    def __init__(self, posterior: Posterior, source: str, target: Target) -> None:
        self._posterior, self._source, self._target = posterior, source, target
        prior, names = target.prior, posterior.names
        self._draws_phase = prior.needs_phase(names)
        self._log_prior = prior.log_density(names, posterior.samples)
        self._uniform = np.random.default_rng((posterior.event, 1)).random(len(self._log_prior))
        outside = np.zeros(len(self._log_prior))
        self._found = {
            "log_likelihood": outside - np.inf,
            "phase": 2 * np.pi * self._uniform,
            "log_phase": outside - np.log(2 * np.pi),
            "phase_error": outside,
        }
        self._rows = np.flatnonzero(np.isfinite(self._log_prior))
        # One of an event with no sample inside the prior too: it has a noise evidence.
        self._firsts = range(0, max(1, len(self._rows)), PIECE)
        self._waiting = len(self._firsts)
        self._log_noise_evidence = 0.0

    @property
    def complete(self) -> bool:
        """Whether nothing is left to be found."""
        return not self._waiting

    def pieces(self) -> Iterator[Samples]:
        """The tasks: the samples inside the prior."""
        target, posterior = self._target, self._posterior
        for first in self._firsts:
            rows = self._rows[first : first + PIECE]
            yield Samples(
                url=target.url,
                identity=target.identity,
                event=posterior.event,
                rows=rows,
                names=posterior.names,
                values=posterior.samples[rows],
                fixed=target.prior.fixed,
                uniform=self._uniform[rows] if self._draws_phase else None,
            )

    def add(self, evaluated: Evaluated) -> None:
        """Take what was found for some samples."""
        rows = evaluated.rows
        for name, column in self._found.items():
            column[rows] = [getattr(found, name) for found in evaluated.found]
        allowed = np.array([found.allowed for found in evaluated.found], bool)
        self._log_prior[rows[~allowed]] = -np.inf
        self._log_noise_evidence = evaluated.log_noise_evidence
        self._waiting -= 1

    def reweighted(self) -> Posterior:
        """The posterior with its weights; with a phase, where that was free and not sampled."""
        posterior, prior = self._posterior, self._target.prior
        names, samples = posterior.names, posterior.samples
        log_prob, log_prior = posterior.log_prob, self._log_prior
        if self._draws_phase:
            names = (*names, PHASE)
            samples = np.column_stack([samples, self._found["phase"]])
            log_prob = log_prob + self._found["log_phase"]
            log_prior = log_prior - np.log(2 * np.pi)
        exact = weigh(
            self._found["log_likelihood"],
            log_prior,
            log_prob,
            self._log_noise_evidence,
            prior.share_error,
        )
        stage: dict[str, Any] = {
            "source_sha256": self._source,
            "version": version("strainflow"),
            "prior_share": prior.share,
            "prior_share_error": prior.share_error,
        }
        if self._draws_phase:
            stage["phase_error_sigma"] = float(self._found["phase_error"].max())
        return replace(
            posterior,
            names=names,
            samples=samples,
            log_prob=log_prob,
            data=self._target.name,
            provenance={**posterior.provenance, STAGE: stage},
            exact=exact,
        )
