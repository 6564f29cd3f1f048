"""Tables and JSON: each row or record is a document."""

import csv
import json
import re
import sys
from collections.abc import Collection, Iterator, Mapping
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from shortlist.data.files import open_bytes
from shortlist.data.formats import to_id
from shortlist.data.lines import MalformedError, parse_json, parse_lines
from shortlist.data.reading.decoding import encoding_of, read_text
from shortlist.data.reading.markdown import plain_fields
from shortlist.data.reading.wholes import SourceFile, Whole
from shortlist.errors import UserError, unknown
from shortlist.text.chunks import Section

USUAL_COLUMNS = {
    "text": ("text", "body", "content", "contents", "passage"),
    "title": ("title", "name", "headline", "subject"),
    "id": ("_id",),
    "url": ("url", "link"),
}
"""Names that a column usually has, in any case, by what it holds."""

CSV_DELIMITERS = (",", ";", "\t", "|")
NUMBER = re.compile(r"-?(?:0|[1-9]\d{0,14})(\.\d{1,15})?", re.ASCII)
"""A number as people write it; what begins with more zeros, such as an article number, stays a text."""


def parse_table_columns(words: Collection[str]) -> dict[str, str]:
    """Parse `--columns`: words such as `text=body` become {"text": "body"}.

    Raises:
        UserError: a word of another form, an unknown kind of column, a kind that occurs twice.
    """
    given: dict[str, str] = {}
    for word in words:
        kind, _, name = word.partition("=")
        if not name:
            raise UserError(f"--columns {word}: expected KIND=NAME, such as text=body.")
        if kind not in USUAL_COLUMNS:
            raise UserError(f"--columns {word}: {unknown('column', kind, USUAL_COLUMNS)}")
        if kind in given:
            raise UserError(f"--columns {word}: {kind} occurs before; expected it once.")
        given[kind] = name
    return given


def find_table_columns(file: SourceFile, names: Collection[str]) -> dict[str, str]:
    """Find a table's columns by names that the user gives, or by usual ones.

    Raises:
        UserError: a column that the user gives is not there.
    """
    for name in file.columns.values():
        if name not in names:
            raise UserError(f"{file.path}: --columns: {unknown('column', name, names)}")
    columns = dict(file.columns)
    for kind, usual in USUAL_COLUMNS.items():
        found = [name for name in names if name.casefold() in usual and name not in columns.values()]
        if kind not in columns and found:
            columns[kind] = min(found, key=lambda name: usual.index(name.casefold()))
    return columns


def to_whole(record: Mapping[str, Any], columns: Mapping[str, str], name: str) -> Whole:
    """Make a document of a row.

    The other columns are its metadata. Without a column of texts, the text is all of them, a line each.

    Raises:
        MalformedError: its text is none, or its id cannot be one.
    """
    fields = plain_fields({name: value for name, value in record.items() if name not in columns.values()})
    if "text" in columns:
        text = record.get(columns["text"])
        if not isinstance(text, str):
            raise MalformedError(f"the column {columns['text']!r} holds {text!r:.60}; expected a text.")
    else:
        text = "\n".join(f"{name}: {_shown(value)}" for name, value in fields.items() if value != "")
    doc_id = to_id(_value(record, columns, "id"), "document") if "id" in columns else ""
    title, url = (str(_value(record, columns, kind) or "") for kind in ("title", "url"))
    metadata = {name: value for name, value in fields.items() if value != ""}
    return Whole([Section(text)] if text.strip() else [], title, name, doc_id, url, metadata)


def _value(record: Mapping[str, Any], columns: Mapping[str, str], kind: str) -> Any:
    return record.get(columns[kind]) if kind in columns else None


def _shown(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def read_csv(file: SourceFile) -> Iterator[Whole]:
    """Yield each row of a table with a header, quoted as in CSV."""
    csv.field_size_limit(sys.maxsize)  # for the whole process; the default refuses texts over 128 KiB
    with open_bytes(file.path) as raw, TextIOWrapper(raw, encoding_of(file.path), newline="") as text:
        start = text.readline()
        delimiter = "\t" if _ending(file.path) == ".tsv" else max(CSV_DELIMITERS, key=start.count)
        names = next(csv.reader([start], delimiter=delimiter), [])
        names = [name.removeprefix("\ufeff").strip() for name in names]
        if not start.strip() or len({*names}) < len(names):
            raise MalformedError("has no header, or one with the same name twice; expected a name for each column.")
        columns = find_table_columns(file, names)
        rows = csv.reader(text, delimiter=delimiter)
        try:
            for number, row in enumerate((row for row in rows if row), 1):
                try:
                    yield to_whole(_typed(names, row, columns), columns, str(number))
                except MalformedError as error:
                    file.on_bad(f"{file.path}:{rows.line_num + 1}: {error}")
        except csv.Error as error:
            raise MalformedError(f"line {rows.line_num + 1}: {error}; mend the quotes there.") from None


def _ending(path: Path) -> str:
    return Path(path.name.removesuffix(".gz")).suffix.lower()


def _typed(names: list[str], row: list[str], columns: Mapping[str, str]) -> dict[str, Any]:
    """Return the fields of a row, with numbers as numbers outside the columns of text."""
    if len(row) != len(names):
        raise MalformedError(f"has {len(row)} columns; expected the {len(names)} of the header.")
    record: dict[str, Any] = dict(zip(names, row, strict=True))
    for name in record.keys() - columns.values():
        if (found := NUMBER.fullmatch(record[name])) is not None:
            record[name] = float(record[name]) if found[1] else int(record[name])
    return record


def read_parquet(file: SourceFile) -> Iterator[Whole]:
    """Yield each row of a Parquet file."""
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(file.path) as table:
            columns = find_table_columns(file, table.schema_arrow.names)
            number = 0
            for batch in table.iter_batches(batch_size=1000):
                for record in batch.to_pylist():
                    number += 1
                    try:
                        yield to_whole(record, columns, str(number))
                    except MalformedError as error:
                        file.on_bad(f"{file.path}: row {number:,}: {error}")
    except (pyarrow.ArrowException, OSError) as error:
        raise MalformedError(f"is not a whole parquet file ({str(error).splitlines()[0]}); fetch it again.") from None


def read_jsonl(file: SourceFile) -> Iterator[Whole]:
    """Yield each line, which is a JSON object."""
    columns: dict[str, str] | None = None
    for number, _, record in parse_lines(file.path, parse_json, file.on_bad):
        if columns is None:
            columns = find_table_columns(file, record)
        try:
            yield to_whole(record, columns, str(number))
        except MalformedError as error:
            file.on_bad(f"{file.path}:{number}: {error}")


def read_json_records(file: SourceFile) -> Iterator[Whole]:
    """Yield each object of an array, or the only object, which is the file's document."""
    text, _ = read_text(file.path)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise MalformedError(f"is not JSON ({error}); mend it, or call it .jsonl if each line is an object.") from None
    records = value if isinstance(value, list) else [value]
    if not all(isinstance(record, dict) for record in records):
        raise MalformedError("holds something beside objects; expected an object, or an array of objects.")
    columns = find_table_columns(file, records[0]) if records else {}
    for number, record in enumerate(records, 1):
        try:
            yield to_whole(record, columns, "" if record is value else str(number))
        except MalformedError as error:
            file.on_bad(f"{file.path}: object {number:,}: {error}")
