"""Losses that tell the positive from all other documents."""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from shortlist.math.losses import lists
from shortlist.math.ranking import Ranking

Which = Literal["best", "all"]
"""Which relevant documents are to be picked: the best one, or any."""


def infonce(
    ranking: Ranking, *, temperature: float = 0.01, focal: float = 0.0, positives: Which = "best"
) -> Float[Tensor, ""]:
    """Compute the softmax cross-entropy of picking the positive among the documents of its row.

    If a row holds every document of the batch, this trains a retriever with in-batch negatives. If it holds the query's
    own group, this is the softmax loss of a reranker. The positive is the kept document with the highest grade; a query
    without a positive teaches nothing.

    Args:
        temperature: divides the scores; about 0.01 for unit vectors, 1 for raw dot products.
        focal: each query's loss counts (1 - p)^focal, where p is the probability of its positive, so that queries that
            are easy already count less. The weight has no gradient. 0: all count alike; KaLM-V2 uses 0.5.
        positives: `all` adds up the probabilities of all kept documents with a grade above 0, so that it is enough to
            pick any of them.

    https://arxiv.org/abs/1807.03748, https://arxiv.org/abs/2506.20923 (focal), https://arxiv.org/abs/2510.05396 (all)
    """
    columns, found = lists.positives(ranking)
    logits = ranking.scores.float() / temperature  # bf16 would round away the differences we train on
    logits = logits.masked_fill(~ranking.keep, -torch.inf).masked_fill(~found, 0)
    if positives == "all":
        right = logits.masked_fill(~(ranking.keep & (ranking.relevance > 0)), -torch.inf)
        right = right.masked_fill(~found, 0)  # a query without any would have no gradient
        losses = (logits.logsumexp(1) - right.logsumexp(1)).masked_fill(~found[:, 0], 0)
    else:
        losses = F.cross_entropy(logits, columns[:, 0], reduction="none").masked_fill(~found[:, 0], 0)
    weights = -torch.expm1(-losses.detach())  # 1 - p, exact where p is near 1
    return (weights**focal * losses).mean() if focal else losses.mean()
