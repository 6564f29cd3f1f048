"""The exception for errors that a user can fix, and helpers to make it."""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from functools import partial
from importlib.util import find_spec


class UserError(Exception):
    """An error that the user can fix.

    Its message is one line that says where it is, what was found, what was expected, and what to do.
    """


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    """Make the error for a name that is not among `known`.

    It suggests the nearest known names, or lists all of them if none is near enough to be what was meant.
    """
    known = sorted(known)
    near = get_close_matches(name, known, n=3, cutoff=0.5) if get_close_matches(name, known, cutoff=0.6) else []
    hint = f"perhaps {' or '.join(repr(n) for n in near)}?" if near else f"known: {', '.join(known) or 'none'}."
    return UserError(f"unknown {kind} {name!r}: {hint}")


def not_given(flag: str, why: str) -> UserError:
    """Make the error for a missing setting; `why` says why it is needed."""
    return UserError(f"{flag} is missing: {why}.")


def check_installed(what: str, needs: Mapping[str, str]) -> None:
    """Refuse work whose optional packages are missing, before anything is written.

    Args:
        what: the setting that needs them, such as `--to ciff`.
        needs: how pip installs each package, by the name that it is imported by.

    Raises:
        UserError: one is not installed.
    """
    for module, install in needs.items():
        if find_spec(module) is None:
            raise UserError(f"{what}: {module} is not installed, which it needs; pip install {install}.")


FLAG = re.compile(r"`[^`]*`|--([a-z][a-z0-9-]*)")


@contextmanager
def in_python(**names: str) -> Iterator[None]:
    """Name parameters of Python in place of flags in the errors of a block.

    Commands in backticks stay as they are typed.

    Args:
        names: parameters by the flag's name, where they differ from it.
    """
    try:
        yield
    except UserError as error:
        raise UserError(FLAG.sub(partial(_parameter, names), str(error))) from None


def _parameter(names: dict[str, str], found: re.Match[str]) -> str:
    name = (found[1] or "").replace("-", "_")
    return names.get(name, name) or found[0]
