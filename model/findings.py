"""What `strainflow diagnose` finds: p-values, widths, sky, reweighting, and the verdict."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from model.event_check import EventCheck
from storage.arrays import Array
from storage.posterior import FEWEST_EFFECTIVE

LOW_EFFICIENCY = 0.01  # of importance sampling; below 0.1 % the samples hardly tell anything
MOST_NAMED = 10  # events in words; the JSON has all


@dataclass(frozen=True)
class ParameterCheck:
    """What was found for one parameter.

    Attributes:
        name: bilby's name.
        p_value: Of the Kolmogorov-Smirnov test of the ranks against uniform ones (P-P).
        sbc_p_value: Of the chi-square test of the histogram of ranks.
        narrowing: Standard deviation of the truths over the mean one of the posteriors. Like the
            bias None where each posterior is one point.
        bias: Median of (posterior mean - truth) in posterior standard deviations, over the
            posteriors that are not one point.
        width: Median length of the shortest 90 % interval, in the parameter's unit.
        outside: Share of the events whose truth lies beyond all samples.
        jsd: Median Jensen-Shannon divergence before and after reweighting [nats]; None without.
        largest_jsd: The largest one [nats].
    """

    name: str
    p_value: float
    sbc_p_value: float
    narrowing: float | None
    bias: float | None
    width: float
    outside: float
    jsd: float | None
    largest_jsd: float | None


@dataclass(frozen=True)
class SkyCheck:
    """What was found on the sky.

    Attributes:
        median_area: Of the 90 % credible region [deg^2].
        smallest_area: Of any event [deg^2].
        largest_area: Of any event [deg^2].
        modes: Number of pieces of that region -> number of events.
    """

    median_area: float
    smallest_area: float
    largest_area: float
    modes: Mapping[int, int]


@dataclass(frozen=True)
class ReweightingCheck:
    """What reweighting found.

    Attributes:
        events: How many were reweighted.
        median_efficiency: Effective samples a sample.
        smallest_efficiency: Of any event.
        low: Labels of the events below 1 %.
        dead: Labels of the events whose weights are all 0: an efficiency of 0.
    """

    events: int
    median_efficiency: float
    smallest_efficiency: float
    low: tuple[str, ...]
    dead: tuple[str, ...]


@dataclass(frozen=True)
class Diagnosis:
    """The verdict, and what it rests on.

    Attributes:
        calibrated: Whether the combined p-value reaches the level, and enough events are judged.
        cannot_tell: Why there is no verdict; empty where there is one.
        events: How many were looked at.
        left_out: Labels of those that are not judged: reweighted, with too few effective samples.
        weighted: Whether the posteriors are those after reweighting.
        combined_p_value: Of the three tests below. All p-values are None, and there are no
            checks, where fewer events are left than the tests need.
        level: What the combined p-value must not fall below.
        pp_p_value: Of the ranks in all parameters, Kolmogorov-Smirnov.
        sbc_p_value: Of their histograms, chi-square.
        tarp_p_value: Of the coverage of all parameters together, both tests.
        checks: One a parameter.
        sky: None where the sky position is not inferred.
        reweighting: None where there was none.
        per_event: One an event.
        pictures: Where they lie.
        page: Everything on one page, HTML.
    """

    calibrated: bool
    cannot_tell: str
    events: int
    left_out: tuple[str, ...]
    weighted: bool
    combined_p_value: float | None
    level: float
    pp_p_value: float | None
    sbc_p_value: float | None
    tarp_p_value: float | None
    checks: tuple[ParameterCheck, ...]
    sky: SkyCheck | None
    reweighting: ReweightingCheck | None
    per_event: tuple[EventCheck, ...]
    pictures: tuple[str, ...] = ()
    page: str = ""

    @property
    def judged(self) -> tuple[EventCheck, ...]:
        """The events that the tests have."""
        return tuple(event for event in self.per_event if event.judged)


def rank_table(
    events: Sequence[EventCheck], names: Sequence[str]
) -> Float[Array, "event parameter"]:
    """Ranks of the truths."""
    return np.array([[event.ranks[name] for name in names] for event in events])


def summary(diagnosis: Diagnosis) -> str:
    """Put it into words."""
    after = " after reweighting" if diagnosis.weighted else ""
    lines = [f"{diagnosis.events} events{after}"]
    for check in diagnosis.checks:
        lines.append(
            f"  {check.name:<20} KS p = {check.p_value:.3f}  SBC p = {check.sbc_p_value:.3f}  "
            + _width_words(check)
        )
        if check.outside:
            lines[-1] += f"  {100 * check.outside:.1f} % of the truths beyond all samples"
    lines += _sky_words(diagnosis.sky) + _reweighting_words(diagnosis)
    if diagnosis.combined_p_value is not None:
        lines.append(
            f"  P-P p = {diagnosis.pp_p_value:.3f}, SBC p = {diagnosis.sbc_p_value:.3f}, "
            f"TARP p = {diagnosis.tarp_p_value:.3f}; combined p = "
            f"{diagnosis.combined_p_value:.3f}, must reach {diagnosis.level:g}"
        )
    lines += [f"  picture {path}" for path in diagnosis.pictures]
    lines += [f"  all on one page: {diagnosis.page}"] if diagnosis.page else []
    return "\n".join([*lines, f"verdict: {verdict(diagnosis)}"])


def verdict(diagnosis: Diagnosis) -> str:
    """The verdict in two words or one, or why there is none."""
    if diagnosis.cannot_tell:
        return f"cannot tell: {diagnosis.cannot_tell}"
    return "calibrated" if diagnosis.calibrated else "NOT CALIBRATED"


def _width_words(check: ParameterCheck) -> str:
    if check.narrowing is None or check.bias is None:
        return "each posterior is one point"
    return (
        f"{check.narrowing:5.1f} times narrower than the spread of the truths  "
        f"bias {check.bias:+.2f} sigma"
    )


def _sky_words(sky: SkyCheck | None) -> list[str]:
    if sky is None:
        return []
    modes = ", ".join(f"{modes} in {events}" for modes, events in sky.modes.items())
    return [
        f"  sky: 90 % in {sky.median_area:.3g} deg^2 (median; {sky.smallest_area:.3g} to "
        f"{sky.largest_area:.3g}); modes: {modes} events"
    ]


def _reweighting_words(diagnosis: Diagnosis) -> list[str]:
    found = diagnosis.reweighting
    if found is None:
        return []
    jsd = {check.name: check.jsd for check in diagnosis.checks if check.jsd is not None}
    lines = [
        f"  reweighted: {found.events} events, efficiency {100 * found.median_efficiency:.3g} % "
        f"(median; lowest {100 * found.smallest_efficiency:.3g} %)"
    ]
    if jsd:
        worst = max(jsd, key=lambda name: jsd[name])
        lines[0] += f"; median divergence at most {jsd[worst]:.4f} nats, of {worst}"
    if found.low:
        lines.append(f"  efficiency below {100 * LOW_EFFICIENCY:g} %: {_listed(found.low)}")
    if found.dead:
        lines.append(f"  no sample of positive weight: {_listed(found.dead)}")
    if diagnosis.left_out:
        lines.append(
            f"  {len(diagnosis.left_out)} of {diagnosis.events} events left out of the tests, "
            f"fewer than {FEWEST_EFFECTIVE} effective samples: {_listed(diagnosis.left_out)}"
        )
    return lines


def _listed(labels: Sequence[str]) -> str:
    """Names of events, not too many."""
    more = f" and {len(labels) - MOST_NAMED} more" if len(labels) > MOST_NAMED else ""
    return ", ".join(labels[:MOST_NAMED]) + more
