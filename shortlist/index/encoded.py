"""Search of an index by encoded queries, for retrievers of every kind."""

from collections.abc import Iterable
from typing import Any

from shortlist.data.allowed import Allowed
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
