"""Records of training groups: our own layout and Tevatron's, one record at a time."""

import math
from collections import Counter
from functools import partial
from itertools import chain
from reprlib import repr as shown
from sys import intern
from typing import Any, NamedTuple

from shortlist.data.formats import to_document, to_grade, to_id, to_query
from shortlist.data.lines import MalformedError
from shortlist.records import Document, Group, Query


class GroupRecord(NamedTuple):
    """One record: its group, its query if the text is there, and the ids dropped.

    `dropped` counts the ids that were left out because they repeat, or are both positive and negative.
    """

    group: Group
    query: Query | None = None
    dropped: int = 0


def as_object(record: Any) -> dict[str, Any]:
    """Return an item of a JSON array, which must be an object."""
    if not isinstance(record, dict):
        raise MalformedError(f"found a JSON {type(record).__name__}; expected objects in the array.")
    return record


def group_record(record: dict[str, Any]) -> GroupRecord:
    """Read a group in any of the layouts, recognised by its fields."""
    for field in ("passages", "document_ids"):
        if record.get(f"positive_{field}") is not None:
            return _tevatron(record, field)
    if "positives" in record:
        return GroupRecord(own_group(record))
    found = ", ".join(sorted(record)) or "no field"
    raise MalformedError(
        f"group has no 'positives' field (found: {found}). Expected positives and negatives, or Tevatron's "
        "positive_passages and negative_passages or positive_document_ids and negative_document_ids."
    )


def _tevatron(record: dict[str, Any], field: str) -> GroupRecord:
    """Read a group in Tevatron's layout, leaving out ids that break our rules."""
    query_id = record.get("query_id")
    read = partial(_passage_ids if field == "passages" else _doc_ids, record)
    positives, negatives = read(f"positive_{field}"), read(f"negative_{field}")
    kept = tuple(dict.fromkeys(positives))
    held = set(kept)
    others = tuple(doc_id for doc_id in dict.fromkeys(negatives) if doc_id not in held)
    text = record.get("query") or record.get("query_text")
    query = to_query({"_id": query_id, "text": text}) if text else None
    group = _checked(Group(_query_id(query_id), kept, others))
    return GroupRecord(group, query, len(positives) + len(negatives) - len(kept) - len(others))


def own_group(record: dict[str, Any]) -> Group:
    """Read a group in our own layout, where a repeated id is an error."""
    positives, negatives = _doc_ids(record, "positives"), _doc_ids(record, "negatives")
    group = Group(_query_id(record.get("query_id")), positives, negatives, _scores(record), _grades(record))
    if both := sorted(set(_checked(group).positives) & set(group.negatives)):
        raise MalformedError(
            f"document {both[0]!r} is both positive and negative for query {group.query_id!r}; remove one."
        )
    doc_id, count = Counter(group.positives + group.negatives).most_common(1)[0]
    if count > 1:
        raise MalformedError(
            f"document {doc_id!r} occurs {count} times in the group of query {group.query_id!r}; keep one."
        )
    for field, values in (("scores", group.scores), ("grades", group.grades)):
        if len(values) not in (0, len(positives) + len(negatives)):
            raise MalformedError(
                f"group of query {group.query_id!r} has {len(values)} {field} for {len(positives)} positives and "
                f"{len(negatives)} negatives; expected one for each, in that order."
            )
    lowest = min(group.grades[: len(positives)], default=1)
    if lowest <= max(group.grades[len(positives) :], default=0):
        raise MalformedError(
            f"group of query {group.query_id!r} has a positive of grade {lowest}; expected more than 0, and more than "
            "any negative has."
        )
    return group


def _checked(group: Group) -> Group:
    if not group.positives:
        raise MalformedError(f"group of query {group.query_id!r} has no positive; expected at least one document id.")
    return group


def _query_id(value: Any) -> str:
    if value is None:
        raise MalformedError("group has no 'query_id'; expected the id of its query.")
    return to_id(value, "query")


def _doc_ids(record: dict[str, Any], field: str) -> tuple[str, ...]:
    doc_ids = record.get(field)
    kinds = {type(doc_id) for doc_id in doc_ids} if isinstance(doc_ids, list) else set()
    if not isinstance(doc_ids, list) or not kinds <= {str, int}:
        raise MalformedError(
            f"{field} is {shown(doc_ids)}; expected a list of document ids, each a string or a whole number."
        )
    return tuple(map(intern, map(str, doc_ids) if int in kinds else doc_ids))


def _scores(record: dict[str, Any]) -> tuple[float, ...]:
    scores = record.get("scores") or []
    if not isinstance(scores, list) or not all(type(s) in (int, float) and math.isfinite(s) for s in scores):
        raise MalformedError(f"scores is {shown(scores)}; expected a list of numbers.")
    return tuple(map(float, scores))


def _grades(record: dict[str, Any]) -> tuple[int, ...]:
    grades = record.get("grades") or []
    if not isinstance(grades, list) or not all(type(g) in (int, float) and g >= 0 and g % 1 == 0 for g in grades):
        raise MalformedError(f"grades is {shown(grades)}; expected a list of whole numbers from 0.")
    return tuple(map(to_grade, grades))


def _passage_ids(record: dict[str, Any], field: str) -> tuple[str, ...]:
    passages = record.get(field)
    if not isinstance(passages, list) or not all(isinstance(passage, dict) for passage in passages):
        raise MalformedError(f"{field} is not a list of passages; expected objects with docid, title and text.")
    return _doc_ids({f"docid in {field}": [passage.get("docid") for passage in passages]}, f"docid in {field}")


def carried_passages(record: dict[str, Any]) -> list[Document]:
    """Read the documents whose texts a group of Tevatron's carries."""
    passages = chain(*(record.get(f"{kind}_passages") or () for kind in ("positive", "negative")))
    return [to_document(passage) for passage in passages]
