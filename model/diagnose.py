"""Are these posteriors right? Ranks, coverage, widths, sky, reweighting, and a verdict.

Each file is read once, and what is kept of it does not depend on the number of samples, but for
those that corner plots are drawn of.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from model.calibration import Calibration, calibration
from model.cube import PriorCube
from model.event_check import EventCheck, Moments, check_event
from model.findings import (
    LOW_EFFICIENCY,
    Diagnosis,
    ParameterCheck,
    ReweightingCheck,
    SkyCheck,
    rank_table,
)
from model.folder import require_place
from model.plots import has_corner
from model.report import write_report
from storage.errors import InputError
from storage.posterior import FEWEST_EFFECTIVE, Posterior
from storage.progress import progress_bar
from storage.results import MADE_FROM, REWEIGHTED, read_posterior, result_files

FEWEST_EVENTS = 20  # below, the tests say nothing
MOST_LEFT_OUT = 0.1  # of the events; those that are left would not speak for all


def diagnose(
    results: str | Path, out: str | Path, level: float = 0.05, corners: int = 3
) -> Diagnosis:
    """Check the posteriors in a folder against their truths, and draw pictures.

    Args:
        results: Folder of the posterior files, before or after reweighting.
        out: Folder of the pictures.
        level: Of the verdict: good posteriors fail it with this probability.
        corners: How many corner plots to draw.

    Raises:
        InputError: There are too few results, they lack the truth, or are not of one run.
        DamagedDataError: A file is damaged.
    """
    if corners < 0:
        raise InputError(f"corners: got {corners}, must not be negative")
    require_place(Path(out))
    kept: list[Posterior] = []  # pictures are drawn when there is a verdict, not before

    def keep(posterior: Posterior) -> None:
        if len(kept) < corners and has_corner(posterior):
            kept.append(posterior)

    diagnosis, cube = judge(results, level, keep)
    pictures, page = write_report(diagnosis, cube, kept, Path(out))
    return replace(diagnosis, pictures=tuple(map(str, pictures)), page=str(page))


def judge(
    results: str | Path, level: float = 0.05, look: Callable[[Posterior], object] | None = None
) -> tuple[Diagnosis, PriorCube]:
    """Check the posteriors in a folder, without pictures.

    Args:
        results: As for `diagnose`.
        level: As for `diagnose`.
        look: Is shown each posterior that is judged while it is in memory.

    Returns:
        The verdict, and the priors of the run.

    Raises:
        InputError: As for `diagnose`.
        DamagedDataError: A file is damaged.
    """
    if not 0 < level < 1:
        raise InputError(f"level: got {level:g}, must lie in (0, 1)")
    files = result_files(results)
    if len(files) < FEWEST_EVENTS:
        raise InputError(
            f"{results}: {len(files)} events, at least {FEWEST_EVENTS} are needed for a P-P test; "
            "sample more"
        )
    first: Posterior | None = None
    events: list[EventCheck] = []
    moments: list[Moments] = []  # of those that are judged
    with progress_bar(len(files), "event") as bar:
        for path in files:
            posterior = read_posterior(path)
            if first is None:
                first = _without_samples(posterior)
                cube = PriorCube.from_texts(first.names, first.priors)
            _refuse_another_run(path, posterior, files[0], first)
            event, moment = check_event(posterior, cube, _reweighted(path, posterior))
            events.append(event)
            if moment is not None:
                moments.append(moment)
                if look is not None:
                    look(posterior)
            bar.update()
    assert first is not None  # there are files
    return _conclude(first, events, moments, level), cube


def _without_samples(posterior: Posterior) -> Posterior:
    """What all posteriors of a run share, without holding on to memory."""
    return replace(posterior, samples=posterior.samples[:0], log_prob=posterior.log_prob[:0])


def _refuse_another_run(path: Path, posterior: Posterior, where: Path, first: Posterior) -> None:
    if posterior.names != first.names:
        raise InputError(
            f"{path}: infers {', '.join(posterior.names)}, {where.name} infers "
            f"{', '.join(first.names)}; give results of one run"
        )
    if (posterior.exact is None) != (first.exact is None):
        raise InputError(
            f"{path}: of it and {where.name} one is reweighted and the other is not; give a folder "
            "of one kind"
        )
    for key, words in MADE_FROM.items():
        here, there = posterior.provenance.get(key), first.provenance.get(key)
        if here != there:
            raise InputError(
                f"{path}: was made from another {words} than {where.name} ({here}, there {there}); "
                "give results of one run"
            )


def _reweighted(path: Path, posterior: Posterior) -> Posterior | None:
    """The same samples with weights: the posterior itself, or from the folder below; None without.

    Raises:
        InputError: What lies in the folder below was made from other samples.
    """
    if posterior.exact is not None:
        return posterior
    below = path.parent / REWEIGHTED / path.name
    if not below.is_file():
        return None
    exact = _of_parameters(read_posterior(below), posterior.names)
    if exact is None or exact.exact is None or not np.array_equal(exact.samples, posterior.samples):
        raise InputError(
            f"{below}: was made from other samples than those of {path}; reweight again, or "
            "move it away"
        )
    return exact


def _of_parameters(posterior: Posterior, names: tuple[str, ...]) -> Posterior | None:
    """Its columns of these names; None where it lacks one.

    Reweighting may add one: a phase that the network did not infer.
    """
    if not set(names) <= set(posterior.names):
        return None
    columns = [posterior.names.index(name) for name in names]
    return replace(posterior, names=names, samples=posterior.samples[:, columns])


def _conclude(
    first: Posterior, events: Sequence[EventCheck], moments: Sequence[Moments], level: float
) -> Diagnosis:
    judged = [event for event in events if event.judged]
    tests: Calibration | None = None
    pp = sbc = tarp = combined = None
    if len(judged) >= FEWEST_EVENTS:
        ranks = rank_table(judged, first.names)
        tests = calibration(ranks, np.array([event.tarp_rank for event in judged]))
        (pp, sbc, tarp), combined = tests.families, tests.combined
    cannot_tell = _why_no_verdict(len(events), len(judged))
    return Diagnosis(
        calibrated=not cannot_tell and combined is not None and combined >= level,
        cannot_tell=cannot_tell,
        events=len(events),
        left_out=tuple(event.label for event in events if not event.judged),
        weighted=first.exact is not None,
        combined_p_value=combined,
        level=level,
        pp_p_value=pp,
        sbc_p_value=sbc,
        tarp_p_value=tarp,
        checks=() if tests is None else _parameter_checks(first.names, events, moments, tests),
        sky=_sky_check(events),
        reweighting=_reweighting_check(events),
        per_event=tuple(events),
    )


def _why_no_verdict(events: int, judged: int) -> str:
    """Why ranks of so many of the events say nothing of all; empty where they do."""
    missing = (
        f"{events - judged} of {events} events have fewer than {FEWEST_EFFECTIVE} effective samples"
    )
    if judged < FEWEST_EVENTS:
        return f"{missing}, and at least {FEWEST_EVENTS} must have more"
    if events - judged > MOST_LEFT_OUT * events:
        return f"{missing}, more than {100 * MOST_LEFT_OUT:g} %"
    return ""


def _parameter_checks(
    names: Sequence[str],
    events: Sequence[EventCheck],
    moments: Sequence[Moments],
    tests: Calibration,
) -> tuple[ParameterCheck, ...]:
    mean, deviation, truth = (
        np.array([getattr(moment, part) for moment in moments])
        for part in ("mean", "deviation", "truth")
    )
    divergences = [
        event.reweighted.divergences
        for event in events
        if event.reweighted and event.reweighted.divergences
    ]
    judged = [event for event in events if event.judged]
    checks = []
    for column, name in enumerate(names):
        jsd = [of_event[name] for of_event in divergences]
        wide = deviation[:, column] > 0  # a posterior may be one point
        away, sigma = (mean - truth)[wide, column], deviation[wide, column]
        spread, typical = truth[:, column].std(), deviation[:, column].mean()
        checks.append(
            ParameterCheck(
                name=name,
                p_value=tests.ks[column],
                sbc_p_value=tests.chi_square[column],
                narrowing=float(spread / typical) if wide.any() else None,
                bias=float(np.median(away / sigma)) if wide.any() else None,
                width=float(np.median([event.widths[name] for event in judged])),
                outside=float(np.mean([name in event.outside for event in judged])),
                jsd=float(np.median(jsd)) if jsd else None,
                largest_jsd=max(jsd) if jsd else None,
            )
        )
    return tuple(checks)


def _sky_check(events: Sequence[EventCheck]) -> SkyCheck | None:
    areas = [event.sky_area for event in events if event.sky_area is not None]
    if not areas:
        return None
    modes = Counter(event.sky_modes for event in events if event.sky_modes is not None)
    return SkyCheck(
        median_area=float(np.median(areas)),
        smallest_area=min(areas),
        largest_area=max(areas),
        modes=dict(sorted(modes.items())),
    )


def _reweighting_check(events: Sequence[EventCheck]) -> ReweightingCheck | None:
    found = {event.label: event.reweighted.efficiency for event in events if event.reweighted}
    if not found:
        return None
    return ReweightingCheck(
        events=len(found),
        median_efficiency=float(np.median(list(found.values()))),
        smallest_efficiency=min(found.values()),
        low=tuple(label for label, share in found.items() if share < LOW_EFFICIENCY),
        dead=tuple(label for label, share in found.items() if share == 0),
    )
