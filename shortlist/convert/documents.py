"""People's own files become a collection of chunks, kept up to date as they change."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path

from shortlist.config import at_defaults, refuse_idle
from shortlist.convert.chunking import FileWork, ReadPart, note_bad, read_files, refuse_lost_source, tokenizer_folder
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
from shortlist.data.reading.finding import FoundFiles, counted, find_documents
from shortlist.data.reading.tables import parse_table_columns
from shortlist.data.reading.wholes import SourceFile
from shortlist.data.sources import DOCUMENTS
from shortlist.errors import UserError
from shortlist.progress import progress, say
from shortlist.text.chunks import check_sizes

PROBLEMS_SHOWN = 5
"""Problems that are printed; skipped.txt has all of them."""


def convert_documents(config: Config) -> None:
    """Bring the collection up to date with the files.

    Raises:
        UserError: a setting that is of no use, no files, or one that cannot be read, without `skip_bad`.
    """
    refuse_given(config, (*OF_TRAINING, *OF_CLICKS), DOCUMENTS, "for which {} is of no use; leave it out.")
    if config.chunks == "none":
        refuse_idle(config, ("chunk_size", "overlap"), "is of no use with --chunks none")
    check_sizes(config.chunk_size, config.overlap)
    columns = parse_table_columns(config.columns)
    found = find_documents(config.sources, without=config.out)
    stamps, lost = _stamped(found, read_known_files(config.out).stamps, config)
    tokenizer = tokenizer_folder(config)
    inputs = {"sources": _identity(found, stamps)} | _tokens(tokenizer)
    spec = JobSpec(
        "convert", inputs, as_if=at_defaults(config, ("as_",)), folder=True, update=("sources",), writes=WRITTEN
    )
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
        with progress("reading", len(works), "files") as advance:
            for entry in _written(read_files(works, config, tokenizer, advance), journal):
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


def _tokens(tokenizer: Path | None) -> dict[str, str]:
    """Return the identity of the tokenizer, if one counts."""
    if tokenizer is None:
        return {}
    from shortlist.text.tokenizer import tokenizer_identity  # late, as it loads slowly

    return {"tokenizer": tokenizer_identity(tokenizer)}


def _written(pieces: Iterable[ReadPart], journal: Journal) -> Iterator[Entry]:
    """Write files' chunks, and yield each file that is finished."""
    begin, chunks, documents = journal.place, 0, 0
    for piece in pieces:
        journal.write(piece.lines)
        chunks, documents = chunks + piece.chunks, documents + piece.documents
        if piece.is_last:
            work = piece.work
            entry = Entry(work.file.doc_id, work.stamp, begin, journal.place, chunks, documents, work.problems)
            journal.finish(entry)
            yield entry
            begin, chunks, documents = journal.place, 0, 0


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
            refuse_lost_source(config)
            why = f"cannot be read ({error.strerror or error}); mend that and run the same command again."
            note_bad(config, problems, file, (file.name, why))
    return stamps, problems


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
            note_bad(config, [], file, (where, why))
        yield file.doc_id, (corpus, entry._replace(stamp=stamp))


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
