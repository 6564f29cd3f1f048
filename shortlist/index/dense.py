"""Dense search: a retriever embeds the queries, and an index finds the nearest vectors."""

from collections.abc import Iterable, Sequence
from typing import Any, Protocol, final, runtime_checkable

import numpy as np
from jaxtyping import Float

from shortlist.data.allowed import Allowed
from shortlist.errors import UserError
from shortlist.index.encoded import find_encoded, search_encoded, stored_positions
from shortlist.index.protocols import VectorIndex
from shortlist.records import Document, Hit, Query, Run, as_queries


@runtime_checkable
class EncodesQueries(Protocol):
    """A retriever, or any object that embeds queries."""

    def encode_queries(self, queries: Sequence[Query]) -> Float[np.ndarray, "queries dim"]:
        """Embed queries."""
        ...


@final
class DenseSearch:
    """A first stage that searches an index by the vectors of a retriever."""

    def __init__(self, retriever: EncodesQueries, vectors: VectorIndex) -> None:
        self.retriever, self.vectors = retriever, vectors
        self.temporary: Any = None
        """Whatever must live as long as this does, such as a temporary folder of the vectors."""

    def __repr__(self) -> str:
        return f"<DenseSearch with {self.retriever!r} over {self.vectors!r}>"

    @property
    def doc_ids(self) -> Sequence[str] | None:
        """The ids of the documents, in corpus order, if the index knows them."""
        return getattr(getattr(self.vectors, "vectors", None), "doc_ids", None)

    def search(self, queries: str | Query | Iterable[str | Query], k: int, *, allowed: Allowed | None = None) -> Run:
        """Find the k most similar documents for each query; texts get their positions as ids.

        Args:
            allowed: the only documents to find (None: all).
        """
        return search_encoded(self.retriever, self.vectors, queries, k, allowed=allowed)

    def query_vectors(self, queries: str | Query | Iterable[str | Query]) -> Float[np.ndarray, "queries dim"]:
        """Compute the vectors that `search` uses for these queries."""
        return self.retriever.encode_queries(as_queries(queries))

    def find_by_vectors(
        self, vectors: Float[np.ndarray, "queries dim"], k: int, *, allowed: Allowed | None = None
    ) -> list[list[Hit]]:
        """Find the k most similar documents for each vector, given as a query's vector."""
        return find_encoded(self.vectors, vectors, k, allowed=allowed)

    def embed_documents(self, documents: Sequence[Document]) -> Float[np.ndarray, "docs dim"]:
        """Compute the vectors of texts, as if they were documents of the collection."""
        encoder: Any = self.retriever
        return encoder.encode_documents(documents)

    def document_vectors(self, doc_ids: Sequence[str]) -> Float[np.ndarray, "docs dim"]:
        """Return the vectors of documents as they are stored, read in one go.

        Raises:
            UserError: the index knows no store of vectors, or one of the documents has none.
        """
        store: Any = getattr(self.vectors, "vectors", None)
        if not hasattr(store, "take"):
            raise UserError(
                f"{self.vectors!r} gives no vectors of documents; search vectors of `shortlist encode` here, or an "
                "index over them, without an engine."
            )
        return store.take(stored_positions(store, doc_ids, "vector"))
