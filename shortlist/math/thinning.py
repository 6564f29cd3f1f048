"""Fewer vectors for each document: means of clusters, or the tokens that say most.

Three published definitions of token pooling give three different results. This one is `HierarchicalTokenPooling` of
sentence-transformers 6: Ward's clusters by cosine distance, the first vector kept as it is, means of length 1.
"""

from collections.abc import Callable, Iterable

import numpy as np
from jaxtyping import Float, Int

from shortlist.math.maxsim import TokenVectors

POOLING = "hierarchical"
"""The name of this definition of token pooling."""
BALANCE = 0.5
"""The share of importance, beside that of difference, when tokens are kept."""


def pooled_tokens(
    vectors: Float[np.ndarray, "tokens dim"], factor: float, *, protected: int = 1
) -> Float[np.ndarray, "fewer dim"]:
    """Average clusters of similar token vectors.

    Args:
        vectors: those of a document, of length 1.
        factor: tokens for each cluster, at least 1.
        protected: how many vectors at the beginning are left as they are.

    https://arxiv.org/abs/2409.14683
    """
    first, rest = vectors[:protected], vectors[protected:]
    clusters = max(int(len(rest) // factor), 1)
    if clusters < len(rest):
        numbers = _ward(rest, clusters)
        sums = np.zeros((numbers.max() + 1, vectors.shape[1]), dtype=np.float32)
        np.add.at(sums, numbers, rest)
        rest = sums / np.bincount(numbers)[:, None].astype(np.float32)
    together = np.concatenate([first, rest])
    return together / np.linalg.norm(together, axis=1, keepdims=True).clip(min=1e-12)


def _ward(vectors: Float[np.ndarray, "tokens dim"], clusters: int) -> Int[np.ndarray, " tokens"]:
    """Number the cluster of each vector, from 0."""
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import squareform

    distances = (1 - vectors @ vectors.T).clip(0, 2)
    tree = linkage(squareform(distances, checks=False), method="ward")
    return np.unique(fcluster(tree, t=clusters, criterion="maxclust"), return_inverse=True)[1]


def kept_tokens(
    vectors: Float[np.ndarray, "tokens dim"],
    importance: Float[np.ndarray, " tokens"],
    budget: int,
    *,
    balance: float = BALANCE,
) -> Int[np.ndarray, " kept"]:
    """Choose the tokens that are important and unlike one another, by maximal marginal relevance.

    The most important one comes first, and then again and again the one with the highest `balance` * importance - (1 -
    `balance`) * its greatest cosine to one that was chosen.

    Args:
        vectors: those of a document, of length 1.
        importance: larger is more important; scaled to 0 to 1 here.
        budget: the number to choose; all are kept if there are no more.

    Returns:
        Places of the tokens, ascending.

    https://arxiv.org/abs/2602.13315
    """
    if len(vectors) <= budget:
        return np.arange(len(vectors))
    cosines = vectors @ vectors.T
    spread = importance.max() - importance.min()
    worth = balance * (importance - importance.min()) / (spread if spread > 0 else 1)
    chosen = [int(worth.argmax())]
    nearest = cosines[chosen[0]].copy()
    while len(chosen) < budget:
        gains = worth - (1 - balance) * nearest
        gains[chosen] = -np.inf
        chosen.append(int(gains.argmax()))
        np.maximum(nearest, cosines[chosen[-1]], out=nearest)
    return np.sort(chosen)


def likeness(vectors: Float[np.ndarray, "tokens dim"]) -> Float[np.ndarray, " tokens"]:
    """Compute the cosine of each vector to the first.

    In an encoder that one stands for the whole text. As importance it keeps more of what a search finds than the mean
    cosine to all, or an early place in the text.
    """
    return vectors @ vectors[0]


def thinned(documents: TokenVectors, *, factor: float | None = None, budget: int | None = None) -> TokenVectors:
    """Reduce the vectors of each document.

    Args:
        factor: pool this many tokens into one (None: leave them).
        budget: of what there is then, keep this many vectors at most (None: all).
    """
    steps: list[Callable[[Float[np.ndarray, "tokens dim"]], Float[np.ndarray, "fewer dim"]]] = []
    if factor is not None:
        steps.append(lambda vectors: pooled_tokens(vectors, factor))
    if budget is not None:
        steps.append(lambda vectors: vectors[kept_tokens(vectors, likeness(vectors), budget)])
    for step in steps:
        documents = _together([step(vectors) if len(vectors) else vectors for vectors in documents], documents)
    return documents


def _together(parts: Iterable[Float[np.ndarray, "_ dim"]], like: TokenVectors) -> TokenVectors:
    parts = [*parts]
    counts = np.array([len(part) for part in parts], dtype=like.counts.dtype)
    return TokenVectors(np.concatenate([like.values[:0], *parts]), counts)
