"""What became of relevant documents on their way to the reader."""

import numpy as np
from jaxtyping import Int

NEVER, BELOW, WITHIN, FOUND, NOT_LIFTED, PUSHED_DOWN, LIFTED, KEPT = range(8)
OUTCOMES = (
    "never retrieved",
    "retrieved below the depth",
    "within the depth, not in the top",
    "in the top",
    "not lifted into the top",
    "pushed down by the reranker",
    "lifted by the reranker",
    "kept in the top",
)
"""In words; the first two are lost before a reranker could help, the next two are said without one, the rest with."""


def outcomes(
    before: Int[np.ndarray, " documents"],
    after: Int[np.ndarray, " documents"] | None,
    *,
    depth: int,
    k: int,
) -> Int[np.ndarray, " documents"]:
    """What became of each document, as its number in `OUTCOMES`.

    Args:
        before: ranks in the first stage's run, from 1, 0 where it is not in it.
        after: ranks in the reranked run; None without a reranker.
        depth: ranks that the reranker reads.
        k: ranks that the reader sees, the top.
    """
    top = (before > 0) & (before <= k)
    if after is None:
        within = np.where(top, FOUND, WITHIN)
    else:
        top_after = (after > 0) & (after <= k)
        within = np.where(top, np.where(top_after, KEPT, PUSHED_DOWN), np.where(top_after, LIFTED, NOT_LIFTED))
    return np.where(before == 0, NEVER, np.where(before > depth, BELOW, within))
