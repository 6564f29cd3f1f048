"""What a ranking is worth, query by query: the measures of trec_eval, for all queries at once.

Each takes `JudgedHits` and gives one value per query; all are equal to trec_eval's, which they are tested against.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Num


class JudgedHits(NamedTuple):
    """Where the judged documents stand: all that a measure needs of a run.

    The hits are grouped by query and best first; the judgements are grouped by query and of highest grade first.
    """

    queries: Int[np.ndarray, " hits"]
    """The query of each judged hit, ascending from 0."""
    ranks: Int[np.ndarray, " hits"]
    """Its rank in the whole run, from 1."""
    grades: Int[np.ndarray, " hits"]
    lengths: Int[np.ndarray, " queries"]
    """Number of hits of each query, judged or not."""
    judged_queries: Int[np.ndarray, " judgements"]
    """The query of each judgement, ascending."""
    judged_grades: Int[np.ndarray, " judgements"]


Values = Float[np.ndarray, " queries"]
HIGHEST_GRADE = 4
"""The highest grade that expected reciprocal rank knows."""
Measure = Callable[..., Values]
"""Of JudgedHits; keywords: `cutoff`, the ranks looked at (None: all), and of some `rel`, the
lowest grade that is relevant."""


def ndcg(hits: JudgedHits, *, cutoff: int | None = None, dcg: str = "log2") -> Values:
    """Normalised discounted cumulative gain: each grade above 0 divided by log2(rank + 1), of the best that could be.

    Args:
        dcg: `log2`, a grade counts as it is; `exp-log2`, it counts 2^grade - 1.

    https://doi.org/10.1145/582415.582418
    """
    found, judged_gains = (
        np.exp2(each) - 1 if dcg == "exp-log2" else each for each in (hits.grades, hits.judged_grades)
    )
    best = _gain(hits.judged_queries, _places(hits.judged_queries), judged_gains, cutoff, len(hits.lengths))
    return _ratio(_gain(hits.queries, hits.ranks, found, cutoff, len(hits.lengths)), best)


def expected_reciprocal_rank(hits: JudgedHits, *, cutoff: int | None = None) -> Values:
    """Mean 1 / rank at which a reader stops, whom a document of grade g satisfies with (2^g - 1) / 16.

    https://doi.org/10.1145/1645953.1646033
    """
    kept = (hits.grades > 0) & _within(hits.ranks, cutoff)
    queries, satisfied = hits.queries[kept], (np.exp2(np.minimum(hits.grades[kept], HIGHEST_GRADE)) - 1) / 16
    goes_on = np.cumsum(np.log1p(-satisfied)) - np.log1p(-satisfied)
    first = np.flatnonzero(_places(queries) == 1)
    goes_on -= np.repeat(goes_on[first], np.diff(first, append=len(queries)))
    stops = np.exp(goes_on) * satisfied / hits.ranks[kept]
    return np.bincount(queries, stops, len(hits.lengths)).astype(float)


def reciprocal_rank(hits: JudgedHits, *, cutoff: int | None = None, rel: int = 1) -> Values:
    """1 / rank of the first relevant document, 0 where there is none."""
    kept = _relevant(hits, cutoff, rel)
    values = np.zeros(len(hits.lengths))
    values[hits.queries[kept][::-1]] = 1 / hits.ranks[kept][::-1]  # backwards: the first one of a query stays
    return values


def precision(hits: JudgedHits, *, cutoff: int | None = None, rel: int = 1) -> Values:
    """Share of the ranks looked at that hold relevant documents; ranks that the run leaves empty hold none."""
    depth = hits.lengths if cutoff is None else np.full(len(hits.lengths), cutoff)
    return _ratio(_count(hits, cutoff, rel), depth)


def recall(hits: JudgedHits, *, cutoff: int | None = None, rel: int = 1) -> Values:
    """Share of the relevant documents that were found, 0 where there is none."""
    return _ratio(_count(hits, cutoff, rel), _num_relevant(hits, rel))


def average_precision(hits: JudgedHits, *, cutoff: int | None = None, rel: int = 1) -> Values:
    """Mean over the relevant documents of the precision at their ranks, 0 for those not found."""
    kept = _relevant(hits, cutoff, rel)
    queries = hits.queries[kept]
    at_rank = _places(queries) / hits.ranks[kept]
    return _ratio(np.bincount(queries, at_rank, len(hits.lengths)), _num_relevant(hits, rel))


def success(hits: JudgedHits, *, cutoff: int | None = None, rel: int = 1) -> Values:
    """1 where a relevant document was found, else 0."""
    return (_count(hits, cutoff, rel) > 0).astype(float)


def judged(hits: JudgedHits, *, cutoff: int | None = None) -> Values:
    """Share of the hits looked at that are judged, whatever their grade."""
    within = _within(hits.ranks, cutoff)
    num_judged = np.bincount(hits.queries[within], minlength=len(hits.lengths))
    return _ratio(num_judged, hits.lengths if cutoff is None else np.minimum(hits.lengths, cutoff))


def _within(ranks: Int[np.ndarray, " hits"], cutoff: int | None) -> Bool[np.ndarray, " hits"]:
    return np.ones(len(ranks), dtype=bool) if cutoff is None else ranks <= cutoff


def _relevant(hits: JudgedHits, cutoff: int | None, rel: int) -> Bool[np.ndarray, " hits"]:
    return (hits.grades >= rel) & _within(hits.ranks, cutoff)


def _count(hits: JudgedHits, cutoff: int | None, rel: int) -> Int[np.ndarray, " queries"]:
    return np.bincount(hits.queries[_relevant(hits, cutoff, rel)], minlength=len(hits.lengths))


def _num_relevant(hits: JudgedHits, rel: int) -> Int[np.ndarray, " queries"]:
    return np.bincount(hits.judged_queries[hits.judged_grades >= rel], minlength=len(hits.lengths))


def _places(queries: Int[np.ndarray, " items"]) -> Int[np.ndarray, " items"]:
    """The place of each item among those of its query, from 1; items are grouped by query."""
    places = np.arange(len(queries))
    starts = np.flatnonzero(np.diff(queries, prepend=-1))
    return places - np.repeat(starts, np.diff(starts, append=len(queries))) + 1


def _gain(
    queries: Int[np.ndarray, " items"],
    ranks: Int[np.ndarray, " items"],
    worth: Num[np.ndarray, " items"],
    cutoff: int | None,
    num_queries: int,
) -> Values:
    kept = _within(ranks, cutoff) & (worth > 0)
    gains = np.bincount(queries[kept], worth[kept] / np.log2(ranks[kept] + 1), num_queries)
    return gains.astype(float)  # of no items bincount makes whole numbers


def _ratio(part: np.ndarray, whole: np.ndarray) -> Values:
    """part / whole, 0 where there is nothing to be a part of."""
    return np.divide(part, whole, out=np.zeros(len(part)), where=whole > 0)


MEASURES: dict[str, Measure] = {
    "nDCG": ndcg,
    "RR": reciprocal_rank,
    "P": precision,
    "R": recall,
    "ERR": expected_reciprocal_rank,
    "AP": average_precision,
    "Success": success,
    "Judged": judged,
}
"""By the names that ir_measures gives them."""
