import numpy as np
import pytest

from shortlist.math.tuning import CostLine, best_setting, cost_line, deal_folds, held_out

VALUES = np.array([[1.0, 0.0, 0.5, 0.5], [0.0, 1.0, 0.5, 0.5], [0.9, 0.9, 0.0, 0.0], [1.0, 0.0, 0.0, 1.0]])
COSTS = np.array([3.0, 2.0, 1.0, 2.0])


def test_the_best_setting_has_the_highest_mean_and_of_equal_ones_the_lowest_cost():
    assert best_setting(VALUES, COSTS) == 1  # 0, 1 and 3 have the mean 0.5; 1 and 3 cost 2
    assert best_setting(VALUES, np.array([1.0, 2.0, 1.0, 2.0])) == 0
    assert best_setting(VALUES, COSTS, allowed=COSTS < 2) == 2


def test_what_is_about_as_good_as_the_best_is_chosen_if_it_is_cheaper():
    values = np.array([[0.5, 0.5, 0.5, 0.5], [0.9, 0.1, 0.8, 0.4], [1.0, 1.0, 1.0, 0.9]])
    # the second setting lies 0.425 below the third; differences 0.1, 0.9, 0.2, 0.5: deviation 0.359, error 0.180
    costs = np.array([1.0, 2.0, 3.0])
    assert [best_setting(values, costs, errors=errors) for errors in (0.0, 2.3, 2.4, 18.9, 19.1)] == [2, 2, 1, 1, 0]
    # the first lies 0.475 below it; differences 0.5, 0.5, 0.5, 0.4: deviation 0.05, error 0.025
    assert best_setting(values, costs, allowed=costs < 3) == 1


def test_a_query_has_no_part_in_the_choice_of_its_own_setting():
    folds = np.array([0, 0, 1, 1])
    # queries 0 and 1 are given what 2 and 3 choose: settings 0, 1 and 3 are equal there, and 1 is the cheapest;
    # queries 2 and 3 are given what 0 and 1 choose, setting 2
    assert held_out(VALUES, COSTS, folds).tolist() == [0.0, 1.0, 0.0, 0.0]


def test_choosing_looks_better_than_it_is_where_all_settings_are_equal_by_chance():
    values = np.random.default_rng(0).normal(size=(200, 100))
    seen = values[best_setting(values, np.zeros(200))].mean()
    unseen = held_out(values, np.zeros(200), deal_folds(100, 5)).mean()
    assert seen > 0.2 > abs(unseen) + 0.05


def test_one_setting_is_chosen_whatever_the_folds():
    assert held_out(VALUES[:1], COSTS[:1], deal_folds(4, 2)).tolist() == VALUES[0].tolist()


@pytest.mark.parametrize("num_queries", [3, 5, 23])
def test_folds_are_about_as_large(num_queries: int):
    sizes = np.bincount(deal_folds(num_queries, 5))
    assert sizes.sum() == num_queries
    assert sizes.max() - sizes.min() <= 1
    assert (deal_folds(num_queries, 5, seed=1) == deal_folds(num_queries, 5, seed=1)).all()


def test_a_cost_is_a_fixed_part_and_a_part_for_each_document():
    assert cost_line(np.array([10.0, 40.0]), np.array([25.0, 85.0])) == pytest.approx((5, 2))
    assert cost_line(np.array([0.0, 0.0]), np.array([3.0, 5.0])) == CostLine(4.0, 0.0)
    assert cost_line(np.array([1.0, 3.0]), np.array([5.0, 3.0])) == CostLine(4.0, 0.0)  # noise: more takes no less


def test_no_part_of_a_cost_is_below_zero():
    line = cost_line(np.array([10.0, 20.0]), np.array([5.0, 20.0]))  # a line through these starts at -10
    assert line == pytest.approx((0.0, 450 / 500))
