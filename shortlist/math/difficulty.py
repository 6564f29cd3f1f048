"""Difficulty of a query, as it looks without any judgement."""

import numpy as np
from jaxtyping import Float


def score_spread(scores: Float[np.ndarray, " hits"], *, of_mean: bool) -> float:
    """Compute the standard deviation of a query's best scores.

    It is small where the system cannot tell documents apart.

    Args:
        of_mean: divide it by the mean of the scores, which must be above 0, as longer queries score higher.

    https://doi.org/10.1007/978-3-642-16321-0_20
    """
    if not len(scores):
        return 0.0
    return float(scores.std() / (scores.mean() if of_mean else 1.0))
