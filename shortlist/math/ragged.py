"""Rows of several texts next to one another, with different numbers of rows for each."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Int


def spans(firsts: Int[np.ndarray, " n"], counts: Int[np.ndarray, " n"]) -> Int[np.ndarray, " rows"]:
    """Join ranges that begin at `firsts` and have so many numbers each."""
    ends = np.cumsum(counts)
    return np.repeat(firsts - ends + counts, counts) + np.arange(int(counts.sum()))


def text_parts(counts: Int[np.ndarray, " texts"], most: int) -> Iterator[tuple[int, int, int, int]]:
    """Divide texts into parts of at most `most` rows, but at least one text.

    Yields:
        The first text, the one behind the last, and the same of rows.
    """
    ends, first, start = np.cumsum(counts), 0, 0
    while first < len(counts):
        last = max(first + 1, int(np.searchsorted(ends, start + most, side="right")))
        stop = int(ends[last - 1])
        yield first, last, start, stop
        first, start = last, stop
