"""Vectors cut to their first numbers, as Matryoshka training makes them useful."""

from collections.abc import Sequence

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def shortened(vectors: Float[Tensor, "*rows dim"], dim: int, *, unit: bool) -> Float[Tensor, "*rows first"]:
    """Keep the first `dim` numbers of each vector.

    Args:
        unit: scale what is left to length 1.

    https://arxiv.org/abs/2205.13147
    """
    first = vectors[..., :dim]
    return F.normalize(first, dim=-1) if unit else first


def nested(
    vectors: Float[Tensor, "*rows dim"], dims: Sequence[int], *, unit: bool
) -> list[Float[Tensor, "*rows first"]]:
    """Cut vectors to each of several dimensions; without any, return the vectors alone."""
    return [shortened(vectors, dim, unit=unit) for dim in dims] if dims else [vectors]
