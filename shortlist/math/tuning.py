"""Choice of settings on judged queries, and its worth on other queries."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

MEAN_ROUNDING = 1e-12
"""Difference of means that is not one."""


class CostLine(NamedTuple):
    """A cost that grows with the number of documents read."""

    fixed: float
    """Cost without any document."""
    each: float
    """Cost of one more document."""


def best_setting(
    values: Float[np.ndarray, "settings queries"],
    costs: Float[np.ndarray, " settings"],
    *,
    allowed: Bool[np.ndarray, " settings"] | None = None,
    errors: float = 0.0,
) -> int:
    """Find the cheapest setting that is about as good as the best one.

    Of equally cheap ones it is the one with the highest mean over queries, then the first.

    Args:
        allowed: the settings to choose from, at least one (None: all).
        errors: how far the mean may lie below the highest one, in standard errors of that difference; with 0 only equal
            means are as good.

    https://doi.org/10.1201/9781315139470
    """
    means = values.mean(axis=1).round(12)  # sums of the same numbers in another order are equal
    if allowed is not None:
        means = np.where(allowed, means, -np.inf)
    best = int(np.lexsort((costs, -means))[0])
    lost = values[best] - values
    error = lost.std(axis=1, ddof=1) / np.sqrt(lost.shape[1]) if lost.shape[1] > 1 else np.zeros(len(lost))
    good = means[best] - means <= errors * error + MEAN_ROUNDING
    return int(np.lexsort((-means, np.where(good, costs, np.inf), ~good))[0])


def held_out(
    values: Float[np.ndarray, "settings queries"],
    costs: Float[np.ndarray, " settings"],
    folds: Int[np.ndarray, " queries"],
    *,
    allowed: Bool[np.ndarray, " settings"] | None = None,
    errors: float = 0.0,
) -> Float[np.ndarray, " queries"]:
    """Give each query the value of the setting that all other folds choose.

    The best of many settings looks better on the queries that it was chosen on than it is. These values do not, as no
    query has a part in the choice of its own setting.

    Args:
        folds: fold of each query.
        allowed: as for `best_setting`, and so is `errors`.

    https://jmlr.org/papers/v11/cawley10a.html
    """
    found = np.empty(values.shape[1])
    for fold in np.unique(folds):
        chosen = best_setting(values[:, folds != fold], costs, allowed=allowed, errors=errors)
        found[folds == fold] = values[chosen, folds == fold]
    return found


def deal_folds(num_queries: int, num_folds: int, *, seed: int = 0) -> Int[np.ndarray, " queries"]:
    """Draw a fold for each query, all about as large."""
    return np.random.default_rng(seed).permutation(num_queries) % min(num_folds, num_queries)


def cost_line(counts: Float[np.ndarray, " times"], costs: Float[np.ndarray, " times"]) -> CostLine:
    """Fit a line to measured costs by least squares.

    Neither part of it is below 0.

    Args:
        counts: number of documents read each time.
    """
    spread = counts - counts.mean()
    variance = float((spread**2).sum())
    each = max(0.0, float((spread * costs).sum()) / variance) if variance else 0.0
    fixed = float(costs.mean() - each * counts.mean())
    if fixed < 0:  # the best line through 0
        return CostLine(0.0, float((counts * costs).sum() / (counts**2).sum()))
    return CostLine(fixed, each)
