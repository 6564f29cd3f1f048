"""Agreement between exact vectors or scores and the same in a narrower number type."""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from shortlist.math.scoring import top_k

NEIGHBOURS = 10


class Agreement(NamedTuple):
    """Agreement between two sets of vectors for the same texts, computed or stored differently."""

    mean_cosine: float
    least_cosine: float
    neighbours: float
    """The mean share of a text's NEIGHBOURS nearest texts, by inner product, that both sets agree on."""


def agreement(vectors: Float[Tensor, "docs dim"], exact: Float[Tensor, "docs dim"]) -> Agreement:
    """Compare vectors with exact ones, by row and by the neighbours found."""
    cosines = F.cosine_similarity(vectors, exact, dim=1)
    k = min(NEIGHBOURS, len(exact) - 1)
    near, same = _nearest(vectors, k), _nearest(exact, k)
    shared = (near[:, :, None] == same[:, None, :]).any(2).float().mean().item() if k > 0 else 1.0
    return Agreement(cosines.mean().item(), cosines.min().item(), shared)


def kendall_tau(one: Float[np.ndarray, " items"], other: Float[np.ndarray, " items"]) -> float:
    """Compute Kendall's tau-b, the agreement of two lists of scores on the order.

    The value is 1 for the same order and -1 for the opposite one; ties count half. It is 1 if all scores of a list are
    equal. Every pair of items is compared, so this is meant for a few hundred items.

    https://doi.org/10.1093/biomet/33.3.239
    """
    first, second = (np.sign(scores[:, None] - scores[None]) for scores in (one, other))
    ordered = np.sqrt((first * first).sum() * (second * second).sum())
    return float((first * second).sum() / ordered) if ordered else 1.0


def _nearest(vectors: Float[Tensor, "docs dim"], k: int) -> Tensor:
    scores = (vectors @ vectors.T).fill_diagonal_(-torch.inf)
    return top_k(scores, k)[1]
