"""The files in the folders that are named, each with the id of its document."""

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from shortlist.data.layouts import find_files
from shortlist.data.reading.kinds import DOCUMENT_READERS, TEXTLESS, ending_of
from shortlist.errors import UserError

BLANK = re.compile(r"[\s\ufeff]+")


class FoundFile(NamedTuple):
    """A file that may hold documents."""

    path: Path
    doc_id: str
    name: str
    """Its path within the folder that was named; the id is the same without white space."""


class FoundFiles(NamedTuple):
    """The files in the folders, those to read and those left out."""

    files: list[FoundFile]
    """By id."""
    left_out: dict[str, str]
    """Id of each file that is left out -> the reason."""


def are_documents(source: Path) -> bool:
    """Whether a source can only be people's own files.

    The ending of a file's name says so; a folder holds such files if nothing in it is of another layout.
    """
    if not source.is_dir():
        return source.is_file() and ending_of(source) in DOCUMENT_READERS
    if any((source / name).exists() for name in ("manifest.json", "config.json", "corpus.jsonl", "corpus.jsonl.gz")):
        return False
    try:
        find_files(source)
    except UserError:
        return any(source.iterdir())
    return False


def find_documents(sources: Sequence[str], *, without: Path) -> FoundFiles:
    """Find the files in folders and below, and those that are named themselves.

    Hidden files, links, and folders that a command of ours wrote are not read.

    Args:
        without: a folder that is left out, such as the output.

    Raises:
        UserError: no such file or folder, no file at all, or two files with one id.
    """
    files: dict[str, FoundFile] = {}
    left_out: dict[str, str] = {}
    for path, name, why in _named(sources, without.resolve()):
        doc_id = to_doc_id(name)
        if why:
            left_out[doc_id] = why
        elif files.setdefault(doc_id, FoundFile(path, doc_id, name if name.isprintable() else doc_id)).path != path:
            raise UserError(
                f"{path}: would be document {doc_id!r}, as {files[doc_id].path} is; rename one, or convert a folder "
                "that has both below it."
            )
    if not files:
        held = f"{len(left_out):,} files that hold no text" if left_out else "no files"
        raise UserError(f"{', '.join(sources)}: found {held}; expected Markdown, HTML, PDF or other documents.")
    return FoundFiles([files[doc_id] for doc_id in sorted(files)], dict(sorted(left_out.items())))


def _named(sources: Sequence[str], without: Path) -> Iterator[tuple[Path, str, str]]:
    """Yield each file, its path within its folder and any reason to leave it out."""
    paths = [Path(source) for source in sources]
    for path in paths:
        if not path.exists():
            raise UserError(f"{path}: no such file or folder.")
    alone = [path for path in paths if not path.is_dir()]
    shared = Path(os.path.commonpath([os.path.abspath(path.parent) for path in alone])) if alone else Path()
    for path in dict.fromkeys(paths):
        if path.is_dir():
            yield from _below(path, "", without)
        else:
            yield path, Path(os.path.abspath(path)).relative_to(shared).as_posix(), ""


def _below(folder: Path, prefix: str, without: Path) -> Iterator[tuple[Path, str, str]]:
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        path, name = Path(entry.path), prefix + entry.name
        if entry.name.startswith("."):
            continue
        if entry.is_symlink():
            yield path, name, "is a link; what it leads to is read where it is"
        elif entry.is_dir():
            if path.resolve() != without and not _is_output(path):
                yield from _below(path, f"{prefix}{entry.name}/", without)
        elif ending_of(path) in TEXTLESS:
            yield path, name, f"holds no text ({path.suffix.lower()})"
        elif entry.is_file():
            yield path, name, ""


def _is_output(folder: Path) -> bool:
    return (folder / "manifest.json").is_file() and (folder / "config.yaml").is_file()


def to_doc_id(path: str) -> str:
    """Turn a path into an id, with white space written as %20 and so on."""
    try:
        path.encode()
    except UnicodeEncodeError:  # bytes that are no UTF-8
        return quote(os.fsencode(path))
    return BLANK.sub(lambda blank: quote(blank[0]), path)


def counted(left_out: Mapping[str, str]) -> str:
    """Say how many files are left out, by kind."""
    kinds = Counter(
        Path(doc_id).suffix.lower() if why.startswith("holds") else "links" for doc_id, why in left_out.items()
    )
    return ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common(6)) + (", ..." if len(kinds) > 6 else "")
