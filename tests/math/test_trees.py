import numpy as np

from shortlist.math.trees import Forest, is_sound, sum_of_trees

FOREST = Forest(
    roots=np.array([0, 3]),
    feature=np.array([1, 0, 0, 0, 0, 0, 0, 0]),
    threshold=np.array([0.5, 0, 0, 2.0, 0, 1.0, 0, 0]),
    left=np.array([1, -1, -1, 5, -1, 6, -1, -1]),
    right=np.array([2, -1, -1, 4, -1, 7, -1, -1]),
    value=np.array([0, 1.0, 10.0, 0, 100.0, 0, 200.0, 300.0]),
)
"""A stump over column 1, and a tree over column 0 that is two deep."""


def test_each_row_is_worth_the_sum_of_its_leaves():
    rows = np.array([[0.0, 0.5], [1.5, 0.6], [2.0, 0.0], [2.1, 9.0]])
    assert sum_of_trees(FOREST, rows).tolist() == [201, 310, 301, 110]
    assert sum_of_trees(FOREST, rows[:0]).tolist() == []


def test_trees_with_circles_or_unknown_columns_are_not_sound():
    assert is_sound(FOREST, 2)
    assert not is_sound(FOREST, 1)
    assert not is_sound(FOREST._replace(left=np.array([0, -1, -1, 5, -1, 6, -1, -1])), 2)
    assert not is_sound(FOREST._replace(right=np.array([8, -1, -1, 4, -1, 7, -1, -1])), 2)
    assert not is_sound(FOREST._replace(right=np.array([-1, -1, -1, 4, -1, 7, -1, -1])), 2)
    assert not is_sound(FOREST._replace(roots=np.array([8])), 2)
    assert not is_sound(FOREST._replace(value=np.array([1.0])), 2)
