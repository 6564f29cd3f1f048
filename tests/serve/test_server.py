"""The server around an application: connections, their limits, and what it says."""

import errno
import resource
import socket
import threading
import time
from asyncio import AbstractEventLoop
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from shortlist.serve import server as server_module
from shortlist.serve.gate import Gate, Limits
from shortlist.serve.metrics import Metrics
from shortlist.serve.protection import Message, Protection, Receive, Send
from shortlist.serve.server import Server, bind, connection_limits

ASK = b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n"


async def answer(scope: Message, receive: Receive, send: Send) -> None:
    """Answer that all is well."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


@contextmanager
def running(
    change: Callable[[Server], None] = lambda server: None,
) -> Iterator[tuple[Server, Callable[[], socket.socket]]]:
    """Run a server in a thread; yields it and a function that connects to it."""
    server, listener = Server(Protection(answer, Gate(Limits()), Metrics()), 1.0), bind("127.0.0.1", 0)
    change(server)
    place = listener.getsockname()
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    until(lambda: server.started)
    yield server, lambda: socket.create_connection(place, timeout=30)
    server.should_exit = True
    thread.join(30)


def until(true: Callable[[], bool]) -> None:
    """Wait for something."""
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def read(connection: socket.socket) -> bytes:
    """Read until the other end closes."""
    parts = []
    while part := connection.recv(1 << 16):
        parts.append(part)
    return b"".join(parts)


@pytest.mark.slow
def test_a_server_that_says_ready_can_be_asked(monkeypatch: pytest.MonkeyPatch):
    asked: list[str] = []

    def say(message: str) -> None:
        host, port = message.rpartition("//")[2].split(":")
        socket.create_connection((host, int(port)), timeout=30).close()
        asked.append(message)

    monkeypatch.setattr(server_module, "say", say)
    with running():
        until(lambda: bool(asked))
    assert asked[0].startswith("serve: ready on http://127.0.0.1:")


@pytest.mark.slow
def test_connections_beyond_the_most_are_refused_and_the_others_are_served():
    with running(lambda server: setattr(server, "most_connections", 2)) as (server, connect):
        held = [connect(), connect()]
        until(lambda: len(server.server_state.connections) == 2)
        assert read(connect()).startswith(b"HTTP/1.1 503 ")
        held[0].sendall(ASK)
        assert held[0].recv(1 << 16).startswith(b"HTTP/1.1 200 ")
        held[1].close()
        until(lambda: len(server.server_state.connections) == 1)
        served = connect()
        served.sendall(ASK)
        assert served.recv(1 << 16).startswith(b"HTTP/1.1 200 ")


@pytest.mark.slow
@pytest.mark.parametrize("sent", [b"", ASK[:20], ASK + ASK[:20]], ids=["nothing", "a part", "a second part"])
def test_a_connection_without_a_whole_request_is_closed_in_time(monkeypatch: pytest.MonkeyPatch, sent: bytes):
    monkeypatch.setattr(server_module, "HEADER_SECONDS", 0.2)
    monkeypatch.setattr(server_module, "KEEP_SECONDS", 0.2)
    with running(lambda server: setattr(server.config, "timeout_keep_alive", 60)) as (_, connect):
        connection = connect()
        connection.sendall(sent)
        assert read(connection).startswith(b"HTTP/1.1 200 " if len(sent) > len(ASK) else b"")


def test_a_lack_of_open_files_is_said_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    server, told = Server(Protection(answer, Gate(Limits()), Metrics()), 1.0), []
    loop: Any = type(
        "Loop", (AbstractEventLoop,), {"default_exception_handler": lambda _, context: told.append(context)}
    )()
    for _ in range(1000):
        server._explain(loop, {"message": "any", "exception": OSError(errno.EMFILE, "Too many open files")})
    assert capsys.readouterr().err.count("\n") == 1
    server._explain(loop, {"message": "any", "exception": ValueError("a bug")})
    assert [str(context["exception"]) for context in told] == ["a bug"]


@pytest.mark.parametrize(("allowed", "most", "backlog"), [(256, 100, 28), (1024, 500, 113), (1 << 20, 2048, 128)])
def test_connections_leave_open_files_for_the_rest(
    monkeypatch: pytest.MonkeyPatch, allowed: int, most: int, backlog: int
):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (allowed, allowed))
    monkeypatch.setattr(server_module.os, "listdir", lambda _: ["0"] * 50)
    found = connection_limits()
    assert (found[0] >= most, found[1]) == (True, backlog)
    assert found[0] + 50 + 2 * found[1] < allowed
