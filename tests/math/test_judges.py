import numpy as np
import pytest

from shortlist.math.judges import confusion, in_two, kappa, ordinal_alpha

TWO_BY_TWO = np.array([[20, 5], [10, 15]])
WITH_A_JUMP = np.eye(3, dtype=int) + np.array([[0, 0, 1], [0, 0, 0], [0, 0, 0]])


def test_pairs_are_counted_group_by_group():
    one, other, groups = np.array([0, 2, 2, 1]), np.array([1, 2, 2, 0]), np.array([0, 1, 1, 1])
    counts = confusion(one, other, groups, num_grades=3, num_groups=3)
    assert counts.shape == (3, 3, 3)
    assert counts[0].tolist() == [[0, 1, 0], [0, 0, 0], [0, 0, 0]]
    assert counts[1].tolist() == [[0, 0, 0], [1, 0, 0], [0, 0, 2]]
    assert counts[2].sum() == 0


def test_grades_are_merged_into_two():
    counts = np.arange(16).reshape(4, 4)
    merged = [[counts[:3, :3].sum(), counts[:3, 3].sum()], [counts[3, :3].sum(), counts[3, 3]]]
    assert in_two(counts, 3).tolist() == merged
    assert in_two(np.stack([counts, counts]), 3).tolist() == [merged, merged]


def test_kappa_is_the_textbooks():
    assert kappa(TWO_BY_TWO) == pytest.approx((0.7 - 0.5) / (1 - 0.5))
    found = kappa(np.stack([TWO_BY_TWO, 3 * TWO_BY_TWO, np.diag([4, 6]), np.array([[9, 0], [0, 0]]), 0 * TWO_BY_TWO]))
    assert found[:3] == pytest.approx([0.4, 0.4, 1.0])
    assert np.isnan(found[3:]).all()


def test_alpha_equals_the_values_worked_out_by_hand():
    assert ordinal_alpha(TWO_BY_TWO) == pytest.approx(1 - 99 * 30 / (2 * 55 * 45))
    assert ordinal_alpha(WITH_A_JUMP) == pytest.approx(1 - 7 * 50 / 600)  # grades lie 6.25 and 25 apart
    assert ordinal_alpha(WITH_A_JUMP.T) == pytest.approx(ordinal_alpha(WITH_A_JUMP))
    assert ordinal_alpha(np.diag([3, 4, 5])) == 1.0
    assert np.isnan(ordinal_alpha(np.diag([3, 0, 0])))


def test_a_grade_further_off_costs_more():
    by_one = np.eye(3, dtype=int) * 5 + np.array([[0, 1, 0], [0, 0, 0], [0, 0, 0]])
    by_two = np.eye(3, dtype=int) * 5 + np.array([[0, 0, 1], [0, 0, 0], [0, 0, 0]])
    assert ordinal_alpha(by_two) < ordinal_alpha(by_one) < 1
