"""Features of documents that several searchers found, for a learned fusion."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from shortlist.math.fusion import Scale, minmax, zscore
from shortlist.records import Hit


def raw_score(hits: Sequence[Hit]) -> tuple[Sequence[float], float]:
    """Return the scores as they are.

    A document that is not in the list is worth as much as the lowest one in it.
    """
    values = [hit.score for hit in hits]
    return values, min(values)


def inverse_rank(hits: Sequence[Hit]) -> tuple[Sequence[float], float]:
    """Return 1 / rank; a document that is not in the list is worth 0."""
    return [1 / rank for rank in range(1, len(hits) + 1)], 0.0


def found(hits: Sequence[Hit]) -> tuple[Sequence[float], float]:
    """Return 1 for every document in the list, and 0 for others."""
    return [1.0] * len(hits), 0.0


FEATURES: dict[str, Scale] = {
    "score": raw_score,
    "zscore": zscore,
    "scaled": minmax,
    "reciprocal_rank": inverse_rank,
    "found": found,
}
"""What a run says of a document, by name."""


def list_features(
    lists: Sequence[Sequence[Hit]], names: Sequence[str]
) -> tuple[list[str], Float[np.ndarray, "docs features"]]:
    """Compute the features of all documents that are in one query's lists.

    Args:
        lists: the hits of each searcher, best first; an empty list gives zeros.
        names: keys of FEATURES.

    Returns:
        The documents in the order in which they first occur, and their features: those of the first list by `names`,
        of the second, and so on, and the number of lists with the document.
    """
    numbers = {
        doc_id: number for number, doc_id in enumerate(dict.fromkeys(hit.doc_id for hits in lists for hit in hits))
    }
    features = np.zeros((len(numbers), len(lists) * len(names) + 1), dtype=np.float32)
    for place, hits in enumerate(lists):
        if not hits:
            continue
        rows = [numbers[hit.doc_id] for hit in hits]
        features[rows, -1] += 1
        for column, name in enumerate(names, start=place * len(names)):
            values, absent = FEATURES[name](hits)
            features[:, column] = absent
            features[rows, column] = values
    return list(numbers), features
