"""Synthetic hard negatives: mixtures of a query's hard negatives, made of their vectors."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from shortlist.math.ranking import Ranking


class Mixtures(NamedTuple):
    """The documents to mix for each query, and their shares."""

    columns: Int[Tensor, "queries mixed 2"]
    """The two documents of each mixture."""
    shares: Float[Tensor, "queries mixed"]
    """The share of the first of the two; the second has the rest."""
    keep: Bool[Tensor, "queries mixed"]
    """False where a query has fewer than two documents to mix."""


def draw_mixtures(hard: Bool[Tensor, "queries docs"], count: int) -> Mixtures:
    """Draw pairs of different hard negatives for each query, with shares from Beta(2, 2).

    It draws from PyTorch's generator on the CPU.

    Args:
        hard: which documents are hard negatives of which query; at least two columns.
        count: mixtures per query.
    """
    hard = hard.cpu()
    order = torch.rand(len(hard), count, hard.shape[1]).masked_fill(~hard[:, None], -1)
    shares = torch.rand(len(hard), count, 3).median(2).values  # the middle one of three is distributed as Beta(2, 2)
    return Mixtures(order.topk(2, 2).indices, shares, (hard.sum(1) >= 2)[:, None].expand(-1, count))


def mixed_scores(
    queries: Float[Tensor, "queries dim"], documents: Float[Tensor, "docs dim"], mixtures: Mixtures, *, unit: bool
) -> Float[Tensor, "queries mixed"]:
    """Score each query's mixtures of documents; gradients reach both documents of a mixture.

    Args:
        unit: scale mixtures to length 1, as the model's vectors are.

    https://arxiv.org/abs/2506.20923
    """
    first, second = documents[mixtures.columns.to(documents.device)].unbind(2)
    shares = mixtures.shares.to(documents.device)[..., None]
    mixed = shares * first + (1 - shares) * second
    mixed = F.normalize(mixed, dim=-1) if unit else mixed
    return torch.einsum("qd,qmd->qm", queries, mixed)


def with_negatives_of_each(
    ranking: Ranking, scores: Float[Tensor, "queries more"], keep: Bool[Tensor, "queries more"]
) -> Ranking:
    """Append columns of documents that are not relevant, others for each query.

    No teacher or other model has scored them.
    """
    unknown = {
        name: torch.cat([value, torch.full_like(scores, torch.nan, dtype=value.dtype)], 1)
        for name, value in ranking._asdict().items()
        if value is not None and name not in ("scores", "relevance", "keep")
    }
    return ranking._replace(
        scores=torch.cat([ranking.scores, scores], 1),
        relevance=torch.cat([ranking.relevance, torch.zeros_like(scores, dtype=ranking.relevance.dtype)], 1),
        keep=torch.cat([ranking.keep, keep.to(scores.device)], 1),
        **unknown,
    )
