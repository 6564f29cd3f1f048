"""Losses that tell the positive from all other documents."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from shortlist.math.ranking import Ranking


def infonce(ranking: Ranking, *, temperature: float = 0.01) -> Float[Tensor, ""]:
    """Compute the softmax cross-entropy of picking the positive among the documents of its row.

    If a row holds every document of the batch, this trains a retriever with in-batch negatives. If it holds the query's
    own group, this is the softmax loss of a reranker. The positive is the kept document with the highest grade.

    Args:
        temperature: divides the scores; about 0.01 for unit vectors, 1 for raw dot products.

    https://arxiv.org/abs/1807.03748
    """
    logits = ranking.scores.float() / temperature  # bf16 would round away the differences we train on
    logits = logits.masked_fill(~ranking.keep, -torch.inf)
    return F.cross_entropy(logits, ranking.relevance.masked_fill(~ranking.keep, -torch.inf).argmax(1))
