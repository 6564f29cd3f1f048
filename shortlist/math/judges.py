"""Agreement of two judges who graded the same documents."""

import numpy as np
from jaxtyping import Float, Int

Confusion = Int[np.ndarray, "*more grades grades"]
"""How often the first judge gave the grade of the row and the second judge the grade of the column."""


def confusion(
    one: Int[np.ndarray, " pairs"],
    other: Int[np.ndarray, " pairs"],
    groups: Int[np.ndarray, " pairs"],
    *,
    num_grades: int,
    num_groups: int,
) -> Int[np.ndarray, "groups grades grades"]:
    """Count the grades that two judges gave to the same pairs, group by group.

    Args:
        one: grades of the first judge, numbered from 0 to `num_grades` - 1.
        other: grades of the second judge.
        groups: number of the group, such as the query, that each pair belongs to.
    """
    cells = (groups * num_grades + one) * num_grades + other
    counts = np.bincount(cells, minlength=num_groups * num_grades * num_grades)
    return counts.reshape(num_groups, num_grades, num_grades)


def in_two(counts: Confusion, level: int) -> Int[np.ndarray, "*more 2 2"]:
    """Merge the grades below a number into one, and the others into another."""
    starts = [0, level]
    return np.add.reduceat(np.add.reduceat(counts, starts, axis=-1), starts, axis=-2)


def kappa(counts: Confusion) -> Float[np.ndarray, "*more"]:
    """Compute Cohen's kappa: the agreement of two judges beyond chance.

    It is 1 for full agreement and 0 for judges who give each grade as often, at random. Every disagreement counts
    alike, whatever the grades. NaN where there is no pair, or both judges gave the same grade to all.

    https://doi.org/10.1177/001316446002000104
    """
    total = counts.sum((-1, -2)).astype(float)
    with np.errstate(divide="ignore", invalid="ignore"):
        same = np.trace(counts, axis1=-2, axis2=-1) / total
        chance = (counts.sum(-1) * counts.sum(-2)).sum(-1) / total**2
        return np.asarray((same - chance) / (1 - chance))


def ordinal_alpha(counts: Int[np.ndarray, "grades grades"]) -> float:
    """Compute Krippendorff's alpha of two judges, for grades that have an order.

    It is 1 for full agreement and 0 for chance. Grades count as far apart as pairs lie between them, so that two grades
    that nobody tells apart cost little. NaN where all grades are the same.

    https://repository.upenn.edu/asc_papers/43
    """
    together = (counts + counts.T).astype(float)
    often = together.sum(0)
    middle = np.cumsum(often) - often / 2
    distance = (middle[:, None] - middle[None]) ** 2
    expected = (np.outer(often, often) * distance).sum()
    return float(1 - (often.sum() - 1) * (together * distance).sum() / expected) if expected else float("nan")
