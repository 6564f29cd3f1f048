"""Files of preferences between two texts that a language model may write."""

import json
import reprlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from shortlist.data.files import atomic_write
from shortlist.data.lines import MalformedError, parse_json, parse_lines, to_text
from shortlist.errors import UserError
from shortlist.records import Document, Query


class Preference(NamedTuple):
    """Two texts about a document, and which one is better for a query."""

    query: Query
    document: Document
    chosen: str
    rejected: str


class Wording(NamedTuple):
    """A prompt's name and the words by which texts were asked for."""

    prompt: str | None = None
    """Name of the prompt (None: nobody says)."""
    words: int | None = None
    """Most words that it was asked for (None: as the prompt says)."""


NOT_SAID = Wording()


class PreferenceFile(NamedTuple):
    """The preferences of a file, and how they were asked for."""

    path: Path
    preferences: list[Preference]
    lines: list[int]
    """Number of the line of each."""
    asked: Wording


def write_preferences(path: Path, preferences: Iterable[Preference], asked: Wording = NOT_SAID) -> int:
    """Write preferences as JSON lines, and count them."""
    how = {name: value for name, value in asked._asdict().items() if value is not None}
    count = 0
    with atomic_write(path) as file:
        for query, document, chosen, rejected in preferences:
            line = {"query_id": query.query_id, "query": query.text, "doc_id": document.doc_id}
            line |= {"title": document.title, "text": document.text, "chosen": chosen, "rejected": rejected, **how}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
            count += 1
    return count


def read_preferences(path: Path) -> PreferenceFile:
    """Read preferences from JSON lines.

    Raises:
        UserError: the file cannot be read, a line is malformed, lines were asked for in several ways, or there is none.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected preferences, such as `shortlist preferences` writes.")
    found = [(number, *record) for number, _, record in parse_lines(path, _record)]
    if not found:
        raise UserError(f"{path}: holds no preferences; expected at least one line.")
    first, _, asked = found[0]
    for number, _, other in found:
        if other != asked:
            raise UserError(
                f"{path}:{number}: was asked for with {_said(other)}, line {first} with {_said(asked)}; expected one "
                "way in all lines. Make a file of each."
            )
    return PreferenceFile(path, [one for _, one, _ in found], [number for number, _, _ in found], asked)


def _said(asked: Wording) -> str:
    words = "the words it says" if asked.words is None else f"{asked.words} words"
    return f"{'no prompt' if asked.prompt is None else f'the prompt {asked.prompt!r}'} and {words}"


def _record(line: str) -> tuple[Preference, Wording]:
    record = parse_json(line)
    texts = {name: _text(record, name) for name in ("text", "chosen", "rejected")}
    query, title = to_text(record.get("query", ""), "query"), to_text(record.get("title") or "", "title")
    if texts["chosen"] == texts["rejected"]:
        raise MalformedError("chosen and rejected are the same text; expected two, the better one as chosen.")
    prompt, words = record.get("prompt"), record.get("words")
    if prompt is not None and not isinstance(prompt, str):
        raise MalformedError(f"prompt is {reprlib.repr(prompt)}; expected the name of a prompt.")
    if words is not None and (type(words) is not int or words < 1):
        raise MalformedError(f"words is {reprlib.repr(words)}; expected a whole number from 1.")
    document = Document(str(record.get("doc_id", "")), texts["text"], title)
    query = Query(str(record.get("query_id", "")), query)
    return Preference(query, document, texts["chosen"], texts["rejected"]), Wording(prompt, words)


def _text(record: dict[str, Any], name: str) -> str:
    if not isinstance(record.get(name), str) or not record[name].strip():
        raise MalformedError(
            f"{name} is {reprlib.repr(record.get(name))}; expected a text. A line has query, text, chosen and rejected."
        )
    return to_text(record[name], name)
