"""How long texts are: a histogram of lengths, and what it says."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

Histogram = Int[np.ndarray, " lengths"]
"""How many texts have each length, from 0 on; the last one is not 0."""


def add_lengths(histogram: Histogram, lengths: Sequence[int]) -> Int[np.ndarray, " more_lengths"]:
    """The histogram with some more texts in it."""
    more = np.bincount(np.asarray(lengths, dtype=np.int64), minlength=len(histogram))
    more[: len(histogram)] += histogram
    return more


def shares(histogram: Histogram) -> Float[np.ndarray, " lengths"]:
    """The share of texts of at most each length."""
    return np.cumsum(histogram) / histogram.sum()


def share_at_most(histogram: Histogram, limit: int) -> float:
    """The share of texts of at most this length."""
    return float(histogram[: limit + 1].sum() / histogram.sum())


def quantile(histogram: Histogram, share: float) -> int:
    """The smallest length that at least this share of the texts does not exceed."""
    return int(np.searchsorted(np.cumsum(histogram), share * histogram.sum() * (1 - 1e-12)))


def mean_length(histogram: Histogram) -> float:
    """The mean length of the texts."""
    return float(np.arange(len(histogram)) @ histogram / histogram.sum())
