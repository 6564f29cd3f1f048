"""Term weights cut down to the heaviest terms of each text."""

import numpy as np

from shortlist.math.terms import TermWeights


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
