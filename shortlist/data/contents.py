"""Digests of files, by which what is read is known to be what was written.

A manifest lists the files of its output with their sizes and SHA-256 digests. A file is compared with its digest when
it is first used, and again only once it has changed.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from shortlist.data.files import sha256
from shortlist.errors import UserError

FileList = dict[str, dict[str, Any]]
"""For each file, by its path within the output's folder, its `size` in bytes and its `sha256`."""

NO_VERIFY = "SHORTLIST_NO_VERIFY"
"""Environment variable that switches off the comparison, as `--no-verify` does; worker processes inherit it."""
REMEMBERED_BYTES = 1 << 20
"""Size from which a file's digest is remembered for the next command; smaller files are read faster."""
SETTLED_SECONDS = 2.0
"""Age of a file's last change from which its times tell one change from the next, on any file system."""

_known: dict[tuple[str, ...], str] = {}


def listed(path: Path, sha256: str | None = None) -> dict[str, Any]:
    """Describe a file as a manifest lists it.

    Args:
        sha256: its digest, where that is known from writing it.
    """
    return {"size": path.stat().st_size, "sha256": sha256 or digest(path)}


def list_files(folder: Path, *, without: Iterable[str] = (), known: Mapping[str, str] | None = None) -> FileList:
    """List the files of an output's folder, as `file_names` does, with sizes and digests.

    Args:
        without: files and folders to leave out, by their paths within the folder.
        known: digests that need not be computed.
    """
    names, known = file_names(folder, without=without), known or {}
    with ThreadPoolExecutor(4) as pool:
        return dict(zip(names, pool.map(lambda name: listed(folder / name, known.get(name)), names), strict=True))


def file_names(folder: Path, *, without: Iterable[str] = ()) -> list[str]:
    """List the files of an output's folder by their paths within it.

    The manifest is left out, and so are hidden files, links, and folders that are outputs of their own.
    """
    left_out = set(without)

    def walk(inside: Path, prefix: str) -> Iterator[str]:
        for entry in os.scandir(inside):
            name = prefix + entry.name
            if entry.name.startswith(".") or entry.is_symlink() or name in left_out:
                continue
            if not entry.is_dir():
                yield name
            elif not os.path.exists(os.path.join(entry.path, "manifest.json")):
                yield from walk(Path(entry.path), f"{name}/")

    return sorted(name for name in walk(folder, "") if name != "manifest.json")


def check_files(folder: Path, files: Mapping[str, Mapping[str, Any]], *, remedy: str) -> None:
    """Compare files with their listed sizes and digests, unless that is switched off.

    Args:
        remedy: what to do where they differ, as the end of the message.

    Raises:
        UserError: a file is missing or is not as it was written.
    """
    if os.environ.get(NO_VERIFY):
        return
    for problem in find_damage(folder, files):
        raise UserError(f"{problem}; {remedy}")


def find_damage(folder: Path, files: Mapping[str, Mapping[str, Any]], *, again: bool = False) -> Iterator[str]:
    """Yield a description of each file that is missing or differs from its list.

    Args:
        again: read files again that have not changed since they were last read.
    """
    names, read = list(files), sha256 if again else digest
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda name: _damage(folder / name, files[name], read), names)
        yield from (problem for problem in found if problem)


def _damage(path: Path, expected: Mapping[str, Any], read: Callable[[Path], str]) -> str | None:
    """Describe how a file differs from its size and digest; None if it does not."""
    if not path.is_file():
        return f"{path}: is missing"
    if (size := path.stat().st_size) != expected["size"]:
        return f"{path}: holds {size:,} bytes, {expected['size']:,} were written"
    return None if read(path) == expected["sha256"] else f"{path}: its contents are not those that were written"


def digest(path: Path) -> str:
    """Return the SHA-256 of a file, which is read again only once it has changed.

    Changes show in its size, its times or its inode. Digests of large files are remembered in the user's cache folder.
    """
    before = path.stat()
    key = tuple(map(str, (path.resolve(), before.st_size, before.st_mtime_ns, before.st_ctime_ns, before.st_ino)))
    remembered = _memory(path) if before.st_size >= REMEMBERED_BYTES else None
    if found := _known.get(key) or (remembered and _recall(remembered, key)):
        return found
    settled = time.time() - max(before.st_mtime, before.st_ctime) >= SETTLED_SECONDS
    found = sha256(path)
    if settled:  # otherwise a change to come may have the same time as the one that has been
        _known[key] = found
        if remembered:
            _remember(remembered, key, found)
    return found


def cache_folder() -> Path:
    """Return this package's folder in the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "shortlist"


def _memory(path: Path) -> Path:
    return cache_folder() / "digests" / hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:32]


def _recall(memory: Path, key: Sequence[str]) -> str | None:
    try:
        *found, value = json.loads(memory.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return value if found == list(key) else None


def _remember(memory: Path, key: Sequence[str], value: str) -> None:
    try:
        memory.parent.mkdir(parents=True, exist_ok=True)
        partial = memory.with_name(f"{memory.name}.{os.getpid()}")
        partial.write_text(json.dumps([*key, value]), "utf-8")
        partial.replace(memory)
    except OSError:
        pass  # it is read again the next time
