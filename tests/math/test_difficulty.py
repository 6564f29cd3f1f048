import numpy as np
import pytest

from shortlist.math.difficulty import score_spread


def test_scores_that_hardly_differ_look_hard():
    assert score_spread(np.array([3.0, 1.0]), of_mean=False) == 1.0
    assert score_spread(np.array([3.0, 1.0]), of_mean=True) == 0.5
    assert score_spread(np.array([30.0, 10.0]), of_mean=True) == pytest.approx(0.5)
    assert score_spread(np.array([2.0, 2.0]), of_mean=True) == 0.0
    assert score_spread(np.array([]), of_mean=True) == 0.0
