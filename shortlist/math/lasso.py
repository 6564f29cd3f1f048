"""Regression on few of many columns, with weights that are never below 0."""

import numpy as np
from jaxtyping import Float

MOST_ROUNDS = 10_000
SMALL_CHANGE = 1e-12
"""Largest change in a round, relative to the largest weight, at which the search ends."""


def positive_lasso(
    products: Float[np.ndarray, "columns columns"], responses: Float[np.ndarray, " columns"], penalty: float
) -> Float[np.ndarray, " columns"]:
    """Find the weights of 0 or more that fit best at a price.

    The loss is ½‖y - Xw‖² + penalty · Σ w; coordinates descend in turn.

    Args:
        products: XᵀX.
        responses: Xᵀy.
        penalty: 0 or more; from the largest of `responses` on, all weights are 0.
    """
    weights = np.zeros(len(responses))
    for _ in range(MOST_ROUNDS):
        before = weights.copy()
        for column in range(len(weights)):
            if products[column, column] > 0:
                rest = responses[column] - products[column] @ weights + products[column, column] * weights[column]
                weights[column] = max(0.0, (rest - penalty) / products[column, column])
        if np.abs(weights - before).max(initial=0) <= SMALL_CHANGE * max(1e-30, weights.max(initial=0)):
            break
    return weights
