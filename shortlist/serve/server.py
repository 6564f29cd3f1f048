"""Server processes: one, or several that share a socket, and their orderly shutdown."""

import asyncio
import errno
import math
import os
import resource
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
from typing import Any, cast, final

import uvicorn

from shortlist.errors import UserError
from shortlist.progress import say
from shortlist.serve.protection import Protection

LINGER_SECONDS = 0.5
"""How long a server that is shutting down still takes new connections, to refuse their requests with an answer. It then
waits as long again for requests on the connections it has."""
FIRST_SECONDS = 5
"""How long a connection without a request so far may still send one, after new connections are no longer taken."""
KEEP_SECONDS = 75
"""How long an idle connection stays open. If this were short, clients would often send just as it closes."""
HEADER_SECONDS = 20
"""How long a new connection may take for the headers of its first request."""
MOST_CONNECTIONS = 2048
"""Most connections at a time, where the system allows so many open files."""
BACKLOG = 128
"""Connections that wait in the kernel, and the most that are accepted at once."""
QUIET_SECONDS = 60
"""How long a message about a lack of open files is not repeated."""
TOO_MANY = b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\nretry-after: 5\r\ncontent-length: 0\r\n\r\n"
"""The answer to a connection beyond the most."""
RESTARTS = 10
"""How many workers may die before the whole server gives up."""

EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
"""Errors of a system that has no more open files or memory to give."""

MakeApp = Callable[[], Protection]


@final
class Server(uvicorn.Server):
    """A uvicorn server that finishes accepted requests on SIGTERM and Ctrl-C.

    Args:
        drain_seconds: longest time for finishing; a second signal ends it at once.
    """

    def __init__(self, app: Protection, drain_seconds: float) -> None:
        quiet = {"log_level": "warning", "access_log": False, "server_header": False, "lifespan": "off"}
        times = {"timeout_graceful_shutdown": 1, "timeout_keep_alive": KEEP_SECONDS}
        self.most_connections, backlog = connection_limits()
        config = uvicorn.Config(app, **times, **quiet, backlog=backlog)
        super().__init__(config)
        self._gate, self._metrics, self._drain_seconds, self._asked = app.gate, app.metrics, drain_seconds, 0.0
        self._idle: dict[Any, tuple[Any, float]] = {}
        self._complained = -math.inf
        config.load()
        self._http: Any = config.http_protocol_class
        config.http_protocol_class = cast(Any, self._connected)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say so."""
        asyncio.get_running_loop().set_exception_handler(self._explain)
        await super().startup(sockets)
        for listener in sockets or ():
            say(f"serve: ready on {address(listener)}")

    def _connected(self, **given: Any) -> asyncio.Protocol:
        """Take a connection, or refuse it if there are too many."""
        return _Full() if len(self.server_state.connections) >= self.most_connections else self._http(**given)

    def _explain(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Report errors of the event loop, and shortage of files or memory now and then."""
        error = context.get("exception")
        if not isinstance(error, OSError) or error.errno not in EXHAUSTED:
            loop.default_exception_handler(context)
        elif time.monotonic() - self._complained > QUIET_SECONDS:
            self._complained = time.monotonic()
            say(f"serve: new connections must wait: {error.strerror}; raise the limit (`ulimit -n`) or ask for less.")

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Refuse new requests at the first signal; end at the second."""
        if self._gate.draining:
            self.should_exit = True
        else:
            self._gate.draining, self._asked = True, time.monotonic()

    async def on_tick(self, counter: int) -> bool:
        """Decide, ten times a second, whether to end."""
        if counter % 10 == 0:
            self._metrics.publish()
            self._close_idle()
        if self._gate.draining:
            waited = time.monotonic() - self._asked
            done = waited > LINGER_SECONDS and not self._gate.requests
            self.should_exit |= done or waited > self._drain_seconds
        return await super().on_tick(counter)

    def _close_idle(self) -> None:
        """Close connections that have had no whole request for too long."""
        now, before = time.monotonic(), self._idle
        self._idle = {}
        for connection in list(self.server_state.connections):
            cycle = getattr(connection, "cycle", None)
            if cycle is None or cycle.response_complete:
                last, since = before.get(connection, (cycle, now))
                self._idle[connection] = cycle, since if last is cycle else now
                if now - self._idle[connection][1] > (HEADER_SECONDS if cycle is None else KEEP_SECONDS):
                    connection.transport.close()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no new connections, answer requests on the existing ones, and end."""
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
        return self._connected(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)

    def _has_new_connections(self) -> bool:
        return any(getattr(connection, "cycle", None) is None for connection in self.server_state.connections)


@final
class _Full(asyncio.Protocol):
    """A connection that is refused, as there are too many."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Say so and close it."""
        assert isinstance(transport, asyncio.Transport)
        transport.write(TOO_MANY)
        transport.close()


def connection_limits() -> tuple[int, int]:
    """Compute the most connections and the kernel's queue from the limit of open files.

    They leave as many as are accepted before they can be refused, in two turns of the event loop, and some more.
    """
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if allowed == resource.RLIM_INFINITY:
        return MOST_CONNECTIONS, BACKLOG
    held = len(os.listdir("/dev/fd")) if os.path.isdir("/dev/fd") else allowed // 4
    backlog = max(8, min(BACKLOG, allowed // 9))
    return max(16, min(MOST_CONNECTIONS, allowed - held - 3 * backlog)), backlog


def _accept_waiting(listeners: Iterable[socket.socket]) -> list[socket.socket]:
    """Accept all connections that wait in the kernel.

    The kernel would reset them when the listeners are closed.
    """
    waiting = []
    for listener in listeners:
        with suppress(BlockingIOError):
            while True:
                waiting.append(listener.accept()[0])
    return waiting


def bind(host: str, port: int) -> socket.socket:
    """Open the socket to listen on.

    Raises:
        UserError: the address is taken or does not belong to this machine.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        # The protocol is named, as asyncio only then turns off Nagle's algorithm, which costs each answer 40 ms.
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
        shared: folder in which processes that serve together share their metrics.
    """
    app = make_app()
    if shared:
        app.metrics.share(shared)
    Server(app, drain_seconds).run(sockets=[listener])


def address(listener: socket.socket) -> str:
    """Return the URL of the server."""
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def serve_in_processes(make_app: MakeApp, listener: socket.socket, drain_seconds: float, workers: int) -> None:
    """Serve in several processes, and replace those that die.

    Each process loads the models.

    Raises:
        UserError: processes die again and again.
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
        listener.close()  # otherwise new connections would wait here once the workers no longer take them
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
    """Let the processes finish, and kill those that take too long."""
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + drain_seconds + 5
    for process in processes:
        process.join(max(0.1, deadline - time.monotonic()))
        if process.is_alive():
            process.kill()


@contextmanager
def _until_signal() -> Iterator[threading.Event]:
    """Yield an event that SIGTERM and Ctrl-C set."""
    ended = threading.Event()
    signals = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, lambda *_: ended.set()) for number in signals}
    try:
        yield ended
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end_with_parent() -> None:
    """Drain when the parent process is gone, even if it was killed."""
    if parent := parent_process():
        parent.join()
        with suppress(ProcessLookupError):
            os.kill(os.getpid(), signal.SIGTERM)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
