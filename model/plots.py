"""Pictures: PNG files next to what they show."""

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import corner
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from model.cube import PriorCube
from storage.arrays import Array
from storage.errors import InputError
from storage.posterior import Posterior

SYMBOLS = {
    "chirp_mass": r"\mathcal{M}",
    "mass_ratio": "q",
    "symmetric_mass_ratio": r"\eta",
    "total_mass": "M",
    "mass_1": "m_1",
    "mass_2": "m_2",
    "luminosity_distance": "d_L",
    "ra": r"\alpha",
    "dec": r"\delta",
    "a_1": "a_1",
    "a_2": "a_2",
    "tilt_1": r"\theta_1",
    "tilt_2": r"\theta_2",
    "theta_jn": r"\theta_{JN}",
    "psi": r"\psi",
    "phi_12": r"\phi_{12}",
    "phi_jl": r"\phi_{JL}",
    "phase": r"\phi",
    "geocent_time": "t_c",
}
UNITS = {
    **dict.fromkeys(("chirp_mass", "total_mass", "mass_1", "mass_2"), r"M_\odot"),
    **dict.fromkeys(
        ("ra", "dec", "tilt_1", "tilt_2", "theta_jn", "psi", "phi_12", "phi_jl", "phase"),
        r"\mathrm{rad}",
    ),
    "luminosity_distance": r"\mathrm{Mpc}",
    "geocent_time": r"\mathrm{s}",
}

BLUE, ORANGE, GREY = "#1f5fa8", "#d9730d", "#8a8f98"
# Okabe and Ito's colours, that the colour-blind can tell apart, without their yellow on white.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
STYLES = ("-", (0, (5, 1.5)), (0, (1, 1.2)))
DOTS_PER_INCH = 150
EDGE = 0.08  # of a panel, at either end, without ticks
FEWEST_SMOOTH = 30  # effective samples, below which contours would be of the smoothing
SPREAD = 0.5  # length of an angle's mean direction, below which there is no middle to speak of
ROOM_FOR_A_MAP = 6  # parameters, from which on a corner plot leaves room


def symbol(name: str) -> str:
    """The symbol of a parameter."""
    return f"${SYMBOLS[name]}$" if name in SYMBOLS else name


def label(name: str) -> str:
    """The symbol of a parameter, with its unit."""
    unit = UNITS.get(name)
    return f"${SYMBOLS[name]}\\ [{unit}]$" if unit else symbol(name)


def plot_loss(rows: Iterable[Mapping[str, str]], path: Path) -> Path:
    """Draw the loss over the steps.

    Args:
        rows: Of a run's history.
        path: Where to.
    """
    curves: dict[str, list[tuple[int, float]]] = {"train_loss": [], "validation_loss": []}
    for row in rows:
        for name, points in curves.items():
            if row[name]:
                points.append((int(row["step"]), float(row[name])))
    figure, axes = page(7, 4.2)
    for (name, points), colour, width in zip(curves.items(), (GREY, BLUE), (0.8, 2.0), strict=True):
        if points:
            steps, losses = zip(*points, strict=True)
            marker = "o" if len(points) < 60 and name == "validation_loss" else None
            text = name.replace("_loss", "").replace("train", "training")
            axes.plot(steps, losses, color=colour, linewidth=width, marker=marker, ms=4, label=text)
    axes.set_xlabel("step")
    axes.set_ylabel(r"loss: $-\log q$ of the truth [nats]")
    axes.legend(frameon=False)
    return save(figure, path)


