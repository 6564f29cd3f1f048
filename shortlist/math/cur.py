"""A reranker's scores for all documents, approximated from its scores for a few of them.

Scores of many queries for the same items are nearly a matrix of low rank. So the scores of a new query for all items
follow from its scores for some, by the scores of other queries, the anchors (ANNCUR, https://arxiv.org/abs/2210.12579;
in rounds, ADACUR, https://arxiv.org/abs/2305.02996; by vectors of the items in place of scores, AXN,
https://arxiv.org/abs/2405.03651).
"""

from collections.abc import Generator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

RCOND = 1e-3
"""Singular values below this, beside the largest one, count as 0. They are differences between items that hardly
differ, and their inverses would make scores of noise."""

AskScores = Generator[Int[np.ndarray, " asked"], Float[np.ndarray, " asked"], "ItemsRead"]
"""Yields the positions of items to score, which are new, and receives their scores."""


class ItemsRead(NamedTuple):
    """The items that a search has read, best first, equal ones in their order."""

    positions: Int[np.ndarray, " read"]
    scores: Float[np.ndarray, " read"]


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


def read_in_rounds(
    items: Float[np.ndarray, "dim items"],
    *,
    anchors: Int[np.ndarray, " anchors"],
    budget: int,
    rounds: int,
    prior: Prior | None = None,
    keep: Bool[np.ndarray, " items"] | None = None,
    rcond: float = RCOND,
) -> AskScores:
    """Read anchor items, then in each round those that the scores so far promise.

    Args:
        items: the anchor queries' scores for all items, or vectors of the items.
        anchors: positions of the items to read first; may be empty with a prior.
        budget: the most items to read, anchors included.
        rounds: rounds after the anchors, in equal parts; with one round and scores this is ANNCUR.
        prior: the query's own vector (None: scores alone decide).
        keep: whether each item may be read after the anchors (None: all may).
        rcond: the least singular value that counts, as a part of the largest one.
    """
    if len(anchors) == 0 and prior is None:
        raise ValueError("neither anchors nor a prior to begin with")
    read, known = anchors, np.empty(0)
    if len(anchors):
        known = yield anchors
    open_items = np.ones(items.shape[1], dtype=bool) if keep is None else keep.copy()
    open_items[read] = False
    for size in _sizes(min(budget - len(anchors), int(open_items.sum())), rounds):
        if prior is None:
            weights = fit_scores(items, read, known, rcond=rcond)
        else:
            weights = with_prior(items, read, known, prior, rcond=rcond) if len(read) else prior.vector
        promised = np.where(open_items, weights @ items, -np.inf)
        best = np.sort(np.argsort(-promised, kind="stable")[:size])
        known, read = np.concatenate([known, (yield best)]), np.concatenate([read, best])
        open_items[best] = False
    order = np.lexsort((read, -known))
    return ItemsRead(read[order], known[order])


def _sizes(count: int, rounds: int) -> list[int]:
    """Split a number of items into rounds of nearly equal sizes, the first ones larger."""
    whole, more = divmod(max(count, 0), rounds)
    return [size for number in range(rounds) if (size := whole + (number < more))]
