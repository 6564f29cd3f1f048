"""Rerankers: interfaces for ranking a query's candidates, by any method."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

from shortlist.records import Document, Query


class Candidates(NamedTuple):
    """A query with the documents found for it, best first."""

    query: Query
    documents: Sequence[Document]


class Scored(NamedTuple):
    """Scores of some documents, as they become known."""

    numbers: Int[np.ndarray, " docs"]
    """Numbers of the documents, counted from 0 through all lists."""
    scores: Float[np.ndarray, " docs"]
    num_tokens: int
    """Tokens read for these documents, without padding; 0 if nothing counts them."""


@runtime_checkable
class Ranker(Protocol):
    """Scores the candidates of one query.

    A document's score may depend on all candidates and on their order.
    """

    def score(self, query: Query, documents: Sequence[Document]) -> Float[np.ndarray, " docs"]:
        """Score each document; higher is better, and NaN means it was not looked at."""
        ...


@runtime_checkable
class ListsRanker(Ranker, Protocol):
    """Scores the candidates of many queries together, which may be faster."""

    def score_lists(self, lists: Iterable[Candidates]) -> Iterator[Scored]:
        """Yield each document's score once.

        If scores depend on the list, all documents of a list are yielded together.
        """
        ...
