"""What can be searched: a first stage finds documents for queries, a vector index finds those near to vectors."""

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


@runtime_checkable
class VectorIndex(Protocol):
    """Finds the documents whose vectors are nearest to those of queries."""

    def find(self, queries: Float[np.ndarray, "queries dim"], k: int) -> list[list[Hit]]:
        """The at most k documents of greatest inner product with each query, best first, equal ones in corpus order."""
        ...
