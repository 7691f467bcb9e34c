"""Pictures: PNG files next to what they show."""

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import corner
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import binom

from storage.arrays import Array
from storage.results import Posterior

LABELS = {
    "chirp_mass": r"$\mathcal{M}\ [M_\odot]$",
    "mass_ratio": r"$q$",
    "luminosity_distance": r"$d_L\ [\mathrm{Mpc}]$",
    "ra": r"$\alpha$",
    "dec": r"$\delta$",
    "a_1": r"$a_1$",
    "a_2": r"$a_2$",
    "tilt_1": r"$\theta_1$",
    "tilt_2": r"$\theta_2$",
    "theta_jn": r"$\theta_{JN}$",
    "psi": r"$\psi$",
    "phi_12": r"$\phi_{12}$",
    "phi_jl": r"$\phi_{JL}$",
    "phase": r"$\phi$",
    "geocent_time": r"$t_c\ [\mathrm{s}]$",
}

BLUE, ORANGE, GREY = "#1f5fa8", "#d9730d", "#8a8f98"
DOTS_PER_INCH = 150
BANDS = (0.997, 0.954, 0.683)  # one, two and three sigma of the binomial distribution


def label(name: str) -> str:
    """The symbol of a parameter, with its unit."""
    return LABELS.get(name, name)


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
    figure, axes = _page(7, 4.2)
    for (name, points), colour, width in zip(curves.items(), (GREY, BLUE), (0.8, 2.0), strict=True):
        if points:
            steps, losses = zip(*points, strict=True)
            marker = "o" if len(points) < 60 and name == "validation_loss" else None
            text = name.replace("_loss", "").replace("train", "training")
            axes.plot(steps, losses, color=colour, linewidth=width, marker=marker, ms=4, label=text)
    axes.set_xlabel("step")
    axes.set_ylabel(r"loss: $-\log q$ of the truth [nats]")
    axes.legend(frameon=False)
    return _save(figure, path)


def plot_corner(posterior: Posterior, path: Path) -> Path:
    """Draw the marginals of one posterior in one and two dimensions, with the truth.

    Args:
        posterior: Of one event.
        path: Where to.
    """
    posterior = posterior.in_the_sky()
    names = posterior.names
    samples = posterior.samples.copy()
    labels = [label(name) for name in names]
    truths = [posterior.truth.get(name) for name in names]
    if "geocent_time" in names:  # ten digits of GPS time leave no room for those that matter
        column = names.index("geocent_time")
        origin = np.floor(samples[:, column].min())
        samples[:, column] -= origin
        if (truth := truths[column]) is not None:
            truths[column] = truth - origin
        labels[column] = rf"$t_c - {origin:.0f}\ [\mathrm{{s}}]$"
    size = max(6.5, 2.3 * len(names))
    figure = Figure(figsize=(size, size))
    with warnings.catch_warnings():  # of contours in marginals that are too narrow for any
        warnings.simplefilter("ignore")
        corner.corner(
            samples,
            fig=figure,
            labels=labels,
            truths=truths,
            truth_color=ORANGE,
            color=BLUE,
            bins=40,
            smooth=1.0,
            smooth1d=1.0,
            levels=(0.393, 0.865),
            quantiles=(0.05, 0.95),
            label_kwargs={"fontsize": 12},
            labelpad=0.06,
            plot_datapoints=False,
            range=[0.995] * len(names),
            fill_contours=True,
            max_n_ticks=4,
        )
    for number, column in enumerate(samples.T):
        axes = figure.axes[number * (len(names) + 1)]
        axes.set_title(_median_and_width(column), fontsize=11)
    snr = "" if posterior.optimal_snr is None else f"\nnetwork SNR {posterior.optimal_snr:.0f}"
    text = f"event {posterior.event}{snr}\n{len(samples):,} samples\ntruth in orange"
    figure.text(0.97, 0.97, text, ha="right", va="top", fontsize=12, linespacing=1.5)
    return _save(figure, path)


def _median_and_width(samples: Float[Array, "sample"]) -> str:
    """Median and 90 % interval, with two digits of the interval."""
    low, middle, high = np.quantile(samples, (0.05, 0.5, 0.95))
    digits = max(0, 1 - math.floor(math.log10(max(high - low, 1e-12))))
    return f"${middle:.{digits}f}^{{+{high - middle:.{digits}f}}}_{{-{middle - low:.{digits}f}}}$"


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
    events = len(ranks)
    figure, axes = _page(6, 6)
    levels = np.linspace(0, 1, 501)
    for band in BANDS:
        low, high = (
            binom.ppf(edge, events, levels) / events for edge in (0.5 - band / 2, 0.5 + band / 2)
        )
        axes.fill_between(levels, low, high, color=GREY, alpha=0.16, linewidth=0)
    axes.plot([0, 1], [0, 1], color="black", linewidth=0.8)
    for name, column, p_value in zip(names, ranks.T, p_values, strict=True):
        text = (
            f"{label(name).split(chr(92) + ' [')[0].rstrip('$')}$" if "$" in label(name) else name
        )
        axes.step(
            np.concatenate([[0], np.sort(column), [1]]),
            np.concatenate([[0], np.arange(1, events + 1), [events]]) / events,
            where="post",
            linewidth=1.6,
            label=f"{text}  (p = {p_value:.3f})",
        )
    axes.set_xlabel("credible level")
    axes.set_ylabel("share of events with the truth below it")
    axes.set_title(f"{events} events, bands of 1, 2 and 3 sigma", fontsize=11)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.legend(frameon=False, loc="upper left")
    return _save(figure, path)


def _page(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: Figure, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DOTS_PER_INCH)
    return path
