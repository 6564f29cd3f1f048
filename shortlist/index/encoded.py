"""Search of an index by encoded queries, for retrievers of every kind."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from shortlist.data.allowed import Allowed
from shortlist.errors import UserError
from shortlist.records import Hit, Query, Run, as_queries


def search_encoded(
    retriever: Any, index: Any, queries: str | Query | Iterable[str | Query], k: int, *, allowed: Allowed | None = None
) -> Run:
    """Find the k best documents for each query; texts get their positions as ids.

    Args:
        retriever: encodes the queries.
        index: finds documents by what that gives.
        allowed: the only documents to find (None: all).
    """
    queries = as_queries(queries)
    found = find_encoded(index, retriever.encode_queries(queries), k, allowed=allowed)
    return dict(zip([query.query_id for query in queries], found, strict=True))


def find_encoded(index: Any, queries: Any, k: int, *, allowed: Allowed | None = None) -> list[list[Hit]]:
    """Find the k best documents for each encoded query.

    An index that knows no filters is only asked without one.
    """
    return index.find(queries, k) if allowed is None else index.find(queries, k, allowed=allowed)


def stored_positions(store: Any, doc_ids: Sequence[str], holds: str) -> Int[np.ndarray, " docs"]:
    """Return the positions of documents in a store.

    Args:
        holds: what it holds of each, in words.

    Raises:
        UserError: one of them is not there.
    """
    places = store.doc_ids.places_of(doc_ids)
    if lacking := [doc_id for doc_id in doc_ids if doc_id not in places]:
        raise UserError(
            f"{store.folder}: has no {holds} of {len(lacking):,} of {len(doc_ids):,} documents, such as "
            f"{lacking[0]!r}; encode the collection again."
        )
    return np.array([places[doc_id] for doc_id in doc_ids], dtype=np.int64)
