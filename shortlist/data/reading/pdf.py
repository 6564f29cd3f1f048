"""PDF: a section for each page, under the bookmarks that lead there."""

import re
from collections.abc import Iterator
from typing import Any

from shortlist.data.lines import MalformedError
from shortlist.data.reading.outline import Outline
from shortlist.data.reading.wholes import SourceFile, Whole, library
from shortlist.text.chunks import Section

HYPHEN = re.compile("[\ufffe\x02]\n?")
"""A hyphen that is there only because the line ends, as PDFium marks it."""
PDF_FIELDS = {"Title": "title", "Author": "author", "CreationDate": "written"}
DAY = re.compile(r"D:(\d{4})(\d\d)(\d\d)")
MOST_PAGES = 100_000


def read_pdf(file: SourceFile) -> Iterator[Whole]:
    """Yield the document.

    Raises:
        MalformedError: it is damaged, has a password, or holds pictures of pages alone.
    """
    pdfium = library("pypdfium2")
    try:
        document = pdfium.PdfDocument(file.path)
    except pdfium.PdfiumError as error:
        if "password" in str(error).casefold():
            raise MalformedError("has a password; save it without one.") from None
        raise MalformedError(f"is no whole PDF ({error}); fetch it again.") from None
    try:
        texts = [_page_text(document, number) for number in range(min(len(document), MOST_PAGES))]
        if not any(texts):
            raise MalformedError(
                f"has no text on any page ({len(texts):,}), as if it were scanned; recognize its text first (OCR)."
            )
        fields = {name: value.strip() for name, value in document.get_metadata_dict(skip_empty=True).items()}
        bookmarks = _bookmarks(document)
    except pdfium.PdfiumError as error:
        raise MalformedError(f"is damaged ({error}); fetch it again.") from None
    finally:
        document.close()
    metadata: dict[str, Any] = {new: fields[name] for name, new in PDF_FIELDS.items() if fields.get(name)}
    if "written" in metadata:
        day = DAY.match(metadata.pop("written"))
        metadata |= {"written": "-".join(day.groups())} if day else {}
    title = metadata.pop("title", "")
    metadata["pages"] = len(texts)
    if empty := texts.count(""):
        metadata["pages_without_text"] = empty
    yield Whole(list(_sections(texts, bookmarks)), "" if title.casefold() == "untitled" else title, metadata=metadata)


def _page_text(document: Any, number: int) -> str:
    page = document[number]
    try:
        found = page.get_textpage()
        text = found.get_text_bounded()
        found.close()
    finally:
        page.close()
    lines = HYPHEN.sub("", text.replace("\r\n", "\n").replace("\r", "\n").replace("\0", ""))
    return lines.strip()


def _bookmarks(document: Any) -> dict[int, list[tuple[int, str]]]:
    """Return the level and title of each bookmark, by its page, counted from 0."""
    found: dict[int, list[tuple[int, str]]] = {}
    for bookmark in document.get_toc():
        target, title = bookmark.get_dest(), " ".join((bookmark.get_title() or "").split())
        page = target.get_index() if target is not None else None
        if page is not None and title:
            found.setdefault(page, []).append((bookmark.level + 1, title))
    return found


def _sections(texts: list[str], bookmarks: dict[int, list[tuple[int, str]]]) -> Iterator[Section]:
    """Yield the pages, divided where a bookmark's title stands in a line of its own."""
    outline, titles = Outline(), tuple[str, ...]()
    for number, text in enumerate(texts):
        begin, after = 0, 0
        for level, title in bookmarks.get(number, ()):
            place = _place(text, title, after)
            after = max(after, place + 1)
            if text[begin:place].strip():
                yield Section(text[begin:place].strip(), titles, number + 1)
                begin = place
            titles = outline.enter(level, title)
        if text[begin:].strip():
            yield Section(text[begin:].strip(), titles, number + 1)


def _place(text: str, title: str, after: int) -> int:
    """Return where the line with a title begins, or 0 where no line has it."""
    found = re.compile(r"^[^\n]{0,20}?" + r"\s+".join(map(re.escape, title.split())), re.MULTILINE).search(text, after)
    return found.start() if found else 0
