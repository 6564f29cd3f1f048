"""Term weights cut down to the heaviest terms of each text."""

import numpy as np

from shortlist.math.terms import TermWeights


def some_texts(weights: TermWeights, first: int, last: int) -> TermWeights:
    """Return the texts from the first to the one before the last."""
    ends = np.concatenate([[0], np.cumsum(weights.counts)])
    last = min(last, len(weights))
    here = slice(int(ends[first]), int(ends[last]))
    return TermWeights(weights.terms[here], weights.weights[here], weights.counts[first:last])


def heaviest(weights: TermWeights, most: int | None) -> TermWeights:
    """Keep the heaviest terms of each text, at most so many.

    Of equally heavy ones those with the lower numbers are kept.

    Args:
        most: how many to keep (None: all).
    """
    if most is None or not len(weights) or int(weights.counts.max()) <= most:
        return weights
    texts = np.repeat(np.arange(len(weights)), weights.counts)
    order = np.lexsort((-weights.weights, texts))  # stable, so that equal weights stay in order of their terms
    places = np.arange(len(order)) - np.repeat(np.cumsum(weights.counts) - weights.counts, weights.counts)
    kept = np.sort(order[places < most])
    return TermWeights(weights.terms[kept], weights.weights[kept], np.minimum(weights.counts, most))
