import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kendalltau

from shortlist.math.concordance import kendall_tau, rank_biased_overlap, rank_moves, tau_ap, top_tau

BEST_FIRST = np.array([4.0, 3.0, 2.0, 1.0])


def test_kendalls_tau_equals_the_values_worked_out_by_hand():
    one = np.array([4.0, 3.0, 2.0, 1.0])
    assert kendall_tau(one, np.array([4.0, 3.0, 1.0, 2.0])) == pytest.approx((5 - 1) / 6)
    assert kendall_tau(one, -one) == -1.0
    assert kendall_tau(one, np.zeros(4)) == 1.0


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=20))
def test_kendalls_tau_equals_scipys(pairs):
    one, other = np.array(pairs, dtype=np.float64).T
    expected = kendalltau(one, other).statistic
    assert kendall_tau(one, other) == pytest.approx(1.0 if np.isnan(expected) else expected)


def test_an_error_at_the_top_costs_more_by_tau_ap():
    at_the_end, at_the_top = np.array([4.0, 3.0, 1.0, 2.0]), np.array([3.0, 4.0, 2.0, 1.0])
    assert tau_ap(BEST_FIRST, at_the_end) == pytest.approx(2 * (1 + 1 + 2 / 3) / 3 - 1)
    assert tau_ap(BEST_FIRST, at_the_top) == pytest.approx(2 * (0 + 1 + 1) / 3 - 1)
    assert tau_ap(BEST_FIRST, BEST_FIRST) == 1.0
    assert tau_ap(BEST_FIRST, -BEST_FIRST) == -1.0
    assert tau_ap(BEST_FIRST, np.zeros(4)) == 1.0
    assert tau_ap(np.zeros(4), BEST_FIRST) == 0.0


@given(st.permutations(range(6)), st.permutations(range(6)))
def test_tau_ap_does_not_change_with_the_order_in_which_items_are_given(scores, order):
    one, other = np.arange(6.0), np.array(scores, dtype=float)
    order = np.array(order)
    assert tau_ap(one[order], other[order]) == pytest.approx(tau_ap(one, other))


def test_the_top_is_the_references():
    assert top_tau(BEST_FIRST, np.array([1.0, 2.0, 0.0, 9.0]), 2) == -1.0
    assert top_tau(BEST_FIRST, np.array([1.0, 2.0, 0.0, 9.0]), 9) == kendall_tau(
        BEST_FIRST, np.array([1.0, 2.0, 0.0, 9.0])
    )


def test_equal_scores_share_the_better_rank():
    before, after = rank_moves(BEST_FIRST, np.array([1.0, 5.0, 5.0, 2.0]))
    assert (before.tolist(), after.tolist()) == ([1, 2, 3, 4], [4, 1, 1, 3])


def overlap(one: list[int], other: list[int], persistence: float = 0.5) -> float:
    return rank_biased_overlap(np.array(one, dtype=int), np.array(other, dtype=int), persistence=persistence)


def test_rank_biased_overlap_equals_the_values_worked_out_by_hand():
    assert overlap([1, 2], [2, 1]) == pytest.approx(0.25 + 0.25)  # depth 2 agrees, and so all depths below it
    assert overlap([1], [1, 2]) == pytest.approx(1.0)  # the shorter list would go on like the longer one
    assert overlap([1, 3], [1, 2]) == pytest.approx(0.5 + 0.5 * 0.25 + 0.5 * 0.25)
    assert overlap([1, 2, 3], [1, 2, 3], 0.9) == pytest.approx(1.0)
    assert overlap([1, 2, 3], [4, 5, 6]) == 0.0
    assert overlap([], []) == 1.0
    assert overlap([], [1]) == 0.0


@given(st.permutations(range(5)), st.permutations(range(7)), st.integers(0, 5), st.integers(1, 7))
def test_rank_biased_overlap_equals_its_definition_depth_by_depth(one, other, first, second):
    one, other = one[:first], other[:second]
    found = overlap(one, other, 0.8)
    short, long = sorted((one, other), key=len)
    if short:
        shared = [len(set(short[:d]) & set(long[:d])) for d in range(1, len(long) + 1)]
        s, end, p = len(short), len(long), 0.8
        total = sum(shared[d - 1] / d * p**d for d in range(1, end + 1))
        total += sum(shared[s - 1] * (d - s) / (s * d) * p**d for d in range(s + 1, end + 1))
        expected = (1 - p) / p * total + ((shared[-1] - shared[s - 1]) / end + shared[s - 1] / s) * p**end
        assert found == pytest.approx(expected)
    assert overlap(other, one, 0.8) == found
    assert -1e-12 <= found <= 1 + 1e-12
