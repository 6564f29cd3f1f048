"""How much work the server has accepted and not yet answered, in requests and in tokens, and when that is too much."""

import math
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from typing import Any, NamedTuple, final

SHARE = 0.25
"""Of a request's longest time, in which all that is accepted must be read at the speed of late.

Not more, because under overload the models are slower than before it, and the others pass long requests.
"""


class FullError(Exception):
    """There is too much to do already; the same request may be accepted later.

    Args:
        seconds: after which to try again.
    """

    def __init__(self, message: str, seconds: int) -> None:
        super().__init__(message)
        self.seconds = seconds


class TooLargeError(Exception):
    """No server with these limits would ever accept the request."""


class Limits(NamedTuple):
    """What a server accepts."""

    queue_requests: int = 256
    """Most requests that are accepted and not yet answered."""
    queue_tokens: int = 1_048_576
    """Most tokens of them all together."""
    timeout_seconds: float = 30.0
    """Longest that a request may take."""
    body_bytes: int = 8 * 2**20
    """Largest body of a request."""


@final
class Gate:
    """Counts requests in and out. Only the event loop's thread may use it.

    Args:
        speed: tells the tokens per second that the models read of late; 0 if unknown.
    """

    def __init__(self, limits: Limits, speed: Callable[[], float] = lambda: 0.0) -> None:
        self.limits, self.speed = limits, speed
        self.requests = self.tokens = 0
        self.draining = False

    def enter(self) -> "Ticket":
        """Accept a request.

        Raises:
            FullError: there are as many as may be.
        """
        if self.requests >= self.limits.queue_requests:
            raise FullError(f"{self.requests} requests are waiting, as many as may be", self._seconds())
        self.requests += 1
        return Ticket(self)

    def _seconds(self) -> int:
        """How long the work that is accepted will take, in whole seconds."""
        speed = self.speed()
        return min(60, max(1, math.ceil(self.tokens / speed))) if speed else 1

    def reserve(self, tokens: int) -> None:
        """Accept so many tokens.

        Raises:
            TooLargeError: more than can ever be accepted.
            FullError: there are too many already, or they would not be read in time.
        """
        most, speed = self.limits.queue_tokens, self.speed()
        if tokens > most:
            raise TooLargeError(f"the request takes {tokens} tokens, and the server accepts {most} at a time")
        if speed:
            most = min(most, int(speed * self.limits.timeout_seconds * SHARE))
        if self.tokens and self.tokens + tokens > most:
            raise FullError(f"{self.tokens} tokens are waiting, and {tokens} more are too many", self._seconds())
        self.tokens += tokens


@final
class Ticket:
    """One accepted request: what it has reserved, and what of it is under way."""

    def __init__(self, gate: Gate) -> None:
        self._gate, self.tokens = gate, 0
        self.cancelled = False
        self._futures: list[Future[Any]] = []

    def reserve(self, tokens: int) -> None:
        """Raises as `Gate.reserve`."""
        self._gate.reserve(tokens)
        self.tokens += tokens

    def watch(self, future: "Future[Any]") -> "Future[Any]":
        """Cancel this future when the ticket is.

        Raises:
            CancelledError: it is already.
        """
        self._futures.append(future)
        if self.cancelled:
            future.cancel()
            raise CancelledError
        return future

    def cancel(self) -> None:
        """Nobody waits for the answer any more."""
        self.cancelled = True
        for future in self._futures:
            future.cancel()

    def leave(self) -> None:
        """The request is answered, or nobody waits for it."""
        self._gate.requests -= 1
        self._gate.tokens -= self.tokens
        self.tokens = 0
