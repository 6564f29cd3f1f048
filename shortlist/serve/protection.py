"""Protection between the network and the models: keys, hosts, limits, timeouts, JSON errors."""

import asyncio
import hmac
import json
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, Literal, NamedTuple, final
from urllib.parse import unquote_plus

from shortlist.serve.gate import FullError, Gate, Ticket, TooLargeError
from shortlist.serve.metrics import Metrics
from shortlist.serve.schema import ErrorBody, ErrorResponse

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]
Log = Literal["errors", "requests", "queries"]

OPEN = {"/health", "/ready", "/", "/page.css", "/page.js"}
"""Paths that need no key; their answers reveal nothing about models, texts or load."""

LOOPBACK = ("127.0.0.1", "localhost", "::1")

ELSEWHERE = (b"cross-site", b"same-site")
"""What browsers say in Sec-Fetch-Site of requests that a page of another origin makes."""

HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "cache-control": "no-store",
}
"""Headers of every answer."""

RETRY_SECONDS = 5
"""Seconds after which clients should try again while the server is shutting down."""


class Refusal(NamedTuple):
    """An error, ready to be sent."""

    status: int
    body: bytes
    headers: dict[str, str] = {}  # noqa: RUF012 (a NamedTuple's default, which nobody changes)


class _DisconnectedError(Exception):
    """The client has left."""


def problem(status: int, kind: str, message: str, *, field: str | None = None, **headers: str) -> Refusal:
    """Make an error answer in the format of all endpoints."""
    error = ErrorResponse(error=ErrorBody(message=message, type=kind, field=field))
    # Escaped to ASCII: a field's name comes from the client and may hold anything, such as half a surrogate pair.
    body = json.dumps(error.model_dump(exclude_none=True)).encode()
    return Refusal(status, body, {name.replace("_", "-"): value for name, value in headers.items()})


def explained(error: Exception) -> Refusal | None:
    """Return the answer to an expected error; None if the error is a bug."""
    if isinstance(error, FullError):
        return problem(429, "overloaded", f"{error}; try again later.", retry_after=str(error.seconds))
    if isinstance(error, TooLargeError):
        return problem(413, "too_large", f"{error}; send fewer or shorter texts.")
    if isinstance(error, TimeoutError):
        return problem(504, "timeout", "the request took too long; send fewer or shorter texts, or try again later.")
    return None


