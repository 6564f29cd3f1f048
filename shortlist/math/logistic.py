"""Logistic regression, fitted by Newton's method."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

ENOUGH = 1e-8
"""Largest change of a weight at which the search for the best weights ends."""
MOST_STEPS = 50


class Line(NamedTuple):
    """A linear function of features, whose logistic function is a probability."""

    weights: Float[np.ndarray, " features"]
    bias: float


def fit_logistic(
    features: Float[np.ndarray, "rows features"], positive: Bool[np.ndarray, " rows"], *, ridge: float = 1.0
) -> Line:
    """Find the line that makes the labels most probable, with small weights.

    The loss is the sum over rows of log(1 + exp(-y z)), y = 1 or -1, plus `ridge` / 2 times the sum of the squared
    weights of features scaled to deviation 1. The bias costs nothing. It is convex, so that there is one best line.

    Args:
        ridge: price of large weights, above 0: without one, labels that a line separates have no best line.

    Returns:
        The line over the features as they are given. A feature that never varies has weight 0.
    """
    means, deviations = features.mean(0), features.std(0)
    scales = np.where(deviations > 0, deviations, 1)
    rows = np.concatenate([(features - means) / scales, np.ones((len(features), 1))], axis=1).astype(np.float64)
    prices = np.append(np.full(features.shape[1], float(ridge)), 0.0)
    weights = np.zeros(len(prices))
    loss = _loss(weights, rows, positive, prices)
    for _ in range(MOST_STEPS):
        chance = 0.5 * (1 + np.tanh(rows @ weights / 2))  # the logistic function, without overflow
        gradient = rows.T @ (chance - positive) + prices * weights
        curvature = (rows * (chance * (1 - chance))[:, None]).T @ rows + np.diag(prices)
        step = np.linalg.lstsq(curvature, gradient, rcond=None)[0]
        while (shorter := _loss(weights - step, rows, positive, prices)) > loss and np.abs(step).max() > ENOUGH:
            step /= 2  # far from the best weights a whole step can go too far
        weights, loss = weights - step, shorter
        if np.abs(step).max() <= ENOUGH:
            break
    unscaled = weights[:-1] / scales * (deviations > 0)
    return Line(unscaled, float(weights[-1] - unscaled @ means))


def _loss(
    weights: Float[np.ndarray, " columns"],
    rows: Float[np.ndarray, "rows columns"],
    positive: Bool[np.ndarray, " rows"],
    prices: Float[np.ndarray, " columns"],
) -> float:
    values = rows @ weights
    return float(np.logaddexp(0, np.where(positive, -values, values)).sum() + (prices * weights**2).sum() / 2)
