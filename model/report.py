"""One page of all that `strainflow diagnose` found, as PNG and as HTML that needs nothing else."""

import base64
import html
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from model.calibration_plots import plot_pp, plot_sbc, plot_tarp
from model.cube import PriorCube
from model.findings import Diagnosis, rank_table, summary, verdict
from model.plots import DOTS_PER_INCH, plot_corner
from model.posterior_plots import plot_jsd, plot_sky, plot_widths
from storage.files import write_atomically
from storage.posterior import Posterior

PAGE, MARGIN = 2400, 40  # width of the page of pictures [pixels]
GOOD, BAD = "#00694d", "#b3390b"
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1d2733; max-width: 1150px; margin: 2em auto;
       padding: 0 1em }
table { border-collapse: collapse; margin: 1em 0; font-variant-numeric: tabular-nums }
th, td { padding: .25em .8em; text-align: right; border-bottom: 1px solid #d8dde3 }
th:first-child, td:first-child { text-align: left }
.verdict { font-size: 1.35em; font-weight: 600 }
.bad { color: #b3390b; font-weight: 600 } .good { color: #00694d }
img { max-width: 100%; margin: .6em 0 } pre { background: #f4f6f8; padding: 1em; overflow-x: auto }
"""


def write_report(
    diagnosis: Diagnosis, cube: PriorCube, corners: Sequence[Posterior], folder: Path
) -> tuple[list[Path], Path]:
    """Draw all pictures and put them on one page; none of before stays beside pictures of now.

    Args:
        diagnosis: What was found.
        cube: Of the priors.
        corners: Posteriors to draw corner plots of.
        folder: Where to.

    Returns:
        The pictures, and the page.
    """
    page, overview = folder / "diagnosis.html", folder / "diagnosis.png"
    for path in (page, overview):
        path.unlink(missing_ok=True)
    pictures = _draw(diagnosis, cube, folder)
    for posterior in corners:
        pictures.append(plot_corner(posterior, folder / f"corner_{posterior.event:09d}.png"))
    _write_overview(diagnosis, pictures, overview)
    write_atomically(page, _html(diagnosis, pictures).encode())
    return [overview, *pictures], page


def _draw(diagnosis: Diagnosis, cube: PriorCube, folder: Path) -> list[Path]:
    if diagnosis.tarp_p_value is None:  # there are too few events for any
        return []
    names = [check.name for check in diagnosis.checks]
    events = diagnosis.judged
    ranks = rank_table(events, names)
    tarp = np.array([event.tarp_rank for event in events])
    drawn = [
        plot_pp(ranks, names, [c.p_value for c in diagnosis.checks], folder / "pp.png"),
        plot_tarp(tarp, diagnosis.tarp_p_value, folder / "tarp.png"),
        plot_sbc(ranks, names, [c.sbc_p_value for c in diagnosis.checks], folder / "sbc.png"),
        plot_widths(events, names, cube, folder / "widths.png"),
        plot_sky(events, folder / "sky.png"),
        plot_jsd(diagnosis.per_event, names, folder / "jsd.png"),
    ]
    return [path for path in drawn if path is not None]


def _write_overview(diagnosis: Diagnosis, pictures: Sequence[Path], path: Path) -> None:
    """Put the pictures below one another, narrow ones beside each other."""
    rows: list[list[Image.Image]] = [[_headline(diagnosis)]]
    for picture in pictures:
        image = Image.open(picture).convert("RGB")
        last = rows[-1]
        beside = len(rows) > 1 and len(last) == 1 and _is_narrow(last[0]) and _is_narrow(image)
        if beside:
            last.append(image)
        else:
            rows.append([image])
    strips = [_strip(row) for row in rows]
    height = sum(strip.height + MARGIN for strip in strips) + MARGIN
    page, top = Image.new("RGB", (PAGE, height), "white"), MARGIN
    for strip in strips:
        page.paste(strip, (0, top))
        top += strip.height + MARGIN
    content = BytesIO()
    page.save(content, "PNG")
    write_atomically(path, content.getvalue())


def _is_narrow(image: Image.Image) -> bool:
    return 0.9 < image.width / image.height < 1.6


def _strip(row: Sequence[Image.Image]) -> Image.Image:
    """One row of the page, as high as makes it fill the width; nothing is enlarged much."""
    room = PAGE - MARGIN * (len(row) + 1)
    height = int(room / sum(image.width / image.height for image in row))
    height = min(height, PAGE, int(1.3 * max(image.height for image in row)))
    images = [
        image.resize((round(image.width * height / image.height), height), Image.Resampling.LANCZOS)
        for image in row
    ]
    strip = Image.new("RGB", (PAGE, height), "white")
    left = (PAGE - sum(image.width for image in images) - MARGIN * (len(images) - 1)) // 2
    for image in images:
        strip.paste(image, (left, 0))
        left += image.width + MARGIN
    return strip


def _headline(diagnosis: Diagnosis) -> Image.Image:
    """The verdict and its p-values, as a picture."""
    figure = Figure(figsize=((PAGE - 2 * MARGIN) / DOTS_PER_INCH, 1.0))
    colour = GOOD if diagnosis.calibrated else BAD
    what = "posteriors after reweighting" if diagnosis.weighted else "posteriors"
    words = verdict(diagnosis).partition(":")[0]  # the reason, if any, stands below
    figure.text(0.01, 0.62, f"{diagnosis.events} {what}: {words}",
                fontsize=22, color=colour, weight="bold")  # fmt: skip
    figure.text(0.01, 0.12, _p_values(diagnosis), fontsize=14, color="#1d2733")
    content = BytesIO()
    figure.savefig(content, dpi=DOTS_PER_INCH)
    return Image.open(content).convert("RGB")


def _p_values(diagnosis: Diagnosis) -> str:
    """What the verdict rests on, or why there is none."""
    if diagnosis.cannot_tell:
        return diagnosis.cannot_tell
    return (
        f"combined p = {diagnosis.combined_p_value:.3f}, must reach {diagnosis.level:g}   "
        f"(P-P {diagnosis.pp_p_value:.3f}, SBC {diagnosis.sbc_p_value:.3f}, "
        f"TARP {diagnosis.tarp_p_value:.3f})"
    )


def _html(diagnosis: Diagnosis, pictures: Sequence[Path]) -> str:
    colour = "good" if diagnosis.calibrated else "bad"
    body = [
        f'<p class="verdict {colour}">{diagnosis.events} posteriors: {verdict(diagnosis)}</p>',
        f"<p>{html.escape(_p_values(diagnosis))}</p>",
        _table(diagnosis) if diagnosis.checks else "",
        *(_image(picture) for picture in pictures),
        f"<h2>In words</h2><pre>{html.escape(summary(diagnosis))}</pre>",
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>Diagnosis</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def _table(diagnosis: Diagnosis) -> str:
    reweighted = diagnosis.reweighting is not None
    heads = ["parameter", "KS p", "SBC p", "narrowing", "bias [sigma]", "90 % width",
             "truth beyond all samples", *(["JSD [nats]"] if reweighted else [])]  # fmt: skip
    lines = ["<table><tr>" + "".join(f"<th>{head}</th>" for head in heads) + "</tr>"]
    for check in diagnosis.checks:
        cells = [
            html.escape(check.name),
            f"{check.p_value:.3f}",
            f"{check.sbc_p_value:.3f}",
            "" if check.narrowing is None else f"{check.narrowing:.1f}",
            "" if check.bias is None else f"{check.bias:+.2f}",
            f"{check.width:.3g}",
            f"{100 * check.outside:.1f} %",
        ]
        if reweighted:
            cells.append("" if check.jsd is None else f"{check.jsd:.4f}")
        lines.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return "\n".join([*lines, "</table>"])


def _image(picture: Path) -> str:
    content = base64.b64encode(picture.read_bytes()).decode()
    return f'<img alt="{html.escape(picture.stem)}" src="data:image/png;base64,{content}">'
