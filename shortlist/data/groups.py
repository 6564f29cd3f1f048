"""Training groups as JSONL: one query, the documents that answer it and the ones that do not, all by id."""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from shortlist.data.files import atomic_write
from shortlist.data.lines import MalformedError, parse_json, read_lines
from shortlist.errors import UserError
from shortlist.records import Group, Qrels


def read_groups(path: Path) -> list[Group]:
    """The groups of a file of `{"query_id", "positives", "negatives"}` lines, in file order.

    Raises:
        UserError: a malformed line, a group without a positive, a document twice in one group, no group at all.
    """
    groups = list(read_lines(path, lambda line: _group(parse_json(line))))
    if not groups:
        raise UserError(f"{path}: holds no groups; expected one per line.")
    return groups


def _group(record: dict[str, Any]) -> Group:
    query_id = record.get("query_id")
    if not isinstance(query_id, str):
        raise MalformedError(f"query_id is {query_id!r}; expected a string.")
    group = Group(query_id, _doc_ids(record, "positives"), _doc_ids(record, "negatives"))
    if not group.positives:
        raise MalformedError(f"group of query {query_id!r} has no positive; expected at least one document id.")
    if both := sorted(set(group.positives) & set(group.negatives)):
        raise MalformedError(f"document {both[0]!r} is both positive and negative for query {query_id!r}; remove one.")
    doc_id, count = Counter(group.positives + group.negatives).most_common(1)[0]
    if count > 1:
        raise MalformedError(f"document {doc_id!r} occurs {count} times in the group of query {query_id!r}; keep one.")
    return group


def _doc_ids(record: dict[str, Any], field: str) -> tuple[str, ...]:
    doc_ids = record.get(field)
    if not isinstance(doc_ids, list) or not all(isinstance(doc_id, str) for doc_id in doc_ids):
        raise MalformedError(f"{field} is {doc_ids!r}; expected a list of document ids, each a string.")
    return tuple(doc_ids)


def write_groups(path: Path, groups: Iterable[Group]) -> None:
    """Write groups as `read_groups` reads them."""
    with atomic_write(path) as file:
        file.writelines(json.dumps(group._asdict(), ensure_ascii=False) + "\n" for group in groups)


def groups_from_qrels(qrels: Qrels, min_relevance: int = 1) -> list[Group]:
    """One group without negatives per query that has a document judged `min_relevance` or higher."""
    positives = {
        query_id: tuple(doc_id for doc_id, relevance in judgements.items() if relevance >= min_relevance)
        for query_id, judgements in qrels.items()
    }
    return [Group(query_id, doc_ids) for query_id, doc_ids in positives.items() if doc_ids]
