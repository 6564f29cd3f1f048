"""Kinds of steps: each a plain function from runs and documents to runs and documents, and a line in `STEPS`."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import numpy as np

from shortlist.math.fusion import FUSIONS, interpolate, reorder
from shortlist.pipeline.loading import FINDERS, Opener, rerankers
from shortlist.records import Document, Query, Run
from shortlist.rerankers import Candidates
from shortlist.rerankers.lists import score_lists

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
    methods: Callable[[], Mapping[str, Callable[..., Any]]]
    """Gives them by name; what takes long to load is loaded then."""
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
    heads = [[hit.doc_id for hit in before.get(query.query_id, [])[: step.depth]] for query in queries]
    texts = documents(list(dict.fromkeys(doc_id for head in heads for doc_id in head)))
    lists = [
        Candidates(query, [texts[doc_id] for doc_id in head])
        for query, head in zip(queries, heads, strict=True)
        if head
    ]
    scores = np.full(sum(map(len, heads)), np.nan)
    for part in score_lists(step.stage, lists):
        scores[part.numbers] = part.scores
    run, num_placed = {}, {}
    for query, own in zip(queries, np.split(scores, np.cumsum(list(map(len, heads)))[:-1]), strict=True):
        hits = before.get(query.query_id, [])
        run[query.query_id] = reorder(hits, interpolate(hits, own.tolist(), step.share))
        num_placed[query.query_id] = int((~np.isnan(own)).sum())
    return Found(run, num_placed)


def open_finder(method: Callable[..., Any], opener: Opener, settings: Mapping[str, Any]) -> Any:
    """The first stage of a method in FINDERS."""
    return method(opener, **settings)


def open_fusion(method: Callable[..., Any], opener: Opener, settings: Mapping[str, Any]) -> Any:
    """A function of runs, with its settings."""
    return partial(method, **settings)


def open_ranker(method: Callable[..., Any], opener: Opener, settings: Mapping[str, Any]) -> Any:
    """The reranker of a method in RERANKERS."""
    return opener.reranker(method, settings)


STEPS: dict[str, Kind] = {
    "find": Kind(find, lambda: FINDERS, open_finder, is_first_stage=True, num_read=0),
    "fuse": Kind(fuse, lambda: FUSIONS, open_fusion, is_first_stage=True, num_read=None, fewest=FUSED_DEPTH),
    "rank": Kind(rank, rerankers, open_ranker, depth=100),
}
