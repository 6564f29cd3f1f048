"""Adding up postings, and choosing the best of many scores."""

from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Int, Int32

try:
    from scipy.sparse._sparsetools import csc_matvec as _multiply  # adds up a column in compiled code
except ImportError:  # it is no public function, so a later SciPy may lack it
    _multiply: Any = None

GROUP = 64
"""Scores whose greatest one is found together."""


def add_postings(
    rows: Int32[np.ndarray, " postings"],
    weights: Float32[np.ndarray, " postings"],
    starts: Int[np.ndarray, " terms"],
    ends: Int[np.ndarray, " terms"],
    factors: Float32[np.ndarray, " terms"],
    scores: Float32[np.ndarray, " rows"],
) -> None:
    """Add the weights of some terms, times their factors, to their rows' scores.

    Args:
        rows: those of each term of an inverted index, one term after another.
        weights: in these rows.
        starts: where the postings of each of the terms begin, ascending.
        ends: and where they end.
    """
    if _multiply is None:
        for start, end, factor in zip(starts.tolist(), ends.tolist(), factors, strict=True):
            np.add.at(scores, rows[start:end], weights[start:end] * factor)
        return
    if not len(starts):
        return
    # The columns of a matrix: the last term, then from its end back to the start of the term before it, which is
    # nothing, then that term, and so on.
    bounds, values = np.empty(2 * len(starts), dtype=np.int32), np.zeros(2 * len(starts) - 1, dtype=np.float32)
    bounds[0::2], bounds[1::2], values[0::2] = starts[::-1], ends[::-1], factors[::-1]
    _multiply(len(scores), len(values), bounds, rows, weights, values, scores)


def left_out(
    bounds: Float[np.ndarray, "terms 2"], lengths: Int[np.ndarray, "terms 2"], budget: float
) -> tuple[Int[np.ndarray, " terms"], float]:
    """Choose postings to leave out that are many and add little to a score.

    Each term has two lists of postings, the heavy and the light ones. The light one is left out or both are.

    Args:
        bounds: the most that both of a term's lists can add to a score, and that its light one can.
        lengths: the postings of its heavy list and of its light one.
        budget: the most that all that is left out may add.

    Returns:
        The number of lists that are kept of each term, and the most that the others can add.
    """
    kept, total = [2] * len(bounds), 0.0
    saved = np.stack([lengths.sum(1), lengths[:, 1]], axis=1)
    order = np.argsort(-(saved / np.maximum(bounds, 1e-30)).ravel(), kind="stable")
    each: list[float] = bounds.ravel().tolist()
    for place in order.tolist():
        term, lists = divmod(place, 2)
        if lists < kept[term]:
            more = each[place] - (each[2 * term + 1] if kept[term] == 1 else 0.0)
            if total + more <= budget:
                kept[term], total = lists, total + more
    return np.array(kept, dtype=np.int64), total


def error_bound(num_terms: int) -> float:
    """Bound the share of a score by which float32 sums may be wrong.

    All terms are positive, so each of the additions is wrong by at most 2**-24 of the score, and each product too.
    """
    return 4 * (num_terms + 2) * 2.0**-24


def best_scores(
    scores: Float32[np.ndarray, " rows"], k: int, *, least: float = 0.0, slack: float = 1.0
) -> Int[np.ndarray, " found"]:
    """Find the rows of the k highest positive scores, and of nearly as high ones.

    Args:
        least: scores below it are left out.
        slack: the share of the k-th best score from which a score is nearly as high.
    """
    groups = -(-len(scores) // GROUP)
    padded = scores
    if len(scores) < groups * GROUP:
        padded = np.zeros(groups * GROUP, dtype=np.float32)
        padded[: len(scores)] = scores
    tops = padded.reshape(GROUP, groups).max(0)
    if groups > k:
        least = max(least, float(np.partition(tops, -k)[-k]) * slack)
    near = np.flatnonzero((tops >= least) & (tops > 0))
    rows = (near + groups * np.arange(GROUP)[:, None]).ravel()
    found = padded[rows]
    fit = (found >= least) & (found > 0)
    rows, found = rows[fit], found[fit]
    if len(rows) > k:
        rows = rows[found >= np.partition(found, -k)[-k] * slack]
    return rows
