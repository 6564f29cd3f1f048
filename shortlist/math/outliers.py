"""Layers drawn for training by how many outlying weights they have (https://arxiv.org/abs/2405.18380)."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from torch import Tensor


def outlier_share(matrices: Sequence[Float[Tensor, "_ _"]], threshold: float) -> float:
    """Return the share of weights whose size is above `threshold` times the mean size.

    One weight more is counted, so that no layer is ruled out for ever.
    """
    count = sum(matrix.numel() for matrix in matrices)
    mean = sum(float(matrix.abs().sum()) for matrix in matrices) / count
    return (sum(int((matrix.abs() > threshold * mean).sum()) for matrix in matrices) + 1) / count


def draw_layers(shares: Sequence[float], number: int, *, seed: int, period: int) -> list[int]:
    """Draw distinct layers, in proportion to the shares of all that are left.

    They are in rising order.
    """
    rng, weights = np.random.default_rng([seed, period]), np.array(shares)
    return sorted(rng.choice(len(shares), number, replace=False, p=weights / weights.sum()).tolist())
