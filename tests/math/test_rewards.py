import inspect
import math

import pytest

from shortlist.math.rewards import (
    ANSWER_REWARDS,
    Said,
    binary,
    exact_label,
    exclusion,
    group,
    jensen_shannon,
    list_ranks,
    order_mrr,
    order_ndcg,
    order_recall,
)

NAN = math.nan
GRADES = [0.0, 2.0, 1.0]
ORDER = Said([2.0, 3.0, 1.0])  # the best, then nothing relevant, then the other
"""Its DCG is 2 / log2(2) + 1 / log2(4) = 2.5; the best is 2 + 1 / log2(3) = 2.63093."""


def test_the_order_of_an_answer_is_rewarded_as_a_ranking():
    assert order_ndcg(ORDER, GRADES) == pytest.approx(2.5 / 2.6309298)
    assert order_ndcg(ORDER, GRADES, k=2) == pytest.approx(2 / 2.6309298)
    assert order_mrr(Said([3.0, 1.0, 2.0]), GRADES) == 0.5
    assert order_mrr(Said([3.0, 1.0, 2.0]), GRADES, k=1) == 0
    assert order_recall(ORDER, GRADES, k=2) == 0.5
    assert order_recall(ORDER, GRADES) == 1


@pytest.mark.parametrize("reward", [order_ndcg, order_mrr, order_recall, exact_label])
def test_a_malformed_answer_earns_nothing_however_right(reward):
    assert reward(ORDER, GRADES) > 0
    assert reward(ORDER._replace(well_formed=False), GRADES) == 0


@pytest.mark.parametrize("reward", [order_ndcg, order_mrr, order_recall, exact_label])
def test_without_a_relevant_document_no_order_earns_anything(reward):
    assert reward(ORDER, [0.0, 0.0, 0.0]) == 0


def test_what_was_not_named_comes_last_and_equal_ones_stay():
    assert order_mrr(Said([NAN, NAN, 1.0]), [0.0, 1.0, 0.0]) == pytest.approx(1 / 3)
    assert order_mrr(Said([1.0, 1.0]), [0.0, 1.0]) == 0.5


@pytest.mark.parametrize(
    ("scores", "expected"), [([NAN, 1.0, NAN], 1), ([0.0, 0.0, 1.0], 0), ([1.0, 0.0, 0.0], 0), ([NAN, NAN, NAN], 0)]
)
def test_only_a_label_of_the_highest_grade_earns_anything(scores: list[float], expected: float):
    assert exact_label(Said(scores), GRADES) == expected


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (Said([-1.0, NAN, NAN]), 1.0),
        (Said([NAN, -1.0, NAN]), 0.0),  # the best is excluded
        (Said([NAN, NAN, -1.0]), 1.0),  # another relevant one may be
        (Said([NAN] * 3, well_formed=False, outside=True), -0.5),
        (Said([NAN] * 3, well_formed=False), -1.0),
        (Said([-1.0, NAN, NAN], well_formed=False, bad_tags=2), 0.5),
        (Said([NAN] * 3, well_formed=False, bad_tags=4), -2.0),
        (Said([-1.0, NAN, NAN], well_formed=False), 0.0),
    ],
)
def test_an_exclusion_is_rewarded_unless_it_is_the_best_one(said: Said, expected: float):
    assert exclusion(said, GRADES) == expected


@pytest.mark.parametrize(("score", "grade", "expected"), [(1, 2, 2), (1, 0, 1), (0, 0, 2), (0, 1, 1)])
def test_yes_or_no_earns_its_form_and_being_right(score: float, grade: float, expected: float):
    assert binary(Said([float(score)]), [float(grade)]) == expected
    assert binary(Said([float(score)], well_formed=False), [float(grade)]) == 0
    assert binary(Said([float(score)]), [float(grade)], form=0.5) == expected - 0.5


def test_grades_of_a_group_are_rewarded_for_order_recall_and_likeness():
    # shares (0.4, 0.4, 0.2) and (0, 2/3, 1/3), middle (0.2, 8/15, 4/15)
    first = 0.4 * math.log2(2) + 0.4 * math.log2(0.75) + 0.2 * math.log2(0.75)
    second = 2 / 3 * math.log2(1.25) + 1 / 3 * math.log2(1.25)
    divergence = (first + second) / 2
    found = Said([4.0, 4.0, 2.0])  # the first is not relevant, so DCG = 2 / log2(3) + 1 / 2
    by_order = (2 / math.log2(3) + 0.5) / 2.6309298
    assert group(found, GRADES) == pytest.approx(by_order + 0.2 + 0.1 * (1 - divergence))
    assert group(Said([0.0, 10.0, 5.0]), GRADES) == pytest.approx(1.3)
    assert group(found, GRADES, recall=0.0, likeness=0.0) == pytest.approx(by_order)


def test_grades_that_cannot_be_read_cost_less_than_tags_that_are_missing():
    nothing = Said([NAN] * 3, well_formed=False)
    assert group(nothing, GRADES) == -0.1
    assert group(nothing._replace(bad_tags=1), GRADES) == -0.5
    assert group(Said([4.0, NAN, 2.0], well_formed=False), GRADES) == -0.5


def test_the_divergence_is_0_for_equals_and_1_for_strangers():
    assert jensen_shannon([0.5, 0.5], [0.5, 0.5]) == 0
    assert jensen_shannon([1.0, 0.0], [0.0, 1.0]) == 1


def test_scores_are_rewarded_by_their_ranks_among_all_of_the_query():
    said = [
        [Said([8.0]), Said([8.0]), Said([3.0])],  # relevant
        [Said([5.0]), Said([2.0]), Said([9.0], well_formed=False)],
    ]
    # the two of 8 share rank 1; 3 is behind them and 5: rank 4; 5 is above the relevant 3; 2 is a fifth of the range
    expected = [[1.0, 1.0, 0.25], [-1.0, pytest.approx(-0.04), -1.0]]
    assert list_ranks(said, [1.0, 0.0]) == expected
    assert list_ranks(said, [1.0, 0.0], above=-3.0, form=-2.0)[1] == [-3.0, pytest.approx(-0.04), -2.0]
    assert list_ranks(said, [1.0, 0.0], highest=5.0)[1][1] == pytest.approx(-0.16)


def test_without_a_relevant_document_scores_are_only_drawn_to_0():
    assert list_ranks([[Said([5.0])], [Said([0.0])]], [0.0, 0.0]) == [[-0.25], [0.0]]


@pytest.mark.parametrize("name", ANSWER_REWARDS)
def test_every_reward_is_a_function_of_an_answer_and_of_grades_with_named_options(name: str):
    first, second, *options = inspect.signature(ANSWER_REWARDS[name]).parameters.values()
    assert (first.name, second.name) == ("said", "grades")
    assert all(one.kind is one.KEYWORD_ONLY and one.default is not one.empty for one in options)
