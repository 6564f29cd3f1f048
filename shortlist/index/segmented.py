"""Search over vectors of segments, scoring a document by its best segment."""

from typing import final

import numpy as np
from jaxtyping import Float

from shortlist.data.allowed import Allowed
from shortlist.index.protocols import VectorIndex
from shortlist.records import Hit
from shortlist.text.segments import whole_id

AT_FIRST, MORE = 3, 4
"""Segments to ask for at first, in multiples of k, and the factor for more if they belong to fewer than k documents."""


@final
class SegmentIndex:
    """A search for whole documents by their best segment (MaxP, https://arxiv.org/abs/1905.09217).

    Args:
        segments: an index over a store of segments, as written by `shortlist encode --segments maxp`.
    """

    def __init__(self, segments: VectorIndex) -> None:
        self.segments = segments

    def find(
        self, queries: Float[np.ndarray, "queries dim"], k: int, *, allowed: Allowed | None = None
    ) -> list[list[Hit]]:
        """Find the at most k best documents for each query, best first.

        A document's score is the greatest inner product of the query with one of its segments.

        Args:
            allowed: the only documents to find (None: all).
        """
        only = {} if allowed is None else {"allowed": allowed.segments}
        found: list[list[Hit]] = [[] for _ in queries]
        short, depth = list(range(len(queries))), AT_FIRST * k
        while short:
            again = []
            for query, hits in zip(short, self.segments.find(queries[short], depth, **only), strict=True):
                found[query] = best_of_each(hits)[:k]
                if len(found[query]) < k and len(hits) == depth:  # there may be more
                    again.append(query)
            short, depth = again, MORE * depth
        return found


def best_of_each(hits: list[Hit]) -> list[Hit]:
    """Keep the first hit of each document, with the document's id instead of the segment's."""
    best: dict[str, float] = {}
    for hit in hits:
        best.setdefault(whole_id(hit.doc_id), hit.score)
    return [Hit(doc_id, score) for doc_id, score in best.items()]
