"""Kinds of pipeline steps.

A kind is a plain function from runs and documents to runs and documents, and a line in `STEPS`.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from inspect import Parameter, signature
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from shortlist.data.allowed import Allowed
from shortlist.data.fusers import Fuser, read_fuser
from shortlist.data.rules import Rule, kept, read_rule
from shortlist.errors import UserError
from shortlist.index.protocols import FetchDocuments, SearchesByReading
from shortlist.math.fusion import FUSIONS, interpolate, reorder
from shortlist.math.narrowing import num_near_top
from shortlist.pipeline.diversifiers import COVERING, DIVERSIFIERS
from shortlist.pipeline.feedback import FEEDBACKS, Revision, SearchedAgain
from shortlist.pipeline.loading import FINDERS, Opener, compressors, rerankers
from shortlist.pipeline.rewriting import REWRITINGS
from shortlist.pipeline.variety import chosen_first
from shortlist.records import Document, Hit, Query, Run
from shortlist.rerankers import Candidates
from shortlist.rerankers.lists import score_lists

FUSED_DEPTH = 100
"""Least number of ranks to fuse from each run. Few would not do, as a document that two runs rank 20th can win."""


class Found(NamedTuple):
    """Result of a step."""

    run: Run
    num_placed: Mapping[str, int] | None = None
    """Number of each query's first hits that the step has ranked itself; the others follow unchanged (None: it ranked
    all)."""
    documents: Mapping[str, Document] = {}
    """Documents whose texts the step has changed, for later steps."""
    by_query: Mapping[str, Mapping[str, Document]] = {}
    """Documents whose texts the step has changed for one query, by its id."""
    num_tokens: int = 0
    """Tokens that a reranker has read, without padding; 0 if nothing counts them."""
    num_read: Mapping[str, int] = {}
    """Number of documents that a model has read for each query, where the step knows."""


class Step(NamedTuple):
    """An opened step of a pipeline."""

    name: str
    kind: "StepKind"
    stage: Any = None
    """A FirstStage, a function that fuses runs, a Ranker, a Rule, or a Chooser."""
    of: tuple[str, ...] = ()
    """Names of the earlier steps whose runs it reads."""
    depth: int | None = None
    """Number of documents that a first stage finds (None: as many as later steps read), or that a later step reads."""
    share: float = 1.0
    """Weight of a reranker's scores, 0 to 1; the earlier scores have the rest (`math.fusion.interpolate`)."""
    drop: float = 1.0
    """Share of the fall of scores, from the first of `depth` candidates to the last, that a reranker's candidates may
    have fallen (`math.narrowing.num_near_top`)."""
    allowed: Allowed | None = None
    """The only documents that a first stage may find in this search (None: all)."""
    searched: SearchedAgain | None = None
    """The first stage that a step searches, with other queries."""
    num_placed: Mapping[str, int] | None = None
    """Number of each query's first hits that the step before has ranked itself, in this search (None: all)."""


class StepFunction(Protocol):
    """The function of a kind of step."""

    def __call__(
        self, step: Step, queries: Sequence[Query], runs: Mapping[str, Run], documents: FetchDocuments, most: int
    ) -> Found:
        """Compute each query's hits.

        Args:
            runs: runs of the steps that this step reads, by name.
            documents: fetches texts.
            most: number of hits wanted for each query.
        """
        ...


class StepKind(NamedTuple):
    """A kind of step.

    Its methods are functions by name, such as `bm25` and `dense` for `find`. Their keyword-only arguments are the
    settings that a description may give.
    """

    run: StepFunction
    methods: Callable[[], Mapping[str, Callable[..., Any]]]
    """Returns the methods by name; slow imports happen only then."""
    open: Callable[[Callable[..., Any], Opener, Mapping[str, Any]], Any]
    """Makes the step's `stage` from a method and its settings."""
    is_first_stage: bool = False
    """Whether it can be used alone, before any reranking."""
    num_read: int | None = 1
    """Number of earlier runs it reads (None: two or more)."""
    fewest: int = 0
    """Least number of hits per query that it reads."""
    depth: int | None = None
    """Default depth of a step of this kind."""
    mixes: bool = False
    """Whether it mixes its scores with the earlier ones, by a share, and may read fewer where those drop."""
    counts_down: bool = False
    """Whether its scores only count down, so that no later step may cut by them."""
    searching: Collection[str] = ()
    """Its methods that search an earlier first stage with other queries, which the option `search` names."""
    is_prepared: bool = False
    """Whether its methods return a `rerankers.prepared.Prepared`, which knows the identity of its models."""

    @property
    def searches_again(self) -> bool:
        """Whether its hits are those that another search of an earlier first stage finds."""
        return self.is_first_stage and bool(self.searching)


