from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from storage.order import Window, WindowedOrder, permuted
from storage.parts import Parts
from storage.reading import runs_of
from storage.snapshot import Snapshot

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


# Windows

COUNTS = st.lists(st.integers(1, 20), min_size=1, max_size=8)
WINDOWS = st.builds(Window, st.integers(1, 7), st.integers(1, 9))


@given(counts=COUNTS, window=WINDOWS, seed=SEEDS, epoch=st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_every_windowed_epoch_is_a_permutation(counts, window, seed, epoch):
    order = WindowedOrder(np.array(counts), window)
    size = sum(counts)
    assert np.array_equal(np.sort(order(np.arange(size), seed, epoch)), np.arange(size))


@given(data=st.data(), counts=COUNTS, window=WINDOWS, seed=SEEDS)
@settings(max_examples=40, deadline=None)
def test_a_position_in_a_window_is_computed_without_its_neighbours(data, counts, window, seed):
    size = sum(counts)
    whole = WindowedOrder(np.array(counts), window)(np.arange(size), seed, 3)
    asked = np.array(data.draw(st.lists(st.integers(0, size - 1), min_size=1)))
    fresh = WindowedOrder(np.array(counts), window)
    assert np.array_equal(fresh(asked, seed, 3), whole[asked])


def test_the_windowed_order_is_the_one_that_was_pinned():
    """Made by `order(numpy.arange(32), 1, 0).tolist()`, as below."""
    order = WindowedOrder(np.array([5, 8, 8, 8, 3]), Window(2, 3))
    assert order(np.arange(32), 1, 0).tolist() == [
        29,
        30,
        31,
        23,
        24,
        25,
        26,
        27,
        28,
        21,
        22,
        16,
        17,
        18,
        2,
        3,
        4,
        19,
        20,
        13,
        0,
        1,
        14,
        15,
        9,
        10,
        11,
        12,
        5,
        6,
        7,
        8,
    ]


@given(window=st.builds(Window, st.integers(2, 7), st.integers(2, 9)), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_a_mix_holds_one_block_of_each_of_its_shards(window, seed):
    counts = np.full(3 * window.shards, 4 * window.events)
    order = WindowedOrder(counts, window)
    mix = order(np.arange(window.shards * window.events), seed, 0)
    shards, rows = np.divmod(np.sort(mix), 4 * window.events)
    assert np.array_equal(np.unique(shards, return_counts=True)[1], window.shards * [window.events])
    for shard in np.unique(shards):
        steps = np.diff(rows[shards == shard])
        assert np.sum(steps != 1) <= 1  # the block may go round the end of its shard
    blocks = mix.reshape(window.shards, window.events)
    steps = np.diff(blocks, axis=1)
    assert np.all((steps == 1) | (steps == 1 - 4 * window.events)), "each in one piece"


def mean_run(order, schema, batch_size, world_size):
    """How many neighbours a read has at a time, in batches of some ranks from position 37 on."""
    snapshot = Snapshot(schema, tuple(range(schema.shards)), 0, schema.events)
    batches = [
        part.events()
        for rank in range(world_size)
        for part in Parts(snapshot, order, batch_size, rank, world_size).since(0, 37, 1)
    ]
    runs = [
        len(run.places) for batch in batches for run in runs_of(batch, np.argsort(batch), schema)
    ]
    assert sum(runs) == schema.events - 37
    return np.mean(runs)


@pytest.mark.parametrize("world_size", [1, 4])
@pytest.mark.parametrize("batch_size", [64, 50])
def test_small_batches_from_anywhere_on_any_rank_have_blocks_in_one_piece(
    small, batch_size, world_size
):
    schema = replace(small, events=40 * 500 + 77, events_per_shard=500)
    counts = np.array([*40 * [500], 77])
    window = Window()
    windowed = WindowedOrder(counts, window)
    sizes = batch_size, world_size
    found = mean_run(lambda places, epoch: windowed(places, 5, epoch), schema, *sizes)
    assert found >= window.events / 2


def test_a_mean_run_of_a_global_order_would_be_noticed(small):
    schema = replace(small, events=20_000, events_per_shard=500)
    assert mean_run(lambda places, _: permuted(places, 20_000, 5, 0), schema, 64, 1) < 2


@given(seed=SEEDS)
@settings(max_examples=20, deadline=None)
def test_blocks_of_a_mix_come_in_another_order_in_each_mix(seed):
    order = WindowedOrder(np.full(8, 40), Window(8, 4))(np.arange(320), seed, 0)
    mixes = (order // 40).reshape(10, 8, 4)[:, :, 0]
    assert np.array_equal(np.sort(mixes), np.tile(np.arange(8), (10, 1)))
    assert len(np.unique(mixes, axis=0)) > 7


@pytest.fixture(scope="module")
def many_windowed_epochs():
    """Where each of 200 events in ten shards lands in 1,000 epochs."""
    order = WindowedOrder(np.full(10, 20), Window(4, 5))
    return np.stack([order(np.arange(200), 7, epoch) for epoch in range(1000)])


@pytest.mark.parametrize("event", [0, 1, 100, 199])
def test_in_windows_a_single_event_lands_everywhere_equally_often(many_windowed_epochs, event):
    landed = np.argmax(many_windowed_epochs == event, axis=1)
    assert stats.chisquare(np.bincount(landed, minlength=200)).pvalue > SIGNIFICANCE


@pytest.mark.parametrize("pair", [(0, 20), (0, 199), (37, 116)])
def test_in_windows_events_of_two_shards_share_a_mix_as_often_as_chance_has_it(
    many_windowed_epochs, pair
):
    """Windows of four, four and two shards; the events must then be in the same of four blocks."""
    first, second = (np.argmax(many_windowed_epochs == event, axis=1) for event in pair)
    ends = np.cumsum([20] * 4 + [20] * 4 + [10] * 4)
    together = np.searchsorted(ends, first, "right") == np.searchsorted(ends, second, "right")
    expected = (12 + 12 + 2) / 90 / 4
    assert stats.binomtest(int(together.sum()), len(together), expected).pvalue > SIGNIFICANCE


def test_a_windowed_order_that_never_moved_event_0_would_be_noticed(many_windowed_epochs):
    stuck = many_windowed_epochs.copy()
    for epoch in stuck:
        epoch[np.argmax(epoch == 0)], epoch[0] = epoch[0], 0
    landed = np.argmax(stuck == 0, axis=1)
    assert stats.chisquare(np.bincount(landed, minlength=200)).pvalue < SIGNIFICANCE
