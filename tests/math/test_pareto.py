import numpy as np

from shortlist.math.pareto import frontier


def test_what_is_slower_and_no_better_is_not_on_the_frontier():
    costs, values = np.array([1.0, 2.0, 3.0, 4.0, 0.5]), np.array([0.3, 0.2, 0.5, 0.5, 0.1])
    assert frontier(costs, values).tolist() == [True, False, True, False, True]


def test_equal_items_share_the_frontier():
    assert frontier(np.array([1.0, 1.0, 1.0]), np.array([0.4, 0.4, 0.3])).tolist() == [True, True, False]


def test_every_item_below_the_frontier_is_beaten_by_one_on_it():
    rng = np.random.default_rng(0)
    costs, values = rng.integers(0, 20, 60).astype(float), rng.integers(0, 20, 60).astype(float)
    best = frontier(costs, values)
    assert 0 < best.sum() < 60
    for cost, value in zip(costs[~best], values[~best], strict=True):
        beats = (costs[best] <= cost) & (values[best] >= value)
        assert (beats & ((costs[best] < cost) | (values[best] > value))).any()
