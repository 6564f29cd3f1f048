"""Conformal risk control: the tightest cut of lists whose expected loss is bounded.

The promise holds for any new query of the same sort, whatever the scores mean. It is about the mean over calibrations:
a single one, above all of few queries, may lose more or less.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

SLACK = 1e-12
"""Least excess over a level that is not taken for an error of rounding."""


class Needs(NamedTuple):
    """The cut that keeps each relevant document, and what keeping it is worth."""

    queries: Int[np.ndarray, " documents"]
    """The query of each document, from 0."""
    cuts: Float[np.ndarray, " documents"]
    """The tightest cut that keeps the document, such as its rank; a larger number is a looser cut."""
    worth: Float[np.ndarray, " documents"]
    """How much less its query loses where it is kept; a query that keeps nothing loses 1."""
    num_queries: int
    """All queries, also those whose relevant documents were not found."""


class Control(NamedTuple):
    """Outcome of a calibration."""

    cut: float | None
    """The tightest cut that keeps the promise; None if no cut does."""
    reachable: float
    """The lowest level of loss that could be promised, by keeping all."""


def of_recall(
    queries: Int[np.ndarray, " documents"],
    cuts: Float[np.ndarray, " documents"],
    num_relevant: Int[np.ndarray, " queries"],
) -> Needs:
    """Make the loss 1 - recall.

    Args:
        cuts: as in `Needs`, infinite for a relevant document that was not found.
        num_relevant: relevant documents of each query, found or not.
    """
    found = np.isfinite(cuts)
    return Needs(queries[found], cuts[found], 1 / num_relevant[queries[found]], len(num_relevant))


def of_first(needs: Needs) -> Needs:
    """Make the loss 1 where no relevant document is kept, and 0 otherwise."""
    order = np.lexsort((needs.cuts, needs.queries))
    first = order[np.diff(needs.queries[order], prepend=-1) > 0]
    return Needs(needs.queries[first], needs.cuts[first], np.ones(len(first)), needs.num_queries)


def mean_loss(needs: Needs, cut: float) -> float:
    """Compute the mean loss of the queries at a cut."""
    return 1 - float(needs.worth[needs.cuts <= cut].sum()) / needs.num_queries


def control(needs: Needs, level: float) -> Control:
    """Find the tightest cut that is expected to lose at most `level`.

    The expectation is about a new query. Of n queries, n / (n + 1) * mean loss + 1 / (n + 1) must be at most `level`.

    https://arxiv.org/abs/2208.02814
    """
    cuts, bounds = _bounds(needs, np.ones((1, needs.num_queries)))
    good = np.flatnonzero(bounds[0] <= level + SLACK)
    return Control(float(cuts[good[0]]) if len(good) else None, float(bounds[0].min(initial=1.0)))


def recalibrate(needs: Needs, level: float, *, resamples: int = 200, seed: int = 0) -> Float[np.ndarray, " resamples"]:
    """Calibrate on queries drawn with replacement, again and again.

    Returns:
        The cut of each calibration, infinite where no cut keeps the promise.
    """
    n = needs.num_queries
    drawn = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), resamples)
    cuts, bounds = _bounds(needs, drawn.astype(float))
    good = bounds <= level + SLACK
    looser = np.append(cuts, np.inf)
    return looser[np.where(good.any(1), good.argmax(1), len(cuts))] if len(cuts) else np.full(resamples, np.inf)


def _bounds(
    needs: Needs, times: Float[np.ndarray, "samples queries"]
) -> tuple[Float[np.ndarray, " cuts"], Float[np.ndarray, "samples cuts"]]:
    """Return the cuts that change anything, ascending, and the bound of the loss at each.

    Args:
        times: how often each query counts.
    """
    order = np.argsort(needs.cuts, kind="stable")
    cuts = needs.cuts[order]
    last = np.flatnonzero(np.append(cuts[1:] != cuts[:-1], True)) if len(cuts) else np.zeros(0, dtype=int)
    kept = np.cumsum(needs.worth[order] * times[:, needs.queries[order]], axis=1)[:, last]
    n = needs.num_queries
    return cuts[last], (n - kept + 1) / (n + 1)
