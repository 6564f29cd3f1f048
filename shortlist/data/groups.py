"""Training groups: a query, documents that answer it and documents that do not, by id."""

import hashlib
import json
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, final

import numpy as np
from jaxtyping import Int, UInt64

from shortlist.data.files import atomic_write, open_bytes
from shortlist.data.group_records import GroupRecord, as_object, carried_passages, group_record, own_group
from shortlist.data.hub import hub_rows
from shortlist.data.lines import (
    BOM,
    begins_array,
    parse_json,
    parse_lines,
    parse_records,
    read_array,
    read_lines,
)
from shortlist.data.manifest import identity
from shortlist.data.stored import StoredGroups, StoredLines, StoredQueries, id_hashes, to_numpy
from shortlist.errors import UserError
from shortlist.progress import say
from shortlist.records import Document, Group, Qrels, Query, Run
from shortlist.text.hashes import text_hash

T = TypeVar("T")

WITHOUT_TEXT = -(1 << 63)
"""Stands for the hash of a query's text where a line has none; Python's hashes are hardly ever this."""

STORED_BYTES = 1 << 26
"""Size from which a plain JSONL file of groups stays on disk, and groups are parsed when asked for."""


class GroupSource(NamedTuple):
    """Training groups with the queries and the identity of their source."""

    groups: Sequence[Group]
    queries: Mapping[str, Query]
    """The queries' texts by id, where the source carries them."""
    identity: str
    """A string that identifies the contents of the source, for manifests."""
    judged: Mapping[str, frozenset[str]] = {}
    """Ids of relevant documents that no group of the query names, where judgements are there too."""


def open_groups(name: str, *, least: int | None = None) -> GroupSource:
    """Read groups by the name they have on the command line.

    Ids that repeat in a group, and negatives that are positives too, are left out and counted.

    A plain JSONL file of 64 MiB or more is checked once and stays on disk: 50 bytes per group are in memory. Of
    others only the ids of Tevatron's passages are kept, each distinct id once in memory: 8 bytes per negative, 110 per
    distinct document and 700 per group with its query, about 2 GB for 500,000 queries with 200 negatives each.

    Args:
        name: a JSONL file of ours or of Tevatron's (gzip too), whose lines hold `positives` and `negatives`,
            `positive_passages` and `negative_passages`, or `positive_document_ids` and `negative_document_ids`; or
            `hf:` and a hub data set, or local folder, whose split `train` (or only split) has those columns.
        least: lowest grade of a positive, as for `regraded` (None: positives are what the groups say). Groups without
            a positive are left out and counted.

    Raises:
        UserError: the source cannot be read, a malformed record, a group without a positive, two texts for one query
            id, no group at all.
    """
    if _stays_on_disk(name):
        groups, queries = _store(Path(name))
    else:
        groups, queries = _collect(_records(name, group_record), name)
    if least is not None:
        groups = _with_positives_from(groups, least, name)
    return GroupSource(groups, queries, contents(groups, queries) if name.startswith("hf:") else identity(name))


def changed_groups(groups: Sequence[Group], change: Callable[[Group], Group | None]) -> Sequence[Group]:
    """Return the groups with each changed, without those that become None.

    Groups on disk stay there, and are changed whenever they are read.
    """
    if isinstance(groups, StoredGroups):
        return groups.changed(change)
    return [changed for group in groups if (changed := change(group)) is not None]


def negative_counts(groups: Sequence[Group]) -> Int[np.ndarray, " groups"]:
    """Return the number of negatives of each group."""
    if isinstance(groups, StoredGroups):
        return groups.negative_counts
    return np.array([len(group.negatives) for group in groups], dtype=np.int32)


def without_query(groups: Sequence[Group], queries: Mapping[str, Query]) -> Int[np.ndarray, " some"]:
    """Return the numbers of the groups whose query is not among these."""
    if isinstance(groups, StoredGroups) and isinstance(queries, StoredQueries):
        return np.flatnonzero(~np.isin(groups.query_hashes, queries.hashes))
    return np.flatnonzero([group.query_id not in queries for group in groups])


def query_text_hashes(groups: Sequence[Group], queries: Mapping[str, Query]) -> UInt64[np.ndarray, " groups"]:
    """Return the hash of each group's query text; equal texts have equal hashes."""
    if isinstance(groups, StoredGroups) and isinstance(queries, StoredQueries):
        return queries.text_hashes(groups.query_hashes)
    return np.fromiter((text_hash(queries[group.query_id].text) for group in groups), dtype=np.uint64)


