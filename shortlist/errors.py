"""The exception for errors that a user can fix, and helpers to make it."""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """An error that the user can fix.

    Its message is one line that says where it is, what was found, what was expected, and what to do.
    """


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    """Make the error for a name that is not among `known`.

    It suggests the nearest known names, or lists all of them if none is near.
    """
    known = sorted(known)
    near = get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"perhaps {' or '.join(repr(n) for n in near)}?" if near else f"known: {', '.join(known) or 'none'}."
    return UserError(f"unknown {kind} {name!r}: {hint}")


def not_given(flag: str, why: str) -> UserError:
    """Make the error for a missing setting; `why` says why it is needed."""
    return UserError(f"{flag} is missing: {why}.")
