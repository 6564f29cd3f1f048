"""Sums of decision trees, as boosting grows them."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int


class Forest(NamedTuple):
    """Binary decision trees, whose nodes are numbered together."""

    roots: Int[np.ndarray, " trees"]
    feature: Int[np.ndarray, " nodes"]
    """Column that a node looks at."""
    threshold: Float[np.ndarray, " nodes"]
    """Largest value that goes to the left."""
    left: Int[np.ndarray, " nodes"]
    """Number of the left child; a leaf has -1."""
    right: Int[np.ndarray, " nodes"]
    value: Float[np.ndarray, " nodes"]
    """Value of a leaf."""


def sum_of_trees(forest: Forest, features: Float[np.ndarray, "rows features"]) -> Float[np.ndarray, " rows"]:
    """Add up the values of the leaves that each row reaches."""
    rows = np.arange(len(features))[:, None]
    nodes = np.tile(forest.roots, (len(features), 1))
    while (inner := forest.left[nodes] >= 0).any():
        goes_left = features[rows, forest.feature[nodes]] <= forest.threshold[nodes]
        nodes = np.where(inner, np.where(goes_left, forest.left[nodes], forest.right[nodes]), nodes)
    return forest.value[nodes].sum(1)


def is_sound(forest: Forest, num_features: int) -> bool:
    """Whether every path ends in a leaf and looks only at columns that exist."""
    size = len(forest.left)
    if any(len(values) != size for values in forest[1:]) or not size:
        return False
    numbers = np.flatnonzero(forest.left >= 0)
    children = np.stack([forest.left[numbers], forest.right[numbers]])
    known = (children > numbers).all() and (children < size).all()  # after their parents: there are no circles
    starts = ((forest.roots >= 0) & (forest.roots < size)).all()
    return bool(known and starts and ((forest.feature >= 0) & (forest.feature < num_features)).all())
