"""False negatives that a guide model sees."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def guided(
    keep: Bool[Tensor, "queries docs"],
    similarities: Float[Tensor, "queries docs"],
    relevance: Float[Tensor, "queries docs"],
    *,
    margin: float = 0.0,
    relative: bool = False,
) -> Bool[Tensor, "queries docs"]:
    """Leave out documents that a guide finds as relevant to the query as its positive.

    A document of grade 0 is left out if its similarity is above g - margin, where g is that of the positive, the kept
    document with the highest grade. Relevant documents stay, and so does the whole row of a query without a positive.

    Args:
        keep: which documents count.
        similarities: the guide's.
        relevance: grades.
        margin: how far below the positive's similarity the bar is.
        relative: the margin is a share of g's size: the bar is g - |g| * margin.

    https://arxiv.org/abs/2402.16829
    """
    grades, columns = relevance.masked_fill(~keep, -torch.inf).max(1, keepdim=True)
    best = similarities.float().gather(1, columns)
    bar = best - (best.abs() * margin if relative else margin)
    return keep & ((similarities <= bar) | (relevance > 0) | (grades <= 0))
