"""Feedback on whole lists: what a person did with the answer that they led to.

Pistis-RAG: https://arxiv.org/abs/2407.00072
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from shortlist.data.lines import MalformedError, to_text
from shortlist.data.triplets import read_rows, text_id
from shortlist.records import Group, Query

COPY, REGENERATE, DISLIKE = "copy", "regenerate", "dislike"
ON_LISTS = (COPY, REGENERATE, DISLIKE)
NEEDED_FIELDS = ("query", "shown", "signal")
"""Fields that every record has."""


class ShownList(NamedTuple):
    """A list of documents shown for a query, and what was done with it."""

    query: str
    documents: tuple[str, ...]
    """Ids or texts, best first."""
    signal: str
    """One of `ON_LISTS`."""
    copied: tuple[str, ...] = ()
    """Those that were copied, for the signal `copy`: all that was shown where the record does not say."""


@dataclass(slots=True)
class Reactions:
    """Reactions to the documents shown for one query."""

    copies: Counter[str] = field(default_factory=Counter)
    passed: dict[str, None] = field(default_factory=dict)
    """Those shown beside copied documents, or in a list that was disliked."""
    disliked: set[str] = field(default_factory=set)


class FeedbackPairs(NamedTuple):
    """Training data made from feedback, with numbers of lists."""

    groups: list[Group]
    queries: dict[str, Query]
    lists: Counter[str]
    """Number of lists by signal."""
    withdrawn: int
    """Pairs that were copied once and in a disliked list another time, which are not positive."""


def may_be_feedback(record: Any) -> bool:
    """Whether a record has the fields of feedback."""
    return isinstance(record, dict) and set(NEEDED_FIELDS) <= set(record)


def to_shown(record: Any) -> ShownList:
    """Read a record with `query`, `shown` (ids or texts), `signal` and, for copies, `copied`.

    Raises:
        MalformedError: a field is missing or of another form, or what was copied was not shown.
    """
    if not may_be_feedback(record):
        found = ", ".join(sorted(map(str, record))) if isinstance(record, dict) else f"a {type(record).__name__}"
        raise MalformedError(f"found {found}; expected an object with {', '.join(NEEDED_FIELDS)}.")
    query = " ".join(to_text(record["query"], "query").split())
    documents, signal = _names(record, "shown"), record["signal"]
    if not query or not documents:
        raise MalformedError(f"the {'list shown' if query else 'query'} is empty; name one, or remove the record.")
    if signal not in ON_LISTS:
        raise MalformedError(f"signal is {signal!r}; expected {', '.join(ON_LISTS)}.")
    copied = _names(record, "copied") if record.get("copied") is not None else ()
    if copied and signal != COPY:
        raise MalformedError(f"documents are copied, but the signal is {signal!r}; expected {COPY!r}.")
    if unseen := [name for name in copied if name not in documents]:
        raise MalformedError(f"document {unseen[0]!r:.80} is copied and not shown; expected one that was shown.")
    return ShownList(query, documents, signal, (copied or documents) if signal == COPY else ())


def _names(record: Mapping[str, Any], name: str) -> tuple[str, ...]:
    value = record[name]
    if not isinstance(value, list):
        raise MalformedError(f"{name} is a {type(value).__name__}; expected a list of ids or texts.")
    return tuple(str(item) if type(item) is int else to_text(item, name).strip() for item in value)


def read_feedback(name: str) -> Iterator[ShownList]:
    """Yield the lists of a file (JSONL, a JSON array or Parquet) or of `hf:ID`.

    Raises:
        UserError: the source cannot be read, or a record is no feedback.
    """
    return read_rows(name, to_shown)


def to_groups(lists: Iterable[ShownList], doc_ids: Mapping[str, str]) -> FeedbackPairs:
    """Make a group of each query for which something was copied and not disliked.

    Positives come by falling number of copies. Negatives are the documents that were shown beside copied ones, or in a
    list that was disliked, and never copied. A list that was only asked for again says nothing of its documents.

    Args:
        doc_ids: ids by the names in the lists; documents without one are left out.
    """
    seen: dict[str, Reactions] = {}
    signals: Counter[str] = Counter()
    for shown in lists:
        signals[shown.signal] += 1
        reactions = seen.setdefault(shown.query, Reactions())
        if shown.signal != REGENERATE:
            documents = [doc_ids[name] for name in shown.documents if name in doc_ids]
            reactions.copies.update(doc_ids[name] for name in shown.copied if name in doc_ids)
            reactions.passed.update(dict.fromkeys(documents))
            reactions.disliked.update(documents if shown.signal == DISLIKE else ())
    groups: list[Group] = []
    queries: dict[str, Query] = {}
    withdrawn = 0
    for text, reactions in seen.items():
        positives = [doc_id for doc_id, _ in reactions.copies.most_common() if doc_id not in reactions.disliked]
        withdrawn += len(reactions.copies) - len(positives)
        if positives:
            query = Query(text_id(text), text)
            negatives = tuple(doc_id for doc_id in reactions.passed if doc_id not in reactions.copies)
            groups.append(Group(query.query_id, tuple(positives), negatives))
            queries[query.query_id] = query
    return FeedbackPairs(groups, queries, signals, withdrawn)
