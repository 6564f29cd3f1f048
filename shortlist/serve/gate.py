"""Admission control: counts accepted requests and tokens, and refuses too many."""

import math
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from typing import Any, NamedTuple, final

SHARE = 0.25
"""Share of a request's time limit within which the models must read all accepted tokens, at their recent speed.

It is small because the models are slower under overload than before, and other requests overtake long ones.
"""


class FullError(Exception):
    """The server is full; the same request may be accepted later.

    Args:
        seconds: time after which to try again.
    """

    def __init__(self, message: str, seconds: int) -> None:
        super().__init__(message)
        self.seconds = seconds


class TooLargeError(Exception):
    """The request exceeds the server's limits and would never be accepted."""


class Limits(NamedTuple):
    """Limits of what a server accepts."""

    queue_requests: int = 256
    """Most requests accepted and not yet answered."""
    queue_tokens: int = 1_048_576
    """Most tokens of these requests in total."""
    timeout_seconds: float = 30.0
    """Longest time that a request may take."""
    body_bytes: int = 8 * 2**20
    """Most bytes in a request's body."""


@final
class Gate:
    """Counts requests in and out. Only the event loop's thread may use it.

    Args:
        speed: returns the tokens per second that the models have read recently; 0 if unknown.
    """

    def __init__(self, limits: Limits, speed: Callable[[], float] = lambda: 0.0) -> None:
        self.limits, self.speed = limits, speed
        self.requests = self.tokens = 0
        self.draining = False

    def enter(self) -> "Ticket":
        """Accept a request.

        Raises:
            FullError: the limit of requests is reached.
        """
        if self.requests >= self.limits.queue_requests:
            raise FullError(f"{self.requests} requests are waiting, as many as may be", self._seconds())
        self.requests += 1
        return Ticket(self)

    def _seconds(self) -> int:
        """Estimate the whole seconds until all accepted work is done."""
        speed = self.speed()
        return min(60, max(1, math.ceil(self.tokens / speed))) if speed else 1

    def reserve(self, tokens: int) -> None:
        """Accept a number of tokens.

        Raises:
            TooLargeError: the tokens exceed the server's limit.
            FullError: too many tokens are waiting, or they could not be read in time.
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
    """An accepted request, with its reserved tokens and its running work."""

    def __init__(self, gate: Gate) -> None:
        self._gate, self.tokens = gate, 0
        self.cancelled = False
        self._futures: list[Future[Any]] = []

    def reserve(self, tokens: int) -> None:
        """Reserve tokens for this request; raises the errors of `Gate.reserve`."""
        self._gate.reserve(tokens)
        self.tokens += tokens

    def watch(self, future: "Future[Any]") -> "Future[Any]":
        """Cancel this future when the ticket is cancelled.

        Raises:
            CancelledError: the ticket is cancelled already.
        """
        self._futures.append(future)
        if self.cancelled:
            future.cancel()
            raise CancelledError
        return future

    def cancel(self) -> None:
        """Cancel the request's work, as nobody waits for the answer any more."""
        self.cancelled = True
        for future in self._futures:
            future.cancel()

    def leave(self) -> None:
        """Leave the gate, when the request is answered or nobody waits for it."""
        self._gate.requests -= 1
        self._gate.tokens -= self.tokens
        self.tokens = 0
