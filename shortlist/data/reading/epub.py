"""E-books (.epub): the chapters in reading order, each read as a page of HTML."""

from collections.abc import Iterator
from posixpath import dirname, join, normpath
from typing import Any
from urllib.parse import unquote
from zipfile import ZipFile

from shortlist.data.lines import MalformedError
from shortlist.data.reading.archives import open_archive, parse_xml, read_member
from shortlist.data.reading.decoding import decode
from shortlist.data.reading.html import html_document
from shortlist.data.reading.wholes import SourceFile, Whole
from shortlist.text.chunks import Section

CONTAINER, ENCRYPTION = "META-INF/container.xml", "META-INF/encryption.xml"
EPUB_FIELDS = {"title": "title", "creator": "author", "language": "lang", "date": "written", "publisher": "publisher"}


def read_epub(file: SourceFile) -> Iterator[Whole]:
    """Yield the book."""
    with open_archive(file) as archive:
        container = parse_xml(read_member(archive, CONTAINER), CONTAINER)
        package = next((one.get("full-path") for one in container.iter("{*}rootfile")), None)
        if not package:
            raise MalformedError(f"is damaged: {CONTAINER} names no book; fetch it again.")
        book = parse_xml(read_member(archive, package), package)
        locked = _locked(archive)
        sections: list[Section] = []
        for name in _chapters(book, dirname(package)):
            if name in locked:
                raise MalformedError("is protected against copying; leave it out.")
            text, _ = decode(read_member(archive, name))
            sections += html_document(text, {}).sections
    fields = _fields(book)
    yield Whole(sections, fields.pop("title", ""), metadata=fields)


def _chapters(book: Any, folder: str) -> Iterator[str]:
    """Yield the names of the pages in reading order."""
    pages = {item.get("id"): item.get("href", "") for item in book.iter("{*}item")}
    for reference in book.iter("{*}itemref"):
        if href := pages.get(reference.get("idref")):
            yield normpath(join(folder, unquote(href.partition("#")[0])))


def _locked(archive: ZipFile) -> set[str]:
    if ENCRYPTION not in archive.namelist():
        return set()
    references = parse_xml(read_member(archive, ENCRYPTION), ENCRYPTION).iter("{*}CipherReference")
    return {unquote(reference.get("URI", "")) for reference in references}


def _fields(book: Any) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, field in EPUB_FIELDS.items():
        for element in book.iter(f"{{*}}{name}"):
            if (element.text or "").strip():
                found.setdefault(field, " ".join(element.text.split()))
    return found