def plot_corner(posterior: Posterior, path: str | Path) -> Path:
    """Draw the marginals of one posterior in one and two dimensions, with the truth.

    Contours hold 50 and 90 %; titles give the median and the 90 % interval. Of a reweighted
    posterior, what it was before is drawn in grey. Fewer than 30 effective samples are drawn as
    points, as large as their weights.

    Args:
        posterior: Of one event.
        path: Where to.

    Raises:
        InputError: There are not more samples than parameters, or none carries weight.
    """
    if not has_corner(posterior):
        raise InputError(
            f"{posterior.label}: {len(posterior.samples)} samples of {len(posterior.names)} "
            "parameters, or none of them with weight, make no corner plot; sample more"
        )
    posterior = _in_one_piece(posterior.in_the_sky())
    names = posterior.names
    samples, truths, labels = _from_whole_seconds(posterior)
    size = max(6.5, (2.3 if len(names) < 8 else 1.8) * len(names))
    figure = Figure(figsize=(size, size))
    ranges = [_range(column, truth) for column, truth in zip(samples.T, truths, strict=True)]
    # Of sum 1 both, so that reweighted histograms are as high as those before.
    equal = np.full(len(samples), 1 / len(samples))
    exact = posterior.exact
    weights = equal if exact is None else exact.weights / exact.weights.sum()
    effective = 1 / (weights**2).sum()
    few, enough = effective < FEWEST_SMOOTH, len(samples) >= FEWEST_SMOOTH
    bins = int(np.clip(1.5 * effective ** (1 / 3), 15, 40))
    with warnings.catch_warnings():  # of contours in marginals that are too narrow for any
        warnings.simplefilter("ignore")
        if exact is not None:
            _corner(figure, samples, labels, truths, ranges, equal, bins, GREY, enough)
        _corner(figure, samples, labels, truths, ranges, weights, bins, BLUE, smooth=not few)
    panels = np.array(figure.axes).reshape(len(names), len(names))
    _keep_ticks_apart(panels)
    if few:
        _scatter(panels, samples, weights)
    for number, column in enumerate(samples.T):
        axes = figure.axes[number * (len(names) + 1)]
        title = f"{symbol(names[number])} = {_median_and_width(column, weights)}"
        axes.set_title(title, fontsize=11)
    snr = "" if posterior.optimal_snr is None else f"\nnetwork SNR {posterior.optimal_snr:.0f}"
    known = "\ntruth in orange" if any(truth is not None for truth in truths) else ""
    text = f"event {posterior.event}{snr}\n{len(samples):,} samples{known}"
    if exact is not None:
        points = "\npoints as large as their weight" if few else ""
        text += f"\nreweighted in blue: {exact.effective_samples:,.0f} effective{points}"
        text += "\nbefore in grey"
    figure.text(0.97, 0.97, text, ha="right", va="top", fontsize=12, linespacing=1.5)
    if {"ra", "dec"} <= set(names) and len(names) >= ROOM_FOR_A_MAP:
        from model.sky_map import draw_sky

        draw_sky(figure.add_axes((0.58, 0.6, 0.24, 0.24), projection="mollweide"), posterior)
    return save(figure, path)


def has_corner(posterior: Posterior) -> bool:
    """Whether there is enough of a posterior to draw."""
    enough = len(posterior.samples) > len(posterior.names)
    return enough and (posterior.exact is None or bool(posterior.exact.weights.any()))


def _in_one_piece(posterior: Posterior) -> Posterior:
    """Angles whose ends meet within half a turn of where their samples are.

    Else a posterior at 0 h would be two, at the two ends of its panels, and its median in between,
    where nothing is. What is spread over the circle stays as it is.
    """
    samples, truth = posterior.samples.copy(), dict(posterior.truth)
    weights = np.ones(len(samples)) if posterior.exact is None else posterior.exact.weights
    periods = PriorCube.from_texts(posterior.names, posterior.priors).periods
    for column, (name, period) in enumerate(zip(posterior.names, periods, strict=True)):
        if not period:
            continue
        turns = np.exp(2j * np.pi * samples[:, column] / period)
        mean = complex(np.average(turns, weights=weights))
        if abs(mean) < SPREAD:
            continue
        start = (np.angle(mean) / (2 * np.pi) % 1 - 0.5) * period
        samples[:, column] = start + np.mod(samples[:, column] - start, period)
        if name in truth:
            truth[name] = float(start + np.mod(truth[name] - start, period))
    return replace(posterior, samples=samples, truth=truth)