def find(step: Step, queries: Sequence[Query], runs: Mapping[str, Run], documents: FetchDocuments, most: int) -> Found:
    """Search with a first stage."""
    if isinstance(step.stage, SearchesByReading):
        found = step.stage.search_by_reading(queries, most, documents, allowed=step.allowed)
        return Found(found.run, num_read=found.num_read)
    if step.allowed is None:
        return Found(step.stage.search(queries, most))
    taken = signature(step.stage.search).parameters
    if "allowed" not in taken and all(parameter.kind is not Parameter.VAR_KEYWORD for parameter in taken.values()):
        raise UserError(f"step {step.name!r} cannot filter: its search takes no `allowed`; search without a filter.")
    return Found(step.stage.search(queries, most, allowed=step.allowed))


def fuse(step: Step, queries: Sequence[Query], runs: Mapping[str, Run], documents: FetchDocuments, most: int) -> Found:
    """Fuse several runs into one."""
    fused = step.stage(list(runs.values()))
    return Found({query.query_id: fused.get(query.query_id, [])[:most] for query in queries})


def rank(step: Step, queries: Sequence[Query], runs: Mapping[str, Run], documents: FetchDocuments, most: int) -> Found:
    """Rerank the first hits of each query; the others follow in their old order."""
    [before] = runs.values()
    heads, lists = _heads(step, queries, before, documents)
    scores, num_tokens = np.full(sum(map(len, heads)), np.nan), 0
    for part in score_lists(step.stage, lists):
        scores[part.numbers] = part.scores
        num_tokens += part.num_tokens
    run, num_placed = {}, {}
    for query, query_scores in zip(queries, np.split(scores, np.cumsum(list(map(len, heads)))[:-1]), strict=True):
        hits = before.get(query.query_id, [])
        run[query.query_id] = reorder(hits, interpolate(hits, query_scores.tolist(), step.share))
        num_placed[query.query_id] = int((~np.isnan(query_scores)).sum())
    return Found(run, num_placed, num_tokens=num_tokens, num_read=num_placed)


def _heads(
    step: Step, queries: Sequence[Query], before: Run, documents: FetchDocuments
) -> tuple[list[list[str]], list[Candidates]]:
    """Return the ids of each query's first hits, and their texts where there are any."""
    read = [before.get(query.query_id, []) for query in queries]
    heads = [[hit.doc_id for hit in hits[: num_read(step, hits)]] for hits in read]
    documents(list(dict.fromkeys(doc_id for head in heads for doc_id in head)))  # which fetches them together
    lists = [
        Candidates(query, list(documents(head, query.query_id).values()))
        for query, head in zip(queries, heads, strict=True)
        if head
    ]
    return heads, lists


def compress(
    step: Step, queries: Sequence[Query], runs: Mapping[str, Run], documents: FetchDocuments, most: int
) -> Found:
    """Shorten the texts of each query's first hits for later steps."""
    [before] = runs.values()
    _, lists = _heads(step, queries, before, documents)
    changed = {
        query.query_id: {document.doc_id: document for document in shorter}
        for (query, _), shorter in zip(lists, step.stage.shorten(lists), strict=True)
    }
    run = {query.query_id: before.get(query.query_id, []) for query in queries}
    return Found(run, dict.fromkeys(run, 0), by_query=changed)


def num_read(step: Step, hits: Sequence[Hit]) -> int:
    """Count the hits of a query that a reranking step reads."""
    return num_near_top(np.array([hit.score for hit in hits[: step.depth]], dtype=float), step.drop)


def shorten(
    step: Step, queries: Sequence[Query], runs: Mapping[str, Run], documents: FetchDocuments, most: int
) -> Found:
    """Keep the first hits of each query, as many as a rule says."""
    [before] = runs.values()
    where = f"step {step.name!r}"
    run = {query.query_id: before.get(query.query_id, [])[: step.depth] for query in queries}
    return Found({query_id: kept(step.stage, hits, where=where) for query_id, hits in run.items()})


def vary(step: Step, queries: Sequence[Query], runs: Mapping[str, Run], documents: FetchDocuments, most: int) -> Found:
    """Choose varied documents among each query's first hits; the others follow unchanged."""
    [before] = runs.values()

    def search(sub_queries: Sequence[Query]) -> Run:
        assert step.searched is not None
        first = Step(step.searched.name, STEPS["find"], step.searched.stage, allowed=step.allowed)
        return find(first, sub_queries, {}, documents, step.depth or most).run

    lists = [before.get(query.query_id, []) for query in queries]
    chosen = step.stage(queries, [hits[: step.depth] for hits in lists], most, search)
    run, num_placed = {}, {}
    for query, hits, places in zip(queries, lists, chosen, strict=True):
        run[query.query_id], num_placed[query.query_id] = chosen_first(hits, places), len(places)
    return Found(run, num_placed)


