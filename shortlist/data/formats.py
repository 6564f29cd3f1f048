"""Readers and writers of documents, queries and judgements in the field's usual formats.

Every file may be gzipped (.gz). A line that cannot be read is a UserError that names the file and the line.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any

from shortlist.data.files import atomic_write
from shortlist.data.lines import MalformedError, OnBad, numbered_lines, parse_json, parse_lines, to_text
from shortlist.data.seen import checked
from shortlist.errors import UserError
from shortlist.records import Document, Qrels, Query, each_document, each_query

SPACE = re.compile(r"[\s\ufeff]")
"""White space of any script, at which some reader of run files splits, and the byte order mark."""


def _column(record: Mapping[str, Any], kind: str, *names: str) -> Any:
    """Return the value under the first of `names` that the record has."""
    for name in names:
        if (value := record.get(name)) is not None:
            return value
    if empty := next((name for name in names if name in record), None):
        raise MalformedError(f"the {empty!r} of the {kind} is null; expected a value, or leave the {kind} out.")
    found = ", ".join(sorted(record)) or "no field"
    raise MalformedError(
        f"{kind} has no {names[0]!r} field (found: {found}). Expected {' or '.join(map(repr, names))}."
    )


def to_id(value: Any, kind: str) -> str:
    """Return an id as text; whole numbers are ids too.

    Raises:
        MalformedError: it is empty or holds white space, at which runs are split.
    """
    text = str(value) if type(value) is int else to_text(value, f"{kind} id")
    if not text.isalnum() and (not text or SPACE.search(text)):  # the cheapest test first
        raise MalformedError(
            f"{kind} id {text!r} is empty or holds white space, which a run file cannot express; rename it."
        )
    return text


def to_document(record: Mapping[str, Any]) -> Document:
    """Read a document from a BEIR (`_id`, `title`, `text`) or Tevatron (`docid`, `title`, `text`) record.

    The text must be there but may be empty: published collections hold such documents, and leaving them out would
    change their scores.
    """
    return Document(
        to_id(_column(record, "document", "_id", "docid", "doc_id", "id"), "document"),
        to_text(_column(record, "document", "text"), "document text"),
        to_text(record.get("title") or "", "document title"),
        to_text(record.get("url") or "", "document url"),
        to_metadata(record.get("metadata")),
    )


def to_metadata(value: Any) -> Mapping[str, Any]:
    """Return the metadata of a document, which may be missing.

    Raises:
        MalformedError: it is no object with fields.
    """
    if isinstance(value, dict):
        return value
    if value is None:
        return {}
    raise MalformedError(f"the metadata of the document is a {type(value).__name__}; expected an object with fields.")


def full_text(document: Document) -> str:
    """Join title and text."""
    return f"{document.title} {document.text}".strip()


def to_query(record: Mapping[str, Any]) -> Query:
    """Read a query from a BEIR (`_id`, `text`) or Tevatron (`query_id`, `query`) record."""
    return _query(
        _column(record, "query", "_id", "query_id", "qid", "id"),
        _column(record, "query", "text", "query", "query_text"),
    )


def _query(query_id: Any, text: Any) -> Query:
    query = Query(to_id(query_id, "query"), to_text(text, "query text"))
    if not query.text.strip():
        raise MalformedError(f"query {query.query_id!r} has no text; expected at least one word.")
    return query


def document_parser(path: Path) -> Callable[[str], Document]:
    """Return the function that turns a line of this corpus into a Document.

    `.jsonl` holds objects as in `to_document`; `.tsv` and `.txt` hold `id, text` or `id, url, title, text` (MS MARCO
    passages or documents), with the same columns on every line. Files named msmarco_v2_* hold objects with other
    fields.
    """
    if path.name.startswith("msmarco_v2_"):
        return lambda line: _document_of_msmarco_v2(parse_json(line))
    if _is_json(path):
        return lambda line: to_document(parse_json(line))
    counts = (line.count("\t") + 1 for _, _, line in numbered_lines(path, on_bad=lambda _: None))
    return partial(_document_from_columns, count=next((count for count in counts if count in (2, 4)), 2))


def _document_of_msmarco_v2(record: Mapping[str, Any]) -> Document:
    """Read an MS MARCO v2 passage or document.

    A passage has `pid` and `passage` (its `docid` is the document it is from); a document has `docid`, `title` and
    `body`.
    """
    doc_id, text = _column(record, "document", "pid", "docid"), _column(record, "document", "passage", "body")
    return to_document({"_id": doc_id, "text": text, "title": record.get("title"), "url": record.get("url")})


def _document_from_columns(line: str, count: int) -> Document:
    columns = line.split("\t")
    if len(columns) != count:
        expected = "2 (id, text) or 4 (id, url, title, text), the same on every line"
        raise MalformedError(f"found {len(columns)} tab-separated columns; expected {expected}.")
    doc_id, text = to_id(columns[0], "document"), columns[-1]
    return Document(doc_id, text, title=columns[2], url=columns[1]) if count == 4 else Document(doc_id, text)


def _query_from_columns(line: str) -> Query:
    columns = line.split("\t")
    if len(columns) != 2:
        raise MalformedError(f"found {len(columns)} tab-separated columns; expected 2 (id, text).")
    return _query(*columns)


def _is_json(path: Path) -> bool:
    name = path.name.removesuffix(".gz")
    if not name.endswith((".jsonl", ".json", ".tsv", ".txt")):
        raise UserError(f"{path}: cannot tell the format from the name; expected .jsonl, .tsv or .txt (and .gz).")
    return name.endswith((".jsonl", ".json"))


def _located(path: Path, on_bad: OnBad | None, *, allow_empty: bool) -> Iterator[tuple[int, Document]]:
    """Yield (byte at which its line starts, document).

    Ids must be unique, and there must be at least one document.
    """
    start = None
    for _, start, document in parse_lines(path, checked(document_parser(path), allow_empty=allow_empty), on_bad):
        yield start, document
    if start is None:
        raise no_documents(path)


def no_documents(path: Path) -> UserError:
    """Return the error that a file holds no documents."""
    return UserError(f"{path}: holds no documents; expected one per line.")


def read_corpus(path: Path, on_bad: OnBad | None = None, *, allow_empty: bool = True) -> Iterator[Document]:
    """Yield the documents of a JSONL or TSV file (see `document_parser`), in file order.

    Args:
        on_bad: called with a message for each line that cannot be used, also where an id occurs a second time; the line
            is left out.
        allow_empty: False where a document with neither title nor text cannot be used.

    Raises:
        UserError: a line that cannot be used, without `on_bad`; no document at all; a file that cannot be read.
    """
    return (document for _, document in _located(path, on_bad, allow_empty=allow_empty))


def corpus_offsets(path: Path) -> dict[str, int]:
    """Map each document id to the byte at which its line starts.

    This gives random access without holding texts in memory.
    """
    return {document.doc_id: start for start, document in _located(path, None, allow_empty=True)}


def read_queries(path: Path, on_bad: OnBad | None = None) -> list[Query]:
    """Read the queries of a JSONL or TSV file, in file order.

    JSONL lines are read by `to_query`; TSV lines hold `id, text`.

    Args:
        on_bad: called with a message for each malformed line, and each query without text, which is left out.

    Raises:
        UserError: a malformed line or a query without text, without `on_bad`; an id that occurs twice, no query at all.
    """
    queries: dict[str, Query] = {}
    for number, _, query in parse_lines(path, query_parser(path), on_bad):
        if query.query_id in queries:
            raise UserError(f"{path}:{number}: query id {query.query_id!r} occurs twice; every id must occur once.")
        queries[query.query_id] = query
    if not queries:
        raise UserError(f"{path}: holds no queries; expected one per line.")
    return list(queries.values())


def query_parser(path: Path) -> Callable[[str], Query]:
    """Return the function that turns a line of this file of queries into a Query."""
    return (lambda line: to_query(parse_json(line))) if _is_json(path) else _query_from_columns


def write_corpus(path: Path, documents: str | Document | Iterable[str | Document]) -> None:
    """Write documents as BEIR JSONL: `_id`, `title`, `text`, and any `url` and `metadata`.

    Texts get their positions as ids.
    """
    with atomic_write(path) as file:
        for document in each_document(documents):
            file.write(document_line(document))


def document_line(document: Document) -> str:
    """Return a document's line in a corpus, with its end."""
    record: dict[str, Any] = {"_id": document.doc_id, "title": document.title, "text": document.text}
    record |= {"url": document.url} if document.url else {}
    record |= {"metadata": document.metadata} if document.metadata else {}
    return json.dumps(record, ensure_ascii=False) + "\n"


