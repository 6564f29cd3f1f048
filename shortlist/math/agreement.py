"""Agreement between exact vectors or scores and the same in a narrower number type."""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from shortlist.math.maxsim import TokenVectors
from shortlist.math.scoring import top_k
from shortlist.math.terms import TermWeights

NEIGHBOURS = 10
QUERY_VECTORS = 16
"""The vectors of a document, the first ones, that its nearest documents are found by in late interaction."""


class Agreement(NamedTuple):
    """Agreement between two sets of vectors for the same texts, computed or stored differently."""

    mean_cosine: float
    least_cosine: float
    neighbours: float
    """The mean share of a text's NEIGHBOURS nearest texts, by inner product, that both sets agree on."""


def token_agreement(vectors: TokenVectors, exact: TokenVectors) -> Agreement:
    """Compare token vectors with exact ones, which may be more.

    The cosine is that of each exact vector to the nearest vector of its document, and neighbours are found by MaxSim.
    """
    pairs = [(torch.from_numpy(one), torch.from_numpy(other)) for one, other in zip(vectors, exact, strict=True)]
    cosines = torch.cat([_nearest_cosines(one, other) for one, other in pairs if len(other)])
    k = min(NEIGHBOURS, len(exact) - 1)
    near, same = (_matching([pair[side] for pair in pairs], [pair[1] for pair in pairs], k) for side in (0, 1))
    return Agreement(cosines.mean().item(), cosines.min().item(), _shared(near, same))


def _nearest_cosines(vectors: Float[Tensor, "some dim"], exact: Float[Tensor, "all dim"]) -> Float[Tensor, " all"]:
    return (F.normalize(exact, dim=1) @ F.normalize(vectors, dim=1).T).max(1).values


def _matching(documents: list[Tensor], queries: list[Tensor], k: int) -> Tensor:
    """Find the documents that match the first vectors of each one best, besides itself."""
    asked = [query[:QUERY_VECTORS] for query in queries]
    owners = torch.arange(len(asked)).repeat_interleave(torch.tensor([len(query) for query in asked]))
    together, scores = torch.cat(asked), torch.zeros(len(asked), len(documents))
    for place, document in enumerate(documents):
        best = (together @ document.T).amax(1) if len(document) else torch.full((len(together),), -1.0)
        scores[:, place].index_add_(0, owners, best)
    return top_k(scores.fill_diagonal_(-torch.inf), k)[1]


def agreement(vectors: Float[Tensor, "docs dim"], exact: Float[Tensor, "docs dim"]) -> Agreement:
    """Compare vectors with exact ones, by row and by the neighbours found."""
    cosines = F.cosine_similarity(vectors, exact, dim=1)
    k = min(NEIGHBOURS, len(exact) - 1)
    near, same = _nearest(vectors, k), _nearest(exact, k)
    return Agreement(cosines.mean().item(), cosines.min().item(), _shared(near, same))


def term_agreement(weights: TermWeights, exact: TermWeights) -> Agreement:
    """Compare term weights with exact ones, which may be of more terms."""
    known, places = np.unique(np.concatenate([weights.terms, exact.terms]), return_inverse=True)
    parts = (weights, places[: len(weights.terms)]), (exact, places[len(weights.terms) :])
    matrices = []
    for found, columns in parts:
        matrix = torch.zeros(len(found), len(known))
        matrix[np.repeat(np.arange(len(found)), found.counts), columns] = torch.from_numpy(found.weights)
        matrices.append(matrix)
    return agreement(*matrices)


def _shared(near: Int[Tensor, "docs k"], same: Int[Tensor, "docs k"]) -> float:
    """Compute the mean share of neighbours that are in both."""
    return (near[:, :, None] == same[:, None, :]).any(2).float().mean().item() if near.shape[1] else 1.0


def _nearest(vectors: Float[Tensor, "docs dim"], k: int) -> Tensor:
    scores = (vectors @ vectors.T).fill_diagonal_(-torch.inf)
    return top_k(scores, k)[1]
