"""HTML: the text that a reader of the page sees, under its headings.

The page's `<main>` is read if it has one, else its body. Scripts, styles and menus (`<nav>`) are left out. Nothing is
fetched.
"""

import re
from collections.abc import Iterator
from typing import Any

from shortlist.data.reading.decoding import decode, encoding_field
from shortlist.data.reading.outline import first_title, sections_of
from shortlist.data.reading.wholes import SourceFile, Whole, library, read_bytes

LEFT_OUT = ["script", "style", "template", "noscript", "nav", "svg", "iframe", "object", "button", "select", "dialog"]
HEADINGS = {f"h{level}": level for level in range(1, 7)}
PARAGRAPHS = (
    "address article aside blockquote body details div dl fieldset figure footer form header hr main ol p pre section "
    "table ul h1 h2 h3 h4 h5 h6"
)
LINES = "br caption dd dt figcaption li option summary tbody td textarea tfoot th thead tr"
BLOCKS = dict.fromkeys(PARAGRAPHS.split(), "\n\n") | dict.fromkeys(LINES.split(), "\n")
"""Elements that do not stand within a line -> what goes before and after them."""

CELLS = {"td", "th"}
KEPT = {"pre", "textarea"}
"""Elements whose white space counts."""

SPACE = re.compile(r"\s+")
CHARSET = re.compile(rb"""<meta[^>]{0,200}charset\s*=\s*["']?\s*([-\w]+)""", re.I)
DEEPEST = 200
"""Elements that are looked through for the block that a text stands in."""


def read_html(file: SourceFile) -> Iterator[Whole]:
    """Yield the page."""
    text, encoding = _decode(read_bytes(file.path))
    yield html_document(text, encoding_field(encoding))


def _decode(data: bytes) -> tuple[str, str]:
    """Decode by UTF-8 if possible, else as the page says, else by guessing."""
    said = CHARSET.search(data, 0, 2048)
    if said:
        try:
            data.decode()
        except UnicodeDecodeError:
            try:
                return data.decode(said[1].decode()), said[1].decode().lower()
            except (UnicodeDecodeError, LookupError):
                pass
    return decode(data)


def html_document(text: str, metadata: dict[str, Any]) -> Whole:
    """Read a page."""
    tree = library("selectolax.lexbor").LexborHTMLParser(text)
    said = tree.css_first("title")
    title = " ".join(said.text().split()) if said else ""
    tree.strip_tags(LEFT_OUT, recursive=True)
    root = tree.css_first("main") or tree.body or tree.root
    parts = list(html_parts(root)) if root else []
    language = tree.root.attributes.get("lang") if tree.root else None
    if language:
        metadata = {"lang": language} | metadata
    author = tree.css_first('meta[name="author"]')
    if author and author.attributes.get("content"):
        metadata = {"author": author.attributes["content"]} | metadata
    link = tree.css_first('link[rel="canonical"]')
    url = (link.attributes.get("href") or "") if link else ""
    return Whole(list(sections_of(parts)), title or first_title(parts), url=url, metadata=metadata)


def html_parts(root: Any) -> Iterator[tuple[int, str, str]]:
    """Yield (level, heading, text from that heading to the next one); before the first heading the level is 0."""
    pieces: list[str] = []
    level, gap, heading = 0, "", ""
    last: Any = root
    for node in root.traverse(include_text=True):
        tag = node.tag
        if tag != "-text":
            if tag in BLOCKS:
                gap = _gap(gap, tag)
                heading = tag if tag in HEADINGS else heading
            continue
        text, block = node.text_content or "", _block(node)
        changed = block.mem_id != last.mem_id
        if block.tag not in KEPT:
            text = SPACE.sub(" ", text)
            if gap or changed or not pieces or pieces[-1][-1].isspace():
                text = text.lstrip(" ")
        if not text:
            continue
        if heading and heading in (block.tag, block.parent.tag if block.parent else ""):
            yield _part(level, pieces)
            pieces, level, gap = [], HEADINGS[heading], ""
        elif pieces and changed and not gap:
            gap = BLOCKS.get(last.tag, "\n")
        pieces.append((gap if pieces or gap.endswith("- ") else "") + text)
        gap, heading, last = "", "", block
    yield _part(level, pieces)


def _gap(gap: str, tag: str) -> str:
    """Return what separates the text to come from the text before, once this element begins."""
    if gap.endswith("- "):
        return gap
    if tag in CELLS:
        return gap or " | "
    wider = "\n\n" if "\n\n" in (gap, BLOCKS[tag]) else "\n"
    return f"{wider}- " if tag == "li" else wider


def _part(level: int, pieces: list[str]) -> tuple[int, str, str]:
    text = "".join(pieces).strip()
    return level, text.partition("\n")[0].strip() if level else "", text


def _block(node: Any) -> Any:
    """Return the element that a text stands in, looking through those within a line."""
    block = node.parent
    for _ in range(DEEPEST):
        if block.tag in BLOCKS or block.parent is None:
            break
        block = block.parent
    return block
