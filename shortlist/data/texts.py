"""Documents of a corpus file by id, as the file was when first read."""

import os
import weakref
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, final

from shortlist.data.checks import pick
from shortlist.data.formats import corpus_offsets, document_parser, read_corpus
from shortlist.errors import UserError
from shortlist.records import Document

Change = Literal["replaced", "rewritten"]
"""What has happened to a file since it was opened: another has its name, or its own content is another."""

PART = 1 << 14
"""Bytes of a line that are read at a time."""


class ChangedError(UserError):
    """A file whose content has changed since it was opened."""


@final
class CorpusTexts:
    """Documents of a corpus file by id; several threads may ask at a time.

    The file stays open from the first question on: it is read as it was then, even when another takes its name. A gzip
    file cannot be read from the middle, so its documents are kept in memory.
    """

    def __init__(self, name: str, path: Path) -> None:
        self._name, self._path = name, path

    def documents(self, doc_ids: Iterable[str]) -> dict[str, Document]:
        """Return the documents with these ids, in the order asked.

        Raises:
            ChangedError: the file was rewritten after it was opened.
            UserError: the corpus lacks one of the ids.
        """
        wanted = list(dict.fromkeys(doc_ids))
        if self._packed:
            return pick(self._name, "document", wanted, self._held)
        offsets = pick(self._name, "document", wanted, self._file.offsets)
        found = self._file.at(sorted(offsets.values()))
        return {doc_id: found[offsets[doc_id]] for doc_id in wanted}

    def missing(self, doc_ids: Iterable[str]) -> list[str]:
        """Return the ids that the corpus lacks, in the order asked."""
        known: Mapping[str, Any] = self._held if self._packed else self._file.offsets
        return [doc_id for doc_id in doc_ids if doc_id not in known]

    def change(self) -> Change | None:
        """Return what has happened to the file since it was opened."""
        return None if self._packed else self._file.change()

    @property
    def _packed(self) -> bool:
        return self._path.suffix == ".gz"

    @cached_property
    def _file(self) -> "_OpenFile":
        return _OpenFile(self._path)

    @cached_property
    def _held(self) -> dict[str, Document]:
        return {document.doc_id: document for document in read_corpus(self._path)}


@final
class _OpenFile:
    """An open corpus file, with the byte at which each document's line starts."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._open()
        self.offsets = corpus_offsets(path)
        self._check()

    def _open(self) -> None:
        try:
            self._descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise UserError(f"{self.path}: cannot be read ({error.strerror}); expected a corpus.") from None
        weakref.finalize(self, os.close, self._descriptor)
        self._state = _state(os.fstat(self._descriptor))
        self._parse: Callable[[str], Document] = document_parser(self.path)

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "offsets": self.offsets, "state": self._state}

    def __setstate__(self, given: Mapping[str, Any]) -> None:
        self.path, self.offsets = given["path"], given["offsets"]
        self._open()
        self._state = given["state"]
        self._check()

    def at(self, offsets: Iterable[int]) -> dict[int, Document]:
        """Read the documents whose lines start at these bytes."""
        try:
            return {offset: self._parse(self._line(offset).decode().rstrip("\r\n")) for offset in offsets}
        finally:
            self._check()  # whatever was read, or could not be

    def _line(self, start: int) -> bytes:
        parts: list[bytes] = []
        while part := os.pread(self._descriptor, PART, start):
            line, end, _ = part.partition(b"\n")
            parts.append(line)
            if end:
                break
            start += len(part)
        return b"".join(parts)

    def change(self) -> Change | None:
        """Return what has happened to the file since it was opened."""
        if _state(os.fstat(self._descriptor)) != self._state:
            return "rewritten"
        try:
            there = _state(os.stat(self.path))
        except OSError:
            return "replaced"
        return None if there == self._state else "replaced"

    def _check(self) -> None:
        if _state(os.fstat(self._descriptor)) != self._state:
            raise ChangedError(f"{self.path}: was rewritten while it was in use; index or encode it, and start again.")


def _state(status: os.stat_result) -> tuple[int, ...]:
    """Return what changes with a file's content, short of tricks."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
