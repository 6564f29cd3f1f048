"""Processes to kill: forked from one that has imported what the commands need, so that each starts at once."""

import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any, final

IMPORTED = ["shortlist.cli", "shortlist.encode", "shortlist.train", "shortlist.rerank", "shortlist.serve.server"]
IMPORTED += ["shortlist.serve.app", "shortlist.models.retriever", "shortlist.rerankers.kinds"]
PATIENCE = 600
"""Seconds to wait for what will happen on any machine, or the test has failed."""


def forks() -> ForkServerContext:
    """The context whose processes have imported everything already."""
    context = get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    return context


def free_port() -> int:
    """A port of the loopback that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def call(function: Callable[..., Any], args: Sequence[Any], out: str, err: str) -> None:
    """Call the function with stdout and stderr going into files."""
    for name, stream, number in ((out, sys.stdout, 1), (err, sys.stderr, 2)):
        file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        stream.flush()
        os.dup2(file, number)
        os.close(file)
    sys.exit(function(*args))


def shortlist(*command: str) -> int:
    """Run a command; returns its exit code."""
    from shortlist.cli import main

    return main(list(command))


@final
class Started:
    """A function that runs in a process of its own.

    Args:
        out: where its stdout goes (None: nowhere).
        err: where its stderr goes (None: nowhere).
    """

    def __init__(
        self, function: Callable[..., Any], *args: Any, out: Path | None = None, err: Path | None = None
    ) -> None:
        files = [str(path or os.devnull) for path in (out, err)]
        self._process = forks().Process(target=call, args=(function, args, *files))
        self._process.start()
        self.pid = self._process.pid
        assert self.pid is not None

    def poll(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self._process.pid or 0, number)

    def wait(self, seconds: float = PATIENCE) -> int:
        """Its exit code, once it has ended."""
        self._process.join(seconds)
        code = self.poll()
        assert code is not None, f"it runs still, after {seconds} s"
        return code


def kill_when(it_is_time: Callable[[], bool], command: Sequence[str]) -> None:
    """Start `shortlist` and kill -9 it in the middle of its work."""
    process = Started(shortlist, *command)
    deadline = time.monotonic() + PATIENCE
    while not it_is_time():
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline, "it did nothing"
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
