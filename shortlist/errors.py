"""The one exception for what a user can fix, and its sentences for unknown names and missing settings."""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """Something the user can fix: one line saying where, what was found, what was expected, what to do."""


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    """The error for a name that is not among `known`: the nearest ones if any are near, else all of them."""
    known = sorted(known)
    near = get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"perhaps {' or '.join(repr(n) for n in near)}?" if near else f"known: {', '.join(known) or 'none'}."
    return UserError(f"unknown {kind} {name!r}: {hint}")


def not_given(flag: str, why: str) -> UserError:
    """The error for a setting that is needed and was not given; `why` says what for."""
    return UserError(f"{flag} is missing: {why}.")
