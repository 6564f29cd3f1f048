"""What can be searched: a first stage finds documents for queries, a vector index finds those near to vectors."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from shortlist.records import Hit, Query, Run


@runtime_checkable
class FirstStage(Protocol):
    """Finds documents for queries."""

    def search(self, queries: list[Query], k: int) -> Run:
        """The at most k best documents of each query, best first."""
        ...


WeightedTerms = Sequence[tuple[str, float]]
"""Words, or other terms, each with its weight in a query; one that comes twice counts twice."""


@runtime_checkable
class SearchesTerms(FirstStage, Protocol):
    """A first stage that shows the terms it searches by, and takes others in their place."""

    def query_terms(self, queries: Sequence[Query]) -> list[WeightedTerms]:
        """The terms that `search` would search by."""
        ...

    def find_by_terms(self, queries: Sequence[WeightedTerms], k: int) -> list[list[Hit]]:
        """The at most k best documents for each query of weighted terms, best first."""
        ...


@runtime_checkable
class SearchesVectors(FirstStage, Protocol):
    """A first stage that shows the vectors it searches by, and takes others in their place."""

    def query_vectors(self, queries: Sequence[Query]) -> Float[np.ndarray, "queries dim"]:
        """The vectors that `search` would search by."""
        ...

    def find_by_vectors(self, vectors: Float[np.ndarray, "queries dim"], k: int) -> list[list[Hit]]:
        """The at most k best documents for each vector, best first."""
        ...


@runtime_checkable
class VectorIndex(Protocol):
    """Finds the documents whose vectors are nearest to those of queries."""

    def find(self, queries: Float[np.ndarray, "queries dim"], k: int) -> list[list[Hit]]:
        """The at most k documents of greatest inner product with each query, best first, equal ones in corpus order."""
        ...


@dataclass(frozen=True, kw_only=True)
class Opening:
    """How to search an index; None leaves it to the kind, which passes over what it does not have."""

    vectors: Path | None = None
    """Where the vectors are, if not where they were when the index was built."""
    effort: int | None = None
    """What approximate search spends on a query: hnsw, candidates; ivf, lists."""
    refine: int | None = None
    """Candidates that are scored exactly, in multiples of k."""
    memory_gib: float | None = None
    """Most memory for vectors at a time."""