def asked_by(groups: Sequence[Group], query_ids: Collection[str]) -> set[str]:
    """Find which of the query ids a group has."""
    if isinstance(groups, StoredGroups):
        hashes = id_hashes(query_ids)
        there = np.isin(hashes, groups.query_hashes)
        return {query_id for query_id, found in zip(query_ids, there, strict=True) if found}
    return {group.query_id for group in groups}.intersection(query_ids)


def _stays_on_disk(name: str) -> bool:
    path = Path(name)
    if name.startswith("hf:") or path.suffix == ".gz" or not path.is_file() or path.stat().st_size < STORED_BYTES:
        return False
    with open_bytes(path) as file:  # an array on one line would be read whole
        return not file.read(1 << 10).removeprefix(BOM).lstrip().startswith(b"[")


def _store(path: Path) -> tuple[StoredGroups, Mapping[str, Query]]:
    """Check every line of a file of groups, and note where they are."""
    starts, hashes, counts, texts = array("q"), array("q"), array("i"), array("q")
    told = _Dropped()
    for _, start, (group, query, count) in parse_lines(path, lambda line: group_record(parse_json(line))):
        starts.append(start)
        hashes.append(hash(group.query_id))
        counts.append(len(group.negatives))
        texts.append(hash(query.text) if query else WITHOUT_TEXT)
        told.add(count)
    if not starts:
        raise UserError(f"{path}: holds no groups; expected one per line.")
    told.tell(str(path))
    lines, query_hashes = StoredLines(path, to_numpy(starts)), to_numpy(hashes)
    groups = StoredGroups(
        lines,
        np.arange(len(starts), dtype=np.int32),
        lambda line: group_record(parse_json(line)).group,
        query_hashes=query_hashes,
        negative_counts=to_numpy(counts),
    )
    return groups, _stored_queries(lines, query_hashes, to_numpy(texts))


def _stored_queries(lines: StoredLines, hashes: np.ndarray, texts: np.ndarray) -> Mapping[str, Query]:
    """Find the queries that the lines of groups carry."""
    numbers = np.flatnonzero(texts != WITHOUT_TEXT)
    if not len(numbers):
        return {}
    order = np.lexsort((texts[numbers], hashes[numbers]))
    same = np.diff(hashes[numbers][order]) == 0
    if len(other := np.flatnonzero(same & (np.diff(texts[numbers][order]) != 0))):
        query_id = _query_of(lines[int(numbers[order[other[0]]])]).query_id
        raise UserError(f"{lines.path}: query {query_id!r} has two different texts; give one of them another id.")
    return StoredQueries(lines.some(numbers), _query_of, hashes[numbers])


def _query_of(line: str) -> Query:
    query = group_record(parse_json(line)).query
    assert query is not None  # or the line would not be among those of queries
    return query


def _with_positives_from(groups: Sequence[Group], least: int, name: str) -> Sequence[Group]:
    kept = changed_groups(groups, partial(regraded, least=least))
    if not kept:
        raise UserError(f"{name}: no group has a document of grade {least} or higher; lower --positives-from.")
    if len(kept) < len(groups):
        left = len(groups) - len(kept)
        say(f"{name}: left out {left:,} of {len(groups):,} groups, without a document of grade {least} or higher.")
    return kept


def read_passages(name: str) -> Iterator[Document]:
    """Yield the documents whose texts Tevatron's groups carry, repetitions included.

    The name is as in `open_groups`.

    Raises:
        UserError: the source cannot be read, a passage without id or text.
    """
    return chain.from_iterable(_records(name, carried_passages))


def read_groups(path: Path) -> list[Group]:
    """Read the groups of a JSONL file, in file order.

    A line is `{"query_id", "positives", "negatives"}`, some with `scores` or `grades`.

    Raises:
        UserError: a malformed line, a group without a positive, a document twice in one group, no group at all.
    """
    return _collect(read_lines(path, lambda line: GroupRecord(own_group(parse_json(line)))), str(path))[0]


