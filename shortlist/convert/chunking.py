"""Files become lines of a corpus, in this process or in several."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from shortlist.convert.settings import Config
from shortlist.cores import num_cores
from shortlist.data.chunk_files import Stamp
from shortlist.data.lines import MalformedError
from shortlist.data.reading.finding import FoundFile
from shortlist.data.reading.kinds import read_wholes
from shortlist.data.reading.wholes import SourceFile, Whole
from shortlist.engine import spread
from shortlist.errors import UserError
from shortlist.text.chunks import By, TokenFinder, make_chunks, token_begins, whole_text, word_begins

CHARACTERS_A_WINDOW = 1 << 20
"""Characters of the documents that are measured together."""
DOCUMENTS_A_WINDOW = 1000

PART_BYTES = 1 << 20
"""Bytes of the files that another process reads at a time."""
SMALL_BYTES = 1 << 24
"""Bytes of a file above which it is read here: its chunks may not fit into memory all at once."""
PARTS_A_PROCESS = 16
"""Parts for which it pays to start another process."""

PLACE = ("document", "titles", "page", "begin", "end")
"""Metadata of every chunk; fields of these names in a file are left out."""

to_json = json.JSONEncoder(ensure_ascii=False).encode


class Division(NamedTuple):
    """The settings by which documents become chunks."""

    by: By
    size: int
    overlap: int
    find_tokens: TokenFinder


class FileWork(NamedTuple):
    """The work on a file: its stamp, and the problems met so far."""

    file: SourceFile
    stamp: Stamp
    problems: list[tuple[str, str]]


class ReadPart(NamedTuple):
    """The chunks of some of a file's documents, as lines."""

    work: FileWork
    lines: bytes = b""
    chunks: int = 0
    documents: int = 0
    is_last: bool = False


def tokenizer_folder(config: Config) -> Path | None:
    """Find the folder of the tokenizer whose tokens are counted (None: words are).

    Raises:
        UserError: there is no such model, or nothing is counted.
    """
    if config.tokenizer is None:
        return None
    if config.chunks == "none":
        raise UserError("--tokenizer is of no use with --chunks none; leave it out.")
    from shortlist.models.folder import open_folder  # late, as it loads slowly

    return open_folder(config.tokenizer, weights=False).path


