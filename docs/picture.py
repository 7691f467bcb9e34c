"""Draws docs/picture.png, the README's picture, from what `make demo` left.

.venv/bin/python docs/picture.py
"""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from model.plots import BLUE, GREY, ORANGE
from pipeline import DatasetConfig
from pipeline.simulate import Simulator
from storage import open_dataset
from storage.dataset import read_schema
from storage.results import read_posterior, result_path
from strainflow import read_config

EVENT = 2
DEMO = Path("demo")


def main() -> None:
    """Draw it."""
    data = open_dataset(DEMO / "test.zarr")
    names = read_schema(DEMO / "test.zarr").parameter_names
    truth = dict(zip(names, data.parameters[EVENT].values, strict=True))
    config = read_config(DatasetConfig, "pipeline/recipes/et-demo.yaml")
    signal = Simulator.from_config(config.simulation).signal(truth)
    posterior = read_posterior(result_path(DEMO / "results", EVENT))

    figure = Figure(figsize=(11, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(2.2, 1))
    window = slice(int(6.5 * 8192), int(7.15 * 8192))
    time = data.time.values[window]
    for offset, detector in zip((24, 0, -24), range(3), strict=True):
        strain = data.strain[EVENT, detector].values[window]
        left.plot(time, strain + offset, color=GREY, linewidth=0.5)
        left.plot(time, signal[detector, window] + offset, color=BLUE, linewidth=1.1)
        left.text(time[0], offset + 7, f"E{detector + 1}", color=BLUE, weight="bold")
    left.set_xlabel("time in the segment [s]")
    left.set_ylabel("whitened strain [sigma]")
    left.set_title("simulated: noise, and the signal in it", fontsize=11)
    left.set_yticks([])
    column = posterior.names.index("chirp_mass")
    mass = posterior.samples[:, column]
    right.hist(mass, bins=20, density=True, color=BLUE, alpha=0.75)
    right.axvline(truth["chirp_mass"], color=ORANGE, linewidth=2)
    right.axhline(1 / 75, color=GREY, linewidth=1.5, linestyle="--")
    right.set_xlim(25, 100)
    right.set_yticks([])
    right.set_xlabel(r"chirp mass $[M_\odot]$")
    right.set_title("inferred: prior, posterior, truth", fontsize=11)
    for axes in (left, right):
        axes.spines[["top", "right", "left"]].set_visible(False)
    print(EVENT, truth["chirp_mass"], np.quantile(mass, (0.05, 0.5, 0.95)), posterior.optimal_snr)
    figure.savefig("docs/picture.png", dpi=120)


if __name__ == "__main__":
    main()
