"""The nouns of search, as plain tuples and dicts: everything else in the package takes or returns these."""

from typing import NamedTuple


class Document(NamedTuple):
    """One unit of retrieval: a passage or a whole document."""

    doc_id: str
    text: str
    title: str = ""
    url: str = ""


class Query(NamedTuple):
    """One information need, in the searcher's words."""

    query_id: str
    text: str


class Hit(NamedTuple):
    """One retrieved document and the score that placed it (higher is better)."""

    doc_id: str
    score: float


class Group(NamedTuple):
    """One training example: a query, documents that answer it, documents that do not (all by id)."""

    query_id: str
    positives: tuple[str, ...]
    negatives: tuple[str, ...] = ()


Run = dict[str, list[Hit]]
"""query_id -> hits, best first."""

Qrels = dict[str, dict[str, int]]
"""query_id -> doc_id -> graded relevance (0 = judged not relevant)."""
