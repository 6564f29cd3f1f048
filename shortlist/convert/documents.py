"""People's own files become a collection of chunks, kept up to date as they change."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import numpy as np

from shortlist.config import at_defaults
from shortlist.convert.settings import OF_CLICKS, OF_TRAINING, Config, refuse_given
from shortlist.data.chunk_files import (
    SKIPPED,
    WRITTEN,
    Entry,
    Journal,
    KnownFiles,
    Stamp,
    compose,
    forget_begun,
    read_known_files,
    stamp_of,
)
from shortlist.data.files import atomic_write
from shortlist.data.jobs import JobSpec, start_job
from shortlist.data.lines import MalformedError
from shortlist.data.reading.finding import FoundFile, FoundFiles, counted, find_documents
from shortlist.data.reading.kinds import read_wholes
from shortlist.data.reading.tables import parse_table_columns
from shortlist.data.reading.wholes import SourceFile, Whole
from shortlist.data.sources import DOCUMENTS
from shortlist.errors import UserError
from shortlist.progress import say, track
from shortlist.text.chunks import (
    By,
    TokenFinder,
    check_sizes,
    make_chunks,
    token_begins,
    whole_text,
    word_begins,
)

CHARACTERS_A_WINDOW = 1 << 20
"""Characters of the documents that are measured together."""
DOCUMENTS_A_WINDOW = 1000

PLACE = ("document", "titles", "page", "begin", "end")
"""Metadata of every chunk; fields of these names in a file are left out."""

PROBLEMS_SHOWN = 5
"""Problems that are printed; skipped.txt has all of them."""


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


def convert_documents(config: Config) -> None:
    """Bring the collection up to date with the files.

    Raises:
        UserError: a setting that is of no use, no files, or one that cannot be read, without `skip_bad`.
    """
    refuse_given(config, (*OF_TRAINING, *OF_CLICKS), DOCUMENTS, "for which {} is of no use; leave it out.")
    check_sizes(config.chunks, config.chunk_size, config.overlap)
    columns = parse_table_columns(config.columns)
    found = find_documents(config.sources, without=config.out)
    stamps, lost = _stamped(found, read_known_files(config.out).stamps, config)
    division, inputs = _division(config)
    inputs["sources"] = _identity(found, stamps)
    as_if = at_defaults(config, ("as_", *(("chunk_size", "overlap") if config.chunks == "none" else ())))
    spec = JobSpec("convert", inputs, as_if=as_if, folder=True, update=("sources",), writes=WRITTEN)
    job = start_job(config, spec)
    known = read_known_files(config.out)
    if job.done:
        _report(known.finished, known.finished, found, config)
        return
    with Journal(config.out) as journal:
        entries = dict(_kept(found, stamps, known, config))
        works = [
            FileWork(SourceFile(file.path, file.doc_id, file.name, columns), stamps[file.doc_id], [])
            for file in found.files
            if file.doc_id in stamps and file.doc_id not in entries
        ]
        for entry in _read(track(works, "reading", len(works), "files"), division, journal, config):
            entries[entry.path] = journal.corpus, entry
    made = [entries[file.doc_id] for file in found.files if file.doc_id in entries]
    if not any(entry.chunks for _, entry in made):
        raise UserError(f"{', '.join(config.sources)}: no text was found in {len(found.files):,} files; see above.")
    problems = [*lost, *(problem for _, entry in made for problem in _problems(entry)), *found.left_out.items()]
    with job.result() as folder:
        digest = compose(folder, made)
        with atomic_write(folder / SKIPPED) as file:
            file.writelines(f"{where}: {why}\n" for where, why in problems)
    forget_begun(config.out)
    now = {entry.path: entry for _, entry in made}
    counts = _report(known.finished, now, found, config)
    job.finish(counts, digests={"corpus.jsonl": digest})


def _division(config: Config) -> tuple[Division, dict[str, str | list[str]]]:
    """Return how documents are divided, and the identity of the tokenizer if one counts."""
    if config.tokenizer is None:
        return Division(config.chunks, config.chunk_size, config.overlap, word_begins), {}
    if config.chunks == "none":
        raise UserError("--tokenizer is of no use with --chunks none; leave it out.")
    from shortlist.models.folder import open_folder  # late, as it loads slowly
    from shortlist.text.tokenizer import fast_tokenizer, tokenizer_identity

    folder = open_folder(config.tokenizer, weights=False).path
    find_tokens = token_begins(fast_tokenizer(folder))
    division = Division(config.chunks, config.chunk_size, config.overlap, find_tokens)
    return division, {"tokenizer": tokenizer_identity(folder)}


def _stamped(
    found: FoundFiles, known: Mapping[str, Stamp], config: Config
) -> tuple[dict[str, Stamp], list[tuple[str, str]]]:
    """Stamp all files; return stamps by id, and problems of lost or locked files."""
    stamps: dict[str, Stamp] = {}
    problems: list[tuple[str, str]] = []
    for file in found.files:
        try:
            stamps[file.doc_id] = stamp_of(file.path, known.get(file.doc_id))
        except OSError as error:
            _refuse_lost_source(config)
            why = f"cannot be read ({error.strerror or error}); mend that and run the same command again."
            _bad(config, problems, file, (file.name, why))
    return stamps, problems


def _refuse_lost_source(config: Config) -> None:
    """Refuse to go on if a source has vanished: its documents would count as removed."""
    for source in config.sources:
        if not Path(source).exists():
            raise UserError(f"{source}: vanished while it was read; nothing was changed. Run the same command again.")


def _bad(
    config: Config, problems: list[tuple[str, str]], file: FoundFile | SourceFile, problem: tuple[str, str]
) -> None:
    """Note a problem; raises UserError where files that cannot be read are not skipped."""
    if not config.skip_bad:
        where, why = problem
        path = f"{file.path}{where.removeprefix(file.name)}"
        raise UserError(f"{path}: {why} Or leave out what cannot be read with --skip-bad.")
    problems.append(problem)


def _identity(found: FoundFiles, stamps: Mapping[str, Stamp]) -> str:
    lines = (f"{name}\0{stamp.sha256}\0{stamp.modified}\n" for name, stamp in sorted(stamps.items()))
    digest = sha256("".join(lines).encode())
    digest.update("".join(f"{name}\0{why}\n" for name, why in found.left_out.items()).encode())
    return f"sha256:{digest.hexdigest()}"


def _kept(
    found: FoundFiles, stamps: Mapping[str, Stamp], known: KnownFiles, config: Config
) -> Iterator[tuple[str, tuple[Path, Entry]]]:
    """Yield the files that were read before and have not changed since."""
    for file in found.files:
        stamp = stamps.get(file.doc_id)
        if stamp is None or (before := known.made.get((file.doc_id, stamp.sha256, stamp.modified))) is None:
            continue
        corpus, entry = before
        for where, why in entry.problems:
            _bad(config, [], file, (where, why))
        yield file.doc_id, (corpus, entry._replace(stamp=stamp))


def _read(works: Iterable[FileWork], division: Division, journal: Journal, config: Config) -> Iterator[Entry]:
    """Read files, write their chunks, and yield each file that is finished."""
    begin, chunks, documents = journal.place, 0, 0
    for window in _windows(_documents(works, config)):
        wholes = [whole for _, whole in window if whole is not None]
        measured = iter(division.find_tokens([whole_text(whole.sections) for whole in wholes]))
        for work, whole in window:
            if whole is not None:
                lines = list(_chunk_lines(work, whole, next(measured), division))
                journal.write("".join(lines).encode(errors="replace"))
                chunks, documents = chunks + len(lines), documents + 1
                continue
            entry = Entry(work.file.doc_id, work.stamp, begin, journal.place, chunks, documents, work.problems)
            journal.finish(entry)
            yield entry
            begin, chunks, documents = journal.place, 0, 0


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
        file = work.file._replace(on_bad=lambda message, work=work: _bad_record(config, work, message))
        try:
            for whole in read_wholes(file):
                yield work, whole
        except MalformedError as error:
            _refuse_lost_source(config)
            _bad(config, work.problems, file, (file.name, str(error)))
        yield work, None


def _bad_record(config: Config, work: FileWork, message: str) -> None:
    """Note a record that cannot be used; the message begins with where it is."""
    where, _, why = message.partition(": ")
    _bad(config, work.problems, work.file, (work.file.name + where.removeprefix(str(work.file.path)), why))


def _problems(entry: Entry) -> Sequence[Sequence[str]]:
    """Return what could not be read of a file; an empty one is listed too."""
    return entry.problems or ([] if entry.chunks else [(entry.path, "holds no text.")])


def _report(before: Mapping[str, Entry], now: Mapping[str, Entry], found: FoundFiles, config: Config) -> dict[str, int]:
    """Say what has changed, and what is left out; return the counts."""
    problems = [problem for entry in now.values() for problem in entry.problems]
    empty = sum(not entry.chunks and not entry.problems for entry in now.values())
    before, now = ({path: one for path, one in side.items() if one.documents} for side in (before, now))
    changed = [path for path in now.keys() & before.keys() if now[path].key != before[path].key]
    counts = {
        "added": len(now.keys() - before.keys()),
        "replaced": len(changed),
        "removed": len(before.keys() - now.keys()),
        "unchanged": len(now.keys() & before.keys()) - len(changed),
    }
    made = {"documents": sum(one.documents for one in now.values()), "chunks": sum(one.chunks for one in now.values())}
    words = ", ".join(f"{count:,} {name}" for name, count in counts.items())
    say(f"convert: {words}; {made['chunks']:,} chunks of {made['documents']:,} documents.")
    if found.left_out:
        say(f"convert: left out {len(found.left_out):,} files ({counted(found.left_out)}), listed in {SKIPPED}.")
    if empty:
        say(f"convert: {empty:,} files hold no text, listed in {SKIPPED}.")
    if problems:
        for where, why in problems[:PROBLEMS_SHOWN]:
            say(f"convert: skipped {where}: {why}")
        say(f"convert: skipped {len(problems):,} files or records by --skip-bad, listed in {config.out / SKIPPED}.")
    return counts | made | {"skipped": len(problems)}
