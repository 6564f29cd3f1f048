"""HTTP to a language model's server: the key, the time limit, further tries, one-line errors."""

import ipaddress
import json
import os
import threading
import time
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple, final

from shortlist.errors import UserError
from shortlist.models.replies import error_message, safe_line

try:
    import httpx
except ModuleNotFoundError:
    raise UserError("httpx is not installed: a model on a server needs it; pip install 'shortlist[remote]'.") from None

KEYS = ("SHORTLIST_API_KEY", "OPENAI_API_KEY")
"""Environment variables that may hold the key; the first that is set counts, even if it is empty."""
PASSING = {408, 409, 429}
"""Statuses below 500 after which the same request may be answered later."""
FIRST_WAIT_SECONDS = 0.5
LONGEST_WAIT_SECONDS = 60.0
MOST_BYTES = 64 * 2**20
"""The longest reply to read: more is not an answer."""
IDLE_SECONDS = 3.0
"""Time after which a connection is not used again, below the 5 s after which uvicorn closes it."""


class RefusedError(Exception):
    """The server refuses a request for good.

    Args:
        message: the server's own, as it came: for programs to look into, never to be shown.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(status)
        self.status, self.message = status, message


class StoppedError(Exception):
    """The request is not wanted any more."""


class RawReply(NamedTuple):
    """A whole HTTP response."""

    status: int
    retry_after: str
    body: bytes


@final
class RemoteServer:
    """An OpenAI-compatible server, asked again after faults that pass.

    Args:
        url: address of its API, which mostly ends in /v1.
        about: what is asked for, for the errors.
        at_once: connections that are kept.
        timeout_seconds: longest time that one request may take, to the last byte.
        tries: how often a request is sent at most.
        sleep: waits between tries (None: until the time is over or the request is stopped).
        jitter: returns a number from 0 to 1, by which waits differ.

    Raises:
        UserError: the address is unusable, or a key would be sent over it unprotected.
    """

    def __init__(
        self,
        url: str,
        *,
        about: str,
        at_once: int,
        timeout_seconds: float,
        tries: int,
        sleep: Callable[[float], object] | None,
        jitter: Callable[[], float],
    ) -> None:
        self.url, is_loopback = check_url(url)
        self.where = f"{self.url}, {about}"
        self.timeout_seconds, self.tries = timeout_seconds, tries
        self._sleep, self._jitter = sleep, jitter
        self.num_retries = 0
        """Requests sent again after a fault."""
        self._lock = threading.Lock()
        headers = {"content-type": "application/json"}
        if key := find_key(self.url, is_loopback):
            headers["authorization"] = f"Bearer {key}"
        self._client = httpx.Client(
            headers=headers,
            timeout=httpx.Timeout(timeout_seconds, pool=None),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=at_once, keepalive_expiry=IDLE_SECONDS),
            verify=not (is_loopback and self.url.startswith("http:")),  # loads 140 certificates, for nothing there
            trust_env=not is_loopback,  # a proxy cannot reach this machine's loopback, and would see the key
        )

    def close(self) -> None:
        """Close all connections."""
        self._client.close()

    def post(self, path: str, body: Mapping[str, Any], stopped: threading.Event) -> dict[str, Any]:
        """Send a request, again after passing faults, and return the reply's JSON object.

        Raises:
            RefusedError: the server refuses the request for good.
            UserError: no usable reply came.
            StoppedError: `stopped` was set before a reply came.
        """
        fault, reply = "", None
        for tried in range(self.tries):
            if tried:
                self._wait(tried, reply, stopped)
            if stopped.is_set():
                raise StoppedError
            try:
                reply = self._send("POST", path, body)
            except httpx.RequestError as error:
                fault, reply = self._transport_fault(error), None
                continue
            if reply.status < 300:
                return self._json_object(reply, body)
            fault = self._status_fault(reply, body)
            if reply.status not in PASSING and reply.status < 500:
                raise RefusedError(reply.status, error_message(_parsed(reply.body)))
        times = f", {self.tries} times" if self.tries > 1 else ""
        raise UserError(f"{self.where}: {fault}{times}. {_advice(reply)}")

    def _wait(self, tried: int, reply: RawReply | None, stopped: threading.Event) -> None:
        """Wait twice as long as the last time, or as long as the server asks."""
        longest = min(FIRST_WAIT_SECONDS * 2 ** (tried - 1), LONGEST_WAIT_SECONDS)
        seconds = longest * (0.5 + 0.5 * self._jitter())  # or all that failed together would come back together
        if reply is not None:
            seconds = max(seconds, _asked_seconds(reply.retry_after))
        with self._lock:
            self.num_retries += 1
        (self._sleep or stopped.wait)(min(seconds, LONGEST_WAIT_SECONDS))

    def _send(self, method: str, path: str, body: Mapping[str, Any] | None) -> RawReply:
        """Send one request and read all of the response, within the time limit."""
        content = None if body is None else json.dumps(body)  # ASCII: half of a surrogate pair is no UTF-8
        deadline = time.monotonic() + self.timeout_seconds
        parts, num_bytes = [], 0
        with self._client.stream(method, f"{self.url}{path}", content=content) as response:
            for part in response.iter_bytes():
                parts.append(part)
                num_bytes += len(part)
                if time.monotonic() > deadline:  # httpx limits only the time between two bytes
                    raise httpx.ReadTimeout("too slow")
                if num_bytes > MOST_BYTES:
                    raise httpx.DecodingError(f"a reply of more than {MOST_BYTES // 2**20} MiB")
            return RawReply(response.status_code, response.headers.get("retry-after", ""), b"".join(parts))

    def models(self) -> list[str]:
        """Return the names of the models that the server offers, if it says."""
        try:
            reply = self._send("GET", "/models", None)
        except httpx.RequestError:
            return []
        listed = _parsed(reply.body)
        data = listed.get("data") if isinstance(listed, dict) and reply.status == 200 else None
        named = [one.get("id") for one in data if isinstance(one, dict)] if isinstance(data, list) else []
        return [self.safe(name) for name in named if isinstance(name, str)]

    def safe(self, message: str, body: Mapping[str, Any] | None = None) -> str:
        """Make one short line of a message, without the key and a request's texts."""
        key = self._client.headers.get("authorization", "").removeprefix("Bearer ")
        return safe_line(message, key=key, prompts=_texts(body or {}))

    def _json_object(self, reply: RawReply, body: Mapping[str, Any]) -> dict[str, Any]:
        found = _parsed(reply.body)
        if isinstance(found, dict):
            return found
        what = "no JSON" if found is None else f"JSON that is a {type(found).__name__}"
        start = self.safe(reply.body[:200].decode("utf-8", "replace"), body)[:60]
        raise UserError(f"{self.where}: the server answered {what} ({start!r}). {EXPECTED}")

    def _transport_fault(self, error: httpx.RequestError) -> str:
        if isinstance(error, httpx.TimeoutException):
            return f"no answer within {self.timeout_seconds:g} s"
        if isinstance(error, httpx.ConnectError):
            return f"no connection ({self.safe(str(error))})"
        return f"the connection broke ({self.safe(str(error)) or type(error).__name__})"

    def _status_fault(self, reply: RawReply, body: Mapping[str, Any]) -> str:
        return self.refusal(RefusedError(reply.status, error_message(_parsed(reply.body))), body)

    def refusal(self, refused: RefusedError, body: Mapping[str, Any]) -> str:
        """Say in a few words how the server refused a request."""
        said = self.safe(refused.message, body)
        return f"the server answered {refused.status}{f' ({said})' if said else ''}"


