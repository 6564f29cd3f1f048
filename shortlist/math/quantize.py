"""Vectors as small integers: each row of 8-bit integers with the factor that brings them back."""

import torch
from jaxtyping import Float, Int8
from torch import Tensor

LARGEST = 127


def to_int8(vectors: Float[Tensor, "rows dim"]) -> tuple[Int8[Tensor, "rows dim"], Float[Tensor, " rows"]]:
    """Round every row to 255 steps between its largest magnitude and the negative of it.

    Returns:
        Integers and the scale of each row; their product is within half a scale of the row.
    """
    scales = vectors.abs().amax(1) / LARGEST
    scales = torch.where(scales > 0, scales, 1.0)
    return (vectors / scales[:, None]).round_().to(torch.int8), scales.float()


def from_int8(rows: Int8[Tensor, "rows dim"], scales: Float[Tensor, " rows"]) -> Float[Tensor, "rows dim"]:
    """The rows that `to_int8` rounded."""
    return rows.float() * scales[:, None]
