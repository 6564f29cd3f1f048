"""How much of what exact vectors say is left in those of a narrower number type."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from shortlist.math.scoring import top_k

NEIGHBOURS = 10


class Agreement(NamedTuple):
    """Of the vectors of the same texts, computed or stored in two ways."""

    mean_cosine: float
    least_cosine: float
    neighbours: float
    """Share of each text's NEIGHBOURS nearest others, by inner product, that are the same."""


def agreement(vectors: Float[Tensor, "docs dim"], exact: Float[Tensor, "docs dim"]) -> Agreement:
    """Compare vectors with exact ones, row by row and as a collection to search."""
    cosines = F.cosine_similarity(vectors, exact, dim=1)
    k = min(NEIGHBOURS, len(exact) - 1)
    near, same = _nearest(vectors, k), _nearest(exact, k)
    shared = (near[:, :, None] == same[:, None, :]).any(2).float().mean().item() if k > 0 else 1.0
    return Agreement(cosines.mean().item(), cosines.min().item(), shared)


def _nearest(vectors: Float[Tensor, "docs dim"], k: int) -> Tensor:
    scores = (vectors @ vectors.T).fill_diagonal_(-torch.inf)
    return top_k(scores, k)[1]
