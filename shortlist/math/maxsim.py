"""Late interaction: scores from the best match of each of a query's tokens."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import numpy as np
from jaxtyping import Float, Int


@final
@dataclass(frozen=True)
class TokenVectors:
    """The vectors of several texts' tokens, one text after another.

    Iterating yields the vectors of one text after another.
    """

    values: Float[np.ndarray, "tokens dim"]
    counts: Int[np.ndarray, " texts"]
    """The number of vectors of each text, which may be 0."""

    def __len__(self) -> int:
        """Count the texts."""
        return len(self.counts)

    def __iter__(self) -> Iterator[Float[np.ndarray, "_ dim"]]:
        yield from np.split(self.values, np.cumsum(self.counts)[:-1]) if len(self.counts) else ()


def maxsim(queries: TokenVectors, documents: TokenVectors) -> Float[np.ndarray, "queries docs"]:
    """Score every document for every query, each pair by itself.

    This is the definition that faster code is compared with. A document without vectors scores -inf, since nothing
    matches; negative similarities count as they are.

    https://arxiv.org/abs/2004.12832
    """
    scores = np.full((len(queries), len(documents)), -np.inf, dtype=np.float32)
    for row, query in enumerate(queries):
        for column, document in enumerate(documents):
            if len(document):
                scores[row, column] = (query @ document.T).max(1).sum()
    return scores
