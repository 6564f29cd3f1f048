"""Limits of a run that asks a language model, and where answers go."""

import math
from dataclasses import dataclass
from pathlib import Path

from shortlist.errors import UserError


class LimitReachedError(Exception):
    """No more may be asked now."""


class MalformedAnswersError(UserError):
    """Too many answers are malformed."""


@dataclass(frozen=True, kw_only=True)
class CallLimits:
    """Limits of a run, and where its answers go.

    Attributes:
        log: the file with the answers (None: memory).
        until: the time, as `time.monotonic` gives it, after which nothing more is asked.
        max_calls: most prompts to send to the model; known answers do not count.
        max_malformed: largest share of malformed answers.
        details: a file to list malformed answers in.
    """

    log: Path | None = None
    until: float = math.inf
    max_calls: int | None = None
    max_malformed: float = 0.2
    details: Path | None = None
