"""Are these posteriors right? P-P test, widths, pictures and a verdict.

Not covered yet: SBC, TARP, sky modes, reweighted samples.

Source: arXiv:0804.1561 and arXiv:1409.7215 section VI (P-P plots of credible levels);
arXiv:1808.09011 (one p-value from dependent ones).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float
from scipy.stats import cauchy, kstest

from model.plots import plot_corner, plot_pp
from storage.arrays import Array
from storage.errors import InputError
from storage.progress import progress_bar
from storage.results import Posterior, read_posterior, result_files

FEWEST_EVENTS = 20  # below, the P-P test says nothing
LARGEST_P_VALUE = 0.99  # so that one parameter that fits too well hides no other


@dataclass(frozen=True)
class ParameterCheck:
    """What was found for one parameter.

    Attributes:
        name: bilby's name.
        p_value: Of the Kolmogorov-Smirnov test of the ranks against uniform ones.
        narrowing: Standard deviation of the truths over the mean one of the posteriors.
        bias: Mean of (posterior mean - truth) in posterior standard deviations.
    """

    name: str
    p_value: float
    narrowing: float
    bias: float


@dataclass(frozen=True)
class Diagnosis:
    """The verdict.

    Attributes:
        calibrated: Whether the combined p-value reaches the level.
        events: How many were looked at.
        combined_p_value: Of all parameters together.
        level: What the combined p-value must not fall below.
        checks: One a parameter.
        pictures: Where they lie.
    """

    calibrated: bool
    events: int
    combined_p_value: float
    level: float
    checks: tuple[ParameterCheck, ...]
    pictures: tuple[str, ...]


def diagnose(
    results: str | Path, out: str | Path, level: float = 0.05, corners: int = 3
) -> Diagnosis:
    """Check the posteriors in a folder against their truths, and draw pictures.

    Args:
        results: Folder of the posterior files.
        out: Folder of the pictures.
        level: Of the test: good posteriors fail it with this probability.
        corners: How many corner plots to draw.

    Raises:
        InputError: There are too few results, they lack the truth, or are not of one run.
        DamagedDataError: A file is damaged.
    """
    if corners < 0:
        raise InputError(f"corners: got {corners}, must not be negative")
    if not 0 < level < 1:
        raise InputError(f"level: got {level:g}, must lie in (0, 1)")
    files = result_files(results)
    if len(files) < FEWEST_EVENTS:
        raise InputError(
            f"{results}: {len(files)} events, at least {FEWEST_EVENTS} are needed for a P-P test; "
            "sample more"
        )
    first, statistics = read_posterior(files[0]), []
    with progress_bar(len(files), "event") as bar:
        for path in files:
            posterior = read_posterior(path)
            if posterior.names != first.names:
                raise InputError(
                    f"{path}: infers {', '.join(posterior.names)}, {files[0].name} infers "
                    f"{', '.join(first.names)}; give results of one run"
                )
            statistics.append(_statistics(posterior))
            bar.update()
    ranks, means, widths, truths = (np.array(column) for column in zip(*statistics, strict=True))
    p_values = [float(kstest(column, "uniform").pvalue) for column in ranks.T]
    combined = _combine(p_values)
    checks = tuple(
        ParameterCheck(
            name=name,
            p_value=p_values[column],
            narrowing=float(truths[:, column].std() / widths[:, column].mean()),
            bias=float(((means - truths) / widths)[:, column].mean()),
        )
        for column, name in enumerate(first.names)
    )
    folder = Path(out)
    pictures = [plot_pp(ranks, first.names, p_values, folder / "pp.png")]
    for path in files[:corners]:
        posterior = read_posterior(path)
        pictures.append(plot_corner(posterior, folder / f"corner_{posterior.event:09d}.png"))
    return Diagnosis(
        calibrated=combined >= level,
        events=len(files),
        combined_p_value=combined,
        level=level,
        checks=checks,
        pictures=tuple(str(path) for path in pictures),
    )


def summary(diagnosis: Diagnosis) -> str:
    """Put it into words."""
    lines = [f"{diagnosis.events} events"]
    lines += [
        f"  {check.name:<20} KS p = {check.p_value:.3f}   {check.narrowing:5.1f} times narrower "
        f"than the spread of the truths   bias {check.bias:+.2f} sigma"
        for check in diagnosis.checks
    ]
    lines.append(f"  combined p = {diagnosis.combined_p_value:.3f}; must reach {diagnosis.level:g}")
    lines += [f"  picture {path}" for path in diagnosis.pictures]
    verdict = "the P-P test is passed" if diagnosis.calibrated else "NOT CALIBRATED"
    return "\n".join([*lines, f"verdict: {verdict}"])


def _combine(p_values: Sequence[float]) -> float:
    """One p-value of the parameters' ones, which need not be independent: the Cauchy combination.

    Fisher's method takes them for independent: of 15 strongly correlated parameters it refuses a
    good posterior with a probability of 21 % at a level of 5 %.
    """
    capped = np.minimum(p_values, LARGEST_P_VALUE)
    return float(cauchy.sf(np.tan((0.5 - capped) * np.pi).mean()))


def _statistics(posterior: Posterior) -> tuple[Float[Array, "parameter"], ...]:
    """Rank of the truth, mean, standard deviation, truth: each one a parameter."""
    lacking = [name for name in posterior.names if name not in posterior.truth]
    if lacking:
        raise InputError(f"event {posterior.event}: has no true {lacking[0]} to compare with")
    truth = np.array([posterior.truth[name] for name in posterior.names])
    samples = posterior.samples
    return (samples < truth).mean(axis=0), samples.mean(axis=0), samples.std(axis=0), truth
