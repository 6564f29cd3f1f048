"""The first stage over vectors: a retriever embeds the queries, an index finds the vectors near to them."""

from collections.abc import Sequence
from typing import Protocol, final, runtime_checkable

import numpy as np
from jaxtyping import Float

from shortlist.index.protocols import VectorIndex
from shortlist.records import Hit, Query, Run


@runtime_checkable
class EncodesQueries(Protocol):
    """A retriever, or whatever stands for one."""

    def encode_queries(self, queries: Sequence[Query]) -> Float[np.ndarray, "queries dim"]:
        """Vectors of queries."""
        ...


@final
class DenseSearch:
    """Search by the vectors of a retriever."""

    def __init__(self, retriever: EncodesQueries, vectors: VectorIndex) -> None:
        self.retriever, self.vectors = retriever, vectors

    def search(self, queries: Sequence[Query], k: int) -> Run:
        """Each query's k documents of greatest similarity."""
        found = self.find_by_vectors(self.query_vectors(queries), k)
        return dict(zip([query.query_id for query in queries], found, strict=True))

    def query_vectors(self, queries: Sequence[Query]) -> Float[np.ndarray, "queries dim"]:
        """The vectors that these queries are searched by."""
        return self.retriever.encode_queries(queries)

    def find_by_vectors(self, vectors: Float[np.ndarray, "queries dim"], k: int) -> list[list[Hit]]:
        """The k documents of greatest similarity to each vector, as if a query had given it."""
        return self.vectors.find(vectors, k)
