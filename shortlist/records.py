"""The nouns of search, as plain tuples and dicts: everything else in the package takes or returns these."""

from collections.abc import Iterable, Mapping
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
    scores: tuple[float, ...] = ()
    """What a teacher thinks of each positive, then of each negative; empty without one."""
    grades: tuple[int, ...] = ()
    """How relevant each positive is, then each negative, as judged; empty where positives are 1 and negatives 0."""


Run = Mapping[str, list[Hit]]
"""query_id -> hits, best first."""

Qrels = dict[str, dict[str, int]]
"""query_id -> doc_id -> graded relevance (0 = judged not relevant)."""


def as_queries(texts: Iterable[str | Query]) -> list[Query]:
    """Queries as they are; a text becomes one whose id is its place."""
    return [Query(str(place), text) if isinstance(text, str) else text for place, text in enumerate(texts)]


def as_documents(texts: Iterable[str | Document]) -> list[Document]:
    """Documents as they are; a text becomes one whose id is its place."""
    return [Document(str(place), text) if isinstance(text, str) else text for place, text in enumerate(texts)]
