"""A histogram of text lengths and statistics from it."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

Histogram = Int[np.ndarray, " lengths"]
"""The number of texts of each length, from length 0 on; the last number is not 0."""


def add_lengths(histogram: Histogram, lengths: Sequence[int]) -> Int[np.ndarray, " more_lengths"]:
    """Add the lengths of more texts to a histogram."""
    more = np.bincount(np.asarray(lengths, dtype=np.int64), minlength=len(histogram))
    more[: len(histogram)] += histogram
    return more


def shares(histogram: Histogram) -> Float[np.ndarray, " lengths"]:
    """Compute, for each length, the share of texts that are at most this long."""
    return np.cumsum(histogram) / histogram.sum()


def share_at_most(histogram: Histogram, limit: int) -> float:
    """Compute the share of texts that are at most `limit` long."""
    return float(histogram[: limit + 1].sum() / histogram.sum())


def quantile(histogram: Histogram, share: float) -> int:
    """Find the smallest length that at least this share of the texts does not exceed."""
    return int(np.searchsorted(np.cumsum(histogram), share * histogram.sum() * (1 - 1e-12)))


def mean_length(histogram: Histogram) -> float:
    """Compute the mean length of the texts."""
    return float(np.arange(len(histogram)) @ histogram / histogram.sum())
