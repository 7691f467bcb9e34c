"""Pictures of calibration: P-P, histograms of ranks (SBC), expected coverage (TARP)."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import binom

from model.calibration import coverage, rank_counts
from model.plots import BLUE, COLOURS, GREY, STYLES, page, save, symbol
from storage.arrays import Array

BANDS = (0.997, 0.954, 0.683)  # three, two and one sigma of the binomial distribution
LEGEND_INSIDE = 6  # parameters; more stand beside the picture


def plot_pp(
    ranks: Float[Array, "event parameter"],
    names: Sequence[str],
    p_values: Sequence[float],
    path: Path,
) -> Path:
    """Draw, for each credible level, the share of events whose truth lies below it.

    Args:
        ranks: Share of an event's samples below its truth.
        names: Of the parameters.
        p_values: Of each parameter's Kolmogorov-Smirnov test.
        path: Where to.
    """
    many = len(names) > LEGEND_INSIDE
    figure, axes = page(8.2 if many else 6, 6)
    _binomial_bands(axes, len(ranks))
    for number, (name, column, p_value) in enumerate(zip(names, ranks.T, p_values, strict=True)):
        _coverage_curve(
            axes,
            column,
            f"{symbol(name)}  (p = {p_value:.3f})",
            color=COLOURS[number % len(COLOURS)],
            linestyle=STYLES[number // len(COLOURS) % len(STYLES)],
        )
    axes.set_ylabel("share of events with the truth below it")
    axes.set_title(f"P-P: {len(ranks)} events, bands of 1, 2 and 3 sigma", fontsize=11)
    place = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)} if many else {"loc": "upper left"}
    axes.legend(frameon=False, **place)
    return save(figure, path)


def plot_sbc(
    ranks: Float[Array, "event parameter"],
    names: Sequence[str],
    p_values: Sequence[float],
    path: Path,
) -> Path:
    """Draw histograms of the truth's ranks: flat if right, a hill if too wide, a bowl if narrow.

    Args:
        ranks: Share of an event's samples below its truth.
        names: Of the parameters.
        p_values: Of each parameter's chi-square test.
        path: Where to.
    """
    columns = min(len(names), 5)
    rows = math.ceil(len(names) / columns)
    figure = Figure(figsize=(2.6 * columns + 0.8, 2.1 * rows + 1.1), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
    events = len(ranks)
    for axes, name, column, p_value in zip(grid, names, ranks.T, p_values, strict=False):
        counts = rank_counts(column)
        for band in BANDS:
            low, high = (
                binom.ppf(edge, events, 1 / len(counts))
                for edge in (0.5 - band / 2, 0.5 + band / 2)
            )
            axes.axhspan(low, high, color=GREY, alpha=0.16, linewidth=0)
        axes.axhline(events / len(counts), color="black", linewidth=0.8)
        axes.stairs(counts, np.linspace(0, 1, len(counts) + 1), color=BLUE, linewidth=1.6)
        axes.set_title(f"{symbol(name)}  (p = {p_value:.3f})", fontsize=10)
        axes.set_xlim(0, 1)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in grid[len(names) :]:
        axes.set_axis_off()
    grid[0].set_ylim(bottom=0)
    figure.supxlabel("rank of the truth among the samples", fontsize=11)
    figure.supylabel("events", fontsize=11)
    figure.suptitle(f"SBC: {events} events, bands of 1, 2 and 3 sigma", fontsize=11)
    return save(figure, path)


def plot_tarp(ranks: Float[Array, "event"], p_value: float, path: Path) -> Path:
    """Draw the expected coverage of all parameters together.

    Args:
        ranks: Of the truth's distance from a random point among those of the samples.
        p_value: That they are uniform.
        path: Where to.
    """
    figure, axes = page(6, 6)
    _binomial_bands(axes, len(ranks))
    _coverage_curve(axes, ranks, f"all parameters  (p = {p_value:.3f})", color=BLUE)
    axes.set_ylabel("expected coverage: share of events")
    axes.set_title(f"TARP: {len(ranks)} events, bands of 1, 2 and 3 sigma", fontsize=11)
    axes.legend(frameon=False, loc="upper left")
    return save(figure, path)


def _binomial_bands(axes: Axes, events: int) -> None:
    """What calibrated posteriors stay within, at each level."""
    levels = np.linspace(0, 1, 501)
    for band in BANDS:
        low, high = (
            binom.ppf(edge, events, levels) / events for edge in (0.5 - band / 2, 0.5 + band / 2)
        )
        axes.fill_between(levels, low, high, color=GREY, alpha=0.16, linewidth=0)
    axes.plot([0, 1], [0, 1], color="black", linewidth=0.8)
    axes.set_xlabel("credible level")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)


def _coverage_curve(
    axes: Axes,
    ranks: Float[Array, "event"],
    text: str,
    **style: object,
) -> None:
    levels = np.r_[0.0, np.sort(ranks), 1.0]
    axes.step(levels, coverage(ranks, levels), where="post", linewidth=1.6, label=text, **style)