def read_files(
    works: Sequence[FileWork], config: Config, tokenizer: Path | None, advance: Callable[[int], Any]
) -> Iterator[ReadPart]:
    """Read files, in several processes where there is much to read, and yield their chunks.

    Files come in any order, each without a break.

    Args:
        tokenizer: folder of the tokenizer whose tokens are counted (None: words are).
        advance: called with the number of files done.
    """
    reader = FileReader(config, tokenizer)
    small = [work for work in works if work.stamp.size <= SMALL_BYTES]
    parts = list(_parts(small))
    workers = config.workers or max(1, min(num_cores(), len(parts) // PARTS_A_PROCESS))
    if workers == 1:
        large = works
    else:
        large = [work for work in works if work.stamp.size > SMALL_BYTES]
        for pieces in spread(reader, parts, workers=workers):
            yield from pieces
            advance(len(pieces))
    for piece in reader.pieces(large):
        yield piece
        advance(piece.is_last)


def _parts(works: Iterable[FileWork]) -> Iterator[list[FileWork]]:
    """Yield the files in lists of about PART_BYTES."""
    part: list[FileWork] = []
    size = 0
    for work in works:
        part.append(work)
        size += work.stamp.size
        if size >= PART_BYTES:
            yield part
            part, size = [], 0
    if part:
        yield part


@dataclass(frozen=True)
class FileReader:
    """Reads files in the process that it is sent to."""

    config: Config
    tokenizer: Path | None

    @cached_property
    def division(self) -> Division:
        """The settings by which documents are divided."""
        config, find_tokens = self.config, word_begins
        if self.tokenizer is not None:
            from shortlist.text.tokenizer import fast_tokenizer

            find_tokens = token_begins(fast_tokenizer(self.tokenizer))
        return Division(config.chunks, config.chunk_size, config.overlap, find_tokens)

    def __call__(self, works: Sequence[FileWork]) -> list[ReadPart]:
        """Read files whole."""
        read: list[ReadPart] = []
        lines: list[bytes] = []
        chunks = documents = 0
        for piece in self.pieces(works):
            lines.append(piece.lines)
            chunks, documents = chunks + piece.chunks, documents + piece.documents
            if piece.is_last:
                read.append(ReadPart(piece.work, b"".join(lines), chunks, documents, is_last=True))
                lines, chunks, documents = [], 0, 0
        return read

    def pieces(self, works: Iterable[FileWork]) -> Iterator[ReadPart]:
        """Read files document by document; the last piece of each file is empty."""
        for window in _windows(_documents(works, self.config)):
            wholes = [whole for _, whole in window if whole is not None]
            measured = iter(self.division.find_tokens([whole_text(whole.sections) for whole in wholes]))
            for work, whole in window:
                if whole is None:
                    yield ReadPart(work, is_last=True)
                    continue
                lines = list(_chunk_lines(work, whole, next(measured), self.division))
                yield ReadPart(work, "".join(lines).encode(errors="replace"), len(lines), 1)


def _windows(stream: Iterable[tuple[FileWork, Whole | None]]) -> Iterator[list[tuple[FileWork, Whole | None]]]:
    """Yield the documents in lists of bounded size."""
    window: list[tuple[FileWork, Whole | None]] = []
    size = 0
    for work, whole in stream:
        window.append((work, whole))
        size += sum(len(section.text) for section in whole.sections) if whole else 0
        if size >= CHARACTERS_A_WINDOW or len(window) >= DOCUMENTS_A_WINDOW:
            yield window
            window, size = [], 0
    if window:
        yield window


def _chunk_lines(work: FileWork, whole: Whole, begins: np.ndarray, division: Division) -> Iterator[str]:
    """Yield the lines of a document's chunks.

    Chunk 0 of document `d` has the id `d#0`. The lines are as `formats.document_line` writes them, put together from
    parts, which takes a third of the time.
    """
    doc_id = whole.doc_id or (f"{work.file.doc_id}/{whole.name}" if whole.name else work.file.doc_id)
    title = whole.title if whole.title or whole.name else Path(work.file.name).name
    own = {"path": work.file.name, "modified": work.stamp.modified, **whole.metadata}
    fields = to_json({name: value for name, value in own.items() if name not in PLACE})[1:]
    name, url = to_json(doc_id), f', "url": {to_json(whole.url)}' if whole.url else ""
    chunks = make_chunks(whole.sections, begins, by=division.by, size=division.size, overlap=division.overlap)
    for number, chunk in enumerate(chunks):
        chunk_id = name if division.by == "none" else f'{name[:-1]}#{number}"'
        titles = chunk.titles if not title or chunk.titles[:1] == (title,) else (title, *chunk.titles)
        path, page = ", ".join(map(to_json, titles)), "" if chunk.page is None else f'"page": {chunk.page}, '
        yield (
            f'{{"_id": {chunk_id}, "title": {to_json(" > ".join(titles))}, "text": {to_json(chunk.text)}{url}, '
            f'"metadata": {{"document": {name}, "titles": [{path}], {page}"begin": {chunk.begin}, '
            f'"end": {chunk.end}, {fields}}}\n'
        )


def _documents(works: Iterable[FileWork], config: Config) -> Iterator[tuple[FileWork, Whole | None]]:
    """Yield the documents of each file, and None at its end."""
    for work in works:
        file = work.file._replace(on_bad=lambda message, work=work: _note_bad_record(config, work, message))
        try:
            for whole in read_wholes(file):
                yield work, whole
        except MalformedError as error:
            refuse_lost_source(config)
            note_bad(config, work.problems, file, (file.name, str(error)))
        yield work, None


def _note_bad_record(config: Config, work: FileWork, message: str) -> None:
    """Note a record that cannot be used; the message begins with where it is."""
    where, _, why = message.partition(": ")
    note_bad(config, work.problems, work.file, (work.file.name + where.removeprefix(str(work.file.path)), why))


def refuse_lost_source(config: Config) -> None:
    """Refuse to go on if a source has vanished: its documents would count as removed."""
    for source in config.sources:
        if not Path(source).exists():
            raise UserError(f"{source}: vanished while it was read; nothing was changed. Run the same command again.")


def note_bad(
    config: Config, problems: list[tuple[str, str]], file: FoundFile | SourceFile, problem: tuple[str, str]
) -> None:
    """Note a problem; raises UserError where files that cannot be read are not skipped."""
    if not config.skip_bad:
        where, why = problem
        path = f"{file.path}{where.removeprefix(file.name)}"
        raise UserError(f"{path}: {why} Or leave out what cannot be read with --skip-bad.")
    problems.append(problem)
