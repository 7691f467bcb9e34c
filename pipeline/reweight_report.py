"""What `strainflow reweight` answers: each event by name, none averaged away."""

from dataclasses import dataclass, field

import numpy as np

from pipeline.importance import judge, largest_share, pareto_k
from storage.posterior import Posterior

MOST_LINES = 50


@dataclass(frozen=True)
class EventReport:
    """What reweighting says of one event.

    Attributes:
        event: Its number.
        samples: How many there are.
        efficiency: Effective samples a sample.
        effective_samples: How many equally weighted samples they are worth.
        largest_share: The share of all weight that one sample holds.
        pareto_k: Shape of the weights' tail; above 0.7 they are not reliable.
        log_bayes_factor: Of a signal against noise.
        log_bayes_factor_error: Its standard error.
        flag: ok; poor: usable with care; failed: the samples miss the posterior.
        reason: Why it is not ok.
    """

    event: int
    samples: int
    efficiency: float
    effective_samples: float
    largest_share: float
    pareto_k: float
    log_bayes_factor: float
    log_bayes_factor_error: float
    flag: str
    reason: str

    @classmethod
    def of(cls, posterior: Posterior) -> "EventReport":
        """The report on a reweighted posterior."""
        exact = posterior.exact
        assert exact is not None, "not reweighted"
        verdict = judge(exact)
        return cls(
            event=posterior.event,
            samples=len(exact.weights),
            efficiency=exact.efficiency,
            effective_samples=exact.effective_samples,
            largest_share=largest_share(exact.weights),
            pareto_k=pareto_k(exact.weights),
            log_bayes_factor=exact.log_evidence,
            log_bayes_factor_error=exact.log_evidence_error,
            flag=verdict.flag,
            reason=verdict.reason,
        )


@dataclass
class ReweightReport:
    """What was reweighted.

    Attributes:
        out: Folder of the result files.
        data: The data set.
        reweighted: Events that this call reweighted; the others were there.
        likelihoods: That this call computed.
        seconds: Wall time from when the workers were there, or asked for, to the last event [s].
        core_seconds: CPU time of the workers [s].
        prior_share: The share of draws from the prior that constraints and window accept, by which
            the prior is normalised.
        events: Each of the folder.
    """

    out: str
    data: str
    reweighted: int = 0
    likelihoods: int = 0
    seconds: float = 0.0
    core_seconds: float = 0.0
    prior_share: float = 1.0
    events: list[EventReport] = field(default_factory=list)

    @property
    def failed(self) -> list[EventReport]:
        """The events whose samples miss the posterior."""
        return [event for event in self.events if event.flag == "failed"]

    @property
    def microseconds(self) -> float:
        """CPU time of a likelihood [us]."""
        return 1e6 * self.core_seconds / max(1, self.likelihoods)


def summary(report: ReweightReport) -> str:
    """Put it into words."""
    events = report.events
    efficiencies = [event.efficiency for event in events]
    worst = min(events, key=lambda event: event.efficiency)
    lines = [
        f"{report.out}: {len(events)} events reweighted, {report.reweighted} by this call",
        f"  efficiency: median {np.median(efficiencies):.2%}, worst {worst.efficiency:.2%} "
        f"(event {worst.event}); effective samples: median "
        f"{np.median([event.effective_samples for event in events]):.0f}",
    ]
    if report.likelihoods:
        lines.append(
            f"  {report.likelihoods:,} likelihoods in {report.seconds:.1f} s, "
            f"{report.microseconds:.0f} us of CPU each"
        )
    if report.prior_share < 1:
        lines.append(
            f"  prior: normalised by the share {report.prior_share:.3g} of its draws that the data "
            "set accepted"
        )
    for flag in ("failed", "poor"):
        found = [event for event in events if event.flag == flag]
        lines += [
            f"  {flag.upper()}: event {item.event}: {item.reason}" for item in found[:MOST_LINES]
        ]
        if len(found) > MOST_LINES:
            lines.append(f"  ... and {len(found) - MOST_LINES} more; --json lists all")
    return "\n".join(lines)
