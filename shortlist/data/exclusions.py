"""Lists of documents that a query may not find, such as BRIGHT's `excluded_ids`."""

import json
from collections.abc import Iterable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa

from shortlist.data.files import atomic_write
from shortlist.data.formats import is_integer, split_columns
from shortlist.data.hub import HubCollection
from shortlist.data.hub_layouts import EXCLUDES_NONE, divide_name
from shortlist.data.lines import MalformedError, parse_json, parse_lines
from shortlist.data.manifest import identity
from shortlist.data.runs import RunColumns, Ties, read_run_columns
from shortlist.errors import UserError
from shortlist.progress import say
from shortlist.records import Hit
from shortlist.text.segments import document_of

T = TypeVar("T")

Exclusions = Mapping[str, frozenset[str]]
"""query_id -> ids of documents that never appear and never count."""
NO_EXCLUSIONS: Exclusions = {}
EXCLUDE = "exclude"
"""Folder of a collection with such lists, one file for each split."""


def read_exclusions(path: Path) -> dict[str, frozenset[str]]:
    """Read lines `query document`, or JSON lines with the query's `id` and its `excluded_ids`.

    Raises:
        UserError: there is no such file, or a malformed line.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected lines `query document`, or BRIGHT's examples as JSON lines.")
    found: dict[str, set[str]] = {}
    for number, _, (query_id, doc_ids) in parse_lines(path, _parsed):
        if (number, query_id, doc_ids) != (1, "query-id", ["corpus-id"]):
            found.setdefault(query_id, set()).update(doc_ids)
    kept = {query_id: frozenset(doc_ids - {EXCLUDES_NONE}) for query_id, doc_ids in found.items()}
    return {query_id: doc_ids for query_id, doc_ids in kept.items() if doc_ids}


def _parsed(line: str) -> tuple[str, list[str]]:
    if line.lstrip().startswith("{"):
        return _of_record(parse_json(line))
    columns = split_columns(line)
    if len(columns) == 4 and is_integer(columns[3]):
        raise MalformedError("found judgements (query 0 document relevance); expected 2 columns, query and document.")
    if len(columns) != 2:
        raise MalformedError(f"found {len(columns)} columns; expected 2, query and document.")
    return columns[0], columns[1:]


def _of_record(record: Mapping[str, Any]) -> tuple[str, list[str]]:
    query_id = next((record[name] for name in ("_id", "id", "query-id", "query_id") if name in record), None)
    doc_ids = record.get("excluded_ids")
    if query_id is None or not isinstance(doc_ids, list) or not all(isinstance(doc_id, str) for doc_id in doc_ids):
        raise MalformedError(f"has {', '.join(sorted(record))}; expected an id, and excluded_ids: a list of texts.")
    return str(query_id), doc_ids


def write_exclusions(path: Path, exclusions: Exclusions) -> None:
    """Write JSON lines that `read_exclusions` reads."""
    with atomic_write(path) as file:
        for query_id, doc_ids in exclusions.items():
            file.write(json.dumps({"id": query_id, "excluded_ids": sorted(doc_ids)}, ensure_ascii=False) + "\n")


class Excluded(NamedTuple):
    """Documents that queries may not find, and where that is written."""

    by_query: Exclusions = NO_EXCLUSIONS
    source: str = ""
    """The file or collection that says so, empty where none does."""
    identity: str = ""

    @property
    def inputs(self) -> dict[str, str]:
        """Identity of the list under its setting's name, for jobs that read it."""
        return {"exclude": self.identity} if self.source else {}

    def left_of(self, path: Path, *, ties: Ties) -> RunColumns:
        """Read a run without excluded documents, and say how many hits those were."""
        run, num_excluded = columns_without(read_run_columns(path, ties=ties), self.by_query)
        if num_excluded:
            say(f"{path}: {num_excluded:,} hits do not count, as {self.source} excludes them for their queries.")
        return run


def find_excluded(path: Path | None, collection: str | None, split: str) -> Excluded:
    """Read the named file, or what the collection says itself.

    A folder may hold `exclude/SPLIT.tsv` or `exclude/SPLIT.jsonl`; BRIGHT's tasks on the hub have such lists.

    Raises:
        UserError: as for `read_exclusions`, or a task of BRIGHT that cannot be read.
    """
    if path is None and collection is not None:
        if (name := collection.removeprefix("hf:")) != collection:
            return _of_task(name, split) if divide_name(name).task else Excluded()
        names = (Path(collection) / EXCLUDE / f"{split}.{ending}" for ending in ("tsv", "jsonl"))
        path = next((name for name in names if name.is_file()), None)
    return Excluded() if path is None else Excluded(read_exclusions(path), str(path), identity(path))


def _of_task(name: str, split: str) -> Excluded:
    listed = HubCollection(name).excluded(split)
    by_query = {query_id: frozenset(doc_ids) for query_id, doc_ids in listed.items()}
    return (
        Excluded(by_query, f"hf:{name}", sha256(repr(sorted(listed.items())).encode()).hexdigest())
        if listed
        else Excluded()
    )


def is_excluded(doc_id: str, excluded: frozenset[str]) -> bool:
    """Whether a document, or the document of a chunk, is excluded."""
    return doc_id in excluded or document_of(doc_id) in excluded


def without_excluded(hits: list[Hit], excluded: frozenset[str]) -> list[Hit]:
    """Leave out a query's excluded documents."""
    return [hit for hit in hits if not is_excluded(hit.doc_id, excluded)] if excluded else hits


def columns_without(run: RunColumns, exclusions: Exclusions) -> tuple[RunColumns, int]:
    """Leave excluded documents out of a run, and count them."""
    keep = np.ones(len(run.doc_ids), dtype=bool)
    for number, query_id in enumerate(run.query_ids):
        if excluded := exclusions.get(query_id):
            start, end = run.starts[number], run.starts[number + 1]
            keep[start:end] = [not is_excluded(doc_id, excluded) for doc_id in run.doc_ids[start:end].to_pylist()]
    gone = np.concatenate([[0], np.cumsum(~keep)])
    if not gone[-1]:
        return run, 0
    left = RunColumns(
        run.query_ids, run.starts - gone[run.starts], run.doc_ids.filter(pa.array(keep)), run.scores[keep]
    )
    return left, int(gone[-1])


def judged_without(judged: Mapping[str, Mapping[str, T]], exclusions: Exclusions) -> dict[str, dict[str, T]]:
    """Leave out judgements of excluded documents, and queries without any other.

    Args:
        judged: grades, or whatever is known of documents, by query and document.
    """
    found = {
        query_id: {doc_id: value for doc_id, value in docs.items() if not is_excluded(doc_id, excluded)}
        for query_id, docs in judged.items()
        for excluded in [exclusions.get(query_id, frozenset())]
    }
    return {query_id: docs for query_id, docs in found.items() if docs}


def with_chunks(exclusions: Exclusions, doc_ids: Iterable[str]) -> Exclusions:
    """Name the chunks of excluded documents too.

    Args:
        doc_ids: ids of the whole collection; not looked at where nothing is excluded.
    """
    if not exclusions:
        return exclusions
    chunks: dict[str, list[str]] = {}
    for doc_id in doc_ids:
        if (whole := document_of(doc_id)) != doc_id:
            chunks.setdefault(whole, []).append(doc_id)
    return {
        query_id: excluded.union(*(chunks.get(doc_id, ()) for doc_id in excluded))
        for query_id, excluded in exclusions.items()
    }
