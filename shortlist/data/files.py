"""Files that are whole or absent: atomic writing, gzip-transparent reading, hashing."""

import errno
import gzip
import hashlib
import json
import os
import re
import secrets
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader, TextIOWrapper
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

from shortlist.errors import UserError

TEMPORARY = re.compile(r"\..*\.[0-9a-f]{16}\.partial")
"""Names of files and folders that are being written, or were when their command was killed."""

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""System errors of a full disk, a full quota, and a file larger than is allowed."""


@contextmanager
def atomic_write(path: Path, mode: str = "w") -> Iterator[IO]:
    """Open a file that is written whole or not at all.

    The block writes to a temporary neighbour of `path`, which is renamed onto `path` only if the block succeeds. Text
    is UTF-8 with "\\n" line ends; a name ending in .gz is compressed. After a crash the old file, if any, is still
    there; once the block has succeeded the new one is, even after a power cut. No link is followed: one at `path` is
    replaced.

    Raises:
        OSError: the file cannot be written; where the disk is full, the error names `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _temporary(path)
    try:
        with _create(partial, path.name, binary="b" in mode) as file:
            yield file
        _sync(partial)
        partial.replace(path)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        _say_where(error, path)
        raise
    _sync_folder(path.parent)


def _temporary(path: Path) -> Path:
    """Make up the name of a temporary neighbour.

    Nobody can foresee it, so nobody can have put a link in its place.
    """
    return path.with_name(f".{path.name[:100]}.{secrets.token_hex(8)}.partial")


@contextmanager
def _create(path: Path, name: str, *, binary: bool) -> Iterator[IO]:
    """Open a file that must be new, compressed where `name` ends in .gz."""
    text: dict[str, Any] = {} if binary else {"encoding": "utf-8", "newline": "\n"}
    if not name.endswith(".gz"):
        with open(path, "xb" if binary else "x", **text) as file:
            yield file
        return
    with open(path, "xb") as raw, gzip.GzipFile(name, "wb", fileobj=raw, mtime=0) as packed:
        if binary:
            yield cast(IO, packed)
            return
        with TextIOWrapper(packed, **text) as file:
            yield file


def _say_where(error: BaseException, path: Path) -> None:
    """Add the missing path to the error of a full disk or quota."""
    if isinstance(error, OSError) and error.errno in FULL:
        error.filename = error.filename or str(path)


def _sync(path: Path) -> None:
    """Wait until the file, or the names in the folder, are on disk."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _sync_folder(path: Path) -> None:
    with suppress(OSError):  # on systems that cannot, a power cut may still undo the renaming
        _sync(path)


@contextmanager
def open_bytes(path: Path) -> Iterator[BinaryIO]:
    """Open a file for reading, gzip or plain.

    Raises:
        UserError: the file is missing, is a folder, or is a damaged gzip file.
    """
    if not path.is_file():
        raise UserError(f"{path}: {'is a folder' if path.is_dir() else 'no such file'}; expected a file.")
    packed = path.suffix == ".gz"
    try:
        with BufferedReader(gzip.open(path), 1 << 18) if packed else open(path, "rb", 1 << 18) as file:
            yield file
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path}: not a whole gzip file ({error}); fetch or compress it again.") from None


@contextmanager
def open_text(path: Path) -> Iterator[IO[str]]:
    """Open a UTF-8 text file for reading, gzip or plain.

    A byte order mark is left out. Lines end in "\\n" alone: U+2028 inside JSON is not a line end.

    Raises:
        UserError: as for `open_bytes`, or the file is not UTF-8.
    """
    try:
        with open_bytes(path) as file, TextIOWrapper(file, encoding="utf-8-sig", newline="\n") as text:
            yield text
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}); convert it first.") from None


def folder_bytes(folder: Path) -> int:
    """Sum the sizes of all files in a folder and below."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def sha256(*paths: Path) -> str:
    """Return the hex digest of the files' contents, in the order given."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Make a folder that is written whole or not at all.

    The block writes into a temporary neighbour, which takes the name only if the block succeeds. After a crash or a
    power cut the folder is there with all its files, or not at all.

    Raises:
        OSError: the folder is there already and not empty, or cannot be written (as for `atomic_write`).
    """
    partial = _temporary(path)
    partial.mkdir(parents=True)
    try:
        yield partial
        for inside in partial.rglob("*"):
            (_sync_folder if inside.is_dir() else _sync)(inside)
        _sync_folder(partial)
        partial.replace(path)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        _say_where(error, path)
        raise
    _sync_folder(path.parent)


@contextmanager
def temporary_folder(folder: Path) -> Iterator[Path]:
    """Make a folder for temporary files inside another one, and delete it afterwards."""
    work = _temporary(folder / "work")
    work.mkdir(parents=True)
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def final_place(folder: Path) -> Path:
    """Return where a folder's files will lie: outside of it, if it is a `temporary_folder`."""
    return folder.parent if TEMPORARY.fullmatch(folder.name) and folder.name.startswith(".work.") else folder


def write_json(path: Path, values: dict[str, Any] | list[Any]) -> None:
    """Write an object or a list as indented JSON, atomically."""
    with atomic_write(path) as file:
        json.dump(values, file, indent=2)
        file.write("\n")


def read_json(path: Path, kind: type = dict) -> Any:
    """Read the value in a JSON file.

    Raises:
        UserError: no such file, no JSON, or a value of another type than `kind`.
    """
    try:
        value = json.loads(path.read_text("utf-8-sig"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not JSON ({error}).") from None
    if not isinstance(value, kind):
        raise UserError(f"{path}: holds a {type(value).__name__}, expected a {kind.__name__}.")
    return value


def optional_json(path: Path) -> dict[str, Any]:
    """Read the object in a JSON file; a missing file gives an empty object."""
    return read_json(path) if path.exists() else {}
