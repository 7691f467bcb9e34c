"""Pictures of many posteriors: how wide they are, where on the sky, what reweighting changed."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from model.cube import PriorCube
from model.event_check import EventCheck
from model.findings import LOW_EFFICIENCY
from model.plots import BLUE, GREY, ORANGE, label, plain_log_axis, save, symbol
from storage.arrays import Array

SNR, MASS = "network SNR", label("chirp_mass")
INDISTINGUISHABLE = 0.002  # nats, below which two runs of a sampler differ as well


def plot_widths(
    events: Sequence[EventCheck], names: Sequence[str], cube: PriorCube, path: Path
) -> Path | None:
    """Draw each parameter's 90 % interval against SNR and chirp mass, with running medians.

    Args:
        events: With their widths.
        names: Of the parameters.
        cube: Of the priors, for their widths.
        path: Where to.

    Returns:
        The file; None where neither SNR nor chirp mass is known of all events.
    """
    snr = np.array([event.optimal_snr for event in events], float)
    mass = np.array([event.chirp_mass for event in events], float)
    against = [(text, x) for text, x in ((SNR, snr), (MASS, mass)) if np.isfinite(x).all()]
    if not against:
        return None
    across = len(against) * (2 if len(names) > 3 else 1)
    rows = math.ceil(len(names) * len(against) / across)
    figure = Figure(figsize=(3.1 * across + 0.6, 2.3 * rows + 0.6), layout="constrained")
    grid = figure.subplots(rows, across, squeeze=False).ravel()
    priors = cube.prior_widths(0.9)
    for number, (name, prior) in enumerate(zip(names, priors, strict=True)):
        widths = np.array([event.widths[name] for event in events])
        for column, (text, x) in enumerate(against):
            axes = grid[number * len(against) + column]
            _width_panel(axes, x, widths, prior, text)
            if column == 0:
                axes.set_ylabel(f"width of {label(name)}")
    for axes in grid[len(names) * len(against) :]:
        axes.set_axis_off()
    figure.suptitle(_widths_title(len(events), against[0][0] == SNR, across), fontsize=11)
    return save(figure, path)


def _widths_title(events: int, guide: bool, across: int) -> str:
    """The title, in as many lines as the columns of panels leave room for."""
    dashed = [r"dashed $\propto 1/\mathrm{SNR}$"] if guide else []
    curves = ["running median in blue", "prior dotted", *dashed]
    lines = [f"Shortest 90 % interval of {events} events"]
    lines += [", ".join(curves)] if across > 1 else [", ".join(curves[:2]), *curves[2:]]
    return "\n".join(lines)


def _width_panel(
    axes: Axes,
    x: Float[Array, "event"],
    widths: Float[Array, "event"],
    prior: float | None,
    text: str,
) -> None:
    axes.scatter(x, widths, s=7, color=GREY, alpha=0.45, linewidth=0)
    middles, medians = _running_median(x, widths)
    wide = widths > 0  # a log axis has no place for 0
    if text == SNR:
        plain_log_axis(axes, "x")
        if wide.any():
            scale = np.median(x[wide]) * np.median(widths[wide])
            along = np.geomspace(x.min(), x.max(), 100)
            axes.plot(along, scale / along, color=ORANGE, linewidth=1.2, linestyle=(0, (5, 2)))
    if prior is not None:
        axes.axhline(prior, color="black", linewidth=0.9, linestyle=":")
    axes.plot(middles, medians, color=BLUE, linewidth=2)
    if wide.any():
        plain_log_axis(axes, "y")
        low, high = widths[wide].min(), max(widths.max(), prior or 0.0)
        axes.set_ylim(low / 1.3, high * 1.3)
        if not wide.all():
            left_out = f"{(~wide).sum()} of width 0 not shown"
            axes.text(0.03, 0.04, left_out, fontsize=8, transform=axes.transAxes)
    axes.set_xlabel(text)
    axes.spines[["top", "right"]].set_visible(False)


def _running_median(
    x: Float[Array, "event"], y: Float[Array, "event"]
) -> tuple[list[float], list[float]]:
    """Medians of groups of events that follow one another in x."""
    groups = np.array_split(np.argsort(x), int(np.clip(len(x) // 8, 2, 15)))
    return [float(np.median(x[g])) for g in groups], [float(np.median(y[g])) for g in groups]


def plot_sky(events: Sequence[EventCheck], path: Path) -> Path | None:
    """Draw the area of the credible region against SNR, and how many pieces it has.

    Args:
        events: With their sky areas.
        path: Where to.

    Returns:
        The file; None where the sky position is not inferred.
    """
    areas = np.array([event.sky_area for event in events], float)
    if not np.isfinite(areas).all():
        return None
    modes = np.array([event.sky_modes for event in events], int)
    snr = np.array([event.optimal_snr for event in events], float)
    figure = Figure(figsize=(9.6, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    if np.isfinite(snr).all():
        left.scatter(snr, areas, s=9, color=GREY, alpha=0.6, linewidth=0)
        left.plot(*_running_median(snr, areas), color=BLUE, linewidth=2, label="running median")
        plain_log_axis(left, "x")
        plain_log_axis(left, "y")
        left.set_xlabel(SNR)
        left.set_ylabel(r"90 % credible region [deg$^2$]")
        left.legend(frameon=False)
    else:
        left.ecdf(areas, color=BLUE, linewidth=2)
        plain_log_axis(left, "x")
        left.set_xlabel(r"90 % credible region [deg$^2$]")
        left.set_ylabel("share of events")
    left.set_title(rf"median {np.median(areas):.3g} deg$^2$", fontsize=11)
    counts = np.bincount(modes, minlength=9)
    bars = right.bar(np.arange(1, len(counts)), counts[1:], color=BLUE, width=0.75)
    right.bar_label(bars, labels=[str(count or "") for count in counts[1:]], fontsize=9)
    right.set_xticks(np.arange(1, len(counts)), minor=False)
    right.xaxis.set_major_locator(MaxNLocator(nbins=12, integer=True))
    right.set_xlabel("modes of the sky position (a triangle has up to eight)")
    right.set_ylabel("events")
    right.set_title(f"{(modes > 1).mean():.0%} of the events have more than one", fontsize=11)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    return save(figure, path)


def plot_jsd(events: Sequence[EventCheck], names: Sequence[str], path: Path) -> Path | None:
    """Draw how far each marginal moved by reweighting, and the efficiencies.

    Args:
        events: Reweighted or not.
        names: Of the parameters.
        path: Where to.

    Returns:
        The file; None where nothing was reweighted.
    """
    found = [event.reweighted for event in events if event.reweighted]
    told = [one.divergences for one in found if one.divergences]
    if not told:
        return None
    figure = Figure(figsize=(12, max(4.2, 0.34 * len(names) + 1.6)), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.5, 1))
    divergences = [[max(of_event[name], 1e-6) for of_event in told] for name in reversed(names)]
    left.boxplot(
        divergences,
        orientation="horizontal",
        widths=0.6,
        whis=(5, 95),
        patch_artist=True,
        boxprops={"facecolor": BLUE, "alpha": 0.35, "edgecolor": BLUE},
        medianprops={"color": BLUE, "linewidth": 2},
        whiskerprops={"color": BLUE},
        capprops={"color": BLUE},
        flierprops={"marker": ".", "markersize": 4, "markeredgecolor": GREY},
    )
    left.set_yticks(np.arange(len(names)) + 1, [symbol(name) for name in reversed(names)])
    left.axvline(INDISTINGUISHABLE, color=ORANGE, linewidth=1.2, linestyle=(0, (5, 2)))
    left.set_xscale("log")
    left.set_xlabel("Jensen-Shannon divergence before and after reweighting [nats]")
    left.set_title(
        f"{len(found)} events; boxes hold half of them, whiskers 90 %; dashed: 0.002", fontsize=11
    )
    _efficiencies(right, np.array([f.efficiency for f in found]))
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    return save(figure, path)


def _efficiencies(axes: Axes, shares: Float[Array, "event"]) -> None:
    shown = np.maximum(shares, 1e-6)  # there is no logarithm of 0
    edges = np.geomspace(min(shown.min(), 0.003) / 1.1, 1.0, 25)
    axes.hist(shown, edges.tolist(), color=BLUE, alpha=0.8)
    axes.axvline(LOW_EFFICIENCY, color=ORANGE, linewidth=1.2, linestyle=(0, (5, 2)))
    axes.set_xscale("log")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("efficiency of importance sampling")
    axes.set_ylabel("events")
    axes.set_title(f"median {np.median(shares):.2g}; dashed: 1 %", fontsize=11)