def _collect(entries: Iterable[GroupRecord], name: str) -> tuple[list[Group], dict[str, Query]]:
    """Collect the groups and queries of a source; report how many ids were left out."""
    groups: list[Group] = []
    queries: dict[str, Query] = {}
    dropped = _Dropped()
    for group, query, count in entries:
        groups.append(group)
        dropped.add(count)
        if query and queries.setdefault(query.query_id, query) != query:
            raise UserError(f"{name}: query {query.query_id!r} has two different texts; give one of them another id.")
    if not groups:
        raise UserError(f"{name}: holds no groups; expected one per line.")
    dropped.tell(name)
    return groups, queries


@final
class _Dropped:
    """Counts the ids that were left out, and their groups."""

    def __init__(self) -> None:
        self._ids = self._groups = 0

    def add(self, count: int) -> None:
        self._ids += count
        self._groups += count > 0

    def tell(self, name: str) -> None:
        if self._ids:
            what = f"{self._ids:,} ids of {self._groups:,} groups"
            say(f"{name}: left out {what}: repeated, or positive and negative at once.")


def _records(name: str, parse: Callable[[dict[str, Any]], T]) -> Iterator[T]:
    """Parse each record of a JSONL file, of a JSON array, or of `hf:ID`."""
    if name.startswith("hf:"):
        return parse_records(name, hub_rows(name.removeprefix("hf:")), parse)
    path = Path(name)
    if begins_array(next(read_lines(path, str), "")):
        return parse_records(name, read_array(path), lambda record: parse(as_object(record)))
    return read_lines(path, lambda line: parse(parse_json(line)))


def contents(groups: Iterable[Group], queries: Mapping[str, Query]) -> str:
    """Hash the groups and queries that were read from an `hf:` name.

    The data set's own fingerprint will not do: it changes with the cache it is read from.
    """
    digest = hashlib.sha256()
    for record in (*groups, *queries.values()):
        values = (*record[:3], *filter(None, record[3:4]))  # scores and, below, grades only where there are any
        grades = [("grades", record.grades)] if isinstance(record, Group) and record.grades else []
        digest.update(repr((*values, *grades)).encode())
    return f"sha256:{digest.hexdigest()}"


def write_groups(path: Path, groups: Iterable[Group]) -> None:
    """Write groups in the format of `read_groups`."""
    with atomic_write(path) as file:
        for group in groups:
            optional = ("scores", "grades")
            record = {name: value for name, value in group._asdict().items() if value or name not in optional}
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def groups_from_qrels(qrels: Qrels, min_relevance: int = 1) -> list[Group]:
    """Make a group per query that has a document judged `min_relevance` or higher.

    The groups have no negatives.
    """
    positives = {
        query_id: tuple(doc_id for doc_id, relevance in judgements.items() if relevance >= min_relevance)
        for query_id, judgements in qrels.items()
    }
    return [graded(Group(query_id, doc_ids), qrels[query_id]) for query_id, doc_ids in positives.items() if doc_ids]


def groups_from_run(run: Run, depth: int) -> list[Group]:
    """Make a group without a positive of each query's first documents in a run.

    The run's scores are those of a teacher.
    """
    first = {query_id: hits[:depth] for query_id, hits in run.items() if hits}
    return [
        Group(query_id, (), tuple(hit.doc_id for hit in hits), tuple(float(hit.score) for hit in hits))
        for query_id, hits in first.items()
    ]


def regraded(group: Group, least: int) -> Group | None:
    """Divide a group anew: documents of grade `least` or higher are its positives.

    All others are negatives. The result is None without a positive. Where the group has no grades, its positives have
    grade 1.
    """
    doc_ids = group.positives + group.negatives
    grades = group.grades or (1,) * len(group.positives) + (0,) * len(group.negatives)
    places = sorted(range(len(doc_ids)), key=lambda place: grades[place] < least)
    count = sum(grade >= least for grade in grades)
    if not count:
        return None
    ordered = tuple(doc_ids[place] for place in places)
    return group._replace(
        positives=ordered[:count],
        negatives=ordered[count:],
        scores=tuple(group.scores[place] for place in places if group.scores),
        grades=tuple(group.grades[place] for place in places if group.grades),
    )


def graded(group: Group, judgements: Mapping[str, int]) -> Group:
    """Return the group with the grades of its documents.

    The group stays as it is where the grades say no more than which documents are positives.
    """
    grades = tuple(max(0, judgements.get(doc_id, 0)) for doc_id in group.positives + group.negatives)
    binary = (1,) * len(group.positives) + (0,) * len(group.negatives)
    return group if grades == binary else group._replace(grades=grades)
