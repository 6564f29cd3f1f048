"""The place of each file's chunks in a corpus, so that only changes are read.

`files.jsonl` beside a corpus has a line for each file that was read: its stamp, and the bytes of its chunks in the
corpus. While a conversion is at work, the chunks of files that are read are added to `begun/`, with the same lines;
from there and from the corpus before they are copied into the new corpus.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, final

from shortlist.data.contents import SETTLED_SECONDS, digest
from shortlist.data.files import sha256
from shortlist.data.seen import Seen
from shortlist.errors import UserError

CORPUS, FILES, SKIPPED, BEGUN = "corpus.jsonl", "files.jsonl", "skipped.txt", "begun"
WRITTEN = (CORPUS, FILES, SKIPPED, f"{BEGUN}/*")
"""Patterns of all files that a conversion of documents writes."""

SECONDS_BETWEEN = 2.0
"""Seconds of work that an interruption may lose."""

ID_BEGINS, ID_ENDS = b'{"_id": "', b'", "title": "'


class Stamp(NamedTuple):
    """The size, time and digest of a file, by which a change is noticed."""

    size: int
    mtime_ns: int
    """Time of the last change; 0 if it was so short ago that another change may have the same time."""
    sha256: str
    modified: str
    """Day of the last change, which is part of what is written."""


class Entry(NamedTuple):
    """The chunks and problems of a file that was read."""

    path: str
    stamp: Stamp
    begin: int
    end: int
    """The place of its chunks in the corpus, in bytes."""
    chunks: int
    documents: int
    problems: Sequence[Sequence[str]] = ()
    """Each record that cannot be used, or the file itself, with the reason."""

    @property
    def key(self) -> tuple[str, str, str]:
        """Everything that the chunks depend on."""
        return self.path, self.stamp.sha256, self.stamp.modified


class KnownFiles(NamedTuple):
    """The files that earlier runs have read, and where their chunks are."""

    finished: dict[str, Entry]
    """By path: the files of the corpus that is there."""
    made: dict[tuple[str, str, str], tuple[Path, Entry]]
    """By key: the corpus that holds an entry's chunks, and the entry."""
    stamps: dict[str, Stamp]
    """The last stamp of each path."""


def stamp_of(path: Path, known: Stamp | None) -> Stamp:
    """Stamp a file, and read it only if its size or time has changed.

    Args:
        known: the last stamp of the file.

    Raises:
        OSError: it cannot be read.
    """
    found = os.stat(path)
    if known is not None and known.mtime_ns == found.st_mtime_ns and known.size == found.st_size:
        return known
    settled = time.time() - max(found.st_mtime, found.st_ctime) >= SETTLED_SECONDS
    day = time.strftime("%Y-%m-%d", time.gmtime(found.st_mtime))
    return Stamp(found.st_size, found.st_mtime_ns if settled else 0, sha256(path), day)


def read_known_files(out: Path) -> KnownFiles:
    """Read what an output holds, finished or begun; what is damaged counts as not there."""
    known = KnownFiles({}, {}, {})
    for corpus, files in ((out / CORPUS, out / FILES), (out / BEGUN / CORPUS, out / BEGUN / FILES)):
        if not corpus.is_file() or not files.is_file():
            continue
        size = corpus.stat().st_size
        entries = [entry for entry, _ in _entries(files) if entry.end <= size]
        if corpus.parent == out:
            if not _is_of(files, corpus):
                continue
            known.finished.update({entry.path: entry for entry in entries})
        known.made.update({entry.key: (corpus, entry) for entry in entries})
        known.stamps.update({entry.path: entry.stamp for entry in entries})
    return known


def _entries(files: Path) -> Iterator[tuple[Entry, int]]:
    """Yield each entry and the byte where its line ends, up to a torn line."""
    place = 0
    with open(files, "rb") as lines:
        for line in lines:
            place += len(line)
            try:
                record = json.loads(line)
                if line.endswith(b"\n") and "corpus" in record:
                    continue
                entry = Entry(**record | {"stamp": Stamp(**record["stamp"])})
            except (ValueError, TypeError, KeyError):
                return
            if not line.endswith(b"\n"):
                return
            yield entry, place


