import itertools
import math

import numpy as np
import pytest
from scipy import stats

from shortlist.math.significance import bootstrap_interval, holm, paired_t_test, randomisation_test


def differences(num_queries: int, mean: float = 0.1) -> np.ndarray:
    return np.random.default_rng(0).normal(mean, 0.3, num_queries)


def test_the_t_test_is_the_textbooks():
    values = differences(30)
    t = values.mean() / (stats.tstd(values) / math.sqrt(30))
    assert paired_t_test(values) == pytest.approx(2 * stats.t.sf(abs(t), df=29))


def test_the_randomisation_test_of_few_queries_tries_every_assignment():
    values = differences(8)
    means = [abs(np.mean(values * signs)) for signs in itertools.product((1, -1), repeat=8)]
    expected = np.mean([mean >= abs(values.mean()) - 1e-12 for mean in means])
    assert randomisation_test(values) == pytest.approx(expected)


@pytest.mark.slow
def test_the_randomisation_test_of_many_queries_nears_the_t_test():
    values = differences(500, mean=0.02)
    assert randomisation_test(values) == pytest.approx(paired_t_test(values), abs=0.02)
    assert randomisation_test(values) == randomisation_test(values)


@pytest.mark.parametrize("test", [paired_t_test, randomisation_test])
def test_equal_systems_do_not_differ_and_one_query_says_nothing(test):
    assert test(np.zeros(5)) == 1.0
    assert test(np.array([0.5])) is None
    assert test(-differences(40)) == pytest.approx(test(differences(40)), abs=0.01)


def test_a_difference_that_is_always_the_same_is_no_chance():
    assert paired_t_test(np.full(20, 0.1)) == 0.0
    assert randomisation_test(np.full(20, 0.1)) < 0.001


def test_holm_counts_the_smallest_most_and_keeps_the_order():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


def test_the_interval_nears_that_of_the_normal_distribution():
    values = differences(400)
    low, high = bootstrap_interval(values, resamples=4000)
    half = 1.96 * values.std() / math.sqrt(400)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.004)
    assert bootstrap_interval(values, confidence=0.5)[0] > low


def test_the_interval_of_equal_values_is_that_value():
    assert bootstrap_interval(np.full(3, 0.25)) == (0.25, 0.25)
