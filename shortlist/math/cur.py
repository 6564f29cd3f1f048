"""A reranker's scores for all documents, from a few of them by a pseudo-inverse.

Scores of many queries for the same items are nearly a matrix of low rank. So the scores of a new query for all items
follow from its scores for some, by the scores of other queries, the anchors (ANNCUR, https://arxiv.org/abs/2210.12579;
in rounds, ADACUR, https://arxiv.org/abs/2305.02996; by vectors of the items in place of scores, AXN,
https://arxiv.org/abs/2405.03651).
"""

from functools import partial
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from shortlist.math.reading import Promise

RCOND = 1e-3
"""Singular values below this, beside the largest one, count as 0. They are differences between items that hardly
differ, and their inverses would make scores of noise."""


class Prior(NamedTuple):
    """A query's own vector in the space of the items' vectors."""

    vector: Float[np.ndarray, " dim"]
    share: float
    """Its weight beside the vector that fits the scores, 0 to 1; with 1 items are read in the order of its products."""


def spread_items(scores: Float[np.ndarray, "queries items"], count: int) -> Int[np.ndarray, " anchors"]:
    """Choose items whose scores tell most of all items' scores, in rising order.

    Each is the one that differs most from what those before explain (a QR decomposition with pivots).
    """
    rest = scores.astype(np.float64)
    left = (rest**2).sum(0)
    chosen: list[int] = []
    for _ in range(min(count, rest.shape[1])):
        place = int(left.argmax())
        length = np.sqrt(max((rest[:, place] ** 2).sum(), np.finfo(np.float64).tiny))
        direction = rest[:, place] / length
        shares = direction @ rest
        rest -= np.outer(direction, shares)
        left = np.maximum(left - shares**2, 0)
        chosen.append(place)
        left[chosen] = -1
    return np.sort(np.array(chosen, dtype=np.int64))


def fit_scores(
    items: Float[np.ndarray, "dim items"],
    read: Int[np.ndarray, " read"],
    known: Float[np.ndarray, " read"],
    *,
    rcond: float = RCOND,
) -> Float[np.ndarray, " dim"]:
    """Fit a vector whose products with the items read are nearest to their scores.

    It is the shortest one of those with the least sum of squares.
    """
    return np.linalg.lstsq(items[:, read].T.astype(np.float64), known.astype(np.float64), rcond=rcond)[0]


def with_prior(
    items: Float[np.ndarray, "dim items"],
    read: Int[np.ndarray, " read"],
    known: Float[np.ndarray, " read"],
    prior: Prior,
    *,
    rcond: float = RCOND,
) -> Float[np.ndarray, " dim"]:
    """Mix the vector that fits the scores with the query's own.

    The scores are shifted and scaled first to the mean and deviation of the own vector's products with the same items.
    """
    own = prior.vector @ items[:, read]
    deviation = known.std()
    scaled = (known - known.mean()) * (own.std() / deviation if deviation > 0 else 0.0) + own.mean()
    return (1 - prior.share) * fit_scores(items, read, scaled, rcond=rcond) + prior.share * prior.vector


def promise_by_inverse(items: Float[np.ndarray, "dim items"], prior: Prior | None = None) -> Promise:
    """Approximate all scores by the pseudo-inverse of the columns that were read.

    Args:
        items: the anchor queries' scores for all items, or vectors of the items.
        prior: the query's own vector (None: scores alone decide, and some have to be known).
    """
    return partial(_promise, items, prior)


def _promise(
    items: Float[np.ndarray, "dim items"],
    prior: Prior | None,
    read: Int[np.ndarray, " read"],
    known: Float[np.ndarray, " read"],
) -> Float[np.ndarray, " items"]:
    if prior is None:
        if not len(read):
            raise ValueError("neither items read first nor a prior to begin with")
        return fit_scores(items, read, known) @ items
    return (with_prior(items, read, known, prior) if len(read) else prior.vector) @ items
