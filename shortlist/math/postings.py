"""Adding up postings, and choosing the best of many scores."""

from typing import Any

import numpy as np
from jaxtyping import Float32, Int, Int32

try:
    from scipy.sparse._sparsetools import csc_matvec as _multiply  # adds up a column in compiled code
except ImportError:  # it is no public function, so a later SciPy may lack it
    _multiply: Any = None

GROUP = 64
"""Scores whose greatest one is found together."""
ONE = np.array([1], dtype=np.float32)


def add_postings(
    rows: Int32[np.ndarray, " postings"],
    weights: Float32[np.ndarray, " postings"],
    factor: np.float32,
    scores: Float32[np.ndarray, " rows"],
) -> None:
    """Add a term's weights, times a factor, to the scores of its rows."""
    if _multiply is None:
        np.add.at(scores, rows, weights * factor)
        return
    ends = np.array([0, len(rows)], dtype=np.int32)
    _multiply(len(scores), 1, ends, rows, weights, ONE * factor, scores)


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
    padded = scores if len(scores) == groups * GROUP else np.pad(scores, (0, groups * GROUP - len(scores)))
    tops = padded.reshape(groups, GROUP).max(1)
    if groups > k:
        least = max(least, float(np.partition(tops, -k)[-k]) * slack)
    near = np.flatnonzero((tops >= least) & (tops > 0))
    rows = (near[:, None] * GROUP + np.arange(GROUP)).ravel()
    found = padded[rows]
    fit = (found >= least) & (found > 0)
    rows, found = rows[fit], found[fit]
    if len(rows) > k:
        rows = rows[found >= np.partition(found, -k)[-k] * slack]
    return rows
