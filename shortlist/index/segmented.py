"""Search over vectors of segments: a document is as near to a query as its nearest segment."""

from typing import final

import numpy as np
from jaxtyping import Float

from shortlist.index.protocols import VectorIndex
from shortlist.records import Hit
from shortlist.text.segments import whole_id

AT_FIRST, MORE = 3, 4
"""Segments asked for, in multiples of k: at first, and the factor where they belong to fewer than k documents."""


@final
class SegmentIndex:
    """Whole documents by the best of their segments (MaxP, https://arxiv.org/abs/1905.09217).

    Args:
        segments: an index over a store of segments, as `shortlist encode --segments maxp` writes it.
    """

    def __init__(self, segments: VectorIndex) -> None:
        self.segments = segments

    def find(self, queries: Float[np.ndarray, "queries dim"], k: int) -> list[list[Hit]]:
        """The at most k documents whose best segment has the greatest inner product with each query, best first."""
        found: list[list[Hit]] = [[] for _ in queries]
        short, depth = list(range(len(queries))), AT_FIRST * k
        while short:
            again = []
            for query, hits in zip(short, self.segments.find(queries[short], depth), strict=True):
                found[query] = best_of_each(hits)[:k]
                if len(found[query]) < k and len(hits) == depth:  # and so there may be more
                    again.append(query)
            short, depth = again, MORE * depth
        return found


def best_of_each(hits: list[Hit]) -> list[Hit]:
    """The first hit of each document, by the document's id."""
    best: dict[str, float] = {}
    for hit in hits:
        best.setdefault(whole_id(hit.doc_id), hit.score)
    return [Hit(doc_id, score) for doc_id, score in best.items()]
