"""How much of what exact vectors or scores say is left in those of a narrower number type."""

from typing import NamedTuple

import numpy as np
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


def kendall_tau(one: Float[np.ndarray, " items"], other: Float[np.ndarray, " items"]) -> float:
    """How far two lists of scores agree on the order: 1 the same, -1 the opposite, ties counting half (tau-b).

    1 where one of them has no order. For some hundred items: every two are compared.

    https://doi.org/10.1093/biomet/33.3.239
    """
    first, second = (np.sign(scores[:, None] - scores[None]) for scores in (one, other))
    ordered = np.sqrt((first * first).sum() * (second * second).sum())
    return float((first * second).sum() / ordered) if ordered else 1.0


def _nearest(vectors: Float[Tensor, "docs dim"], k: int) -> Tensor:
    scores = (vectors @ vectors.T).fill_diagonal_(-torch.inf)
    return top_k(scores, k)[1]
