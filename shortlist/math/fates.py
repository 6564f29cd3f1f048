"""What became of every relevant document on its way to the user, and who stands where nobody has judged."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Literal, NamedTuple, get_args

from shortlist.records import Hit, Qrels, Run

Fate = Literal[
    "not in the collection",
    "never retrieved",
    "below the depth",
    "within the depth",
    "not lifted",
    "pushed down",
    "lifted",
    "kept",
    "found",
]

FATES: tuple[Fate, ...] = get_args(Fate)
"""From the one lost first to the one that the user sees. `within the depth` and `found` are those of a run by itself;
`not lifted`, `pushed down`, `lifted` and `kept` take their places where the run was reranked."""


class Relevant(NamedTuple):
    """A document judged relevant to a query, and what became of it."""

    query_id: str
    doc_id: str
    rank: int | None
    """Its place in the first run, from 1; None where it is not there."""
    new_rank: int | None
    """Its place in the reranked run."""
    fate: Fate


class Unjudged(NamedTuple):
    """A document that the user sees and nobody has judged."""

    query_id: str
    doc_id: str
    rank: int
    below: str | None
    """The first relevant document that is ranked below it."""
    below_rank: int | None


def fate(rank: int | None, new_rank: int | None = None, *, depth: int, k: int, reranked: bool) -> Fate:
    """What became of one relevant document that could be retrieved.

    Args:
        rank: its place among the candidates, from 1; None where it is not one.
        new_rank: the same after reranking.
        depth: candidates that a reranker reads.
        k: places that the user sees.
        reranked: there is a reranked run.
    """
    if rank is None:
        return "never retrieved"
    if rank > depth:
        return "below the depth"
    before, after = rank <= k, new_rank is not None and new_rank <= k
    if not reranked:
        return "found" if before else "within the depth"
    if before:
        return "kept" if after else "pushed down"
    return "lifted" if after else "not lifted"


def fates(
    run: Run,
    qrels: Qrels,
    *,
    depth: int,
    k: int,
    reranked: Run | None = None,
    relevance_level: int = 1,
    absent: AbstractSet[str] = frozenset(),
) -> list[Relevant]:
    """What became of every relevant document of the queries that the run has, in the run's order of queries.

    Args:
        relevance_level: lowest grade that counts as relevant.
        absent: documents that the collection lacks, so that no run over it could find them.
    """
    found = []
    for query_id, hits in run.items():
        before = ranks(hits)
        after = ranks(reranked.get(query_id, [])) if reranked is not None else {}
        for doc_id in relevant(qrels.get(query_id, {}), relevance_level):
            rank, new_rank = before.get(doc_id), after.get(doc_id)
            end = fate(rank, new_rank, depth=depth, k=k, reranked=reranked is not None)
            if rank is None and doc_id in absent:
                end = "not in the collection"
            found.append(Relevant(query_id, doc_id, rank, new_rank, end))
    return found


def relevant(judgements: Mapping[str, int], relevance_level: int) -> list[str]:
    """The documents of at least this grade."""
    return [doc_id for doc_id, relevance in judgements.items() if relevance >= relevance_level]


def ranks(hits: Iterable[Hit]) -> dict[str, int]:
    """doc_id -> place, from 1."""
    return {hit.doc_id: rank for rank, hit in enumerate(hits, 1)}


def tally(documents: Iterable[Relevant], labels: Iterable[str], order: Sequence[str]) -> dict[str, Counter[Fate]]:
    """How many documents met each fate, by the label that each document has; labels in this order, empty ones left
    out."""
    counts: dict[str, Counter[Fate]] = {label: Counter() for label in order}
    for document, label in zip(documents, labels, strict=True):
        counts[label][document.fate] += 1
    return {label: count for label, count in counts.items() if count}


def bins(edges: Sequence[int]) -> list[str]:
    """Names of the ranges of whole numbers that end at these edges, and of the one above: [4, 8] -> up to 4, 5-8, 9+."""
    inner = [f"{low + 1}-{high}" for low, high in zip(edges[:-1], edges[1:], strict=True)]
    return [f"up to {edges[0]}", *inner, f"{edges[-1] + 1}+"]


def bin_of(number: int, edges: Sequence[int]) -> str:
    """The name of the range that a number is in."""
    return bins(edges)[bisect_left(edges, number)]


def unjudged(run: Run, qrels: Qrels, *, k: int, relevance_level: int = 1) -> list[Unjudged]:
    """The documents in the first k places that have no judgement, query by query, best first.

    One that is ranked above a relevant document may be relevant itself: a false negative.
    """
    found = []
    for query_id, hits in run.items():
        judgements = qrels.get(query_id, {})
        good = set(relevant(judgements, relevance_level))
        places = [(rank, hit.doc_id) for rank, hit in enumerate(hits, 1) if hit.doc_id in good]
        for rank, hit in enumerate(hits[:k], 1):
            if hit.doc_id not in judgements:
                below_rank, below = next((place for place in places if place[0] > rank), (None, None))
                found.append(Unjudged(query_id, hit.doc_id, rank, below, below_rank))
    return found
