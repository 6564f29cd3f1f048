"""Selection of each query's best k documents, ordered by score, then index.

The order never depends on chance.
"""

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

LAST_POSITION = (1 << 32) - 1
"""The largest position that fits into a key."""

SIGNLESS = (1 << 31) - 1
"""A mask of all bits of a float32 except its sign. Flipping them in negative numbers makes floats sort as integers."""

Scores = Float[Tensor, "queries k"]
Indices = Int[Tensor, "queries k"]


def top_k(scores: Float[Tensor, "queries docs"], k: int) -> tuple[Scores, Indices]:
    """Select the k highest scores of each query.

    Equal scores are ordered by ascending index, also where they compete for the k-th place.

    Returns:
        Scores and their columns, best first; all of them if there are fewer than k.
    """
    num_docs = scores.shape[1]
    k = min(k, num_docs)
    if k == 0:
        return scores[:, :0], torch.empty(len(scores), 0, dtype=torch.int64, device=scores.device)
    found, columns = scores.topk(min(k + 1, num_docs))
    columns = columns[:, :k].sort(dim=1).values
    values, order = scores.gather(1, columns).sort(dim=1, descending=True, stable=True)
    columns = columns.gather(1, order)
    if k < num_docs:  # topk chooses arbitrarily among documents that tie for the last place
        tied = found[:, k - 1] == found[:, k]
        columns[tied] = scores[tied].sort(dim=1, descending=True, stable=True).indices[:, :k]
    return values, columns


def to_keys(scores: Float[Tensor, "..."], positions: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
    """Join score and position into one integer, larger for better documents.

    Keys compare by score, and equal scores by ascending position. No two documents have the same key, so the best k of
    any keys never depend on chance.

    Args:
        scores: any scores except NaN.
        positions: from 0 to LAST_POSITION; they are broadcast to the scores.
    """
    bits = (scores.float() + 0.0).view(torch.int32)  # -0.0 equals 0.0
    return ((bits ^ (bits >> 31 & SIGNLESS)).long() << 32) + (LAST_POSITION - positions)


def from_keys(keys: Int[Tensor, "..."]) -> tuple[Float[Tensor, "..."], Int[Tensor, "..."]]:
    """Restore the scores and positions that `to_keys` joined."""
    bits = (keys >> 32).int()
    return (bits ^ (bits >> 31 & SIGNLESS)).view(torch.float32), LAST_POSITION - (keys & LAST_POSITION)


def top_keys(keys: Int[Tensor, "queries found"], k: int, *, ordered: bool = True) -> Int[Tensor, "queries _"]:
    """Select the k largest keys of each query, largest first if `ordered`.

    If there are fewer than k, all keys are returned.
    """
    k = min(k, keys.shape[1])
    if keys.is_cuda or k == 0:
        return keys.topk(k, sorted=ordered).values
    best = np.partition(keys.numpy(), -k, axis=1)[:, -k:]  # several times as fast as topk of torch
    return torch.from_numpy(np.sort(best, axis=1)).flip(1) if ordered else torch.from_numpy(best)


def best_of(
    scores: Float[Tensor, "queries found"], positions: Int[Tensor, "queries found"], k: int
) -> tuple[Scores, Indices]:
    """Select the best k of candidates given in any order.

    The result is the one that `top_k` gives for the candidates in corpus order.
    """
    return from_keys(top_keys(to_keys(scores, positions), k))


def contenders(
    scores: Float[Tensor, "queries found"],
    exact: Float[Tensor, "queries first"],
    k: int,
    *,
    deviations: float = 5.0,
) -> Int[Tensor, " queries"]:
    """Count the candidates of an inexact search that can be among each query's k best.

    The error of the inexact scores is estimated from the candidates that have exact scores.

    Args:
        scores: inexact scores, best first, known only up to a factor per query.
        exact: exact scores of the first candidates, at least k of them if there are as many.
        deviations: a candidate counts unless it is more than this many standard errors of `scores` below the k-th best.
    """
    known = scores[:, : exact.shape[1]]
    factor = (known * exact).sum(1, keepdim=True) / known.square().sum(1, keepdim=True).clamp(min=1e-30)
    error = (factor * known - exact).square().mean(1, keepdim=True).sqrt()
    least = exact.topk(min(k, exact.shape[1])).values[:, -1:] - deviations * error
    return (factor * scores >= least).sum(1).clamp(min=exact.shape[1])


def at_least(
    scores: Float[Tensor, "docs queries"], thresholds: Float[Tensor, " queries"]
) -> tuple[Int[Tensor, " found"], Int[Tensor, " found"]]:
    """Find the documents that reach each query's threshold; fast where these are few.

    Returns:
        The positions of the found scores in the flattened `scores`, ascending, and the query of each.
    """
    if scores.is_cuda:
        places = (scores >= thresholds).flatten().nonzero()[:, 0]
        return places, places % scores.shape[1]
    places = _true_places((scores.numpy() >= thresholds.numpy()).reshape(-1))  # NumPy is three times as fast as torch
    return torch.from_numpy(places), torch.from_numpy(places % scores.shape[1])


def _true_places(flags: Bool[np.ndarray, " places"]) -> Int[np.ndarray, " found"]:
    """Find the positions of True flags; reads eight flags at once, as few are True."""
    if len(flags) % 8:
        return np.flatnonzero(flags)
    eights = np.flatnonzero(flags.view(np.int64) != 0)
    found = np.flatnonzero(flags.reshape(-1, 8)[eights])
    return eights[found >> 3] * 8 + (found & 7)


def recall_at(found: Int[Tensor, "queries _"], exact: Int[Tensor, "queries _"], k: int) -> float:
    """Compute the mean recall at k of `found` against `exact`.

    The recall of a query is the share of its first k documents of `exact` that are among its first k of `found`.

    Args:
        found: positions of documents, best first, without repetition.
        exact: the same from an exact search.
    """
    shares = [torch.isin(best[:k], proposed[:k]).float().mean() for proposed, best in zip(found, exact, strict=True)]
    return torch.stack(shares).mean().item()


def reciprocal_ranks(
    scores: Float[Tensor, "queries docs"], relevant: Bool[Tensor, "queries docs"], *, cutoff: int
) -> Float[Tensor, " queries"]:
    """Compute 1 / rank of each query's first relevant document.

    The value is 0 if none is among the first `cutoff` documents. Equal scores rank by ascending column. The mean over
    queries is MRR@cutoff.
    """
    _, columns = top_k(scores, cutoff)
    ranks = torch.arange(1, columns.shape[1] + 1, device=scores.device)
    return (relevant.gather(1, columns) / ranks).amax(1)
