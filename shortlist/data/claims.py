"""Claims: locks by which only one command at a time writes an output.

The system frees the lock of a process that has ended, however it ended, so a lock file that is left is no obstacle.
"""

import errno
import fcntl
import json
import os
import shutil
import socket
import threading
import time
import weakref
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, final

from shortlist.data.files import TEMPORARY
from shortlist.errors import UserError

LOOKS = 5
"""Number of times to try a lock, which another process may hold for a moment only to look at it."""

NOT_LOCKABLE = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
"""Errors of file systems without locks, where the names of host and process in the file must do."""


class AtWorkError(UserError):
    """An output that another command is writing."""


@final
class Claim:
    """The right to write an output, until it is released or the process ends.

    It is released when nothing refers to it any more, too.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.thread, self._path = threading.get_ident(), path
        self._end = weakref.finalize(self, _release, path, descriptor, os.getpid())

    def release(self) -> None:
        """Give the right back, wherever the claim is still referred to."""
        with _guard:
            if _held.get(str(self._path)) is self:
                del _held[str(self._path)]
            self._end()

    def __enter__(self) -> "Claim":
        return self

    def __exit__(self, *error: object) -> None:
        """Do nothing: the same thread may have claimed the output twice."""


_held: weakref.WeakValueDictionary[str, Claim] = weakref.WeakValueDictionary()
_guard = threading.Lock()


def claim_output(out: Path, *, folder: bool, stage: str) -> Claim:
    """Lock an output, and delete the temporary files that a killed command has left there.

    The thread that has an output may claim it again.

    Raises:
        AtWorkError: another command is at work there; the message names its process.
    """
    path = lock_file(out, folder)
    with _guard:
        if (held := _held.get(str(path))) is not None and held.thread == threading.get_ident():
            return held
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _lock(path, fcntl.LOCK_EX, os.O_CREAT) if held is None else None
        del held  # or the error, which keeps what is named here, would keep it from ending
        if descriptor is None:
            raise _at_work(out, path)
        _introduce(descriptor, stage)
        found = _held[str(path)] = Claim(path, descriptor)
    sweep(out, folder=folder)
    return found


def check_free(out: Path, *, folder: bool) -> None:
    """Check that no other command is at work on an output; nothing is written.

    Raises:
        AtWorkError: another command is; the message names its process.
    """
    path = lock_file(out, folder)
    with _guard:
        held = _held.get(str(path))
        here, ours = held is not None, held is not None and held.thread == threading.get_ident()
        del held
        if ours or not path.exists():
            return
        with suppress(PermissionError, FileNotFoundError):  # a lock that cannot be opened shows when it is needed
            if here or (descriptor := _lock(path, fcntl.LOCK_SH)) is None:
                raise _at_work(out, path)
            os.close(descriptor)


def tidy(out: Path, *, folder: bool) -> None:
    """Delete what a command killed after its last step left: its lock and temporary files."""
    path = lock_file(out, folder)
    if path.exists() and str(path) not in _held:
        with suppress(OSError, UserError):  # what may not be written, or where somebody is at work, stays
            claim_output(out, folder=folder, stage="").release()


def lock_file(out: Path, folder: bool) -> Path:
    """Return the path of an output's lock: inside a folder, beside a file."""
    return Path(os.path.abspath(out / ".lock" if folder else out.with_name(f".{out.name}.lock")))


def sweep(out: Path, *, folder: bool) -> None:
    """Delete what killed commands have left half written in a folder, or beside a file."""
    if folder:
        _sweep_folder(out)
        return
    names = [name[:100] for name in (out.name, f"{out.name}.manifest.json", f"{out.name}.scores")]
    for path in out.parent.glob(".*.partial"):
        if TEMPORARY.fullmatch(path.name) and path.name[1 : -len(".0123456789abcdef.partial")] in names:
            path.unlink(missing_ok=True)


def _sweep_folder(folder: Path) -> None:
    for entry in list(os.scandir(folder)):
        if TEMPORARY.fullmatch(entry.name):
            is_folder = entry.is_dir(follow_symlinks=False)
            shutil.rmtree(entry.path, ignore_errors=True) if is_folder else os.unlink(entry.path)
        elif entry.is_dir(follow_symlinks=False) and not entry.name.startswith("."):
            inside = Path(entry.path)
            if not (inside / "manifest.json").exists():  # another output's, where another command may be at work
                _sweep_folder(inside)


def _lock(path: Path, kind: int, flags: int = 0) -> int | None:
    """Open and lock a lock file; None if another process has it."""
    for attempt in range(LOOKS):
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | flags, 0o666)
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in NOT_LOCKABLE and not _lives(_holder(path)):
                return descriptor
            os.close(descriptor)
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                return None
            time.sleep(0.01 * attempt)
            continue
        if _is_at(path, descriptor):
            return descriptor
        os.close(descriptor)  # it was deleted when its holder was done
    return None


def _is_at(path: Path, descriptor: int) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(os.stat(path, follow_symlinks=False), os.fstat(descriptor))
    return False


def _release(path: Path, descriptor: int, pid: int) -> None:
    if os.getpid() == pid and _is_at(path, descriptor):  # not in a fork of the process that holds it
        with suppress(OSError):
            path.unlink()
    os.close(descriptor)


def _introduce(descriptor: int, stage: str) -> None:
    """Write into the lock file who holds it."""
    now = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    who = {"stage": stage, "pid": os.getpid(), "host": socket.gethostname(), "since": now, "start": _start(os.getpid())}
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(who).encode(), 0)


def _holder(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError):
        return {}


def _at_work(out: Path, path: Path) -> AtWorkError:
    holder = _holder(path)
    who = f"process {holder.get('pid')} on {holder.get('host')}, since {holder.get('since')}" if holder else "unknown"
    stage = f"`shortlist {holder['stage']}`" if "stage" in holder else "another command"
    return AtWorkError(f"--out {out}: {stage} is at work there ({who}); wait for it, end it, or choose another name.")


def _lives(holder: dict[str, Any]) -> bool:
    """Whether the holder of a lock may still be running; on another host it may."""
    if not holder or holder.get("host") != socket.gethostname():
        return bool(holder)
    try:
        os.kill(int(holder["pid"]), 0)
    except PermissionError:
        pass
    except (ProcessLookupError, KeyError, ValueError):
        return False
    return _start(int(holder["pid"])) == holder.get("start")


def _start(pid: int) -> str | None:
    """Return when a process began; a later one may have its number."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return None
