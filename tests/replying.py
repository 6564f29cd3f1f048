"""A server on the loopback that answers as OpenAI's API does, or as it is told."""

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple


class Said(NamedTuple):
    """What a server of the tests answers."""

    body: object
    status: int = 200
    headers: Mapping[str, str] = {}
    seconds: float = 0.0
    """Time between two bytes."""
    is_cut: bool = False
    """Whether the connection is closed in the middle."""

    @property
    def data(self) -> bytes:
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()


def chat(*texts: str | None, ended: str | None = "stop", **more: Any) -> dict[str, Any]:
    """A chat completion as OpenAI documents it."""
    choices = [
        {"index": i, "message": {"role": "assistant", "content": text, "refusal": None}, "finish_reason": ended}
        for i, text in enumerate(texts)
    ]
    usage = {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}
    return {"id": "chatcmpl-1", "object": "chat.completion", "choices": choices, "usage": usage, **more}


def echo(body: Mapping[str, Any]) -> dict[str, Any]:
    """The last message, said back."""
    return chat(f"you said {body['messages'][-1]['content']}")


Answering = Callable[[dict[str, Any]], Said | dict[str, Any]]


class Local(ThreadingHTTPServer):
    """A server on the loopback that answers as it is told, and remembers what it was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer: Answering = echo
        self.bodies: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.keys: list[str] = []
        self.in_flight = self.most_in_flight = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that have gone."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)

    def says(self, *replies: Said | dict[str, Any]) -> None:
        """Give these replies one after the other, the last one from then on."""
        left = list(replies)
        self.answer = lambda body: left.pop(0) if len(left) > 1 else left[0]


class Handler(BaseHTTPRequestHandler):
    server: Local
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are sent apart

    def do_GET(self) -> None:
        self.send(self.server.answer({"path": self.path}))

    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with server.lock:
            server.in_flight += 1
            server.most_in_flight = max(server.most_in_flight, server.in_flight)
            server.bodies.append(body)
            server.paths.append(self.path)
            server.keys.append(self.headers.get("authorization", ""))
        try:
            said = server.answer(body)
        finally:
            with server.lock:
                server.in_flight -= 1
        self.send(said)

    def send(self, said: Said | dict[str, Any]) -> None:
        said = said if isinstance(said, Said) else Said(said)
        self.send_response(said.status)
        for name, value in {"content-length": str(len(said.data)), **said.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if said.is_cut:
            self.wfile.write(said.data[:5])
            self.close_connection = True
        elif said.seconds:
            self.trickle(said)
        else:
            self.wfile.write(said.data)

    def trickle(self, said: Said) -> None:
        for byte in said.data:
            try:
                self.wfile.write(bytes([byte]))
                self.wfile.flush()
            except OSError:
                return
            time.sleep(said.seconds)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@contextmanager
def serving() -> Iterator[Local]:
    """A server that has started, and is stopped at the end."""
    with Local() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:  # or a test that fails would wait for ever
            server.shutdown()
            thread.join()
