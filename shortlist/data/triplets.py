"""Training data without ids, read into groups.

The layouts are known from sentence-transformers, FlagEmbedding and MS MARCO. A text's id is made from its hash, so a
text that comes again is the same query or document.
"""

import csv
import json
import re
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from hashlib import blake2b
from itertools import chain
from pathlib import Path
from sys import intern
from typing import Any, Literal, NamedTuple, TypeVar

from shortlist.data.files import open_bytes, open_text
from shortlist.data.formats import SPACE
from shortlist.data.hub import hub_rows
from shortlist.data.lines import (
    MalformedError,
    begins_array,
    parse_json,
    parse_records,
    read_array,
    read_lines,
    to_text,
)
from shortlist.errors import UserError
from shortlist.progress import say
from shortlist.records import Document, Group, Query

T = TypeVar("T")

Layout = Literal["groups", "passages", "id triples", "texts"]
"""Groups by id (ours or Tevatron's), Tevatron's with texts, MS MARCO's triples of ids, and texts alone."""

DELIMITERS = ("\t", ",", ";")
QUERY = ("anchor", "query")
POSITIVE = ("positive", "pos")
NEGATIVE = re.compile(r"neg|negatives?|negative_\d+")
ID_BYTES = 10
"""Bytes of the hash that is a text's id: two of a billion texts share one with a chance of 1 in a million."""

_KNOWN = (
    "positives and negatives (shortlist); positive_passages, or positive_document_ids (Tevatron); anchor or query, and "
    "positive (sentence-transformers); query and pos (FlagEmbedding); or a click log, with --as clicks"
)


class TrainingRecord(NamedTuple):
    """One record: a query with its positives and negatives.

    All of them are texts, or all of them are ids.
    """

    query: str
    positives: list[str]
    negatives: list[str]


def layout_of(name: str) -> Layout:
    """Return the layout of the first record of a file or of `hf:ID`.

    Raises:
        UserError: there is no record, or it has none of the layouts.
    """
    layout = next(read_rows(name, _layout), None)
    if layout is None:
        raise UserError(f"{name}: holds no records; expected at least one.")
    return layout


def read_examples(name: str) -> Iterator[TrainingRecord]:
    """Yield the records of a file or of `hf:ID`.

    The layout must be `texts` or `id triples`.

    Raises:
        UserError: the source cannot be read, a record that holds no query or no positive, no record at all.
    """
    return read_rows(name, _id_triple if layout_of(name) == "id triples" else _example)


def collect(examples: Iterable[TrainingRecord], *, by_id: bool = False) -> tuple[list[Group], dict[str, Query]]:
    """Make one group per query; return the groups and the queries.

    Groups come in the order in which queries first occur; with `by_id` there are no queries. Ids are in memory, 8 bytes
    per negative, and the texts of queries, but not the texts of documents. A document that is positive and negative for
    one query is left out of its negatives; the number of such documents is reported.
    """
    name_of: Callable[[str], str] = intern if by_id else text_id
    queries: dict[str, Query] = {}
    answers: dict[str, tuple[dict[str, None], list[str]]] = {}
    for example in examples:
        query_id = name_of(example.query)
        if not by_id:
            queries.setdefault(query_id, Query(query_id, example.query))
        positives, negatives = answers.setdefault(query_id, ({}, []))
        positives.update(dict.fromkeys(map(name_of, example.positives)))
        negatives += map(name_of, example.negatives)
    groups, both = [], 0
    for query_id, (positives, negatives) in answers.items():
        distinct = dict.fromkeys(negatives)
        kept = tuple(doc_id for doc_id in distinct if doc_id not in positives)
        both += len(distinct) - len(kept)
        groups.append(Group(query_id, tuple(positives), kept))
    if both:
        say(f"left out {both:,} negatives that are positives of the same query.")
    return groups, queries


def read_documents(name: str) -> Iterator[Document]:
    """Yield the documents of a source with layout `texts`, repetitions included."""
    for example in read_examples(name):
        for text in chain(example.positives, example.negatives):
            yield Document(text_id(text), text)


def text_id(text: str) -> str:
    """Return the id of a text that comes without one."""
    return intern(blake2b(text.encode(), digest_size=ID_BYTES).hexdigest())


def is_header(names: Collection[str]) -> bool:
    """Whether a table's first line names the columns of training data."""
    return not set(QUERY).isdisjoint(names) and not set(POSITIVE).isdisjoint(names)


def may_be_training(record: Any) -> bool:
    """Whether a record has one of the layouts of training data."""
    try:
        _layout(record)
    except MalformedError:
        return False
    return True


