"""Residual codes of unit vectors: a centroid's number and a few bits per dimension.

The bits say how far the vector is from its centroid in that dimension. The codes and their bounds are PLAID's, https://arxiv.org/abs/2205.09707.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, final

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor

BITS = (1, 2, 4)
"""Numbers of bits that a dimension may take."""
MOST_CENTROIDS = 1 << 16
FEWEST_POINTS = 16
"""Sampled vectors for each centroid, at least; with fewer, centroids would repeat the sample."""
HELD_OUT = 20
"""One in so many sampled vectors shows how far vectors are from centroids that they were not averaged into."""
MOST_HELD_OUT = 50_000
ITERATIONS = 4
CODED_AT_ONCE = 512
"""Vectors that are compared with centroids, coded or restored at a time; their products then stay in the cache."""


@final
@dataclass(frozen=True)
class Codebook:
    """Everything that residual codes are restored with."""

    centroids: Float[Tensor, "centroids dim"]
    cutoffs: Float[Tensor, " cutoffs"]
    """The bounds between buckets of residuals, ascending; the same for all dimensions."""
    weights: Float[Tensor, " buckets"]
    """The residual that each bucket stands for."""

    @property
    def bits(self) -> int:
        """The number of bits of a dimension."""
        return len(self.weights).bit_length() - 1

    @property
    def width(self) -> int:
        """The number of bytes of a vector, without its centroid's number."""
        return self.centroids.shape[1] * self.bits // 8

    @cached_property
    def table(self) -> Float[np.ndarray, "256 dims"]:
        """The residuals of the dimensions that share a byte, for each byte."""
        shifts = np.arange(0, 8, self.bits)
        return self.weights.numpy()[np.arange(256)[:, None] >> shifts & (1 << self.bits) - 1]


class ResidualCodes(NamedTuple):
    """Vectors in residual codes."""

    centroids: Int[Tensor, " vectors"]
    """The number of each one's centroid."""
    residuals: UInt8[Tensor, "vectors width"]
    """The bucket of each dimension; the first dimension of a byte is in its lowest bits."""


def count_centroids(num_vectors: int, num_sampled: int) -> int:
    """Choose the number of centroids for a store of so many vectors.

    It is PLAID's, the power of two below 16 times the square root, but no more than a sample of this size can tell
    apart.
    """
    wanted = min(16 * max(num_vectors, 1) ** 0.5, num_sampled / FEWEST_POINTS, MOST_CENTROIDS)
    return 1 << max(int(wanted).bit_length() - 1, 0)


def fit_codebook(sample: Float[Tensor, "sampled dim"], *, bits: int, num_vectors: int, seed: int = 0) -> Codebook:
    """Fit centroids and buckets to a sample of unit vectors.

    The same sample gives the same codebook.

    Args:
        sample: vectors of the store.
        bits: bits of a dimension, one of BITS.
        num_vectors: number of vectors that the store will hold, by which the number of centroids is chosen.
    """
    order = torch.randperm(len(sample), generator=torch.Generator().manual_seed(seed))
    held_out = min(-(-len(sample) // HELD_OUT), MOST_HELD_OUT)
    rest = sample[order[held_out:]] if held_out < len(sample) else sample
    centroids = spherical_kmeans(rest, count_centroids(num_vectors, len(rest)), seed=seed)
    seen = sample[order[:held_out]]
    residuals = (seen - centroids[nearest(seen, centroids)[0]]).flatten().numpy()
    steps = np.arange(1, 2 << bits) / (2 << bits)
    bounds = torch.from_numpy(np.quantile(residuals, steps).astype(np.float32))
    return Codebook(centroids, bounds[1::2].clone(), bounds[::2].clone())


def spherical_kmeans(
    vectors: Float[Tensor, "vectors dim"], num_centroids: int, *, iterations: int = ITERATIONS, seed: int = 0
) -> Float[Tensor, "centroids dim"]:
    """Cluster unit vectors by their cosines into centroids of length 1.

    A centroid that no vector is nearest to moves to one of the vectors that are farthest from theirs.
    """
    order = torch.randperm(len(vectors), generator=torch.Generator().manual_seed(seed))
    centroids = vectors[order[:num_centroids]].clone()
    for _ in range(iterations):
        numbers, similarities = nearest(vectors, centroids)
        sums = torch.zeros_like(centroids).index_add_(0, numbers, vectors)
        empty = torch.bincount(numbers, minlength=len(centroids)) == 0
        sums[empty] = vectors[similarities.argsort(stable=True)[: int(empty.sum())]]
        centroids = F.normalize(sums, dim=1)
    return centroids


def nearest(
    vectors: Float[Tensor, "vectors dim"], centroids: Float[Tensor, "centroids dim"]
) -> tuple[Int[Tensor, " vectors"], Float[Tensor, " vectors"]]:
    """Find the centroid with the largest dot product for each vector, and that product."""
    numbers, products = np.empty(len(vectors), dtype=np.int64), np.empty(len(vectors), dtype=np.float32)
    for start in range(0, len(vectors), CODED_AT_ONCE):
        scores = (vectors[start : start + CODED_AT_ONCE] @ centroids.T).numpy()
        best = scores.argmax(1)  # three times as fast as torch's
        numbers[start : start + len(best)] = best
        products[start : start + len(best)] = scores[np.arange(len(best)), best]
    return torch.from_numpy(numbers), torch.from_numpy(products)


def to_residual(vectors: Float[Tensor, "vectors dim"], codebook: Codebook) -> ResidualCodes:
    """Code vectors; their dimension must be a multiple of 8 / bits."""
    numbers, _ = nearest(vectors, codebook.centroids)
    codes, bits = torch.empty((len(vectors), codebook.width), dtype=torch.uint8), codebook.bits
    shifts = torch.arange(0, 8, bits, dtype=torch.int32)
    for start in range(0, len(vectors), CODED_AT_ONCE):
        here = slice(start, start + CODED_AT_ONCE)
        residuals = vectors[here] - codebook.centroids[numbers[here]]
        buckets = torch.bucketize(residuals, codebook.cutoffs, out_int32=True)
        codes[here] = (buckets.view(len(buckets), -1, 8 // bits) << shifts).sum(2).to(torch.uint8)
    return ResidualCodes(numbers, codes)


def from_residual(codes: ResidualCodes, codebook: Codebook) -> Float[Tensor, "vectors dim"]:
    """Restore vectors of length 1 that `to_residual` has coded."""
    vectors = np.empty((len(codes.residuals), codebook.centroids.shape[1]), dtype=np.float32)
    centroids, numbers, residuals = codebook.centroids.numpy(), codes.centroids.numpy(), codes.residuals.numpy()
    for start in range(0, len(vectors), CODED_AT_ONCE):
        some = vectors[start : start + CODED_AT_ONCE]  # small enough to stay in the cache from step to step
        here = slice(start, start + len(some))
        np.take(centroids, numbers[here], axis=0, out=some, mode="clip")
        some += np.take(codebook.table, residuals[here], axis=0).reshape(some.shape)
        some /= np.sqrt(np.einsum("ij,ij->i", some, some).clip(min=1e-12))[:, None]
    return torch.from_numpy(vectors)
