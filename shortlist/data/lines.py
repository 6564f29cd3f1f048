"""Numbered lines of text files, and the error for a line that cannot be read.

Lines are split on "\\n" alone.
"""

import json
import reprlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from shortlist.data.files import open_bytes, open_text
from shortlist.errors import UserError

T = TypeVar("T")
R = TypeVar("R")

OnBad = Callable[[str], None]
"""Called with one line that says which record cannot be used and why; reading goes on if it returns."""

BOM = b"\xef\xbb\xbf"
"""What some editors put before the first line of a UTF-8 file; it is no part of the text."""

_decode = json.JSONDecoder().raw_decode


class MalformedError(ValueError):
    """A fault in one line; `parse_lines` adds the file and the line number."""


def refuse(message: str) -> NoReturn:
    """Raise a UserError: the OnBad that ends the reading."""
    raise UserError(message) from None


def ignore(message: str) -> None:
    """Leave a record out: the OnBad that says nothing."""


def parse_lines(path: Path, parse: Callable[[str], T], on_bad: OnBad | None = None) -> Iterator[tuple[int, int, T]]:
    """Yield (line number, start byte, `parse(line)`) for the lines that are not blank.

    Line numbers start at 1. A byte order mark before the first line is left out. A line that is not UTF-8, or for which
    `parse` raises MalformedError, goes to `on_bad`; without `on_bad` it is a UserError.
    """
    on_bad, start = on_bad or refuse, 0
    with open_bytes(path) as file:
        for number, line in enumerate(file, 1):
            if number == 1 and line.startswith(BOM):
                line, start = line[len(BOM) :], len(BOM)
            if line and not line.isspace():
                try:
                    record = parse(line.decode().rstrip("\r\n"))
                except UnicodeDecodeError as error:
                    where = f"{error.reason} at byte {error.start + 1} of the line"
                    on_bad(f"{path}:{number}: not UTF-8 text ({where}); convert it.")
                except MalformedError as error:
                    on_bad(f"{path}:{number}: {error}")
                else:
                    yield number, start, record
            start += len(line)


def numbered_lines(path: Path, on_bad: OnBad | None = None) -> Iterator[tuple[int, int, str]]:
    """Yield like `parse_lines`, with the line itself, without its end."""
    return parse_lines(path, str, on_bad)


def count_lines(path: Path) -> int:
    """Count the lines that are not blank."""
    with open_bytes(path) as file:
        return sum(not line.removeprefix(BOM).isspace() for line in file)


def read_lines(path: Path, parse: Callable[[str], T]) -> Iterator[T]:
    """Yield `parse(line)` for every line that is not blank.

    Raises:
        UserError: `parse` raised MalformedError, or the file cannot be read.
    """
    return (record for _, _, record in parse_lines(path, parse))


def parse_records(name: str, records: Iterable[R], parse: Callable[[R], T], on_bad: OnBad | None = None) -> Iterator[T]:
    """Yield `parse(record)` for each record.

    A MalformedError goes to `on_bad`, with the record's number; without `on_bad` it is a UserError.
    """
    on_bad = on_bad or refuse
    for number, record in enumerate(records, 1):
        try:
            parsed = parse(record)
        except MalformedError as error:
            on_bad(f"{name}: record {number}: {error}")
        else:
            yield parsed


def parse_json(line: str) -> dict[str, Any]:
    """Parse the JSON object on a line.

    Raises:
        MalformedError: the line is not JSON, not an object, or holds half of a surrogate pair, which no tokenizer
            takes.
    """
    try:
        record = _load(line)
    except json.JSONDecodeError as error:
        raise MalformedError(f"not JSON ({error.msg} at column {error.colno}); expected one object per line.") from None
    except (ValueError, RecursionError) as error:  # such as thousands of digits or of brackets
        raise MalformedError(f"JSON that cannot be read ({error}); expected one object per line.") from None
    if not isinstance(record, dict):
        raise MalformedError(f"found a JSON {type(record).__name__}; expected one object per line.")
    if "\\" in line and ("\\ud" in line or "\\uD" in line):
        _refuse_surrogates(json.dumps(record, ensure_ascii=False))
    return record


def _load(line: str) -> Any:
    try:
        record, end = _decode(line)
        if end == len(line):
            return record
    except json.JSONDecodeError:
        pass
    return json.loads(line)  # half as fast, but allows white space around the object and explains errors


def begins_array(line: str) -> bool:
    """Whether a file's first line begins one JSON array of records.

    An array of texts alone on its line is a record itself.
    """
    if not line.lstrip().startswith("["):
        return False
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return not line.rstrip().endswith("]")
    return not values or any(isinstance(value, dict | list) for value in values)


def read_array(path: Path) -> Iterator[Any]:
    """Yield the records of a file that is one JSON array.

    All of it is in memory.

    Raises:
        UserError: it is not such an array.
    """
    with open_text(path) as file:
        text = file.read()
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path}: begins as one JSON array of records, but is not JSON ({error}); expected one array, or one "
            "object per line."
        ) from None
    yield from values


def to_text(value: Any, kind: str) -> str:
    """Return the value, checked to be valid text.

    Raises:
        MalformedError: it is not a string, or holds half of a surrogate pair.
    """
    if not isinstance(value, str):
        raise MalformedError(f"{kind} is {reprlib.repr(value)}; expected a string.")
    if not value.isascii():
        _refuse_surrogates(value)
    return value


def _refuse_surrogates(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise MalformedError("the text holds half of a surrogate pair (a \\ud... escape); remove it.") from None
