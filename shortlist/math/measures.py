"""The measures of trec_eval, computed for all queries at once.

Each measure takes `JudgedHits` and returns one value per query. The tests compare the values with trec_eval's, which
they equal.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Num


class JudgedHits(NamedTuple):
    """The ranks of judged documents in a run, all that a measure needs.

    Both hits and judgements are grouped by query. Within a query, hits are sorted best first and judgements by
    descending grade.
    """

    queries: Int[np.ndarray, " hits"]
    """The query of each judged hit, ascending from 0."""
    ranks: Int[np.ndarray, " hits"]
    """The rank of each judged hit in the whole run, from 1."""
    grades: Int[np.ndarray, " hits"]
    lengths: Int[np.ndarray, " queries"]
    """The number of hits of each query, judged or not."""
    judged_queries: Int[np.ndarray, " judgements"]
    """The query of each judgement, ascending."""
    judged_grades: Int[np.ndarray, " judgements"]


Values = Float[np.ndarray, " queries"]
HIGHEST_GRADE = 4
"""The highest grade in expected reciprocal rank; higher grades count as this one."""
SMALL = 0.00001
"""Added to counts in inferred average precision, as in trec_eval."""
Measure = Callable[..., Values]
"""A function of JudgedHits. Its keywords are `cutoff`, the number of ranks to look at (None: all), and for some
measures `rel`, the lowest grade that counts as relevant."""


def condensed(hits: JudgedHits) -> JudgedHits:
    """Drop the documents without judgement, so that those below them move up.

    Any measure of the result is the measure of condensed lists.

    https://doi.org/10.1145/1277741.1277756
    """
    lengths = np.bincount(hits.queries, minlength=len(hits.lengths))
    return hits._replace(ranks=_places(hits.queries), lengths=lengths)


def ndcg(hits: JudgedHits, *, cutoff: int | None = None, dcg: str = "log2") -> Values:
    """Compute the normalised discounted cumulative gain.

    The sum of each grade above 0 divided by log2(rank + 1), as a share of the sum for the best possible ranking.

    Args:
        dcg: with `log2` a grade counts as it is; with `exp-log2` it counts 2^grade - 1.

    https://doi.org/10.1145/582415.582418
    """
    found, judged_gains = (
        np.exp2(grades) - 1 if dcg == "exp-log2" else grades for grades in (hits.grades, hits.judged_grades)
    )
    best = _gain(hits.judged_queries, _places(hits.judged_queries), judged_gains, cutoff, len(hits.lengths))
    return _ratio(_gain(hits.queries, hits.ranks, found, cutoff, len(hits.lengths)), best)


def expected_reciprocal_rank(hits: JudgedHits, *, cutoff: int | None = None) -> Values:
    """Compute the expected reciprocal of the rank at which a reader stops.

    A document of grade g satisfies the reader with probability (2^g - 1) / 16.

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
    """Compute 1 / rank of the first relevant document, 0 if there is none."""
    kept = _relevant(hits, cutoff, rel)
    values = np.zeros(len(hits.lengths))
    values[hits.queries[kept][::-1]] = 1 / hits.ranks[kept][::-1]  # backwards: the first one of a query stays
    return values


def precision(hits: JudgedHits, *, cutoff: int | None = None, rel: int = 1) -> Values:
    """Compute the share of the ranks up to the cutoff that hold relevant documents.

    Where the run has fewer hits than `cutoff`, the empty ranks count as ranks without a relevant document.
    """
    depth = hits.lengths if cutoff is None else np.full(len(hits.lengths), cutoff)
    return _ratio(_count(hits, cutoff, rel), depth)


def recall(hits: JudgedHits, *, cutoff: int | None = None, rel: int = 1) -> Values:
    """Compute the share of the relevant documents that were found, 0 if there are none."""
    return _ratio(_count(hits, cutoff, rel), _num_relevant(hits, rel))


def average_precision(hits: JudgedHits, *, cutoff: int | None = None, rel: int = 1) -> Values:
    """Compute the mean precision at the ranks of the relevant documents.

    A relevant document that was not found counts as 0.
    """
    kept = _relevant(hits, cutoff, rel)
    queries = hits.queries[kept]
    at_rank = _places(queries) / hits.ranks[kept]
    return _ratio(np.bincount(queries, at_rank, len(hits.lengths)), _num_relevant(hits, rel))


def success(hits: JudgedHits, *, cutoff: int | None = None, rel: int = 1) -> Values:
    """Return 1 for queries with a relevant document found, 0 for the others."""
    return (_count(hits, cutoff, rel) > 0).astype(float)


def binary_preference(hits: JudgedHits, *, rel: int = 1) -> Values:
    """Compute bpref: how seldom documents judged not relevant stand above relevant ones.

    Documents without judgement, or with a grade below 0, are looked past. Of those that are not relevant, as many count
    as there are relevant ones.

    https://doi.org/10.1145/1008992.1009000
    """
    relevant, other = hits.grades >= rel, (hits.grades >= 0) & (hits.grades < rel)
    num_relevant = _num_relevant(hits, rel)
    none = (hits.judged_grades >= 0) & (hits.judged_grades < rel)
    num_other = np.bincount(hits.judged_queries[none], minlength=len(hits.lengths))
    queries = hits.queries[relevant]
    above = np.minimum(_so_far(hits.queries, other)[relevant], num_relevant[queries])
    worst = np.minimum(num_relevant, num_other)[queries]
    values = 1 - np.divide(above, worst, out=np.zeros(len(queries)), where=above > 0)
    return _ratio(np.bincount(queries, values, len(hits.lengths)), num_relevant)


