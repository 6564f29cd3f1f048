"""Functions of modules that load slowly, named without loading them."""

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any


def late(module: str, function: str, **settings: Any) -> Callable[..., Any]:
    """Return a function of a module of this package, imported when it is first called.

    Args:
        module: dotted name below `shortlist`.
        settings: arguments that are passed to it in every call.
    """
    return partial(_call, f"shortlist.{module}", function, **settings)


def _call(module: str, function: str, /, *arguments: Any, **settings: Any) -> Any:
    return getattr(import_module(module), function)(*arguments, **settings)
