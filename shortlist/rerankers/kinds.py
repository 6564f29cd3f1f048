"""Reranking methods: plain functions from settings to a reranker that can be opened."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args, get_origin

from shortlist.config import flag_of, keyword_types
from shortlist.errors import UserError, in_python, unknown
from shortlist.rerankers import Ranker
from shortlist.rerankers.attention import by_attention
from shortlist.rerankers.block import in_own_blocks
from shortlist.rerankers.context import in_context
from shortlist.rerankers.embedding import by_embedding
from shortlist.rerankers.exclusion import exclusion
from shortlist.rerankers.groupwise import graded_singly, groupwise
from shortlist.rerankers.late import late_interaction
from shortlist.rerankers.likelihood import by_likelihood
from shortlist.rerankers.listwise import listwise
from shortlist.rerankers.pairwise import pairwise
from shortlist.rerankers.pointwise import pointwise
from shortlist.rerankers.prepared import Prepared
from shortlist.rerankers.setwise import setwise
from shortlist.rerankers.tournament import tournament

RERANKERS: dict[str, Callable[..., Prepared]] = {
    "pointwise": pointwise,
    "late": late_interaction,
    "attention": by_attention,
    "block": in_own_blocks,
    "embedding": by_embedding,
    "listwise": listwise,
    "pairwise": pairwise,
    "setwise": setwise,
    "tournament": tournament,
    "exclusion": exclusion,
    "groupwise": groupwise,
    "graded": graded_singly,
    "likelihood": by_likelihood,
    "context": in_context,
}
"""Methods by name; the keyword arguments of a function are the method's settings."""


def prepare(method: str, settings: Mapping[str, Any]) -> Prepared:
    """Prepare a reranker by the name of its method and its settings.

    Raises:
        UserError: the method, a setting or its value is unknown, or the method refuses a setting.
    """
    if method not in RERANKERS:
        raise unknown("method", method, RERANKERS)
    known = keyword_types(RERANKERS[method])
    for name, value in settings.items():
        if name not in known:
            raise unknown(f"setting of the method {method!r}", name, known)
        if value is not None and (choices := _choices(known[name][0])) and value not in choices:
            known_values = list(map(str, choices))
            raise UserError(f"{flag_of(name)}: {unknown(f'{name} of the method {method!r}', str(value), known_values)}")
    return RERANKERS[method](**settings)


def _choices(hint: Any) -> tuple[Any, ...]:
    """List the values that a setting may have; none where any is fine."""
    if get_origin(hint) is Literal:
        return get_args(hint)
    return tuple(choice for part in get_args(hint) for choice in _choices(part))


def load_reranker(method: str, **settings: Any) -> Ranker:
    """Load a reranker of any method, ready to score.

    Args:
        method: a name in RERANKERS, such as `listwise`.
        settings: settings of the method, as in a pipeline: `model`, `prompt`, `window` and others.

    Raises:
        UserError: as for `prepare`, or the model cannot be loaded.
    """
    with in_python():
        return prepare(method, settings).open()


def takes(method: str, setting: str) -> bool:
    """Whether a method has a setting of this name."""
    return setting in keyword_types(RERANKERS[method])
