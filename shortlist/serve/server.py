"""One process, or several that share a socket, from the first request to the last answer."""

import asyncio
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import get_context, parent_process
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any, final

import uvicorn

from shortlist.errors import UserError
from shortlist.progress import say
from shortlist.serve.protection import Protection

LINGER_SECONDS = 0.5
"""How long a server that goes down still answers new connections that it does, and then those that it has by then."""
FIRST_SECONDS = 5
"""How long, when no new connections are taken, one that has not asked anything yet may still do so."""
KEEP_SECONDS = 75
"""How long a connection stays open that asks nothing; shorter, clients would often meet the very moment of closing."""
RESTARTS = 10
"""How many workers may die before the whole server gives up."""

MakeApp = Callable[[], Protection]


@final
class Server(uvicorn.Server):
    """Uvicorn's, which on SIGTERM and Ctrl-C first finishes what was accepted.

    Args:
        drain_seconds: longest that this may take; a second signal ends it at once.
    """

    def __init__(self, app: Protection, drain_seconds: float) -> None:
        quiet = {"log_level": "warning", "access_log": False, "server_header": False, "lifespan": "off"}
        times = {"timeout_graceful_shutdown": 1, "timeout_keep_alive": KEEP_SECONDS}
        super().__init__(uvicorn.Config(app, **times, **quiet))
        self._gate, self._metrics, self._drain_seconds, self._asked = app.gate, app.metrics, drain_seconds, 0.0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Refuse new requests; at the second signal, end."""
        if self._gate.draining:
            self.should_exit = True
        else:
            self._gate.draining, self._asked = True, time.monotonic()

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: whether to end."""
        if counter % 10 == 0:
            self._metrics.publish()
        if self._gate.draining:
            waited = time.monotonic() - self._asked
            done = waited > LINGER_SECONDS and not self._gate.requests
            self.should_exit |= done or waited > self._drain_seconds
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no new connections, answer what those that there are still ask, and end."""
        waiting = _accept_waiting(sockets or ())
        for server in self.servers:
            server.close()
        for connection in waiting:
            await asyncio.get_running_loop().connect_accepted_socket(self._protocol, connection)
        await asyncio.sleep(LINGER_SECONDS)
        deadline = time.monotonic() + FIRST_SECONDS
        while self._has_new_connections() and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        await super().shutdown(sockets)

    def _protocol(self) -> asyncio.Protocol:
        http: Any = self.config.http_protocol_class
        return http(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)

    def _has_new_connections(self) -> bool:
        return any(getattr(connection, "cycle", None) is None for connection in self.server_state.connections)


def _accept_waiting(listeners: Iterable[socket.socket]) -> list[socket.socket]:
    """The connections that the kernel has made by now; it would reset them when the listeners are closed."""
    waiting = []
    for listener in listeners:
        with suppress(BlockingIOError):
            while True:
                waiting.append(listener.accept()[0])
    return waiting


def bind(host: str, port: int) -> socket.socket:
    """The socket to listen on.

    Raises:
        UserError: the address is taken or not this machine's.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        # With the protocol named: only then asyncio turns off Nagle's algorithm, which costs each answer 40 ms.
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError as error:
        raise UserError(f"--host {host} --port {port}: {error.strerror or error}; choose others.") from None
    listener.set_inheritable(True)
    return listener


def serve(make_app: MakeApp, listener: socket.socket, drain_seconds: float, *, shared: Path | None = None) -> None:
    """Serve in this process until a signal ends it.

    Args:
        shared: folder in which processes that serve together tell each other what they count.
    """
    app = make_app()
    if shared:
        app.metrics.share(shared)
    say(f"serve: ready on {address(listener)}")
    Server(app, drain_seconds).run(sockets=[listener])


def address(listener: socket.socket) -> str:
    """Where to point a browser."""
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def serve_in_processes(make_app: MakeApp, listener: socket.socket, drain_seconds: float, workers: int) -> None:
    """Serve in several processes, each with models of its own; one that dies is replaced.

    Raises:
        UserError: they die again and again.
    """
    threads = max(1, _cores() // workers)
    os.environ["OMP_NUM_THREADS"] = os.environ["RAYON_NUM_THREADS"] = str(threads)

    def start(shared: str) -> BaseProcess:
        process = get_context("spawn").Process(target=_work, args=(make_app, listener, drain_seconds, Path(shared)))
        process.start()
        return process

    with TemporaryDirectory() as shared, _until_signal() as ended:
        processes = [start(shared) for _ in range(workers)]
        deaths = 0
        while not ended.wait(0.2) and deaths < RESTARTS:
            for place, process in enumerate(processes):
                if not process.is_alive():
                    deaths += 1
                    say(f"serve: a worker ended with exit code {process.exitcode}; starting another.")
                    processes[place] = start(shared)
        listener.close()  # else new connections would be kept waiting here, when the workers take them no more
        _end(processes, drain_seconds)
    if deaths >= RESTARTS:
        raise UserError(f"{deaths} workers ended by themselves; their messages above say why, or memory is too small.")


def _work(make_app: MakeApp, listener: socket.socket, drain_seconds: float, shared: Path) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        serve(make_app, listener, drain_seconds, shared=shared)
    except UserError as error:
        print(f"shortlist serve: {error}", file=sys.stderr)
        sys.exit(1)


def _end(processes: list[BaseProcess], drain_seconds: float) -> None:
    """Let them finish; kill those that do not."""
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + drain_seconds + 5
    for process in processes:
        process.join(max(0.1, deadline - time.monotonic()))
        if process.is_alive():
            process.kill()


@contextmanager
def _until_signal() -> Iterator[threading.Event]:
    """An event that SIGTERM and Ctrl-C set."""
    ended = threading.Event()
    signals = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, lambda *_: ended.set()) for number in signals}
    try:
        yield ended
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end_with_parent() -> None:
    """Drain when the process that started this one is gone, even killed."""
    if parent := parent_process():
        parent.join()
        with suppress(ProcessLookupError):
            os.kill(os.getpid(), signal.SIGTERM)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