@final
class Protection:
    """An ASGI application that wraps another and protects it.

    Args:
        key: key that clients must send as `Authorization: Bearer KEY`; without one everybody may ask.
        hosts: host names under which the server may be addressed (None: any). This stops a web page from reaching a
            server without a key by pointing the page's host name at this machine's address.
        paths: paths that are counted by name.
        work: methods and paths that use the models; only these have a body, and a place in the queue.
        log: output on stderr besides errors: every request without its texts, or with them.
    """

    def __init__(
        self,
        app: App,
        gate: Gate,
        metrics: Metrics,
        *,
        key: str | None = None,
        hosts: Iterable[str] | None = None,
        paths: Iterable[str] = (),
        work: Iterable[tuple[str, str]] = (),
        log: Log = "errors",
    ) -> None:
        self.app, self.gate, self.metrics, self.log = app, gate, metrics, log
        self._key = key.encode() if key is not None else None
        self.hosts, self.paths, self.work = None if hosts is None else set(hosts), set(paths), set(work)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer an HTTP request; pass on anything other than HTTP."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, reply = time.monotonic(), _Reply(send, self.gate)
        try:
            await self._answer(scope, receive, reply)
        except _DisconnectedError:
            if not reply.status:
                self.metrics.count("shortlist_cancelled_total")
        finally:
            self._count(scope, reply.status, time.monotonic() - start)

    def _count(self, scope: Message, status: int, seconds: float) -> None:
        path = scope["path"] if scope["path"] in self.paths else "other"
        self.metrics.count("shortlist_requests_total", path=path, status=str(status))
        self.metrics.observe("shortlist_request_seconds", seconds, path=path)
        if self.log != "errors":
            path = path if path != "other" else "(unknown path)"
            _log(f"{scope['method']} {path} {status} {1000 * seconds:.1f} ms")

    async def _answer(self, scope: Message, receive: Receive, reply: "_Reply") -> None:
        headers = {name.lower(): value for name, value in scope["headers"]}
        if refusal := self._refusal(scope, headers):
            if self.gate.draining:  # the connection is closed after this, and an unread body would reset it
                await _body(receive, headers, self.gate.limits.body_bytes)
            await reply.send(refusal)
        elif self._is_work(scope):
            await self._work(scope, receive, reply, headers)
        else:
            await self.app(scope, receive, reply)

    def _is_work(self, scope: Message) -> bool:
        return (scope["method"], scope["path"]) in self.work

    def _refusal(self, scope: Message, headers: dict[bytes, bytes]) -> Refusal | None:
        """Return the refusal of a request by its headers; None if it is accepted."""
        if self.hosts is not None and _host(headers.get(b"host", b"")) not in self.hosts:
            return problem(400, "invalid_host", "the Host header names another server; ask for 127.0.0.1 or localhost.")
        if scope["path"] not in OPEN and not self._knows(headers.get(b"authorization", b"")):
            message = "a key is needed: send the header `Authorization: Bearer KEY`."
            return problem(401, "unauthorized", message, www_authenticate="Bearer")
        if scope["method"] == "GET" and self._is_work(scope) and headers.get(b"sec-fetch-site") in ELSEWHERE:
            return problem(403, "cross_site", "this search was made by a page of another site; only the user may.")
        if self.gate.draining and self._is_work(scope):
            return problem(503, "draining", "the server is going down; try again.", retry_after=str(RETRY_SECONDS))
        return None

    def _knows(self, given: bytes) -> bool:
        if self._key is None:
            return True
        scheme, _, key = given.partition(b" ")
        return hmac.compare_digest(key.strip(), self._key) and scheme.lower() == b"bearer"

    async def _work(self, scope: Message, receive: Receive, reply: "_Reply", headers: dict[bytes, bytes]) -> None:
        """Answer a request that uses the models.

        It is counted, limited in time, and cancelled when its client leaves.
        """
        try:
            ticket = self.gate.enter()
        except FullError as error:
            await reply.send(explained(error))
            return
        try:
            async with asyncio.timeout(self.gate.limits.timeout_seconds):
                await self._read_and_run(scope, receive, reply, headers, ticket)
        except TimeoutError as error:
            if not reply.status:
                await reply.send(explained(error))
        finally:
            ticket.cancel()
            ticket.leave()

    async def _read_and_run(
        self, scope: Message, receive: Receive, reply: "_Reply", headers: dict[bytes, bytes], ticket: Ticket
    ) -> None:
        asked = scope["method"] != "GET"
        body = await _body(receive, headers, self.gate.limits.body_bytes) if asked else b""
        if body is None:
            most = self.gate.limits.body_bytes
            await reply.send(problem(413, "too_large", f"the body is larger than {most} bytes; send less at a time."))
            return
        if self.log == "queries":
            text = body.decode(errors="replace") if asked else unquote_plus(scope["query_string"].decode("latin-1"))
            _log(f"{scope['path']} {text!r}")
        scope.setdefault("state", {})["ticket"] = ticket
        await _until_gone(self.app(scope, replay(body), reply), receive)


async def _until_gone(answering: Awaitable[None], receive: Receive) -> None:
    """Wait for an answer, but stop if the client leaves."""
    work = asyncio.ensure_future(answering)
    gone = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise _DisconnectedError
        work.result()
    finally:
        gone.cancel()
        work.cancel()
        await asyncio.gather(gone, work, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _body(receive: Receive, headers: dict[bytes, bytes], most: int) -> bytes | None:
    """Read the whole body; None if it is too large."""
    length = headers.get(b"content-length", b"0")
    if length.isdigit() and int(length[:20]) > most:
        return None
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _DisconnectedError
        body += message.get("body", b"")
        if len(body) > most:
            return None
        if not message.get("more_body"):
            return bytes(body)


def replay(body: bytes) -> Receive:
    """Return a `receive` that gives the body once; the connection's end is watched separately."""
    messages = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def receive() -> Message:
        for message in messages:
            return message
        return await asyncio.get_running_loop().create_future()

    return receive


def _log(line: str) -> None:
    """Print a line of the log, with everything escaped that a terminal would obey."""
    printable = "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in line)
    sys.stderr.write(printable + "\n")  # in one piece, as several processes may write to the same file
    sys.stderr.flush()


def _host(header: bytes) -> str:
    """Read the name in a Host header, without port and brackets."""
    name = header.decode("latin-1").lower()
    if name.startswith("["):
        return name[1:].partition("]")[0]
    return name.partition(":")[0]


@final
class _Reply:
    """Sends an answer with HEADERS, and remembers its status."""

    def __init__(self, send: Send, gate: Gate) -> None:
        self._send, self._gate, self.status = send, gate, 0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            closing = {"connection": "close"} if self._gate.draining else {}
            own_headers = [(name.encode(), value.encode()) for name, value in {**HEADERS, **closing}.items()]
            message = {**message, "headers": [*message.get("headers", ()), *own_headers]}
        await self._send(message)

    async def send(self, answer: Refusal | None) -> None:
        """Send an error."""
        assert answer is not None
        length = {"content-type": "application/json", "content-length": str(len(answer.body))}
        headers = [(name.encode(), value.encode()) for name, value in {**length, **answer.headers}.items()]
        await self({"type": "http.response.start", "status": answer.status, "headers": headers})
        await self._send({"type": "http.response.body", "body": answer.body})
