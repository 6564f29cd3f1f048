"""Term weights: the sparse vectors of texts, each a weight for some terms of a vocabulary."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import numpy as np
from jaxtyping import Float32, Int, Int32


@final
@dataclass(frozen=True)
class TermWeights:
    """The terms of several texts with their weights, one text after another.

    Iterating yields the terms and weights of one text after another.
    """

    terms: Int32[np.ndarray, " entries"]
    """Numbers of terms in the vocabulary, ascending within a text."""
    weights: Float32[np.ndarray, " entries"]
    """The weight of each, above 0."""
    counts: Int[np.ndarray, " texts"]
    """The number of terms of each text, which may be 0."""

    def __len__(self) -> int:
        """Count the texts."""
        return len(self.counts)

    def __iter__(self) -> Iterator[tuple[Int32[np.ndarray, " _"], Float32[np.ndarray, " _"]]]:
        ends = np.cumsum(self.counts).tolist()
        for start, end in zip([0, *ends[:-1]], ends, strict=True) if ends else ():
            yield self.terms[start:end], self.weights[start:end]


def dot(queries: TermWeights, documents: TermWeights) -> Float32[np.ndarray, "queries docs"]:
    """Score every document for every query, each pair by itself.

    A score is the sum, over the terms of both, of the product of their weights. This is the definition that faster code
    is compared with.
    """
    scores = np.zeros((len(queries), len(documents)), dtype=np.float32)
    for row, (terms, weights) in enumerate(queries):
        for column, (others, theirs) in enumerate(documents):
            _, here, there = np.intersect1d(terms, others, assume_unique=True, return_indices=True)
            scores[row, column] = weights[here] @ theirs[there]
    return scores
