"""The best k documents of each query, in an order that never depends on chance: score, then index."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

NOWHERE = 1 << 62
"""Index of a place that holds no document: behind every document of the same score, and safe to add an offset to."""

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


def merge_top_k(
    scores: Float[Tensor, "queries found"],
    indices: Int[Tensor, "queries found"],
    new_scores: Float[Tensor, "queries more"],
    new_indices: Int[Tensor, "queries more"],
    k: int,
) -> tuple[Scores, Indices]:
    """The best k of two lists of candidates, each in any order, as `top_k` of all of them at once would give."""
    indices, order = torch.cat([indices, new_indices], dim=1).sort(dim=1)
    values, columns = top_k(torch.cat([scores, new_scores], dim=1).gather(1, order), k)
    return values, indices.gather(1, columns)


def above(
    scores: Float[Tensor, "queries docs"], threshold: Float[Tensor, " queries"]
) -> tuple[Float[Tensor, "queries most"], Int[Tensor, "queries most"]]:
    """The documents that beat each query's threshold: cheap where they are few.

    Returns:
        Scores and columns by ascending column, filled up with -inf at NOWHERE where others have more.
    """
    keep = scores > threshold[:, None]
    rows, columns = keep.nonzero(as_tuple=True)
    counts = rows.bincount(minlength=len(scores))
    places = torch.arange(len(rows), device=scores.device) - (counts.cumsum(0) - counts)[rows]
    shape = (len(scores), int(counts.max()) if len(counts) else 0)
    values = torch.full(shape, -torch.inf, dtype=scores.dtype, device=scores.device)
    indices = torch.full(shape, NOWHERE, device=scores.device)
    values[rows, places] = scores[rows, columns]
    indices[rows, places] = columns
    return values, indices


def reciprocal_ranks(
    scores: Float[Tensor, "queries docs"], relevant: Bool[Tensor, "queries docs"], *, cutoff: int
) -> Float[Tensor, " queries"]:
    """One over the rank of each query's first relevant document, 0 where none is among the first `cutoff`.

    Equal scores rank by ascending column. The mean over queries is MRR@cutoff.
    """
    _, columns = top_k(scores, cutoff)
    ranks = torch.arange(1, columns.shape[1] + 1, device=scores.device)
    return (relevant.gather(1, columns) / ranks).amax(1)
