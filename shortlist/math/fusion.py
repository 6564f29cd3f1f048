"""Several runs made one: what two searchers both rank high is seldom wrong."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import product

import numpy as np

from shortlist.records import Hit, Run

Scale = Callable[[Sequence[Hit]], tuple[Sequence[float], float]]
"""What each hit of one list (never empty) is worth, and what a document is worth that the list does not hold."""


def rrf(runs: Sequence[Run], *, weights: Sequence[float] | None = None, k: float = 60.0) -> Run:
    """Reciprocal rank fusion: a document earns weight / (k + rank) from every run that holds it, ranks from 1.

    Args:
        runs: only their order is looked at, not their scores.
        weights: how much each run counts (None: 1 each).
        k: the larger, the less the first ranks stand out.

    Returns:
        All queries and documents of all runs; equal scores in the order in which the runs first name them.

    https://dl.acm.org/doi/10.1145/1571941.1572114
    """
    return _fuse(runs, weights, lambda hits: ([1 / (k + rank) for rank in range(1, len(hits) + 1)], 0.0))


def minmax(hits: Sequence[Hit]) -> tuple[Sequence[float], float]:
    """Scores brought to [0, 1], all 1 where all are equal; a document not in the list is worth 0."""
    scores = np.array([hit.score for hit in hits])
    spread = scores.max() - scores.min()
    return ((scores - scores.min()) / spread if spread > 0 else np.ones(len(hits))).tolist(), 0.0


def zscore(hits: Sequence[Hit]) -> tuple[Sequence[float], float]:
    """Scores brought to mean 0 and deviation 1, all 0 where all are equal; others are worth the lowest of them."""
    scores = np.array([hit.score for hit in hits])
    deviation = scores.std()
    values = ((scores - scores.mean()) / deviation if deviation > 0 else np.zeros(len(hits))).tolist()
    return values, min(values)


def weighted(runs: Sequence[Run], *, weights: Sequence[float] | None = None, scale: Scale = minmax) -> Run:
    """Weighted sum of scores, first brought to one scale query by query.

    Args:
        runs: their scores may lie on different scales.
        weights: how much each run counts (None: 1 each).
        scale: `minmax` or `zscore`.

    Returns:
        All queries and documents of all runs; equal scores in the order in which the runs first name them.
    """
    return _fuse(runs, weights, scale)


def reorder(hits: Sequence[Hit], scores: Sequence[float]) -> list[Hit]:
    """Candidates by their new scores, equal ones in their old order; those without a score follow, in their old order.

    Args:
        hits: best first.
        scores: one per hit, NaN where it has none.

    Returns:
        All hits. Those that were not scored get scores below the lowest new one, 1 apart.
    """
    pairs = list(zip(hits, scores, strict=True))
    head = sorted((Hit(hit.doc_id, score) for hit, score in pairs if score == score), key=lambda hit: -hit.score)
    lowest = head[-1].score if head else 0.0
    rest = [hit for hit, score in pairs if score != score]
    return head + [Hit(hit.doc_id, lowest - place) for place, hit in enumerate(rest, start=1)]


def interpolate(hits: Sequence[Hit], scores: Sequence[float], share: float) -> list[float]:
    """A second stage's scores mixed with the first one's, as `zscore` fusion with weights 1 - share and share would.

    Args:
        hits: what the first stage found, best first.
        scores: the second stage's, of the first of the hits, which are those that count; NaN for one it did not read.
        share: of the second stage; 1 for its scores alone, as they are.

    Returns:
        One score per hit, NaN for those that the second stage has not read: what `reorder` takes.
    """
    mixed = list(scores)
    if share < 1 and mixed:
        read = [place for place, score in enumerate(mixed) if score == score]
        first, _ = zscore([hits[place] for place in read])
        second, _ = zscore([Hit(hits[place].doc_id, mixed[place]) for place in read])
        for place, a, b in zip(read, first, second, strict=True):
            mixed[place] = (1 - share) * a + share * b
    return mixed + [float("nan")] * (len(hits) - len(mixed))


def weight_grid(num_runs: int, steps: int) -> list[tuple[float, ...]]:
    """All weights that add up to 1, each a multiple of 1 / steps."""
    if num_runs == 1:
        return [(1.0,)]
    shares = (share for share in product(range(steps + 1), repeat=num_runs - 1) if sum(share) <= steps)
    return [tuple(each / steps for each in (*share, steps - sum(share))) for share in shares]


def _fuse(runs: Sequence[Run], weights: Sequence[float] | None, scale: Scale) -> Run:
    weights = [1.0] * len(runs) if weights is None else weights
    query_ids = dict.fromkeys(query_id for run in runs for query_id in run)
    return {
        query_id: _fuse_query([(run.get(query_id), weight) for run, weight in zip(runs, weights, strict=True)], scale)
        for query_id in query_ids
    }


def _fuse_query(lists: Sequence[tuple[Sequence[Hit] | None, float]], scale: Scale) -> list[Hit]:
    """One query's lists, each with its weight, summed; a list that is missing or empty says nothing."""
    worth = []
    for hits, weight in lists:
        if hits:
            values, absent = scale(hits)
            worth.append((dict(zip([hit.doc_id for hit in hits], values, strict=True)), absent, weight))
    doc_ids = dict.fromkeys(doc_id for values, _, _ in worth for doc_id in values)
    fused = [
        Hit(doc_id, sum(weight * values.get(doc_id, absent) for values, absent, weight in worth)) for doc_id in doc_ids
    ]
    return sorted(fused, key=lambda hit: -hit.score)


FUSIONS: dict[str, Callable[..., Run]] = {"rrf": rrf, "weighted": weighted, "zscore": partial(weighted, scale=zscore)}