def _is_of(files: Path, corpus: Path) -> bool:
    """Whether a list of files belongs to this corpus.

    A command may have been killed between writing the two.
    """
    with open(files, "rb") as lines:
        try:
            said = json.loads(lines.readline())["corpus"]
        except (ValueError, TypeError, KeyError):
            return False
    return said["bytes"] == corpus.stat().st_size and said["sha256"] == digest(corpus)


def _line(entry: Entry) -> bytes:
    record = entry._asdict() | {"stamp": entry.stamp._asdict(), "problems": [list(one) for one in entry.problems]}
    return json.dumps(record, ensure_ascii=False).encode() + b"\n"


@final
class Journal:
    """The chunks made so far, on disk, where a later run goes on."""

    def __init__(self, out: Path) -> None:
        folder = out / BEGUN
        folder.mkdir(exist_ok=True)
        self.corpus = folder / CORPUS
        ends = [(entry.end, place) for entry, place in _entries(folder / FILES)] if (folder / FILES).is_file() else []
        whole = self.corpus.stat().st_size if self.corpus.is_file() else 0
        kept = [end for end in ends if end[0] <= whole]
        self.place, listed = kept[-1] if kept else (0, 0)
        self._corpus, self._files = _opened(self.corpus, self.place), _opened(folder / FILES, listed)
        self._waiting: list[bytes] = []
        self._last = time.monotonic()

    def write(self, lines: bytes) -> None:
        """Add lines of the corpus."""
        self._corpus.write(lines)
        self.place += len(lines)

    def finish(self, entry: Entry) -> None:
        """Add a file, all of whose lines are there."""
        self._waiting.append(_line(entry))
        if time.monotonic() - self._last >= SECONDS_BETWEEN:
            self._save()

    def _save(self) -> None:
        for file, waiting in ((self._corpus, ()), (self._files, self._waiting)):
            file.writelines(waiting)
            file.flush()
            os.fsync(file.fileno())
        self._waiting.clear()
        self._last = time.monotonic()

    def close(self) -> None:
        """Save all that was added."""
        try:
            self._save()
        finally:
            self._corpus.close()
            self._files.close()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _opened(path: Path, place: int) -> BinaryIO:
    """Open a file to go on writing at a place, and cut off the rest."""
    file = open(path, "r+b" if path.exists() else "w+b")  # noqa: SIM115
    file.truncate(place)
    file.seek(place)
    return file


def forget_begun(out: Path) -> None:
    """Delete what was made for a conversion that is finished."""
    shutil.rmtree(out / BEGUN, ignore_errors=True)


def compose(folder: Path, made: Iterable[tuple[Path, Entry]]) -> str:
    """Copy chunks into a new corpus and list its files; return the corpus's digest.

    Args:
        made: the corpus that holds an entry's chunks, and the entry, in the order of the new corpus.

    Raises:
        UserError: an id occurs twice.
    """
    new, place, hashed, entries = Seen().add, 0, hashlib.sha256(), []
    with ExitStack() as opened:
        corpus = opened.enter_context(open(folder / CORPUS, "wb"))
        sources: dict[Path, BinaryIO] = {}
        for path, entry in made:
            if path not in sources:
                sources[path] = opened.enter_context(open(path, "rb"))
            sources[path].seek(entry.begin)
            for lines in _blocks(sources[path], entry.end - entry.begin):
                for line in lines.splitlines():
                    doc_id = line[len(ID_BEGINS) : line.index(ID_ENDS)].decode()
                    if not new(doc_id):
                        raise UserError(
                            f"{entry.path}: document id {doc_id.rpartition('#')[0] or doc_id!r} occurs in it or before "
                            "it; every document needs an id of its own: see --columns id=NAME."
                        )
                corpus.write(lines)
                hashed.update(lines)
            entries.append(entry._replace(begin=place, end=place + entry.end - entry.begin))
            place = entries[-1].end
    with open(folder / FILES, "wb") as file:
        head: dict[str, Any] = {"corpus": {"bytes": place, "sha256": hashed.hexdigest()}}
        file.write(json.dumps(head).encode() + b"\n")
        file.writelines(map(_line, entries))
    return hashed.hexdigest()


def _blocks(file: BinaryIO, size: int) -> Iterator[bytes]:
    """Yield the next `size` bytes in blocks of whole lines."""
    rest = b""
    while size > 0:
        block = file.read(min(size, 1 << 20))
        if not block:
            break
        size -= len(block)
        cut = block.rfind(b"\n") + 1
        yield rest + block[:cut]
        rest = block[cut:]
