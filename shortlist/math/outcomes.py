"""Outcomes for relevant documents: where the first stage and the reranker put them."""

import numpy as np
from jaxtyping import Int

NEVER, BELOW, WITHIN, FOUND, NOT_LIFTED, PUSHED_DOWN, LIFTED, KEPT, BROUGHT_IN = range(9)
OUTCOMES = (
    "never retrieved",
    "retrieved below the depth",
    "within the depth, not in the top",
    "in the top",
    "not lifted into the top",
    "pushed down by the reranker",
    "lifted by the reranker",
    "kept in the top",
    "brought in by a second search",
)
"""The outcomes in words.

The first two come before any reranker, the next two apply without one, the rest with one; the last has a document in
the top that no reranker could have put there.
"""


def outcomes(
    before: Int[np.ndarray, " documents"],
    after: Int[np.ndarray, " documents"] | None,
    *,
    depth: int,
    k: int,
) -> Int[np.ndarray, " documents"]:
    """Classify each document by its ranks, as an index into `OUTCOMES`.

    Args:
        before: ranks in the first stage's run, from 1; 0 for a document that is not in the run.
        after: ranks in the reranked run, likewise; None without a reranker.
        depth: the number of ranks that the reranker reads.
        k: the number of ranks that the reader sees, called the top.
    """
    top = (before > 0) & (before <= k)
    lost = np.where(before == 0, NEVER, BELOW)
    inside = (before > 0) & (before <= depth)
    if after is None:
        return np.where(inside, np.where(top, FOUND, WITHIN), lost)
    top_after = (after > 0) & (after <= k)
    within = np.where(top, np.where(top_after, KEPT, PUSHED_DOWN), np.where(top_after, LIFTED, NOT_LIFTED))
    return np.where(inside, within, np.where(top_after, BROUGHT_IN, lost))
