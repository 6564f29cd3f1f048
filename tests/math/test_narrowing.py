import numpy as np
import pytest

from shortlist.math.narrowing import num_near_top

STEEP = np.array([10.0, 4.0, 3.0, 2.0, 0.0])
EVEN = np.array([4.0, 3.0, 2.0, 1.0, 0.0])


@pytest.mark.parametrize(("drop", "steep", "even"), [(0.0, 1, 1), (0.5, 1, 3), (0.6, 2, 3), (0.75, 3, 4), (1.0, 5, 5)])
def test_fewer_are_near_the_top_where_scores_fall_steeply(drop: float, steep: int, even: int):
    assert (num_near_top(STEEP, drop), num_near_top(EVEN, drop)) == (steep, even)


def test_the_scale_of_scores_changes_nothing():
    scores = np.sort(np.random.default_rng(0).normal(size=50))[::-1]
    for drop in (0.1, 0.4, 0.9):
        assert num_near_top(scores, drop) == num_near_top(8 * scores + 4, drop)
        assert num_near_top(scores, drop) <= num_near_top(scores, drop + 0.1)


def test_equal_scores_are_all_near_the_top():
    assert num_near_top(np.ones(4), 0.0) == 4
    assert num_near_top(np.array([3.0, 3.0, 1.0]), 0.0) == 2
    assert num_near_top(np.empty(0), 0.5) == 0
