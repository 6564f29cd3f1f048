"""The best k documents of each query, in an order that never depends on chance: score, then index."""

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

LAST_POSITION = (1 << 32) - 1
"""The largest position that fits into a key."""

SIGNLESS = (1 << 31) - 1
"""All bits of a float32 but its sign: turned over in a negative number, they order it as an integer."""

Scores = Float[Tensor, "queries k"]
Indices = Int[Tensor, "queries k"]


def top_k(scores: Float[Tensor, "queries docs"], k: int) -> tuple[Scores, Indices]:
    """The k highest scores of each query, equal scores by ascending index, at the k-th place too.

    Returns:
        Scores and their columns, best first; `docs` of them where there are fewer than k.
    """
    num_docs = scores.shape[1]
    k = min(k, num_docs)
    if k == 0:
        return scores[:, :0], torch.empty(len(scores), 0, dtype=torch.int64, device=scores.device)
    found, columns = scores.topk(min(k + 1, num_docs))
    columns = columns[:, :k].sort(dim=1).values
    values, order = scores.gather(1, columns).sort(dim=1, descending=True, stable=True)
    columns = columns.gather(1, order)
    if k < num_docs:  # among documents that tie for the last place, topk took any
        tied = found[:, k - 1] == found[:, k]
        columns[tied] = scores[tied].sort(dim=1, descending=True, stable=True).indices[:, :k]
    return values, columns


def to_keys(scores: Float[Tensor, "..."], positions: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
    """Score and position in one integer, the larger the better: by score, equal scores by ascending position.

    No two documents have the same key, so the best k of any keys are never left to chance.

    Args:
        scores: not NaN.
        positions: broadcast to the scores; from 0 to LAST_POSITION.
    """
    bits = (scores.float() + 0.0).view(torch.int32)  # -0.0 equals 0.0
    return ((bits ^ (bits >> 31 & SIGNLESS)).long() << 32) + (LAST_POSITION - positions)


def from_keys(keys: Int[Tensor, "..."]) -> tuple[Float[Tensor, "..."], Int[Tensor, "..."]]:
    """The scores and positions that `to_keys` joined."""
    bits = (keys >> 32).int()
    return (bits ^ (bits >> 31 & SIGNLESS)).view(torch.float32), LAST_POSITION - (keys & LAST_POSITION)


def top_keys(keys: Int[Tensor, "queries found"], k: int, *, ordered: bool = True) -> Int[Tensor, "queries _"]:
    """The k largest keys of each query, or all where there are fewer; largest first if `ordered`."""
    k = min(k, keys.shape[1])
    if keys.is_cuda or k == 0:
        return keys.topk(k, sorted=ordered).values
    best = np.partition(keys.numpy(), -k, axis=1)[:, -k:]  # several times as fast as torch's
    return torch.from_numpy(np.sort(best, axis=1)).flip(1) if ordered else torch.from_numpy(best)


def best_of(
    scores: Float[Tensor, "queries found"], positions: Int[Tensor, "queries found"], k: int
) -> tuple[Scores, Indices]:
    """The best k of candidates in any order, as `top_k` of all of them in corpus order would give."""
    return from_keys(top_keys(to_keys(scores, positions), k))


def contenders(
    scores: Float[Tensor, "queries found"],
    exact: Float[Tensor, "queries first"],
    k: int,
    *,
    deviations: float = 5.0,
) -> Int[Tensor, " queries"]:
    """How many candidates of an inexact search can be among each query's k best, judged by those scored exactly.

    Args:
        scores: inexact and but for a factor of the query, best first.
        exact: of the first of them, at least k where there are so many.
        deviations: one that is by more standard errors of `scores` below the k-th best is none.
    """
    known = scores[:, : exact.shape[1]]
    factor = (known * exact).sum(1, keepdim=True) / known.square().sum(1, keepdim=True).clamp(min=1e-30)
    error = (factor * known - exact).square().mean(1, keepdim=True).sqrt()
    least = exact.topk(min(k, exact.shape[1])).values[:, -1:] - deviations * error
    return (factor * scores >= least).sum(1).clamp(min=exact.shape[1])


def at_least(
    scores: Float[Tensor, "docs queries"], thresholds: Float[Tensor, " queries"]
) -> tuple[Int[Tensor, " found"], Int[Tensor, " found"]]:
    """The documents that reach each query's threshold: cheap where they are few.

    Returns:
        Their places in the flattened scores, ascending, and the query of each.
    """
    if scores.is_cuda:
        places = (scores >= thresholds).flatten().nonzero()[:, 0]
        return places, places % scores.shape[1]
    places = _true_places((scores.numpy() >= thresholds.numpy()).reshape(-1))  # NumPy: three times as fast as torch's
    return torch.from_numpy(places), torch.from_numpy(places % scores.shape[1])


def _true_places(flags: Bool[np.ndarray, " places"]) -> Int[np.ndarray, " found"]:
    """Where the flags are True: looks at eight of them at once, as few are."""
    if len(flags) % 8:
        return np.flatnonzero(flags)
    eights = np.flatnonzero(flags.view(np.int64) != 0)
    found = np.flatnonzero(flags.reshape(-1, 8)[eights])
    return eights[found >> 3] * 8 + (found & 7)


def recall_at(found: Int[Tensor, "queries _"], exact: Int[Tensor, "queries _"], k: int) -> float:
    """The share of each query's first k of `exact` that are among its first k of `found`, averaged over queries.

    Args:
        found: documents by position, best first, each at most once.
        exact: the same of a search that misses none.
    """
    shares = [torch.isin(best[:k], some[:k]).float().mean() for some, best in zip(found, exact, strict=True)]
    return torch.stack(shares).mean().item()


def reciprocal_ranks(
    scores: Float[Tensor, "queries docs"], relevant: Bool[Tensor, "queries docs"], *, cutoff: int
) -> Float[Tensor, " queries"]:
    """One over the rank of each query's first relevant document, 0 where none is among the first `cutoff`.

    Equal scores rank by ascending column. The mean over queries is MRR@cutoff.
    """
    _, columns = top_k(scores, cutoff)
    ranks = torch.arange(1, columns.shape[1] + 1, device=scores.device)
    return (relevant.gather(1, columns) / ranks).amax(1)
