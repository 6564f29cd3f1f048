import numpy as np
import pytest

from shortlist.math.smoothing import running_mean

NOISE = np.random.default_rng(0).normal(size=50)


def test_the_running_mean_equals_the_value_worked_out_by_hand():
    smooth = running_mean(np.array([1.0, 2.0, 6.0, 4.0]), 3)
    np.testing.assert_allclose(smooth, [(1 + 2) / 2, (1 + 2 + 6) / 3, (2 + 6 + 4) / 3, (6 + 4) / 2])


def test_a_straight_line_stays_where_the_window_is_whole():
    line = np.arange(20.0)
    np.testing.assert_allclose(running_mean(line, 5)[2:-2], line[2:-2])


def test_no_neighbours_change_nothing():
    np.testing.assert_allclose(running_mean(NOISE, 1), NOISE)


@pytest.mark.parametrize("window", [99, 1000])
def test_a_window_wider_than_the_curve_gives_its_mean(window: int):
    np.testing.assert_allclose(running_mean(NOISE, window), np.full(50, NOISE.mean()))


def test_one_value_is_its_own_mean():
    assert running_mean(np.array([3.0]), 7).tolist() == [3.0]
