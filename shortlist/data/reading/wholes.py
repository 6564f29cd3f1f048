"""Whole documents as readers yield them, and the files that they are read from."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from shortlist.data.lines import MalformedError, OnBad, ignore
from shortlist.errors import UserError
from shortlist.text.chunks import Section

MOST_DOCUMENT_BYTES = 1 << 28
"""Largest file that is read as one document, and most that an archive may unpack to: 256 MiB."""


class Whole(NamedTuple):
    """A document as it was read, before it is cut into chunks."""

    sections: Sequence[Section]
    title: str = ""
    name: str = ""
    """What tells it from the other documents of its file; empty where the file is one document."""
    doc_id: str = ""
    """Its id, where the file says one."""
    url: str = ""
    metadata: Mapping[str, Any] = {}


class SourceFile(NamedTuple):
    """A file to read, and what the user says of it."""

    path: Path
    doc_id: str
    """Its path within the folder that was named, which is the id of its document."""
    name: str = ""
    """The same with its white space."""
    columns: Mapping[str, str] = {}
    """Names of columns of tables, by what they hold: `text`, `title`, `id`, `url`."""
    on_bad: OnBad = ignore
    """Called with a line for each record of the file that cannot be used."""


Reader = Callable[[SourceFile], Iterator[Whole]]
"""Yields the documents of a file; MalformedError says why it cannot be read."""


def library(name: str) -> Any:
    """Import a module of the extra `files`.

    Raises:
        UserError: it is not installed.
    """
    try:
        return import_module(name)
    except ImportError:
        package = {"lxml.etree": "lxml", "selectolax.lexbor": "selectolax"}.get(name, name)
        raise UserError(
            f"{package} is not installed: files of this kind need it; pip install 'shortlist[files]'."
        ) from None


def read_bytes(path: Path) -> bytes:
    """Read a file that is one document.

    Raises:
        MalformedError: it is too large.
    """
    with open(path, "rb") as file:
        data = file.read(MOST_DOCUMENT_BYTES + 1)
    if len(data) > MOST_DOCUMENT_BYTES:
        raise MalformedError(f"holds more than {MOST_DOCUMENT_BYTES >> 20} MiB, too much for one document; divide it.")
    return data
