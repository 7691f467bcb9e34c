import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from storage.order import permuted

SEEDS = st.integers(0, 2**64)
# Below this a test fails by chance once in 10,000 runs; all draws are fixed, so it never does.
SIGNIFICANCE = 1e-4


def whole_order(size, seed, epoch):
    return permuted(np.arange(size), size, seed, epoch)


@given(size=st.integers(1, 3000), seed=SEEDS, epoch=st.integers(0, 10_000))
def test_every_epoch_is_a_permutation(size, seed, epoch):
    assert np.array_equal(np.sort(whole_order(size, seed, epoch)), np.arange(size))


@given(data=st.data(), size=st.integers(1, 10**9), seed=SEEDS, epoch=st.integers(0, 100))
def test_a_position_is_computed_without_its_neighbours(data, size, seed, epoch):
    first = data.draw(st.integers(0, size - 1))
    positions = np.arange(first, min(first + 50, size))
    chosen = data.draw(st.integers(0, len(positions) - 1))
    together = permuted(positions, size, seed, epoch)
    assert together.min() >= 0
    assert together.max() < size
    assert permuted(positions[chosen : chosen + 1], size, seed, epoch) == together[chosen]


def test_the_order_is_the_one_that_was_pinned():
    """Runs that are resumed with a newer version depend on it.

    Made by `permuted(numpy.arange(20), 20, seed=1, epoch=2).tolist()` and
    `permuted(numpy.arange(5), 10**6, seed=2**40, epoch=0).tolist()`.
    """
    assert whole_order(20, 1, 2).tolist() == [
        9,
        16,
        14,
        17,
        11,
        18,
        15,
        19,
        12,
        7,
        3,
        8,
        6,
        1,
        2,
        10,
        5,
        13,
        4,
        0,
    ]
    assert permuted(np.arange(5), 10**6, 2**40, 0).tolist() == [
        5875,
        536570,
        183400,
        587911,
        290107,
    ]


@pytest.fixture(scope="module")
def many_epochs():
    """The orders of 3,000 epochs of 200 events."""
    return np.stack([whole_order(200, 7, epoch) for epoch in range(3000)])


def test_each_event_is_equally_likely_at_each_position(many_epochs):
    epochs, size = many_epochs.shape
    counts = np.zeros((size, size))
    np.add.at(counts, (np.arange(size), many_epochs), 1)
    # Rows and columns sum to `epochs`, which leaves (size - 1)^2 degrees of freedom.
    statistic = ((counts - epochs / size) ** 2).sum() / (epochs / size)
    assert (
        2
        * min(stats.chi2.sf(statistic, (size - 1) ** 2), stats.chi2.cdf(statistic, (size - 1) ** 2))
        > SIGNIFICANCE
    )


@pytest.mark.parametrize("event", [0, 1, 199])
def test_a_single_event_lands_everywhere_equally_often(many_epochs, event):
    landed = np.argmax(many_epochs == event, axis=1)
    assert stats.chisquare(np.bincount(landed, minlength=200)).pvalue > SIGNIFICANCE


@pytest.mark.parametrize("pair", [(0, 1), (0, 199), (17, 16), (64, 128)])
def test_pairs_of_events_land_independently(many_epochs, pair):
    first, second = (np.argmax(many_epochs == event, axis=1) for event in pair)
    counts = np.histogram2d(first, second, bins=10, range=[(0, 200), (0, 200)])[0]
    # No two events share a position, so the cells on the diagonal are a little rarer.
    expected = np.full((10, 10), 20 * 20.0) - 20 * np.eye(10)
    expected *= len(many_epochs) / expected.sum()
    assert stats.chisquare(counts.ravel(), expected.ravel()).pvalue > SIGNIFICANCE


def test_the_step_from_an_event_to_the_next_is_uniform(many_epochs):
    steps = np.diff(many_epochs[:, :2], axis=1)[:, 0] % 200
    assert stats.chisquare(np.bincount(steps, minlength=200)[1:]).pvalue > SIGNIFICANCE


def test_all_orders_of_four_events_are_equally_likely():
    orders = [tuple(whole_order(4, seed=3, epoch=epoch).tolist()) for epoch in range(144)]
    counts = list({order: orders.count(order) for order in orders}.values())
    assert len(counts) == 24
    assert stats.chisquare(counts).pvalue > SIGNIFICANCE


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((0, 0), (0, 1)),
        ((0, 0), (1, 0)),
        ((0, 1), (1, 0)),
        ((5, 1), (2**32 + 5, 0)),  # the same words of entropy, were seed and epoch only strung up
        ((2**32, 0), (2**64, 0)),
    ],
)
def test_epochs_and_seeds_are_independent(one, other):
    size = 5000
    first, second = whole_order(size, *one), whole_order(size, *other)
    assert np.sum(first == second) < 10  # 1 expected
    assert stats.pearsonr(first, second).pvalue > SIGNIFICANCE


def test_the_order_does_not_follow_that_of_the_data_set():
    order = whole_order(5000, 0, 0)
    assert stats.pearsonr(order, np.arange(5000)).pvalue > SIGNIFICANCE
    assert np.sum(np.abs(np.diff(order)) == 1) < 12  # 2 expected


@pytest.mark.parametrize("position", [-1, 10])
def test_a_position_outside_the_set_is_refused(position):
    with pytest.raises(IndexError, match=r"\[0, 10\)"):
        permuted(np.array([position]), 10, 0, 0)
