"""One posterior: where the truth lies in it, how wide it is, what reweighting changed."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from model.calibration import Weighted, tarp_rank, truth_ranks
from model.cube import PriorCube
from model.marginals import jensen_shannon, shortest_interval
from storage.arrays import Array
from storage.errors import InputError
from storage.posterior import FEWEST_EFFECTIVE, Posterior

if TYPE_CHECKING:
    from model.sky import Sky

SEED = 2302_03026  # of the reference points: the same results get the same verdict
SMALLEST_WIDTH = 1e-6  # of the unit cube, below which a posterior counts as a point


@dataclass(frozen=True)
class Reweighted:
    """What the exact likelihood said of one posterior.

    Attributes:
        efficiency: Effective samples a sample.
        effective_samples: (sum w)^2 / sum w^2.
        divergences: Jensen-Shannon divergence of each parameter before and after [nats]; empty
            where all weights are 0.
    """

    efficiency: float
    effective_samples: float
    divergences: Mapping[str, float]


@dataclass(frozen=True)
class EventCheck:
    """What was found in one posterior.

    One whose weights leave fewer than `FEWEST_EFFECTIVE` samples is not judged: it has neither
    ranks nor widths nor a sky area.

    Attributes:
        event: Its number.
        label: Its name.
        optimal_snr: Of the network; None where it is not known.
        chirp_mass: The true one [Msun], detector frame; None where it is not known.
        judged: Whether the tests have it.
        ranks: Of the truth in each parameter, 0 to 1.
        tarp_rank: Of the truth's distance from a random point, 0 to 1; None where it is not judged.
        outside: Parameters whose truth lies beyond all samples.
        widths: Shortest 90 % interval of each parameter, in its unit.
        sky_area: Of the 90 % credible region [deg^2]; None where the sky position is not inferred.
        sky_modes: Its pieces.
        reweighted: What reweighting found; None where it was not done.
    """

    event: int
    label: str
    optimal_snr: float | None
    chirp_mass: float | None
    judged: bool
    ranks: Mapping[str, float]
    tarp_rank: float | None
    outside: tuple[str, ...]
    widths: Mapping[str, float]
    sky_area: float | None
    sky_modes: int | None
    reweighted: Reweighted | None


@dataclass(frozen=True)
class Moments:
    """Mean and width of a posterior, beside the truth.

    Attributes:
        mean: Of each parameter.
        deviation: Standard deviation of each parameter; 0 exactly where it is one point.
        truth: Of each parameter.
    """

    mean: Float[Array, "parameter"]
    deviation: Float[Array, "parameter"]
    truth: Float[Array, "parameter"]


def check_event(
    posterior: Posterior, cube: PriorCube, exact: Posterior | None = None
) -> tuple[EventCheck, Moments | None]:
    """Look at one posterior; one that is not judged has no moments.

    Args:
        posterior: With its weights, if it has any.
        cube: Of its priors.
        exact: The same samples with the weights that reweighting gave them; None without.

    Raises:
        InputError: It lacks the truth or samples.
    """
    names, truth = posterior.names, _truth(posterior)
    check = EventCheck(
        event=posterior.event,
        label=posterior.label,
        optimal_snr=posterior.optimal_snr,
        chirp_mass=posterior.truth.get("chirp_mass"),
        judged=False,
        ranks={},
        tarp_rank=None,
        outside=(),
        widths={},
        sky_area=None,
        sky_modes=None,
        reweighted=None if exact is None else _reweighted(exact, cube),
    )
    if posterior.exact is not None and posterior.exact.effective_samples < FEWEST_EFFECTIVE:
        return check, None
    weighted = weighted_samples(posterior)
    samples, weights = weighted.samples, weighted.weights
    draw = np.random.default_rng([SEED, posterior.event])
    ranks = truth_ranks(samples, truth, weighted, draw.random(len(names)))
    beyond = (truth < samples.min(axis=0)) | (truth > samples.max(axis=0))
    widths = [
        shortest_interval(column, weights, period=period)
        for column, period in zip(samples.T, cube.periods, strict=True)
    ]
    sky = _sky(names, weighted)
    mean = weights @ samples
    check = replace(
        check,
        judged=True,
        ranks=dict(zip(names, ranks.tolist(), strict=True)),
        tarp_rank=_tarp(weighted, truth, cube, draw),
        outside=tuple(name for name, out in zip(names, beyond, strict=True) if out),
        widths=dict(zip(names, widths, strict=True)),
        sky_area=None if sky is None else sky.area,
        sky_modes=None if sky is None else sky.modes,
    )
    deviation = np.sqrt(weights @ (samples - mean) ** 2)
    deviation[np.ptp(samples[weights > 0], axis=0) == 0] = 0  # the mean of equals is rounded
    return check, Moments(mean, deviation, truth)


def weighted_samples(posterior: Posterior) -> Weighted:
    """The samples, with the weights that reweighting gave them or else equal ones.

    Raises:
        InputError: There are no samples, or their weights are all 0.
    """
    count = len(posterior.samples)
    weights = np.ones(count) if posterior.exact is None else posterior.exact.weights
    if not weights.sum() > 0:
        raise InputError(
            f"{posterior.label}: has no samples of positive weight; sample it again or leave it out"
        )
    return Weighted(posterior.samples, weights / weights.sum())


def _truth(posterior: Posterior) -> Float[Array, "parameter"]:
    lacking = [name for name in posterior.names if name not in posterior.truth]
    if lacking:
        raise InputError(f"event {posterior.event}: has no true {lacking[0]} to compare with")
    return np.array([posterior.truth[name] for name in posterior.names], np.float64)


def _tarp(
    weighted: Weighted,
    truth: Float[Array, "parameter"],
    cube: PriorCube,
    draw: np.random.Generator,
) -> float:
    """Rank of the distance from a point anywhere in the prior's unit cube.

    Distance squared is measured in units of the posterior's width: a shift by one of its standard
    deviations then changes it by as much in every parameter. Without, those that the data say
    nothing about would hide the others.
    """
    inside = Weighted(cube.shares(weighted.samples, weighted.samples), weighted.weights)
    target = cube.shares(truth[None], weighted.samples)[0]
    centred = inside.samples - inside.weights @ inside.samples
    scales = np.sqrt(np.maximum(np.sqrt(inside.weights @ centred**2), SMALLEST_WIDTH))
    reference, share = draw.random(len(truth)), draw.random()
    return tarp_rank(inside, target, reference, share, cube.periodic, scales)


def _sky(names: tuple[str, ...], weighted: Weighted) -> "Sky | None":
    if not {"ra", "dec"} <= set(names):
        return None
    from model.sky import describe_sky

    ra, dec = (weighted.samples[:, names.index(name)] for name in ("ra", "dec"))
    return describe_sky(ra, dec, weighted.weights)


def _reweighted(posterior: Posterior, cube: PriorCube) -> Reweighted:
    if posterior.exact is not None and not posterior.exact.weights.any():
        return Reweighted(0.0, 0.0, {})
    weighted = weighted_samples(posterior)
    divergences = {
        name: jensen_shannon(column, weighted.weights, period)
        for name, column, period in zip(
            posterior.names, weighted.samples.T, cube.periods, strict=True
        )
    }
    effective = weighted.effective
    return Reweighted(effective / len(weighted.weights), effective, divergences)