def search_again(
    step: Step, queries: Sequence[Query], runs: Mapping[str, Run], documents: FetchDocuments, most: int
) -> Found:
    """Search a first stage again, with queries revised by what the step before ranked first.

    A query for which that has ranked nothing keeps its hits.
    """
    [before] = runs.values()
    assert step.searched is not None
    hits = {query.query_id: before.get(query.query_id, []) for query in queries}
    heads = {name: found[: step.stage.docs] for name, found in hits.items()}
    if step.num_placed is not None:
        heads = {name: head[: step.num_placed.get(name, 0)] for name, head in heads.items()}
    some = [query for query in queries if heads[query.query_id]]
    revision = Revision(step.name, step.searched, some, [heads[query.query_id] for query in some], documents)
    found = zip([query.query_id for query in some], step.stage(revision, most, step.allowed), strict=True)
    return Found({name: before[:most] for name, before in hits.items()} | dict(found))


def search_rewritten(
    step: Step, queries: Sequence[Query], runs: Mapping[str, Run], documents: FetchDocuments, most: int
) -> Found:
    """Search a first stage with what a language model writes about the queries."""
    assert step.searched is not None
    revision = Revision(step.name, step.searched, queries, [], documents)
    found = step.stage(revision, most, step.allowed) if queries else []
    return Found(dict(zip([query.query_id for query in queries], found, strict=True)))


def open_finder(method: Callable[..., Any], opener: Opener, settings: Mapping[str, Any]) -> Any:
    """Open the method of a kind in FINDERS, DIVERSIFIERS, FEEDBACKS or REWRITINGS."""
    return method(opener, **settings)


def open_fusion(method: Callable[..., Any], opener: Opener, settings: Mapping[str, Any]) -> Any:
    """Bind the settings to a function that fuses runs, or open what was learned."""
    return method(**settings) if method in FROM_FILES.values() else partial(method, **settings)


def by_fuser(*, fuser: Path) -> Fuser:
    """Read what `shortlist fuse --method learned` has learned."""
    return read_fuser(fuser)


def open_ranker(method: Callable[..., Any], opener: Opener, settings: Mapping[str, Any]) -> Any:
    """Open the reranker of a method in RERANKERS."""
    return opener.reranker(method, settings)


def open_compressor(method: Callable[..., Any], opener: Opener, settings: Mapping[str, Any]) -> Any:
    """Open a way to shorten texts, a method in COMPRESSORS."""
    return opener.compressor(method, settings)


def open_cut(method: Callable[..., Any], opener: Opener, settings: Mapping[str, Any]) -> Any:
    """Make or read the rule of a method in CUTTERS."""
    return method(**settings)


def by_rank(*, at: int) -> Rule:
    """Keep the first `at` documents of each query.

    Raises:
        UserError: `at` is below 1.
    """
    if at < 1:
        raise UserError(f"`cut: rank` with at {at}; expected 1 or more documents.")
    return Rule("rank", at)


def by_ratio(*, at: float) -> Rule:
    """Keep documents with at least this share of the query's best score.

    Raises:
        UserError: `at` is no share.
    """
    if not 0 <= at <= 1:
        raise UserError(f"`cut: ratio` with at {at:g}; expected a share from 0 to 1.")
    return Rule("ratio", at)


def by_score(*, at: float) -> Rule:
    """Keep documents with at least this score."""
    return Rule("score", at)


def by_rule(*, rule: Path) -> Rule:
    """Read a rule of `shortlist cut calibrate`."""
    return read_rule(rule)


CUTTERS: dict[str, Callable[..., Rule]] = {"rule": by_rule, "rank": by_rank, "ratio": by_ratio, "score": by_score}
"""The ways to say where to cut."""

FROM_FILES: dict[str, Callable[..., Fuser]] = {"learned": by_fuser}
"""Fusions that are opened from a file."""

STEPS: dict[str, StepKind] = {
    "find": StepKind(find, lambda: FINDERS, open_finder, is_first_stage=True, num_read=0),
    "fuse": StepKind(
        fuse, lambda: {**FUSIONS, **FROM_FILES}, open_fusion, is_first_stage=True, num_read=None, fewest=FUSED_DEPTH
    ),
    "rank": StepKind(rank, rerankers, open_ranker, depth=100, mixes=True, is_prepared=True),
    "compress": StepKind(compress, compressors, open_compressor, depth=100, is_prepared=True),
    "cut": StepKind(shorten, lambda: CUTTERS, open_cut),
    "diversify": StepKind(vary, lambda: DIVERSIFIERS, open_finder, depth=100, counts_down=True, searching=COVERING),
    "rewrite": StepKind(
        search_rewritten, lambda: REWRITINGS, open_finder, is_first_stage=True, num_read=0, searching=REWRITINGS
    ),
    "feedback": StepKind(search_again, lambda: FEEDBACKS, open_finder, is_first_stage=True, searching=FEEDBACKS),
}