EXPECTED = (
    "Expected what OpenAI's API answers; look at the address, which mostly ends in /v1, and at what is behind it."
)


def _advice(reply: RawReply | None) -> str:
    if reply is None:
        return "Start the server, correct its address, or give it more time or fewer requests at once; then go on."
    if reply.status == 429:
        return "Send fewer requests at once, or wait for more quota; then go on."
    return "Look at the server's log; then go on."


def _asked_seconds(retry_after: str) -> float:
    """Return the seconds that a Retry-After header asks for, as a number or a date."""
    try:
        return max(0.0, float(retry_after))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return 0.0


def _parsed(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def _texts(body: Mapping[str, Any]) -> list[str]:
    texts = [message.get("content") for message in body.get("messages", [])] + [body.get("prompt")]
    return [text for text in texts if isinstance(text, str)]


def check_url(url: str) -> tuple[str, bool]:
    """Return an address without a last slash, and whether it is on this machine's loopback.

    Raises:
        UserError: it is no address of a server, or holds a password or other things that errors would show.
    """
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, TypeError):
        parsed = httpx.URL("")
    wanted = "expected one such as http://127.0.0.1:8000/v1"
    if parsed.userinfo or parsed.query or parsed.fragment:
        bare = parsed.copy_with(userinfo=b"", query=None, fragment=None)
        raise UserError(f"{bare}: the address holds a password, a query or a fragment; {wanted}, the key in {KEYS[0]}.")
    if parsed.scheme not in {"http", "https"} or not parsed.host:
        raise UserError(f"{url.rpartition('@')[2]!r}: no address of a server; {wanted}.")
    return str(parsed).rstrip("/"), _is_loopback(parsed.host)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def find_key(url: str, is_loopback: bool) -> str:
    """Return the key in the environment; empty if there is none.

    Raises:
        UserError: the key cannot be sent, or others could read it on its way.
    """
    name = next((name for name in KEYS if name in os.environ), KEYS[0])
    key = os.environ.get(name, "").strip()
    if key and not (key.isascii() and key.isprintable() and " " not in key):
        raise UserError(f"{name}: holds characters that no key has; expected printable ASCII without spaces.")
    if key and url.startswith("http:") and not is_loopback:
        raise UserError(
            f"{url}: {name} is set, and plain http would show the key to everybody on the way. Use https, or a tunnel "
            f"to 127.0.0.1 (ssh -L), or set {KEYS[0]} to nothing if the server needs no key."
        )
    return key
