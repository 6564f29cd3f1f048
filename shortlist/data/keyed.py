"""Corpora whose documents have keys, so that an update reads only new ones."""

from collections.abc import Callable, Iterator
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import final

from shortlist.data.collections import Collection
from shortlist.data.files import open_bytes
from shortlist.data.formats import document_parser, no_documents
from shortlist.data.lines import BOM, MalformedError, parse_lines
from shortlist.data.seen import checked
from shortlist.records import Document

KEY_BYTES = 16
"""Size of a document's key."""

Unread = tuple[bytes, Callable[[], Document]]
"""The key of a document, and the function that reads it."""


@final
class KeyedCorpus:
    """A corpus with a key of KEY_BYTES for each document.

    For a folder it is a hash of the document's line.
    """

    def __init__(self, collection: Collection) -> None:
        self._collection = collection
        self.keys = bytearray()
        """The keys of the documents that were read so far."""

    def __iter__(self) -> Iterator[Document]:
        """Read all documents, and collect their keys."""
        self.keys.clear()
        if (path := _file_of(self._collection)) is None:
            for document in self._collection.corpus():
                self.keys += _document_key(document)
                yield document
            return
        parse = checked(document_parser(path), allow_empty=True)
        for _, _, (key, document) in parse_lines(path, lambda line: (_line_key(line.encode()), parse(line))):
            self.keys += key
            yield document
        if not self.keys:
            raise no_documents(path)

    def unread(self) -> Iterator[Unread]:
        """Yield each document's key, and a function that reads the document.

        The function raises UserError for a line that cannot be used; ids that occur twice are not noticed.
        """
        if (path := _file_of(self._collection)) is None:
            yield from ((_document_key(document), partial(_same, document)) for document in self._collection.corpus())
            return
        parse, read = document_parser(path), self._read
        with open_bytes(path) as file:
            for number, line in enumerate(file):
                line = (line.removeprefix(BOM) if number == 0 else line).rstrip(b"\r\n")
                if line and not line.isspace():
                    yield _line_key(line), partial(read, parse, line)

    def check(self) -> None:
        """Read all documents, to find what is wrong with them.

        Raises:
            UserError: a line that cannot be used, or an id that occurs twice.
        """
        for _ in self:
            pass

    def _read(self, parse: Callable[[str], Document], line: bytes) -> Document:
        try:
            return parse(line.decode())
        except (MalformedError, UnicodeDecodeError):
            self.check()  # says where it is
            raise


def _same(document: Document) -> Document:
    return document


def _file_of(collection: Collection) -> Path | None:
    return getattr(collection, "corpus_file", None)


def _document_key(document: Document) -> bytes:
    return _line_key("\0".join(document[:4]).encode())


def _line_key(line: bytes) -> bytes:
    return blake2b(line, digest_size=KEY_BYTES).digest()
