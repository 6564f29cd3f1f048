"""Late-interaction queries, revised by the token vectors of documents: ColBERT-PRF.

A query gets more vectors: means of clusters of its feedback documents' token vectors, those that are rare in the
collection. A vector's length is its weight, as MaxSim of c times a vector is c times its MaxSim for every c of 0 or
more.

In the paper a mean is as rare as the token whose vectors are nearest to it. Stores hold no tokens, so here it is as
rare as documents with a vector near it.

https://arxiv.org/abs/2106.11251
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from shortlist.math.clusters import kmeans
from shortlist.math.diversity import unit_rows
from shortlist.math.matching import late_scores
from shortlist.math.maxsim import TokenVectors

PROBED = 256
"""Token vectors that show how near documents come to one of another document."""
SHARE_NEAR = 0.1
"""Share of other documents that are near a document's token vector, on average over tokens."""

_Vectors = Float[np.ndarray, "tokens dim"]


class Sample(NamedTuple):
    """Some documents of a collection, by which the rarity of vectors is estimated."""

    documents: TokenVectors
    """Their token vectors of length 1; each document has some."""
    bound: float
    """The cosine from which a vector is near another."""


def sampled(documents: TokenVectors) -> Sample:
    """Make a sample of documents, and find from where vectors are near.

    Cosines of different models spread differently, so the bound is the one that a share SHARE_NEAR of documents exceed
    with vectors of other documents.
    """
    there = documents.counts > 0
    some = TokenVectors(unit_rows(documents.values), documents.counts[there])
    probes = np.unique(np.linspace(0, len(some.values) - 1, PROBED).astype(np.int64))
    owners = np.repeat(np.arange(len(some)), some.counts)[probes]
    cosines = best_cosines(some.values[probes], some)
    others = cosines[owners[:, None] != np.arange(len(some))]
    return Sample(some, float(np.quantile(others, 1 - SHARE_NEAR)) if len(others) else 1.0)


def best_cosines(vectors: _Vectors, documents: TokenVectors) -> Float[np.ndarray, "tokens docs"]:
    """Compute each vector's cosine with the nearest vector, of length 1, of each document."""
    return late_scores(TokenVectors(unit_rows(vectors), np.ones(len(vectors), dtype=np.int64)), documents)


def vector_rarity(vectors: _Vectors, sample: Sample) -> Float[np.ndarray, " tokens"]:
    """Compute how rare vectors are, from 0 (near every document) to 1 (near none).

    It is ln((N + 1) / (n + 1)) / ln(N + 1) where n of N documents have a vector near it.
    """
    num_docs = len(sample.documents)
    near = (best_cosines(vectors, sample.documents) > sample.bound).sum(1)
    return np.log((num_docs + 1) / (near + 1)) / math.log(num_docs + 1)


def cluster_means(vectors: _Vectors, count: int) -> Float[np.ndarray, "means dim"]:
    """Return the means of at most `count` clusters of vectors, by k-means without chance."""
    if not len(vectors):
        return vectors
    numbers = kmeans(vectors, min(count, len(vectors)), rng=np.random.default_rng(0))
    present, places, sizes = np.unique(numbers, return_inverse=True, return_counts=True)
    sums = np.zeros((len(present), vectors.shape[1]), dtype=np.float32)
    np.add.at(sums, places, vectors)
    return sums / sizes[:, None].astype(np.float32)


def with_rarest(
    query: _Vectors,
    means: Float[np.ndarray, "means dim"],
    rarities: Float[np.ndarray, " means"],
    *,
    most: int,
    beta: float,
) -> Float[np.ndarray, "longer dim"]:
    """Append the rarest means to a query's vectors, times beta and their rarity.

    Of equally rare ones the first are taken; what has no weight is left out.
    """
    weights = beta * rarities
    chosen = np.argsort(-rarities, kind="stable")[:most]
    chosen = chosen[weights[chosen] > 0]
    return np.concatenate([query, (weights[chosen, None] * means[chosen]).astype(np.float32)])
