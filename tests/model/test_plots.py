"""Pictures are written; a human looks at them."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.collections import PathCollection
from matplotlib.contour import ContourSet
from matplotlib.figure import Figure

from model.calibration_plots import plot_pp
from model.cube import PriorCube
from model.history import read_history
from model.plots import DOTS_PER_INCH, plot_corner, plot_loss
from model.posterior_plots import plot_widths
from storage.errors import InputError
from storage.posterior import Exact, Posterior


def is_picture(path):
    content = path.read_bytes()
    return content.startswith(b"\x89PNG\r\n\x1a\n") and len(content) > 10_000


def test_what_is_no_picture_is_not_taken_for_one(tmp_path):
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    assert not is_picture(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"x" * 20_000)
    assert not is_picture(tmp_path / "b.png")


def test_the_loss_of_a_run_is_drawn(trained, tmp_path):
    assert is_picture(plot_loss(read_history(trained[0]), tmp_path / "new" / "loss.png"))
    assert is_picture(trained[0] / "loss.png")


@pytest.mark.parametrize("truth", [{}, {"chirp_mass": 30.0, "geocent_time": 1577491218.01}])
def test_a_posterior_with_a_gps_time_is_drawn(truth, tmp_path):
    draw = np.random.default_rng(0)
    samples = np.stack([draw.normal(30, 1, 500), draw.normal(1577491218.01, 0.002, 500)], 1)
    posterior = Posterior(
        event=3,
        names=("chirp_mass", "geocent_time"),
        samples=samples,
        log_prob=np.zeros(500),
        truth=truth,
        priors={},
        optimal_snr=30.0,
    )
    assert is_picture(plot_corner(posterior, tmp_path / "corner.png"))
    assert posterior.samples[0, 1] > 1.5e9, "the posterior itself was shifted"


def test_a_p_p_plot_is_drawn(tmp_path):
    ranks = np.random.default_rng(0).uniform(size=(50, 2))
    path = plot_pp(ranks, ("chirp_mass", "spin"), (0.3, 0.7), tmp_path / "pp.png")
    assert is_picture(path)


@pytest.fixture
def figures(monkeypatch):
    """The figures that are saved."""
    saved = []
    real = Figure.savefig

    def save(figure, *args, **options):
        saved.append(figure)
        figure.set_dpi(DOTS_PER_INCH)  # places on it stay what they are in the file
        return real(figure, *args, **options)

    monkeypatch.setattr(Figure, "savefig", save)
    return saved


def uniform(samples, weights=None):
    draw = np.random.default_rng(0)
    points = draw.uniform((0, 3000, 0), (1, 64000, 6.3), (samples, 3))
    names = ("a_1", "luminosity_distance", "phase")
    zeros = np.zeros(samples)
    exact = None if weights is None else Exact(zeros, zeros, weights, 0.0, 0.1, 0.0)
    return Posterior(1, names, points, zeros, {}, {}, exact=exact)


def test_the_numbers_of_neighbouring_panels_of_a_corner_plot_keep_apart(figures, tmp_path):
    plot_corner(uniform(2000), tmp_path / "corner.png")
    for row in (figures[0].axes[6:9], figures[0].axes[3::3]):
        which = "xaxis" if row[0] is figures[0].axes[6] else "yaxis"
        labels = [text for axes in row for text in getattr(axes, which).get_ticklabels()]
        boxes = [text.get_window_extent() for text in labels if text.get_text()]
        assert len(boxes) >= 5
        for number, box in enumerate(boxes):
            assert not any(box.overlaps(other) for other in boxes[:number])


def test_an_angle_at_the_end_of_its_circle_is_drawn_in_one_piece(figures, tmp_path):
    draw = np.random.default_rng(0)
    ra = np.mod(draw.normal(0.01, 0.05, 2000), 2 * np.pi)
    psi = np.mod(draw.normal(3.13, 0.05, 2000), np.pi)
    phase = draw.uniform(0, 2 * np.pi, 2000)
    around = "Uniform(minimum=0, maximum=6.283185307179586)"
    posterior = Posterior(
        event=1,
        names=("ra", "psi", "phase"),
        samples=np.stack([ra, psi, phase], 1),
        log_prob=np.zeros(2000),
        truth={"ra": 6.25, "psi": 0.02, "phase": 6.0},
        priors={"ra": around, "psi": "Uniform(0, pi)", "phase": around},
    )
    plot_corner(posterior, tmp_path / "corner.png")
    diagonal = figures[0].axes[::4]
    titles = [axes.get_title() for axes in diagonal]
    assert re.search(r"alpha\$ = \$0\.01.*\{\+0\.08.*\{-0\.08", titles[0]), titles[0]
    assert re.search(r"psi\$ = \$3\.1", titles[1]), titles[1]
    shown = [axes.get_xlim() for axes in diagonal]
    assert -0.3 < shown[0][0] < 6.25 - 2 * np.pi < shown[0][1] < 0.3
    assert 2.8 < shown[1][0] < np.pi + 0.02 < shown[1][1] < 3.4
    assert shown[2] == pytest.approx((0, 2 * np.pi), abs=0.3), "spread over the circle, it stays"


@pytest.mark.parametrize("weighted", [False, True])
def test_a_posterior_of_few_effective_samples_is_drawn_as_points(weighted, figures, tmp_path):
    weights = np.zeros(400)
    weights[:4] = (100, 100, 100, 50)
    few = uniform(400, weights) if weighted else uniform(20)
    plot_corner(few, tmp_path / "few.png")
    plot_corner(uniform(400), tmp_path / "many.png")
    few_drawn, many_drawn = ([a.collections for a in figure.axes] for figure in figures)
    points = [drawn[-1].get_sizes() for drawn in few_drawn if drawn]
    assert len(points) == 3
    for sizes in points:
        assert sizes == pytest.approx(60 * weights / 100 if weighted else np.full(20, 60))
    assert not any(isinstance(one, PathCollection) for drawn in many_drawn for one in drawn)
    contours = [isinstance(one, ContourSet) for drawn in few_drawn for one in drawn]
    assert any(contours) == weighted, "only those before reweighting are enough for contours"


@pytest.mark.parametrize("samples", [1, 2])
def test_fewer_samples_than_a_corner_needs_are_refused(samples, tmp_path):
    posterior = Posterior(1, ("a", "b"), np.ones((samples, 2)), np.zeros(samples), {}, {})
    with pytest.raises(InputError, match=f"{samples} samples of 2 parameters.*sample more"):
        plot_corner(posterior, str(tmp_path / "corner.png"))


def test_samples_without_any_weight_make_no_corner(tmp_path):
    zeros = np.zeros(50)
    exact = Exact(zeros, zeros, zeros, 0.0, 0.0, 0.0)
    points = np.random.default_rng(0).random((50, 2))
    posterior = Posterior(1, ("a", "b"), points, zeros, {}, {}, exact=exact)
    with pytest.raises(InputError, match="none of them with weight"):
        plot_corner(posterior, tmp_path / "corner.png")


@pytest.mark.parametrize("mass", [None, 30.0])
def test_widths_of_zero_leave_the_axis_logarithmic_and_the_guide_a_curve(mass, figures, tmp_path):
    names = ("chirp_mass", "phase", "ra")
    events = [
        SimpleNamespace(
            optimal_snr=snr,
            chirp_mass=mass,
            widths={"chirp_mass": 20 / snr, "phase": max(0.0, snr - 12), "ra": 0.0},
        )
        for snr in np.linspace(10, 100, 46)
    ]
    plot_widths(events, names, PriorCube.from_texts(names, {}), tmp_path / "widths.png")
    axes = figures[0].axes[:: 1 if mass is None else 2]
    assert [one.get_yscale() for one in axes] == ["log", "log", "linear"]
    assert [[text.get_text() for text in one.texts] for one in axes] == [
        [],
        ["2 of width 0 not shown"],
        [],
    ]
    guide = axes[0].lines[0].get_xydata()
    assert len(guide) > 50
    assert np.prod(guide, axis=1) == pytest.approx(guide[0].prod())
    title = figures[0]._suptitle
    box = title.get_window_extent()
    assert 0 < box.x0 < box.x1 < figures[0].bbox.width, "the title is cut off"
    assert re.fullmatch(
        r"(?s)Shortest 90 % interval of 46 events\nrunning.*SNR\}\$", title.get_text()
    )
