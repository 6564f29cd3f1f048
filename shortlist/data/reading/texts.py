"""Plain text, and source code with its definitions as sections."""

import re
from collections.abc import Iterator

from shortlist.data.reading.decoding import encoding_field, read_text
from shortlist.data.reading.wholes import SourceFile, Whole
from shortlist.text.chunks import Section

DEFINITION = re.compile(
    r"^(?:@[^\n]*\n|#\[[^\n]*\n)*"
    r"(?:(?:export|default|public|private|protected|internal|static|final|abstract|async|pub(?:\([^)\n]*\))?|unsafe|"
    r"extern|const|inline|virtual|override|sealed|open|data)[ \t]+)*"
    r"(?:def|class|function\*?|func(?:[ \t]*\([^)\n]*\))?|fn|struct|enum|interface|trait|impl|module|namespace|object|"
    r"type|record|protocol|sub|proc|defmodule)[ \t]+(?P<name>[^\W\d](?:[\w.]|::)*)",
    re.MULTILINE,
)
"""A definition at the beginning of a line, with its decorators, in most languages with words for it."""


def read_plain(file: SourceFile) -> Iterator[Whole]:
    """Yield the text as one section."""
    text, encoding = read_text(file.path)
    yield Whole([Section(text)] if text.strip() else [], metadata=encoding_field(encoding))


def read_code(file: SourceFile) -> Iterator[Whole]:
    """Yield a source file, with a section for each definition that is not inside another."""
    text, encoding = read_text(file.path)
    found = list(DEFINITION.finditer(text))
    begins = [0, *(match.start() for match in found)]
    ends = [*begins[1:], len(text)]
    titles = [(), *((match["name"],) for match in found)]
    parts = zip(titles, begins, ends, strict=True)
    sections = [Section(text[begin:end].rstrip(), path) for path, begin, end in parts if text[begin:end].strip()]
    yield Whole(sections, file.doc_id, metadata=encoding_field(encoding))
