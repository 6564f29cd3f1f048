import math

import numpy as np
import pytest

from shortlist.math.importance import best_numbers, divergence, log_ratios, text_weights

TARGET, POOL = np.array([3, 1, 0, 0]), np.array([1, 1, 2, 0])


def test_ratios_with_and_without_smoothing_as_worked_out_by_hand():
    ratios = log_ratios(TARGET, POOL, smoothing=1.0)
    np.testing.assert_allclose(ratios, np.log([(4 / 8) / (2 / 8), 1, 1 / 3, 1]), atol=1e-6)
    unsmoothed = log_ratios(TARGET, POOL, smoothing=0.0)
    assert unsmoothed[0] == pytest.approx(math.log(3), abs=1e-6)
    assert unsmoothed[2] == pytest.approx(math.log(1e-8 / 0.5), abs=1e-6)
    assert unsmoothed[3] == 0


def test_a_bag_does_not_diverge_from_itself_nor_for_being_larger():
    assert divergence(TARGET, TARGET, smoothing=0.0) == pytest.approx(0, abs=1e-9)
    assert divergence(TARGET, 10 * TARGET, smoothing=0.0) == pytest.approx(0, abs=1e-9)
    expected = 0.5 * math.log(2) + 1 / 8 * math.log(1 / 3)
    assert divergence(TARGET, POOL, smoothing=1.0) == pytest.approx(expected, abs=1e-6)


def test_a_text_weighs_the_sum_or_the_mean_of_its_words():
    ratios, texts = np.array([1.0, 2.0, -1.0]), np.array([0, 0, 2])
    assert text_weights(ratios, texts, 3, mean=False).tolist() == [3, -math.inf, -1]
    assert text_weights(ratios, texts, 3, mean=True).tolist() == [1.5, -math.inf, -1]


def test_the_best_are_taken_and_ties_go_to_the_first():
    weights = np.array([0.5, 2.0, 0.5, -np.inf, 1.0])
    assert best_numbers(weights, 3).tolist() == [0, 1, 4]


def test_draws_follow_the_weights_and_the_seed():
    weights = np.log(np.array([1.0, 2.0, 7.0]))
    drawn = [int(best_numbers(weights, 1, temperature=1.0, seed=seed)[0]) for seed in range(2000)]
    np.testing.assert_allclose(np.bincount(drawn) / 2000, [0.1, 0.2, 0.7], atol=0.03)
    assert best_numbers(weights, 2, temperature=1e-9).tolist() == [1, 2]
    without = np.array([0.0, -np.inf, 0.0])
    assert best_numbers(without, 2, temperature=5.0, seed=3).tolist() == [0, 2]
