"""Rerankers before their models are loaded."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from shortlist.records import Query


def any_query(queries: Iterable[Query]) -> None:
    """Accept all queries."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A reranker or a compressor that can be opened later, here or in another process.

    It also holds everything that its scores depend on.

    Attributes:
        open: loads the reranker. Until then it costs nothing, and it can be sent to other processes.
        identities: returns hashes or revisions of what it reads, such as a model, under the names of the settings.
        settings: other settings that change scores.
        whole_lists: whether a score depends on the other documents of the list, or on their order.
        check: refuses queries that it cannot read, with a UserError, before anything is scored.
        costs: returns the model's part in the cost of a run, by the names of `data.manifest.stages`.
        asks: whether it asks a language model, so that `open` takes `limits` and answers are kept.
        model: the opened value of the setting `model`, to pass on instead of a name that was looked up already.
    """

    open: Callable[..., Any]
    identities: Callable[[], dict[str, str]] = dict
    settings: Mapping[str, Any] = field(default_factory=dict)
    whole_lists: bool = False
    asks: bool = False
    check: Callable[[Iterable[Query]], None] = any_query
    costs: Callable[[], dict[str, int | float]] = dict
    model: Any = None
