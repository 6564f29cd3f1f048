"""Rerankers: what puts the candidates of a query in order, by whatever method."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

from shortlist.records import Document, Query


class Candidates(NamedTuple):
    """A query with the documents that were found for it, best first."""

    query: Query
    documents: Sequence[Document]


class Scored(NamedTuple):
    """Scores of some documents of some lists, as they become known."""

    numbers: Int[np.ndarray, " docs"]
    """Which documents: those of all lists counted through, from 0."""
    scores: Float[np.ndarray, " docs"]
    num_tokens: int
    """Tokens that were read for them, padding not counted; 0 where nothing counts them."""


@runtime_checkable
class Ranker(Protocol):
    """Orders the candidates of one query.

    What it says of one document may depend on all of them and on their order.
    """

    def score(self, query: Query, documents: Sequence[Document]) -> Float[np.ndarray, " docs"]:
        """Score each document, higher is better; NaN for one that was not looked at."""
        ...


@runtime_checkable
class ListsRanker(Ranker, Protocol):
    """Orders the candidates of many queries together, where that is faster than one after another."""

    def score_lists(self, lists: Iterable[Candidates]) -> Iterator[Scored]:
        """Yield each document once; one whose score depends on its list with all others of that list."""
        ...
