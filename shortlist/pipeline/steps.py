"""Kinds of steps: each a plain function from runs and documents to runs and documents, and a line in `STEPS`."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import numpy as np

from shortlist.math.fusion import FUSIONS, interpolate, reorder
from shortlist.pipeline.loading import FINDERS, Opener
from shortlist.records import Document, Query, Run
from shortlist.rerankers.kinds import RERANKERS

FUSED_DEPTH = 100
"""Ranks of each part that are fused, however few are asked for: a document that both rank 20th can win."""

Documents = Callable[[Sequence[str]], Mapping[str, Document]]
"""The documents of some ids, as earlier steps have left them."""


class Found(NamedTuple):
    """What a step gives."""

    run: Run
    num_placed: Mapping[str, int] | None = None
    """How many of each query's first hits the step has placed itself; the others only follow (None: it placed all)."""
    documents: Mapping[str, Document] = {}
    """Documents whose texts it has changed, for the steps behind it."""


class Step(NamedTuple):
    """One step of a pipeline, opened."""

    name: str
    kind: "Kind"
    stage: Any = None
    """What it works with: a FirstStage, a function that fuses runs, a Ranker."""
    of: tuple[str, ...] = ()
    """The earlier steps whose runs it reads."""
    depth: int | None = None
    """How many documents a first stage makes (None: as many as later steps read), or how many a later one reads."""
    share: float = 1.0
    """How much a reranker's scores count, 0 to 1, those before being the rest (`math.fusion.interpolate`)."""


class StepFunction(Protocol):
    """What a kind of step does."""

    def __call__(
        self, step: Step, queries: Sequence[Query], runs: Mapping[str, Run], documents: Documents, most: int
    ) -> Found:
        """Give each query's hits.

        Args:
            runs: those of the steps that this one reads, by name.
            documents: fetches texts.
            most: hits of each query that are wanted.
        """
        ...


class Kind(NamedTuple):
    """One kind of step.

    Its methods are functions by name, `bm25` and `dense` of `find`. Their keyword-only arguments are the settings
    that a description may give.
    """

    run: StepFunction
    methods: Mapping[str, Callable[..., Any]]
    open: Callable[[Callable[..., Any], Opener, Mapping[str, Any]], Any]
    """Makes the stage of a method and its settings."""
    is_first_stage: bool = False
    """Whether it can be asked alone, before anything is reranked."""
    num_read: int | None = 1
    """How many earlier runs it reads (None: two or more)."""
    fewest: int = 0
    """Hits of each query that it reads at the least."""
    depth: int | None = None
    """Depth of a step that does not say its own."""


def find(step: Step, queries: Sequence[Query], runs: Mapping[str, Run], documents: Documents, most: int) -> Found:
    """Search with a first stage."""
    return Found(step.stage.search(queries, most))


def fuse(step: Step, queries: Sequence[Query], runs: Mapping[str, Run], documents: Documents, most: int) -> Found:
    """Make one run of several."""
    fused = step.stage(list(runs.values()))
    return Found({query.query_id: fused.get(query.query_id, [])[:most] for query in queries})


def rank(step: Step, queries: Sequence[Query], runs: Mapping[str, Run], documents: Documents, most: int) -> Found:
    """Put the first hits of each query in the order of a reranker; the others follow in their old order."""
    [before] = runs.values()
    run, num_placed = {}, {}
    for query in queries:
        hits = before.get(query.query_id, [])
        head = hits[: step.depth]
        texts = documents([hit.doc_id for hit in head])
        scores = step.stage.score(query, [texts[hit.doc_id] for hit in head]) if head else np.zeros(0)
        run[query.query_id] = reorder(hits, interpolate(hits, scores.tolist(), step.share))
        num_placed[query.query_id] = int((~np.isnan(scores)).sum())
    return Found(run, num_placed)


def load(method: Callable[..., Any], opener: Opener, settings: Mapping[str, Any]) -> Any:
    """The stage of a method that loads something."""
    return method(opener, **settings)


def load_reranker(method: Callable[..., Any], opener: Opener, settings: Mapping[str, Any]) -> Any:
    """Open the reranker of a method."""
    return opener.reranker(method, **settings)


def with_settings(method: Callable[..., Any], opener: Opener, settings: Mapping[str, Any]) -> Any:
    """The stage of a method that is a plain function of runs."""
    return partial(method, **settings)


STEPS: dict[str, Kind] = {
    "find": Kind(find, FINDERS, load, is_first_stage=True, num_read=0),
    "fuse": Kind(fuse, FUSIONS, with_settings, is_first_stage=True, num_read=None, fewest=FUSED_DEPTH),
    "rank": Kind(rank, RERANKERS, load_reranker, depth=100),
}
