"""Rerankers before their models are loaded."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from shortlist.records import Query
from shortlist.rerankers import Ranker


def any_query(queries: Iterable[Query]) -> None:
    """Accept all queries."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A reranker that can be opened, here or in another process, and what its scores depend on.

    Attributes:
        open: loads it; what is not loaded yet costs nothing, and goes to other processes.
        identities: hashes or revisions of what it reads, such as a model, under the names of the settings.
        settings: those of its other settings that change scores.
        whole_lists: whether a score depends on the other documents of the list, or on their order.
        check: refuses queries that it cannot read, with a UserError, before anything is scored.
        num_parameters: counts those of its model, for what a run costs.
        model: what the setting `model` stands for, to be given instead of a name that was looked up already.
    """

    open: Callable[[], Ranker]
    identities: Callable[[], dict[str, str]] = dict
    settings: Mapping[str, Any] = field(default_factory=dict)
    whole_lists: bool = False
    check: Callable[[Iterable[Query]], None] = any_query
    num_parameters: Callable[[], int] | None = None
    model: Any = None
