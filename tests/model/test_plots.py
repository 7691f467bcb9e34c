"""Pictures are written; a human looks at them."""

import numpy as np
import pytest

from model.calibration_plots import plot_pp
from model.history import read_history
from model.plots import plot_corner, plot_loss
from storage.results import Posterior


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