def write_queries(path: Path, queries: str | Query | Iterable[str | Query]) -> None:
    """Write queries as BEIR JSONL: `_id`, `text`.

    Texts get their positions as ids.
    """
    with atomic_write(path) as file:
        for query in each_query(queries):
            file.write(json.dumps({"_id": query.query_id, "text": query.text}, ensure_ascii=False) + "\n")


def read_qrels(path: Path) -> Qrels:
    """Read the judgements of a TREC or BEIR file.

    A TREC line is `query 0 document relevance`; a BEIR file has a header and lines `query document relevance`. A
    relevance may be written 1.0.

    Raises:
        UserError: a malformed line, two different judgements of one pair, no judgement at all.
    """
    qrels: Qrels = {}
    for number, _, columns in _judgement_lines(path):
        try:
            add_judgement(qrels, *_judgement(columns))
        except MalformedError as error:
            raise UserError(f"{path}:{number}: {error}") from None
    if not qrels:
        raise UserError(f"{path}: holds no judgements; expected one per line.")
    return qrels


def _judgement_lines(path: Path) -> Iterator[tuple[int, int, list[str]]]:
    """Yield (line number, start byte, columns) of each judgement in a file."""
    for number, start, columns in parse_lines(path, _judgement_columns):
        if not (number == 1 and len(columns) == 3 and not is_number(columns[2])):
            yield number, start, columns