def read_rows(
    name: str,
    parse: Callable[[Any], T],
    is_header: Callable[[Collection[str]], bool] = is_header,
    *,
    headed: bool = False,
) -> Iterator[T]:
    """Yield `parse` of each record of a file or of `hf:ID`.

    A record is a dict by field or column, a list (JSON), or a tuple (columns without a header).

    Args:
        is_header: whether the words of a first line are the names of columns.
        headed: every table has a header, whatever its columns are called.

    Raises:
        UserError: the source cannot be read, or `parse` raised MalformedError.
    """
    if name.startswith("hf:"):
        return parse_records(name, hub_rows(name.removeprefix("hf:")), parse)
    path = Path(name)
    with open_bytes(path) as file:
        if file.read(4) == b"PAR1":
            return parse_records(name, _parquet_rows(path), parse)
    first = next(read_lines(path, str), "")
    if begins_array(first):
        return parse_records(name, read_array(path), parse)
    if first.lstrip()[:1] in ("{", "["):
        return read_lines(path, lambda line: parse(_parse(line)))
    for delimiter in DELIMITERS:
        names = {name.strip('"') for name in first.split(delimiter)}
        if is_header(names):
            return _table(path, delimiter, parse)
    if headed or path.name.removesuffix(".gz").endswith(".csv"):
        return _table(path, max(DELIMITERS, key=first.count), parse)
    return read_lines(path, lambda line: parse(tuple(line.split("\t"))))


def _parse(line: str) -> dict[str, Any] | list[Any]:
    if not line.lstrip().startswith("["):
        return parse_json(line)
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise MalformedError(f"not JSON ({error}); expected one array of texts per line.") from None


def _parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1000):
                yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a whole parquet file ({str(error).splitlines()[0]}); fetch it again.") from None


def _table(path: Path, delimiter: str, parse: Callable[[Any], T]) -> Iterator[T]:
    """Parse the rows of a table with a header.

    They are quoted as in CSV: a text may hold line ends.
    """
    csv.field_size_limit(sys.maxsize)  # for the whole process; the default refuses texts over 128 KiB
    with open_text(path) as file:
        rows = csv.DictReader(file, delimiter=delimiter, strict=True)
        try:
            for row in rows:
                if None in row or None in row.values():
                    raise MalformedError(f"its columns are not the {len(rows.fieldnames or ())} of the header.")
                yield parse(row)
        except (MalformedError, csv.Error) as error:
            raise UserError(f"{path}:{rows.reader.line_num}: {error}") from None


def _layout(record: Any) -> Layout:
    if isinstance(record, dict):
        there = {name for name, value in record.items() if value is not None}
        if "positive_passages" in there:
            return "passages"
        if there & {"positive_document_ids", "positives"}:
            return "groups"
        if there.intersection(QUERY) and there.intersection(POSITIVE):
            return "texts"
        found = ", ".join(sorted(map(str, record))) or "no field"
        raise MalformedError(f"a record of no known layout (found: {found}). Expected {_KNOWN}.")
    if isinstance(record, tuple) and len(record) != 3:
        raise MalformedError(
            f"found {len(record)} tab-separated columns without a header. Expected query, positive and negative, as "
            f"texts or as ids (MS MARCO); or a header or JSON objects with {_KNOWN}."
        )
    by_id = isinstance(record, tuple) and not any(map(SPACE.search, record))
    return "id triples" if by_id else "texts"


def _id_triple(record: tuple[str, ...]) -> TrainingRecord:
    if len(record) != 3 or not all(record) or any(map(SPACE.search, record)):
        raise MalformedError("expected 3 tab-separated ids, query, positive and negative, as on the first line.")
    query_id, positive, negative = record
    return TrainingRecord(query_id, [positive], [negative])


def _example(record: Any) -> TrainingRecord:
    if isinstance(record, dict):
        query = _first(record, QUERY)
        positives = _texts(_first(record, POSITIVE))
        negatives = chain.from_iterable(_texts(value) for name, value in record.items() if NEGATIVE.fullmatch(name))
    elif isinstance(record, tuple) and len(record) != 3:
        raise MalformedError(f"found {len(record)} tab-separated columns; expected query, positive and negative.")
    elif not isinstance(record, list | tuple):
        raise MalformedError(f"found a JSON {type(record).__name__}; expected an object or an array of texts.")
    elif len(record) < 2:
        raise MalformedError(f"found {len(record)} texts; expected query, positive, and negatives if any.")
    else:
        query, positives, negatives = record[0], [record[1]], record[2:]
    kept = [text for text in negatives if text is not None]
    example = TrainingRecord(
        _filled(query, "query"),
        [_filled(text, "positive") for text in positives],
        [text for text in (to_text(text, "negative") for text in kept) if text.strip()],  # blanks fill shorter rows
    )
    if not example.positives:
        raise MalformedError("the query has no positive; expected at least one text.")
    return example


def _first(record: dict[str, Any], names: Iterable[str]) -> Any:
    return next((record[name] for name in names if record.get(name) is not None), None)


def _texts(value: Any) -> list[Any]:
    """Return the texts of a column that may hold one text or a list."""
    return value if isinstance(value, list) else [value]


def _filled(value: Any, kind: str) -> str:
    if not to_text(value, kind).strip():
        raise MalformedError(f"{kind} has no text; expected at least one word.")
    return value
