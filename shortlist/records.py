"""Documents, queries, hits, groups, runs and qrels, as plain tuples and dicts.

The whole package takes and returns these types.
"""

from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AnySet
from typing import Any, NamedTuple, TypeVar

from shortlist.errors import UserError


class Document(NamedTuple):
    """A unit of retrieval: a passage or a whole document."""

    doc_id: str
    text: str
    title: str = ""
    url: str = ""
    metadata: Mapping[str, Any] = {}
    """Fields to filter by and to show, such as a year; nothing changes them. Models and indexes do not read them."""

    def __hash__(self) -> int:
        return hash(self[:4])  # metadata may hold lists


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


T = TypeVar("T", Document, Query)


def is_one(texts: Any) -> bool:
    """Whether this is one text, query or document, and not several."""
    return isinstance(texts, str | Query | Document)


def as_queries(texts: str | Query | Iterable[str | Query]) -> list[Query]:
    """Turn texts into queries, with their positions as ids; queries stay as they are.

    A string is one text.

    Raises:
        UserError: something is neither a text nor a query.
    """
    return list(_each(texts, Query))


def as_documents(texts: str | Document | Iterable[str | Document]) -> list[Document]:
    """Turn texts into documents, with their positions as ids; documents stay as they are.

    A string is one text.

    Raises:
        UserError: something is neither a text nor a document.
    """
    return list(_each(texts, Document))


def each_query(texts: str | Query | Iterable[str | Query]) -> Iterator[Query]:
    """Yield queries as `as_queries` makes them, one at a time."""
    return _each(texts, Query)


def each_document(texts: str | Document | Iterable[str | Document]) -> Iterator[Document]:
    """Yield documents as `as_documents` makes them, one at a time."""
    return _each(texts, Document)


def _each(texts: Any, kind: type[T]) -> Iterator[T]:
    """Yield each text as a record of this kind."""
    name = kind.__name__
    if is_one(texts):
        texts = [texts]
    # what has no order, or yields its keys or columns, would give other texts without a word
    if isinstance(texts, Mapping | AnySet | bytes) or hasattr(texts, "columns") or not isinstance(texts, Iterable):
        raise UserError(f"found a {type(texts).__name__}; expected a text, or a list of texts or of {name} records.")
    for place, text in enumerate(texts):
        if isinstance(text, kind):
            yield text
        elif isinstance(text, str):
            yield kind(str(place), text)
        elif all(hasattr(text, field) for field in kind._fields if field != "metadata"):  # another package's record
            yield kind(**{field: getattr(text, field) for field in kind._fields if hasattr(text, field)})
        else:
            raise UserError(f"item {place} is a {type(text).__name__}; expected a text or a {name}: {text!r:.60}")
