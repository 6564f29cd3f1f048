"""Scores of attention heads that tell relevant documents from others."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

NDCG_CUTOFF = 10
"""The rank down to which nDCG counts."""


def ndcg_of_heads(
    scores: Float[Tensor, "heads docs"], grades: Float[Tensor, " docs"], judged: Float[Tensor, " judged"]
) -> Float[Tensor, " heads"]:
    """Compute nDCG@10 of the order in which each head puts the documents.

    QRHead's code chooses heads by it, where its paper has `mass_of_relevant`.

    Args:
        scores: what each head gives each document; of equal ones the first is first.
        grades: the documents' grades; 0 is not relevant.
        judged: the grades of all judged documents, shown or not.

    https://arxiv.org/abs/2506.09944
    """
    discounts = 1 / torch.log2(torch.arange(2, NDCG_CUTOFF + 2, dtype=torch.float64))
    order = scores.argsort(dim=1, descending=True, stable=True)[:, :NDCG_CUTOFF]
    found = grades.double()[order] @ discounts[: order.shape[1]]
    best = judged.double().sort(descending=True).values[:NDCG_CUTOFF]
    return (found / (best @ discounts[: len(best)]).clamp(min=1e-12)).float()


def mass_of_relevant(
    scores: Float[Tensor, "heads docs"], grades: Float[Tensor, " docs"], judged: Float[Tensor, " judged"]
) -> Float[Tensor, " heads"]:
    """Add up what each head gives to relevant documents: QRHead's score in its paper.

    https://arxiv.org/abs/2506.09944
    """
    del judged
    return scores[:, grades > 0].sum(1)


def best_is_relevant(
    scores: Float[Tensor, "heads docs"], grades: Float[Tensor, " docs"], judged: Float[Tensor, " judged"]
) -> Float[Tensor, " heads"]:
    """Say 1 where the document that a head gives most is relevant (https://arxiv.org/abs/2410.02343)."""
    del judged
    return (grades > 0)[scores.argmax(1)].float()


def share_of_positive(
    scores: Float[Tensor, "heads docs"], relevant: Bool[Tensor, " docs"], *, temperature: float
) -> Float[Tensor, " heads"]:
    """Compute a relevant document's part of a softmax over it and all others: CoRe's score.

    Of several relevant documents the mean counts.

    https://arxiv.org/abs/2510.02219
    """
    others = scores[:, ~relevant]
    shares = [
        F.softmax(torch.cat([positive[:, None], others], 1) / temperature, 1)[:, 0]
        for positive in scores[:, relevant].unbind(1)
    ]
    return torch.stack(shares).mean(0)
