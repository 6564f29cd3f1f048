"""Lines of text files: numbered, split on "\\n" alone, and the one error for a line that cannot be read."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from shortlist.data.files import open_text
from shortlist.errors import UserError

T = TypeVar("T")


class MalformedError(ValueError):
    """What is wrong with one line; `parse_lines` adds the file and the number."""


def numbered_lines(path: Path) -> Iterator[tuple[int, int, str]]:
    """Yield (line number from 1, byte at which it starts, line without its end) of the lines that are not blank."""
    start = 0
    with open_text(path) as file:
        for number, line in enumerate(file, 1):
            if not line.isspace():
                yield number, start, line.rstrip("\r\n")
            start += len(line.encode())


def parse_lines(path: Path, parse: Callable[[str], T]) -> Iterator[tuple[int, int, T]]:
    """Like `numbered_lines`, with `parse(line)`; a MalformedError becomes a UserError that names file and line."""
    for number, start, line in numbered_lines(path):
        try:
            record = parse(line)
        except MalformedError as error:
            raise UserError(f"{path}:{number}: {error}") from None
        yield number, start, record


def read_lines(path: Path, parse: Callable[[str], T]) -> Iterator[T]:
    """Yield `parse(line)` for every line that is not blank.

    Raises:
        UserError: `parse` raised MalformedError, or the file cannot be read.
    """
    return (record for _, _, record in parse_lines(path, parse))


def parse_json(line: str) -> dict[str, Any]:
    """The JSON object on a line.

    Raises:
        MalformedError: it is not JSON, not an object, or holds half of a surrogate pair, which no tokenizer takes.
    """
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise MalformedError(f"not JSON ({error.msg} at column {error.colno}); expected one object per line.") from None
    if not isinstance(record, dict):
        raise MalformedError(f"found a JSON {type(record).__name__}; expected one object per line.")
    if "\\ud" in line.lower() and re.search("[\ud800-\udfff]", json.dumps(record, ensure_ascii=False)):
        raise MalformedError("the text holds half of a surrogate pair (a \\ud... escape); remove it.")
    return record
