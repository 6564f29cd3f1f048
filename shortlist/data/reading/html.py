"""HTML: the text that a reader of the page sees, under its headings.

The page's `<main>` is read if it has one, else its body. Scripts, styles and menus (`<nav>`) are left out. Nothing is
fetched.
"""

import re
from collections.abc import Iterator
from functools import cache
from html import unescape
from typing import Any

from shortlist.data.reading.decoding import decode, encoding_field
from shortlist.data.reading.outline import first_title, sections_of
from shortlist.data.reading.wholes import SourceFile, Whole, library, read_bytes

SILENT = "script style template noscript nav svg iframe object button select dialog noembed noframes xmp plaintext"
LEFT_OUT = SILENT.split()
HEADINGS = {f"h{level}": level for level in range(1, 7)}
PARAGRAPH_ELEMENTS = (
    "address article aside blockquote body details div dl fieldset figure footer form header hr html main ol p pre "
    "section table ul"
)
LINE_ELEMENTS = "br caption dd dt figcaption li option summary tbody textarea tfoot thead tr"
BLOCKS = dict.fromkeys([*PARAGRAPH_ELEMENTS.split(), *HEADINGS], "\n\n") | dict.fromkeys(LINE_ELEMENTS.split(), "\n")
"""Elements that do not stand within a line -> what goes before and after them."""

CELLS = {"td", "th"}
PREFORMATTED = {"pre", "textarea"}
"""Elements whose white space counts."""

BULLET, BAR = "- ", " | "
TAG = re.compile(rf"""<(/?)({"|".join(sorted([*BLOCKS, *CELLS], key=len, reverse=True))})(?:\s(?:[^>"]|"[^"]*")*)?>""")
WITHIN = re.compile(r"""<!--.*?-->|</?[a-z](?:[^>"]|"[^"]*")*>""", re.DOTALL)
"""Elements within a line and comments, as the parser writes them: it quotes all attributes."""

CHARSET = re.compile(rb"""<meta[^>]{0,200}charset\s*=\s*["']?\s*([-\w]+)""", re.I)


def read_html(file: SourceFile) -> Iterator[Whole]:
    """Yield the page."""
    text, encoding = _decode(read_bytes(file.path))
    yield html_document(text, encoding_field(encoding))


def _decode(data: bytes) -> tuple[str, str]:
    """Decode as UTF-8 if possible, otherwise as the page says, or by guessing."""
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
    author, link = tree.css_first('meta[name="author"]'), tree.css_first('link[rel="canonical"]')
    tree.strip_tags(LEFT_OUT, recursive=True)
    root = tree.css_first("main") or tree.body
    parts = list(html_parts(root.html or "")) if root else []
    language = tree.root.attributes.get("lang") if tree.root else None
    if language:
        metadata = {"lang": language} | metadata
    if author and author.attributes.get("content"):
        metadata = {"author": author.attributes["content"]} | metadata
    url = (link.attributes.get("href") or "") if link else ""
    return Whole(list(sections_of(parts)), title or first_title(parts), url=url, metadata=metadata)


def html_parts(html: str) -> Iterator[tuple[int, str, str]]:
    """Yield (level, heading, text) of each part that a heading begins.

    The text includes the heading. Text before the first heading has level 0.

    Args:
        html: as the parser writes it, with every element closed.
    """
    pieces: list[str] = []
    level, title, gap, kept = 0, "", "", 0
    words = TAG.split(html)
    for i in range(0, len(words), 3):
        if words[i] and (text := _line(words[i], keep=kept > 0)):
            pieces.append(gap + text if pieces or gap.endswith(BULLET) else text)
            gap = ""
        if i + 2 >= len(words):
            break
        closes, tag = words[i + 1] == "/", words[i + 2]
        if tag in HEADINGS:
            if closes:
                title = " ".join("".join(pieces).split())
            else:
                yield level, title, "".join(pieces)
                pieces, level, title, gap = [], HEADINGS[tag], "", ""
        elif tag in PREFORMATTED:
            kept = max(0, kept + (-1 if closes else 1))
        gap = _gap(gap, tag, closes)
    yield level, title, "".join(pieces)


def _line(html: str, *, keep: bool) -> str:
    """Return the text of what stands within a line."""
    if "<" in html:
        html = WITHIN.sub("", html)
    text = unescape(html) if "&" in html else html
    return text.strip("\n") if keep else " ".join(text.split())


@cache
def _gap(gap: str, tag: str, closes: bool) -> str:
    """Return what separates the text before this tag from the text to come."""
    if tag in CELLS:
        return gap if closes else gap or BAR
    if tag == "li" and closes:
        return gap.removesuffix(BULLET) or "\n"
    if gap == BAR or gap.endswith(BULLET):
        return gap
    wider = "\n\n" if "\n\n" in (gap, BLOCKS[tag]) else "\n"
    return wider + BULLET if tag == "li" else wider
