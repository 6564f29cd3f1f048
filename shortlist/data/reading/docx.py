"""Word documents (.docx): paragraphs and tables in order, under their headings."""

import re
from collections.abc import Iterator
from typing import Any
from zipfile import ZipFile

from shortlist.data.reading.archives import open_archive, parse_xml, read_member
from shortlist.data.reading.outline import first_title, sections_of
from shortlist.data.reading.wholes import SourceFile, Whole

W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
BODY, STYLES, CORE = "word/document.xml", "word/styles.xml", "docProps/core.xml"
NOTES = ("word/footnotes.xml", "word/endnotes.xml")
HEADING = re.compile(r"heading (\d)", re.IGNORECASE)

FALLBACK = "{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback"
"""The same text once more, for older versions of Word."""
SPACE_ELEMENTS = {f"{W}tab": "\t", f"{W}br": "\n", f"{W}cr": "\n", f"{W}noBreakHyphen": "-"}


def read_docx(file: SourceFile) -> Iterator[Whole]:
    """Yield the document; text that was deleted with changes tracked is left out."""
    with open_archive(file) as archive:
        body = parse_xml(read_member(archive, BODY), BODY)
        levels = _heading_levels(archive)
        fields = _fields(archive)
        notes = [_blocks(_xml(archive, name), {}) for name in NOTES if name in archive.namelist()]
    blocks = [block for part in (_blocks(body, levels), *notes) for block in part]
    parts = list(_parts(blocks))
    title = fields.pop("title", "") or next((text for level, text in blocks if level == 0), "") or first_title(parts)
    yield Whole(list(sections_of(parts)), title, metadata=fields)


def _xml(archive: ZipFile, name: str) -> Any:
    return parse_xml(read_member(archive, name), name)


def _heading_levels(archive: ZipFile) -> dict[str, int]:
    """Return the levels of heading styles by their ids; the title has level 0."""
    levels: dict[str, int] = {}
    if STYLES not in archive.namelist():
        return levels
    for style in _xml(archive, STYLES).iter(f"{W}style"):
        name = style.find(f"{W}name")
        word = name.get(f"{W}val", "") if name is not None else ""
        if (found := HEADING.fullmatch(word)) or word.casefold() == "title":
            levels[style.get(f"{W}styleId", "")] = int(found[1]) if found else 0
    return levels


def _fields(archive: ZipFile) -> dict[str, str]:
    """Return title, author and the time of the last change, as the document says them."""
    if CORE not in archive.namelist():
        return {}
    names = {"title": "title", "creator": "author", "modified": "written"}
    found = {}
    for element in _xml(archive, CORE):
        name = str(element.tag).rpartition("}")[2]
        if name in names and (element.text or "").strip():
            found[names[name]] = element.text.strip()
    return found


def _blocks(root: Any, levels: dict[str, int]) -> Iterator[tuple[int | None, str]]:
    """Yield (level, text) of paragraphs and tables; only headings have a level, others None."""
    left = list(reversed(root))
    while left:
        element = left.pop()
        if element.tag == f"{W}p":
            text = _text(element).strip("\n")
            if text.strip():
                yield levels.get(_style(element)), text
        elif element.tag == f"{W}tbl":
            yield None, "\n".join(_rows(element))
        elif element.tag != FALLBACK:
            left += reversed(element)


def _style(paragraph: Any) -> str:
    style = paragraph.find(f"{W}pPr/{W}pStyle")
    return style.get(f"{W}val", "") if style is not None else ""


def _rows(table: Any) -> Iterator[str]:
    for row in table.iter(f"{W}tr"):
        cells = [" ".join(_text(cell).split()) for cell in row.iter(f"{W}tc")]
        if any(cells):
            yield " | ".join(cells)


def _text(element: Any) -> str:
    """Join the text of a paragraph or a cell, without the copies for older versions."""
    pieces: list[str] = []
    left = list(reversed(element))
    while left:
        inner = left.pop()
        if inner.tag == f"{W}t":
            pieces.append(inner.text or "")
        elif inner.tag in SPACE_ELEMENTS:
            pieces.append(SPACE_ELEMENTS[inner.tag])
        elif inner.tag != FALLBACK:
            if inner.tag == f"{W}p":
                pieces.append("\n")
            left += reversed(inner)
    return "".join(pieces)


def _parts(blocks: list[tuple[int | None, str]]) -> Iterator[tuple[int, str, str]]:
    level, title, texts = 0, "", list[str]()
    for heading, text in blocks:
        if heading:
            yield level, title, "\n\n".join(texts)
            level, title, texts = heading, " ".join(text.split()), []
        texts.append(text)
    yield level, title, "\n\n".join(texts)
