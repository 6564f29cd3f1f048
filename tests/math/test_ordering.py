import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shortlist.math.ordering import strictly_decreasing


def test_equal_scores_become_the_next_smaller_floats():
    one, below = np.float32(1), np.nextafter(np.float32(1), np.float32(0))
    two_below = np.nextafter(below, np.float32(0))
    assert strictly_decreasing(np.array([1.0, 1.0, 1 - 1e-12, 0.5])).tolist() == [one, below, two_below, 0.5]
    tiny = np.nextafter(np.float32(0), np.float32(-1))
    assert strictly_decreasing(np.array([0.0, -0.0])).tolist() == [0.0, tiny]


@given(st.lists(st.floats(-1e30, 1e30), min_size=1).map(lambda scores: sorted(scores, reverse=True)))
def test_lowered_scores_follow_the_plain_definition(scores):
    expected = [np.float32(scores[0])]
    for score in scores[1:]:
        expected.append(min(np.float32(score), np.nextafter(expected[-1], np.float32(-math.inf))))
    lowered = strictly_decreasing(np.array(scores))
    assert lowered.tolist() == expected
    assert all(np.diff(lowered.astype(np.float64)) < 0)


@pytest.mark.parametrize("scores", [[1.0, 2.0], [math.nan], [math.inf], [1e39]])
def test_scores_out_of_order_or_not_finite_are_refused(scores):
    with pytest.raises(ValueError, match="finite and best first"):
        strictly_decreasing(np.array(scores))