def _from_whole_seconds(
    posterior: Posterior,
) -> tuple[Float[Array, "sample parameter"], list[float | None], list[str]]:
    """Samples, truth and labels; times count from a whole second.

    Ten digits of GPS time leave no room for those that matter.
    """
    names, samples = posterior.names, posterior.samples.copy()
    truths = [posterior.truth.get(name) for name in names]
    labels = [label(name) for name in names]
    if "geocent_time" in names:
        column = names.index("geocent_time")
        origin = np.floor(samples[:, column].min())
        samples[:, column] -= origin
        if (truth := truths[column]) is not None:
            truths[column] = truth - origin
        labels[column] = rf"$t_c - {origin:.0f}\ [\mathrm{{s}}]$"
    return samples, truths, labels


def _range(samples: Float[Array, "sample"], truth: float | None) -> tuple[float, float]:
    """What a panel shows: 99.5 % of the samples, and the truth."""
    low, high = np.quantile(samples, (0.0025, 0.9975))
    margin = 0.03 * (high - low) or 1e-9 * max(abs(low), 1.0)
    if truth is not None:
        low, high = min(low, truth), max(high, truth)
    return float(low - margin), float(high + margin)


def _corner(
    figure: Figure,
    samples: Float[Array, "sample parameter"],
    labels: list[str],
    truths: list[float | None],
    ranges: list[tuple[float, float]],
    weights: Float[Array, "sample"],
    bins: int,
    colour: str,
    smooth: bool = True,
) -> None:
    corner.corner(
        samples,
        fig=figure,
        labels=labels,
        truths=truths,
        truth_color=ORANGE,
        color=colour,
        weights=weights,
        bins=bins,
        smooth=1.0 if smooth else None,
        smooth1d=1.0 if smooth else None,
        levels=(0.5, 0.9),
        quantiles=() if colour == GREY else (0.05, 0.95),
        label_kwargs={"fontsize": 12},
        labelpad=0.06,
        plot_datapoints=False,
        range=ranges,
        plot_contours=smooth,
        fill_contours=smooth and colour != GREY,
        plot_density=smooth and colour != GREY,
        max_n_ticks=4,
    )


class _InnerLocator(MaxNLocator):
    """Ticks that keep off the ends, where their numbers would meet those of the next panel."""

    def tick_values(self, vmin: float, vmax: float) -> Sequence[float]:
        margin = EDGE * (vmax - vmin)
        ticks = super().tick_values(vmin, vmax)
        return [tick for tick in ticks if vmin + margin <= tick <= vmax - margin]


def _keep_ticks_apart(panels: Any) -> None:  # noqa: ANN401  # an array of axes
    for row, column in zip(*np.tril_indices(len(panels)), strict=True):
        axes: Axes = panels[row, column]
        axes.xaxis.set_major_locator(_InnerLocator(4))
        if row > column:
            axes.yaxis.set_major_locator(_InnerLocator(4))
        axes.tick_params(labelrotation=45)


def _scatter(
    panels: Any,  # noqa: ANN401  # an array of axes
    samples: Float[Array, "sample parameter"],
    weights: Float[Array, "sample"],
) -> None:
    """Draw samples as points whose areas are their weights; the largest has 60 square points."""
    for row, column in zip(*np.tril_indices(len(panels), -1), strict=True):
        x, y = samples[:, column], samples[:, row]
        areas = 60 * weights / weights.max()
        panels[row, column].scatter(x, y, s=areas, color=BLUE, alpha=0.7, linewidth=0)


def _median_and_width(samples: Float[Array, "sample"], weights: Float[Array, "sample"]) -> str:
    """Median and 90 % interval, with two digits of the interval."""
    low, middle, high = np.quantile(
        samples, (0.05, 0.5, 0.95), weights=weights, method="inverted_cdf"
    )
    digits = max(0, 1 - math.floor(math.log10(max(high - low, 1e-12))))
    return f"${middle:.{digits}f}^{{+{high - middle:.{digits}f}}}_{{-{middle - low:.{digits}f}}}$"


def plain_log_axis(axes: Axes, which: Literal["x", "y"]) -> None:
    """Make an axis logarithmic, with numbers that are written out: 20 instead of 2 x 10^1."""
    axes.set(**{f"{which}scale": "log"})
    axis: Axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=8))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def page(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure of one plot; sizes in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def save(figure: Figure, path: str | Path) -> Path:
    """Write a PNG file; return it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DOTS_PER_INCH)
    return path
