"""Fusion of several runs into one.

Documents that two searchers both rank high are seldom wrong.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product

import numpy as np

from shortlist.records import Hit, Run

Scale = Callable[[Sequence[Hit]], tuple[Sequence[float], float]]
"""A function of one query's hits (never empty) that gives the value of each hit and of any document not among them."""


def rrf(runs: Sequence[Run], *, weights: Sequence[float] | None = None, k: float = 60.0) -> Run:
    """Fuse runs by reciprocal rank.

    The score of a document is the sum of weight / (k + rank) over the runs that hold it, with ranks from 1.

    Args:
        runs: the runs to fuse; only the order of their hits counts, not their scores.
        weights: how much each run counts (None: 1 each).
        k: the larger it is, the less the first ranks stand out.

    Returns:
        All queries and documents of all runs. Documents with equal scores keep the order in which they first occur.

    https://dl.acm.org/doi/10.1145/1571941.1572114
    """
    return _fuse(runs, weights, lambda hits: ([1 / (k + rank) for rank in range(1, len(hits) + 1)], 0.0))


def minmax(hits: Sequence[Hit]) -> tuple[Sequence[float], float]:
    """Scale scores to [0, 1]; equal scores all become 1.

    A document that is not in the list is worth 0.
    """
    scores = np.array([hit.score for hit in hits])
    spread = scores.max() - scores.min()
    return ((scores - scores.min()) / spread if spread > 0 else np.ones(len(hits))).tolist(), 0.0


def zscore(hits: Sequence[Hit]) -> tuple[Sequence[float], float]:
    """Scale scores to mean 0 and standard deviation 1; equal scores all become 0.

    A document that is not in the list is worth as much as the lowest one in it.
    """
    scores = np.array([hit.score for hit in hits])
    deviation = scores.std()
    values = ((scores - scores.mean()) / deviation if deviation > 0 else np.zeros(len(hits))).tolist()
    return values, min(values)


def weighted(runs: Sequence[Run], *, weights: Sequence[float] | None = None, scale: Scale = minmax) -> Run:
    """Fuse runs by a weighted sum of their scores, scaled query by query.

    Args:
        runs: the runs to fuse; their scores may lie on different scales.
        weights: how much each run counts (None: 1 each).
        scale: `minmax` or `zscore`.

    Returns:
        All queries and documents of all runs. Documents with equal scores keep the order in which they first occur.
    """
    return _fuse(runs, weights, scale)


def merge(runs: Sequence[Run], *, weights: Sequence[float] | None = None) -> Run:
    """Merge lists whose scores are on one scale, such as one model's over several sources.

    A document's score is the greatest that it has in any list.

    Args:
        runs: the runs to merge.
        weights: what each run's scores are multiplied by, which puts several scales on one (None: 1 each).

    Returns:
        All queries and documents of all runs. Documents with equal scores keep the order in which they first occur.
    """
    weights = [1.0] * len(runs) if weights is None else weights
    merged: dict[str, dict[str, float]] = {}
    for run, weight in zip(runs, weights, strict=True):
        for query_id, hits in run.items():
            best = merged.setdefault(query_id, {})
            for hit in hits:
                best[hit.doc_id] = max(weight * hit.score, best.get(hit.doc_id, -math.inf))
    return {
        query_id: sorted((Hit(*item) for item in best.items()), key=lambda hit: -hit.score)
        for query_id, best in merged.items()
    }


def reorder(hits: Sequence[Hit], scores: Sequence[float]) -> list[Hit]:
    """Sort candidates by their new scores, followed by the ones without a score.

    Candidates with equal scores, and the ones without a score, keep their old order.

    Args:
        hits: the candidates, best first.
        scores: one per hit, NaN for a hit without a score.

    Returns:
        All hits. The ones without a score get scores below the lowest new one, 1 apart.
    """
    pairs = list(zip(hits, scores, strict=True))
    head = sorted((Hit(hit.doc_id, score) for hit, score in pairs if score == score), key=lambda hit: -hit.score)
    lowest = head[-1].score if head else 0.0
    rest = [hit for hit, score in pairs if score != score]
    return head + [Hit(hit.doc_id, lowest - place) for place, hit in enumerate(rest, start=1)]


def interpolate(hits: Sequence[Hit], scores: Sequence[float], share: float) -> list[float]:
    """Mix a second stage's scores with the first stage's.

    The result is that of `zscore` fusion with the weights 1 - share and share.

    Args:
        hits: the hits of the first stage, best first.
        scores: the second stage's scores of the first hits, with NaN for a hit that it did not read. Only the hits that
            it read are mixed; one that is read alone has no deviation and gets 0.
        share: the weight of the second stage; 1 returns its scores unchanged.

    Returns:
        One score per hit, NaN for hits that the second stage did not read. `reorder` takes them.
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
    """List all run weights that add up to 1, in multiples of 1 / steps."""
    if num_runs == 1:
        return [(1.0,)]
    shares = (share for share in product(range(steps + 1), repeat=num_runs - 1) if sum(share) <= steps)
    return [tuple(part / steps for part in (*share, steps - sum(share))) for share in shares]


def _fuse(runs: Sequence[Run], weights: Sequence[float] | None, scale: Scale) -> Run:
    weights = [1.0] * len(runs) if weights is None else weights
    query_ids = dict.fromkeys(query_id for run in runs for query_id in run)
    return {
        query_id: _fuse_query([(run.get(query_id), weight) for run, weight in zip(runs, weights, strict=True)], scale)
        for query_id in query_ids
    }


def _fuse_query(lists: Sequence[tuple[Sequence[Hit] | None, float]], scale: Scale) -> list[Hit]:
    """Add up the weighted values of one query's lists; missing and empty lists are skipped."""
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


FUSIONS: dict[str, Callable[..., Run]] = {
    "rrf": rrf,
    "weighted": weighted,
    "zscore": partial(weighted, scale=zscore),
    "merge": merge,
}
