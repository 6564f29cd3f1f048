"""Files that are whole or absent: atomic writing, gzip-transparent reading, hashing."""

import gzip
import hashlib
import os
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from shortlist.errors import UserError


@contextmanager
def atomic_write(path: Path, mode: str = "w") -> Iterator[IO]:
    """Open a temporary neighbour of `path` for writing; rename it onto `path` only if the block succeeds.

    Text is UTF-8 with "\\n" line ends; a name ending in .gz is compressed. After a crash the old file, or none, is
    there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    text: dict[str, Any] = {} if "b" in mode else {"encoding": "utf-8", "newline": "\n"}
    opener: Any = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(partial, mode if "b" in mode else mode + "t", **text) as file:
            yield file
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def open_text(path: Path) -> Iterator[IO[str]]:
    """Open a UTF-8 text file, gzip or plain, whose lines end in "\\n" alone (U+2028 inside JSON is not a line end).

    Raises:
        UserError: the file is missing, is a folder, or is not UTF-8.
    """
    if not path.is_file():
        raise UserError(f"{path}: {'is a folder' if path.is_dir() else 'no such file'}; expected a file.")
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8", newline="\n") as file:
            yield file
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}); convert it first.") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path}: not a whole gzip file ({error}); fetch or compress it again.") from None


def sha256(*paths: Path) -> str:
    """Hex digest of the contents of the files, in the order given."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Make a folder: its files are written to a temporary neighbour, which takes the name only if the block succeeds.

    After a crash the folder is there with all its files, or not at all.

    Raises:
        OSError: the folder is there already and not empty.
    """
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        for file in sorted(p for p in partial.rglob("*") if p.is_file()):
            with open(file, "rb") as opened:
                os.fsync(opened.fileno())
        partial.replace(path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