def located_judgements(path: Path) -> Iterator[tuple[int, tuple[str, str, int]]]:
    """Yield (start byte of its line, (query id, document id, relevance)) of each judgement.

    Raises:
        UserError: a malformed line.
    """
    for number, start, columns in _judgement_lines(path):
        try:
            yield start, _judgement(columns)
        except MalformedError as error:
            raise UserError(f"{path}:{number}: {error}") from None


def to_judged(line: str) -> tuple[str, str, int]:
    """Read the query id, the document id and the relevance of a line of judgements."""
    return _judgement(_judgement_columns(line))


def to_relevant(line: str) -> tuple[str, str]:
    """Read the query id and the document id of a line of judgements."""
    return to_judged(line)[:2]


def add_judgement(qrels: Qrels, query_id: str, doc_id: str, relevance: int) -> None:
    """Put one judgement into `qrels`.

    Raises:
        MalformedError: the pair already has another relevance.
    """
    before = qrels.setdefault(query_id, {}).setdefault(doc_id, relevance)
    if before != relevance:
        pair = f"query {query_id!r}, document {doc_id!r}"
        raise MalformedError(f"{pair} is judged {relevance}, but {before} further up; keep one of the two.")


def to_judgement(record: Mapping[str, Any]) -> tuple[str, str, int]:
    """Read a judgement from a BEIR record (`query-id`, `corpus-id`, `score`).

    Returns:
        Query id, document id and relevance.
    """
    relevance = to_grade(_column(record, "judgement", "score", "relevance"))
    return (
        to_id(_column(record, "judgement", "query-id", "query_id"), "query"),
        to_id(_column(record, "judgement", "corpus-id", "doc_id", "docid"), "document"),
        relevance,
    )


def to_grade(value: Any) -> int:
    """Return a relevance as a whole number; 1.0 is one.

    Raises:
        MalformedError: it is no whole number.
    """
    if type(value) is int or (type(value) is float and value.is_integer()):
        return int(value)
    raise MalformedError(f"relevance is {value!r}; expected a whole number.")


def _judgement_columns(line: str) -> list[str]:
    """Split a line of judgements at tabs, or otherwise at any white space."""
    columns = [column.strip(" \r") for column in line.split("\t")]
    return columns if len(columns) in (3, 4) and all(columns) and " " not in columns[-1] else split_columns(line)


def split_columns(line: str) -> list[str]:
    """Split a line into columns at spaces and tabs, any number of them."""
    return re.split("[ \t]+", line.strip(" \t\r"))


def is_integer(text: str) -> bool:
    """Whether a text is a whole number."""
    return re.fullmatch("[+-]?[0-9]+", text) is not None


def is_number(text: str) -> bool:
    """Whether a text is a finite number."""
    try:
        return isfinite(float(text))
    except ValueError:
        return False


def _judgement(columns: list[str]) -> tuple[str, str, int]:
    if len(columns) not in (3, 4):
        expected = "4 (query 0 document relevance) or 3 (query document relevance)"
        raise MalformedError(f"found {len(columns)} columns; expected {expected}.")
    if not is_integer(columns[-1]) and not (is_number(columns[-1]) and float(columns[-1]).is_integer()):
        raise MalformedError(f"relevance is {columns[-1]!r}; expected a whole number in the last column.")
    query_id, doc_id = map(_unquoted, (columns[0], columns[1])) if len(columns) == 3 else (columns[0], columns[2])
    if not (query_id + doc_id).isalnum():
        query_id, doc_id = to_id(query_id, "query"), to_id(doc_id, "document")
    return query_id, doc_id, int(columns[-1]) if is_integer(columns[-1]) else int(float(columns[-1]))


def _unquoted(column: str) -> str:
    """Undo the quoting of a column of a BEIR file.

    A column that holds a quote may be quoted, with every quote inside it doubled.
    """
    quoted = '""' in column and re.fullmatch('"(?:[^"]|"")+"', column)
    return column[1:-1].replace('""', '"') if quoted else column


def write_qrels(path: Path, qrels: Qrels) -> None:
    """Write judgements as BEIR TSV with its header."""
    with atomic_write(path) as file:
        file.write("query-id\tcorpus-id\tscore\n")
        for query_id, judgements in qrels.items():
            file.writelines(f"{query_id}\t{doc_id}\t{relevance}\n" for doc_id, relevance in judgements.items())
