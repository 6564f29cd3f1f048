"""One command in several processes of this machine that work together, such as a training.

The processes find each other by what torchrun would tell them too: RANK, WORLD_SIZE and so on. They write why they fail
into a folder, from which the process that started them says it once.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from typing import NamedTuple

from shortlist.cores import share_cores
from shortlist.errors import UserError

FOLDER = "SHORTLIST_TOGETHER"
"""Environment variable with the folder that processes share, in those that `run_together` has started."""

GRACE_SECONDS = 2.0
"""How long the others may take to say why they fail, once one has ended. Most of them fail because it is gone."""


class Failure(NamedTuple):
    """The reason why a process has ended."""

    text: str
    for_user: bool = True
    """Whether the user can mend it; otherwise the text is a traceback."""


def run_together(command: Sequence[str], processes: int, *, on_gpus: bool) -> None:
    """Run a command of `shortlist` in several processes, which share this machine's cores.

    Only the first one prints. If one fails or this process is interrupted, all are ended at once.

    Args:
        on_gpus: let them see the GPUs; each takes one.

    Raises:
        UserError: what the user can mend, or how a process was ended.
        SystemExit: a process failed otherwise; its traceback has been printed.
    """
    members: list[subprocess.Popen[bytes]] = []
    with TemporaryDirectory(prefix="shortlist-") as name:
        try:
            with _interrupts_blocked():
                for rank in range(processes):
                    members.append(_start(command, rank, processes, Path(name), on_gpus=on_gpus))
            failure = _wait(members, Path(name))
        finally:
            for member in members:
                member.kill()
            for member in members:
                member.wait()
                assert member.stdin is not None  # for the type checker
                member.stdin.close()
    if failure and failure.for_user:
        raise UserError(failure.text)
    if failure:
        print(failure.text, end="", file=sys.stderr)
        raise SystemExit(1)


def shared_folder() -> Path | None:
    """Return the folder that processes started by `run_together` share.

    The result is None in all other processes.
    """
    return Path(os.environ[FOLDER]) if FOLDER in os.environ else None


def join_in() -> None:
    """End this process when the one that has started it is gone, even if killed."""
    Thread(target=_end_with_starter, daemon=True).start()


def tell(failure: Failure) -> bool:
    """Tell the process that has started this one why it fails; False if nobody did."""
    folder = shared_folder()
    if folder is None:
        return False
    partial = folder / f"partial-{os.environ['RANK']}"
    partial.write_text(json.dumps(failure), "utf-8")
    partial.rename(_told(folder, int(os.environ["RANK"])))
    return True


def _told(folder: Path, rank: int) -> Path:
    return folder / f"failure-{rank}.json"


def _start(
    command: Sequence[str], rank: int, processes: int, folder: Path, *, on_gpus: bool
) -> "subprocess.Popen[bytes]":
    """Start one of the processes; it ends when its stdin does."""
    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
    environment = os.environ | {name: str(value) for name, value in places.items()} | share_cores(processes)
    environment |= {FOLDER: str(folder)} | ({} if on_gpus else {"CUDA_VISIBLE_DEVICES": ""})
    environment.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")  # nobody else may listen
    words = [sys.executable, "-m", "shortlist", *command]
    if rank == 0:
        return subprocess.Popen(words, stdin=subprocess.PIPE, env=environment)
    with open(folder / f"stderr-{rank}", "wb") as err:
        return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=err, env=environment)


def _wait(members: "Sequence[subprocess.Popen[bytes]]", folder: Path) -> Failure | None:
    """Wait until all are done, or one has failed; returns why."""
    while not any(member.poll() for member in members):
        if all(member.poll() == 0 for member in members):
            return None
        time.sleep(0.05)
    until = time.monotonic() + GRACE_SECONDS
    while time.monotonic() < until and any(member.poll() is None for member in members):
        time.sleep(0.05)
    failures = [_failure(rank, member.poll(), len(members), folder) for rank, member in enumerate(members)]
    return min((failure for failure in failures if failure), key=_follows_from_others)


def _failure(rank: int, code: int | None, processes: int, folder: Path) -> Failure | None:
    """Find out why a process failed, if it did."""
    if not code:
        return None
    with suppress(FileNotFoundError):
        return Failure(*json.loads(_told(folder, rank).read_text("utf-8")))
    how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
    last = ""
    with suppress(FileNotFoundError):
        lines = (folder / f"stderr-{rank}").read_text("utf-8", "replace").split("\n")
        last = next((f" ({line.strip()})" for line in reversed(lines) if line.strip()), "")
    return Failure(
        f"process {rank + 1} of {processes} was ended {how}{last}. Where it was killed, memory is the usual reason: "
        "use --processes 1, or smaller pieces; the same command goes on from what is finished."
    )


def _follows_from_others(failure: Failure) -> int:
    """Order failures by how surely they follow from another process's end, the causes first."""
    lost = any(words in failure.text for words in ("onnection closed", "onnection reset", "roken pipe"))
    return 0 if failure.for_user else 2 if lost else 1


def _end_with_starter() -> None:
    while os.read(0, 1):
        pass
    os._exit(1)


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Block Ctrl-C in processes started within; this process ends them instead."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
