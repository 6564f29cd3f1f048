"""Fixed-dimensional encodings, one vector for each text whose products resemble scores of late interaction.

Tokens fall into buckets by the sides of random planes that they are on. A query's encoding holds the sum of its tokens
in each bucket, a document's the mean; a bucket that a document leaves empty holds its nearest one. This is repeated
with other planes, since two similar tokens are in the same bucket only often.

https://arxiv.org/abs/2405.19504
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from shortlist.math.maxsim import TokenVectors


class Encoding(NamedTuple):
    """The random numbers that encodings are made with."""

    planes: Float[Tensor, "dim planes"]
    """Normals of the planes, `bits` of them for each repetition."""
    projection: Float[Tensor, "dim columns"] | None
    """Shortens a token to `width` numbers, in another way for each repetition (None: it stays whole)."""
    repetitions: int
    bits: int
    width: int

    @property
    def buckets(self) -> int:
        """The number of buckets of a repetition."""
        return 1 << self.bits

    @property
    def size(self) -> int:
        """The number of dimensions of an encoding."""
        return self.repetitions * self.buckets * self.width


def make_encoding(dim: int, *, repetitions: int, bits: int, width: int, seed: int = 0) -> Encoding:
    """Draw the random numbers of an encoding of token vectors of `dim` numbers.

    Args:
        bits: planes of a repetition; there are 2 ** bits buckets.
        width: numbers that a token is shortened to, in random directions at right angles; from `dim` on it stays whole.
    """
    random, width = np.random.default_rng(seed), min(width, dim)
    planes = random.standard_normal((dim, repetitions * bits)).astype(np.float32)
    if width == dim:
        return Encoding(torch.from_numpy(planes), None, repetitions, bits, width)
    drawn = [np.linalg.qr(random.standard_normal((dim, width)))[0] for _ in range(repetitions)]
    projection = (np.concatenate(drawn, axis=1) * (dim / width) ** 0.5).astype(np.float32)
    return Encoding(torch.from_numpy(planes), torch.from_numpy(projection), repetitions, bits, width)


def encode_queries(queries: TokenVectors, encoding: Encoding) -> Float[Tensor, "queries size"]:
    """Encode queries, whose tokens are added up in each bucket; one without tokens becomes zeros."""
    sums, _ = _in_buckets(queries, encoding)
    return sums.view(len(queries), encoding.size)


def encode_documents(documents: TokenVectors, encoding: Encoding) -> Float[Tensor, "docs size"]:
    """Encode documents, whose tokens are averaged in each bucket; one without tokens becomes zeros."""
    sums, counts = _in_buckets(documents, encoding)
    means = sums / counts.clamp(min=1)[..., None]
    filled = counts > 0
    for _ in range(encoding.bits):  # buckets on the other side of one plane, then of two, and so on
        before, known = means.clone(), filled.clone()
        for bit in range(encoding.bits):
            others = torch.arange(encoding.buckets) ^ (1 << bit)
            new = ~filled & known[:, :, others]
            means[new] = before[:, :, others][new]
            filled |= new
    return means.view(len(documents), encoding.size)


def _in_buckets(
    texts: TokenVectors, encoding: Encoding
) -> tuple[Float[Tensor, "texts repetitions buckets width"], Float[Tensor, "texts repetitions buckets"]]:
    """Add up the tokens of each text in each bucket, and count them."""
    values = torch.from_numpy(np.ascontiguousarray(texts.values, dtype=np.float32))
    repetitions, buckets = encoding.repetitions, encoding.buckets
    sides = (values @ encoding.planes > 0).view(-1, repetitions, encoding.bits)
    bucket = (sides * (1 << torch.arange(encoding.bits))).sum(2)
    if encoding.projection is None:
        shortened = values[:, None].expand(-1, repetitions, -1).reshape(-1, encoding.width)
    else:
        shortened = (values @ encoding.projection).view(-1, encoding.width)
    owners = torch.from_numpy(np.repeat(np.arange(len(texts)), texts.counts))
    place = ((owners[:, None] * repetitions + torch.arange(repetitions)) * buckets + bucket).flatten()
    count = len(texts) * repetitions * buckets
    sums = torch.zeros(count, encoding.width).index_add_(0, place, shortened)
    counts = torch.bincount(place, minlength=count).float()
    return sums.view(len(texts), repetitions, buckets, -1), counts.view(len(texts), repetitions, buckets)
