"""Protocols of first stages, which take queries, and vector indexes, which take vectors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from shortlist.data.allowed import Allowed
from shortlist.math.maxsim import TokenVectors
from shortlist.math.terms import TermWeights
from shortlist.records import Document, Hit, Query, Run


@runtime_checkable
class FirstStage(Protocol):
    """A searcher that finds documents for queries."""

    def search(self, queries: list[Query], k: int, *, allowed: Allowed | None = None) -> Run:
        """Find the at most k best documents for each query, best first.

        Args:
            allowed: the only documents to find (None: all). The hits are those that a search for all documents would
                give if the others were left out of its list: k of them if there are as many.
        """
        ...


@runtime_checkable
class FetchDocuments(Protocol):
    """Fetches documents by id."""

    def __call__(self, doc_ids: Sequence[str], query_id: str | None = None) -> Mapping[str, Document]:
        """Return documents by id, with the changes that earlier steps of a pipeline made.

        Args:
            query_id: the query that they are for, as a step may change a text for one query only (None: without such
                changes).
        """
        ...


class ReadHits(NamedTuple):
    """The hits of a search that reads documents."""

    run: Run
    num_read: dict[str, int]
    """Number of documents that were read for each query."""


@runtime_checkable
class SearchesByReading(Protocol):
    """A first stage whose model reads documents together with the query while it searches."""

    def search_by_reading(
        self, queries: Sequence[Query], k: int, documents: FetchDocuments, *, allowed: Allowed | None = None
    ) -> ReadHits:
        """Find the at most k best of the documents read for each query."""
        ...


@runtime_checkable
class StatesCosts(Protocol):
    """A first stage that counts what it asks a language model."""

    def costs(self) -> dict[str, int]:
        """Return the calls, tokens and malformed answers so far, by the names of `data.manifest.stages`."""
        ...


WeightedTerms = Sequence[tuple[str, float]]
"""Words or other terms with their weights in a query; a term that occurs twice counts twice."""


@runtime_checkable
class SearchesTerms(FirstStage, Protocol):
    """A first stage that returns its queries' terms and can search by other terms."""

    def query_terms(self, queries: Sequence[Query]) -> list[WeightedTerms]:
        """Return the terms that `search` uses for these queries."""
        ...

    def find_by_terms(
        self, queries: Sequence[WeightedTerms], k: int, *, allowed: Allowed | None = None
    ) -> list[list[Hit]]:
        """Find the at most k best documents for each query of weighted terms, best first."""
        ...


@runtime_checkable
class SearchesVectors(FirstStage, Protocol):
    """A first stage that returns its queries' vectors and can search by other vectors."""

    def query_vectors(self, queries: Sequence[Query]) -> Float[np.ndarray, "queries dim"]:
        """Return the vectors that `search` uses for these queries."""
        ...

    def find_by_vectors(
        self, vectors: Float[np.ndarray, "queries dim"], k: int, *, allowed: Allowed | None = None
    ) -> list[list[Hit]]:
        """Find the at most k best documents for each vector, best first."""
        ...


class TermTotals(NamedTuple):
    """The numbers of times that terms occur in a collection."""

    totals: Float[np.ndarray, " terms"]
    """Occurrences of each term in all documents together, or the sum of its weights."""
    num_docs: int


@runtime_checkable
class GivesTerms(SearchesTerms, Protocol):
    """A first stage that searches by terms, and returns its documents' terms."""

    def document_terms(self, doc_ids: Sequence[str], texts: FetchDocuments) -> list[WeightedTerms]:
        """Return the terms of documents, each once, with their counts or weights.

        Args:
            texts: fetches documents, for a first stage that stores no terms of each.
        """
        ...

    def term_totals(self, terms: Sequence[str]) -> TermTotals:
        """Return how often terms occur in the collection."""
        ...


@runtime_checkable
class GivesVectors(SearchesVectors, Protocol):
    """A first stage that searches by vectors, and returns its documents' vectors."""

    def document_vectors(self, doc_ids: Sequence[str]) -> Float[np.ndarray, "docs dim"]:
        """Return the vectors of documents, as float32 and as they are stored."""
        ...


@runtime_checkable
class GivesTokens(FirstStage, Protocol):
    """A first stage that searches by token vectors, and returns its documents' token vectors."""

    def query_tokens(self, queries: Sequence[Query]) -> TokenVectors:
        """Return the token vectors that `search` uses for these queries."""
        ...

    def find_by_tokens(self, queries: TokenVectors, k: int, *, allowed: Allowed | None = None) -> list[list[Hit]]:
        """Find the at most k best documents for each query of token vectors, best first."""
        ...

    def document_tokens(self, doc_ids: Sequence[str]) -> TokenVectors:
        """Return the token vectors of documents, as float32."""
        ...

    def sampled_tokens(self) -> TokenVectors:
        """Return the token vectors of some documents, which stand for the collection."""
        ...


@runtime_checkable
class EmbedsDocuments(SearchesVectors, Protocol):
    """A first stage that searches by vectors, and computes vectors of new texts."""

    def embed_documents(self, documents: Sequence[Document]) -> Float[np.ndarray, "docs dim"]:
        """Compute the vectors of texts, as if they were documents of the collection."""
        ...


@runtime_checkable
class VectorIndex(Protocol):
    """An index that finds the documents whose vectors are nearest to the queries' vectors."""

    def find(
        self, queries: Float[np.ndarray, "queries dim"], k: int, *, allowed: Allowed | None = None
    ) -> list[list[Hit]]:
        """Find the at most k documents with the greatest inner product with each query.

        They are sorted best first, equal ones in corpus order.

        Args:
            allowed: the only documents to find (None: all).
        """
        ...


@runtime_checkable
class TokenIndex(Protocol):
    """An index that finds the documents whose token vectors match the queries' best."""

    def find(self, queries: TokenVectors, k: int, *, allowed: Allowed | None = None) -> list[list[Hit]]:
        """Find the at most k documents that score highest for each query by late interaction.

        They are sorted best first, equal ones in corpus order.

        Args:
            allowed: the only documents to find (None: all).
        """
        ...


@runtime_checkable
class TermIndex(Protocol):
    """An index that finds the documents whose term weights match the queries' best."""

    terms: Any
    """The store of the documents' term weights, a TermReader."""

    def find(self, queries: TermWeights, k: int, *, allowed: Allowed | None = None) -> list[list[Hit]]:
        """Find the at most k documents with the greatest inner product with each query.

        They are sorted best first, equal ones in corpus order.

        Args:
            allowed: the only documents to find (None: all).
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Opening:
    """Settings for searching an index.

    None leaves a setting to the kind of index. A kind ignores the settings that it does not have.
    """

    vectors: Path | None = None
    """Where the vectors are, if they have moved since the index was built."""
    effort: int | None = None
    """The effort of an approximate search per query. hnsw: candidates; ivf: lists."""
    refine: int | None = None
    """Candidates that are scored exactly, in multiples of k."""
    memory_gib: float | None = None
    """The most memory for vectors at a time, in GiB."""
    dims: int | None = None
    """The numbers to keep of each vector, the first ones, in exact search over vectors (None: all)."""
    query_terms: int | None = None
    """Terms of a query to search by, the heaviest, in search by term weights."""
    unit: bool = True
    """Whether vectors that are cut get length 1."""