def inferred_average_precision(hits: JudgedHits, *, rel: int = 1) -> Values:
    """Compute infAP: the average precision to expect where a pool was judged in part.

    Documents of the pool that nobody judged have grade -1. The judged documents above a relevant one say how many of
    the unjudged ones there are relevant; documents outside of the pool count as not relevant.

    https://doi.org/10.1145/1183614.1183633
    """
    relevant, other, unjudged = hits.grades >= rel, (hits.grades >= 0) & (hits.grades < rel), hits.grades < 0
    kept = hits.queries[relevant]
    good, bad, pool = (_so_far(hits.queries, mask)[relevant] for mask in (relevant, other, unjudged))
    good, above = good - 1, hits.ranks[relevant] - 1
    in_pool = np.divide(good + bad + pool, above, out=np.zeros(len(kept)), where=above > 0)
    expected = (good + SMALL) / (good + bad + 2 * SMALL)
    values = (1 + above * in_pool * expected) / (above + 1)
    return _ratio(np.bincount(kept, values, len(hits.lengths)), _num_relevant(hits, rel))


def judged(hits: JudgedHits, *, cutoff: int | None = None) -> Values:
    """Compute the share of hits up to the cutoff with a judgement of any grade."""
    within = _within(hits.ranks, cutoff)
    num_judged = np.bincount(hits.queries[within], minlength=len(hits.lengths))
    return _ratio(num_judged, hits.lengths if cutoff is None else np.minimum(hits.lengths, cutoff))


def num_retrieved(hits: JudgedHits, *, rel: int | None = None) -> Values:
    """Count the hits; with `rel`, the hits of at least this grade."""
    return hits.lengths.astype(float) if rel is None else _count(hits, None, rel).astype(float)


def num_relevant(hits: JudgedHits, *, rel: int = 1) -> Values:
    """Count the relevant documents, found or not."""
    return _num_relevant(hits, rel).astype(float)


def num_queries(hits: JudgedHits) -> Values:
    """Return 1 for every query."""
    return np.ones(len(hits.lengths))


def _within(ranks: Int[np.ndarray, " hits"], cutoff: int | None) -> Bool[np.ndarray, " hits"]:
    return np.ones(len(ranks), dtype=bool) if cutoff is None else ranks <= cutoff


def _relevant(hits: JudgedHits, cutoff: int | None, rel: int) -> Bool[np.ndarray, " hits"]:
    return (hits.grades >= rel) & _within(hits.ranks, cutoff)


def _count(hits: JudgedHits, cutoff: int | None, rel: int) -> Int[np.ndarray, " queries"]:
    return np.bincount(hits.queries[_relevant(hits, cutoff, rel)], minlength=len(hits.lengths))


def _num_relevant(hits: JudgedHits, rel: int) -> Int[np.ndarray, " queries"]:
    return np.bincount(hits.judged_queries[hits.judged_grades >= rel], minlength=len(hits.lengths))


def _places(queries: Int[np.ndarray, " items"]) -> Int[np.ndarray, " items"]:
    """Number the items of each query from 1; items are grouped by query."""
    places = np.arange(len(queries))
    starts = np.flatnonzero(np.diff(queries, prepend=-1))
    return places - np.repeat(starts, np.diff(starts, append=len(queries))) + 1


def _so_far(queries: Int[np.ndarray, " hits"], mask: Bool[np.ndarray, " hits"]) -> Int[np.ndarray, " hits"]:
    """Count the hits of the mask in a query up to and with each hit."""
    total = np.cumsum(mask)
    starts = np.flatnonzero(np.diff(queries, prepend=-1))
    return total - np.repeat(total[starts] - mask[starts], np.diff(starts, append=len(queries)))


def _gain(
    queries: Int[np.ndarray, " items"],
    ranks: Int[np.ndarray, " items"],
    worth: Num[np.ndarray, " items"],
    cutoff: int | None,
    num_queries: int,
) -> Values:
    kept = _within(ranks, cutoff) & (worth > 0)
    gains = np.bincount(queries[kept], worth[kept] / np.log2(ranks[kept] + 1), num_queries)
    return gains.astype(float)  # without items, bincount returns integers


def _ratio(part: np.ndarray, whole: np.ndarray) -> Values:
    """Divide part by whole; the result is 0 where whole is 0."""
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
"""The measures, by their names in ir_measures."""

WITHOUT_CUTOFF: dict[str, Measure] = {"Bpref": binary_preference, "infAP": inferred_average_precision}
"""The measures without a cutoff, for judgements with holes."""

COUNTS: dict[str, Measure] = {"NumRet": num_retrieved, "NumRel": num_relevant, "NumQ": num_queries}
"""The measures without a cutoff that count, and are added up over queries."""
