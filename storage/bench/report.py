"""Where a measurement is kept: one JSON file and one picture, side by side."""

import json as json_format
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from storage.bench.measure import Rate
from storage.files import write_atomically

LIMIT, OURS, OTHERS = "#b0b0b0", "#1f5fa8", "#d9822b"


def publish(
    result: Any,  # noqa: ANN401  # a dataclass
    words: str,
    panels: Mapping[str, Sequence[Rate]],
    title: str,
    out: str,
    name: str,
    json: bool,
) -> None:
    """Print a measurement, and keep it as JSON and as a picture.

    Args:
        result: A dataclass.
        words: The result in words.
        panels: Rates to draw, by the title of their panel; no picture where there are none.
        title: Of the picture.
        out: The folder.
        name: Of the measurement.
        json: Whether to print it as JSON.
    """
    path = write_report(result, out, name)
    picture = draw_rates(panels, title, Path(out) / f"{name}.png") if panels else None
    print(json_format.dumps(asdict(result)) if json else words)
    if panels and picture is None:
        print("no picture: matplotlib is missing, pip install matplotlib", file=sys.stderr)
    if not json:
        print(f"figures in {path}" + (f", picture in {picture}" if picture else ""))


def write_report(result: Any, out: str | Path, name: str) -> Path:  # noqa: ANN401  # a dataclass
    """Write a result as JSON; return where.

    Args:
        result: A dataclass.
        out: The folder.
        name: Of the measurement.
    """
    path = Path(out) / f"{name}.json"
    write_atomically(path, json_format.dumps(asdict(result), indent=1).encode())
    return path


def draw_rates(panels: Mapping[str, Sequence[Rate]], title: str, path: Path) -> Path | None:
    """Draw rates as bars with their spread, a panel for each group; limits are grey.

    Args:
        panels: Rates by the title of their panel.
        title: Of the picture.
        path: Of the PNG file.

    Returns:
        Where it is; None where matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        return None
    shown = {name: list(rates) for name, rates in panels.items() if rates}
    rows = [len(rates) for rates in shown.values()]
    figure = Figure(figsize=(9, 1.2 + 0.3 * sum(rows) + 0.7 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), squeeze=False, height_ratios=rows)[:, 0]
    for axis, (name, rates) in zip(axes, shown.items(), strict=True):
        places = range(len(rates))
        middle = [rate.gigabytes_per_second for rate in rates]
        spread = [
            [rate.gigabytes_per_second - rate.slowest for rate in rates],
            [rate.fastest - rate.gigabytes_per_second for rate in rates],
        ]
        axis.barh(places, middle, xerr=spread, color=[_colour(rate) for rate in rates], height=0.7)
        axis.set_yticks(places, [rate.name for rate in rates], fontsize=8)
        axis.invert_yaxis()
        axis.set_title(name, fontsize=9, loc="left")
        axis.set_xlabel("GB/s of strain, median and range of the rounds", fontsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    return path


def _colour(rate: Rate) -> str:
    if rate.limit:
        return LIMIT
    return OURS if rate.name.startswith(("EventStream", "strainflow")) else OTHERS
