"""Documents, queries, hits, groups, runs and qrels, as plain tuples and dicts.

The whole package takes and returns these types.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple


class Document(NamedTuple):
    """A unit of retrieval: a passage or a whole document."""

    doc_id: str
    text: str
    title: str = ""
    url: str = ""


class Query(NamedTuple):
    """An information need, in the searcher's words."""

    query_id: str
    text: str


class Hit(NamedTuple):
    """A retrieved document and its score (higher is better)."""

    doc_id: str
    score: float


class Group(NamedTuple):
    """A training example: a query with relevant and irrelevant documents, by id."""

    query_id: str
    positives: tuple[str, ...]
    negatives: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()
    """A teacher's scores of the positives, then of the negatives; empty without a teacher."""
    grades: tuple[int, ...] = ()
    """Judged relevance of the positives, then of the negatives; empty if positives are 1 and negatives 0."""


Run = Mapping[str, list[Hit]]
"""query_id -> hits, best first."""

Qrels = dict[str, dict[str, int]]
"""query_id -> doc_id -> graded relevance (0 = judged not relevant)."""


def as_queries(texts: Iterable[str | Query]) -> list[Query]:
    """Turn texts into queries, with their positions as ids; queries stay as they are."""
    return [Query(str(place), text) if isinstance(text, str) else text for place, text in enumerate(texts)]


def as_documents(texts: Iterable[str | Document]) -> list[Document]:
    """Turn texts into documents, with their positions as ids; documents stay as they are."""
    return [Document(str(place), text) if isinstance(text, str) else text for place, text in enumerate(texts)]
