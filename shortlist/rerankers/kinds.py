"""The methods of reranking: a plain function for each, from its settings to a reranker that can be opened."""

from collections.abc import Callable, Mapping
from inspect import signature
from typing import Any

from shortlist.errors import unknown
from shortlist.rerankers.pointwise import pointwise
from shortlist.rerankers.prepared import Prepared

RERANKERS: dict[str, Callable[..., Prepared]] = {"pointwise": pointwise}
"""By name; the settings of a method are the keyword arguments of its function."""


def prepare(method: str, settings: Mapping[str, Any]) -> Prepared:
    """Prepare a reranker by the name of its method and its settings.

    Raises:
        UserError: there is no such method, it has no such setting, or it refuses one.
    """
    if method not in RERANKERS:
        raise unknown("method", method, RERANKERS)
    known = signature(RERANKERS[method]).parameters
    for name in settings:
        if name not in known:
            raise unknown(f"setting of the method {method!r}", name, known)
    return RERANKERS[method](**settings)


def takes(method: str, setting: str) -> bool:
    """Whether a method has a setting of this name."""
    return setting in signature(RERANKERS[method]).parameters
