"""Markdown: sections under headings, with front matter as metadata.

The text stays as it was written. Only headings, fences of code and comments are looked for, which takes a tenth of the
time of parsing all of it; tests compare the headings with those of markdown-it.
"""

import re
from collections.abc import Iterator, Mapping
from datetime import date
from typing import Any

import yaml

from shortlist.data.reading.decoding import encoding_field, read_text
from shortlist.data.reading.outline import first_title, sections_of
from shortlist.data.reading.wholes import SourceFile, Whole

MARK = re.compile(
    r"\n {0,3}(?:"
    r"(?P<fence>`{3,}(?=[^`\n]*$)|~{3,})"
    r"|(?P<level>#{1,6})(?:[ \t]+(?P<title>[^\n]*?))?(?:[ \t]+#+)?[ \t]*$"
    r"|(?P<line>=+|-+)[ \t]*$"
    r"|(?P<comment><!--))",
    re.MULTILINE,
)
CONTAINER = re.compile(r" {0,3}(?:>|[-*+][ \t]+\S|\d{1,9}[.)][ \t]+\S)")
"""Beginning of a quote or of an item of a list, whose paragraph lines without a mark go on."""
NO_PARAGRAPH = re.compile(
    r" {0,3}(?:(?:#{1,6}|[-*+]|\d{1,9}[.)])(?:[ \t]|$)|[>|<]|`{3}|~{3}|(?:[-_*][ \t]*){3,}$)|[^\S\n]*$",
    re.MULTILINE,
)
"""Begins lines that are no part of a heading that is underlined; indented code is seen apart."""

FRONT = re.compile(r"---[ \t]*\n(.*?)^(?:---|\.\.\.)[ \t]*(?:\n|\Z)", re.MULTILINE | re.DOTALL)
MOST_FRONT = 1 << 16
MOST_VALUES = 1000

LINK = re.compile(r"!?\[([^\]\n]*)\](?:\([^)\n]*\)|\[[^\]\n]*\])")
INLINE = re.compile(r"(\*\*|__|`|(?<!\w)[*_]|[*_](?!\w))|\s*\{#[^}\n]*\}$|<[^>\n]*>")
Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_markdown(file: SourceFile) -> Iterator[Whole]:
    """Yield the document."""
    text, encoding = read_text(file.path)
    metadata, body = front_matter(text)
    parts = list(markdown_parts(text[body:]))
    title = metadata.pop("title", "") or first_title(parts)
    yield Whole(list(sections_of(parts)), str(title), metadata=metadata | encoding_field(encoding))


def markdown_parts(text: str) -> Iterator[tuple[int, str, str]]:
    """Yield (level, heading, text) of each part that a heading begins.

    The text includes the heading. Text before the first heading has level 0.
    """
    text = f"\n{text}"  # so that every line follows a line end, which is quick to search for
    begin, level, title, place = 1, 0, "", 0
    floor = 1  # where the paragraph may begin at the earliest that a line of === underlines
    while found := MARK.search(text, place):
        line, place = found.start() + 1, found.end()
        if found["fence"]:
            place = floor = _after_fence(text, found["fence"], place)
        elif found["comment"]:
            end = text.find("-->", place)
            place = floor = len(text) if end < 0 else end + 3
        elif found["level"]:
            yield level, title, text[begin:line].rstrip()
            begin, level, title = line, len(found["level"]), plain(found["title"] or "")
            floor = found.end() + 1
        elif (start := _underlined(text, line, floor)) >= 0:
            yield level, title, text[begin:start].rstrip()
            heading = " ".join(text[start:line].split())
            begin, level, title = start, 1 if found["line"][0] == "=" else 2, plain(heading)
            floor = found.end() + 1
        elif found["line"][0] == "-":
            floor = found.end() + 1
    yield level, title, text[begin:].rstrip()


def _after_fence(text: str, fence: str, place: int) -> int:
    closing = re.compile(rf"^ {{0,3}}{re.escape(fence[0])}{{{len(fence)},}}[ \t]*$", re.MULTILINE)
    found = closing.search(text, place)
    return found.end() if found else len(text)


def _underlined(text: str, line: int, floor: int) -> int:
    """Return where the underlined paragraph begins, or -1 if no paragraph is above."""
    start = line
    while start > floor:
        above = text.rfind("\n", 0, start - 1) + 1
        if above < floor or NO_PARAGRAPH.match(text, above, start - 1) or text.startswith(("    ", "\t"), above):
            goes_on = above >= floor and CONTAINER.match(text, above, start - 1)  # a line behind a quote belongs to it
            return -1 if start == line or goes_on else start
        start = above
    return start if start < line else -1


def plain(heading: str) -> str:
    """Return a heading without marks of links, emphasis and code."""
    return INLINE.sub("", LINK.sub(r"\1", heading)).strip() if re.search(r"[*_`\[<{]", heading) else heading.strip()


def front_matter(text: str) -> tuple[dict[str, Any], int]:
    """Read the YAML before a document; return its fields, and where the document begins.

    What cannot be read is text.
    """
    if not text.startswith("---") or not (found := FRONT.match(text, 0, MOST_FRONT)):
        return {}, 0
    try:
        fields = yaml.load(found[1], Loader=Loader)
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}, 0
    if not isinstance(fields, dict):
        return {}, 0
    return plain_fields(fields), found.end()


def plain_fields(fields: Mapping[Any, Any]) -> dict[str, Any]:
    """Keep numbers, texts, dates as text, and lists of these, as metadata may hold them.

    The fields of an object become `name.field`.
    """
    found: dict[str, Any] = {}
    # no recursion: aliases may make circles
    left = [(str(name), value) for name, value in reversed(list(fields.items()))]
    for _ in range(MOST_VALUES):
        if not left:
            break
        name, value = left.pop()
        if isinstance(value, Mapping):
            left += [(f"{name}.{inner}", one) for inner, one in reversed(list(value.items()))][:MOST_VALUES]
        elif isinstance(value, list):
            found[name] = [one for one in map(_plain, value[:MOST_VALUES]) if one is not None]
        elif (one := _plain(value)) is not None:
            found[name] = one
    return found


def _plain(value: Any) -> Any:
    """Return a value that JSON has; None for any other."""
    if isinstance(value, date):
        return value.isoformat()
    return value if isinstance(value, str | int | float | bool) and value == value else None
