"""Rounding of vectors to 8-bit integers, with a scale per row to restore them."""

from functools import cache

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int8, Int32
from torch import Tensor

LARGEST = 127

CUDA_ROWS, CUDA_STEP = 32, 8
"""On a GPU the integer product needs at least 32 rows (PyTorch asks for 17) and dimensions that are multiples of 8."""


def to_int8(vectors: Float[Tensor, "rows dim"]) -> tuple[Int8[Tensor, "rows dim"], Float[Tensor, " rows"]]:
    """Round every row to 255 steps between plus and minus its largest magnitude.

    Returns:
        The integers and the scale of each row. Their product differs from the row by at most half a scale.
    """
    scales = vectors.abs().amax(1).float() / LARGEST
    scales = torch.where(scales > 0, scales, 1.0)
    return (vectors / scales[:, None]).round_().to(torch.int8), scales


def from_int8(rows: Int8[Tensor, "rows dim"], scales: Float[Tensor, " rows"]) -> Float[Tensor, "rows dim"]:
    """Restore the rows that `to_int8` rounded."""
    return rows.float() * scales[:, None]


def int8_product(
    x: Int8[Tensor, "rows dim"], weight: Int8[Tensor, "columns dim"], out: Int32[Tensor, "rows columns"] | None = None
) -> Int32[Tensor, "rows columns"]:
    """Compute x W^T exactly.

    This uses the processor's integer product, or a slow one where it has none for these shapes.

    Args:
        out: memory for the result, which is used on a CPU (None: new memory).
    """
    if not _has_int8_product(x.device.type):
        return _slow_product(x, weight)
    if not x.is_cuda:
        into = {} if out is None else {"out": out}
        return torch.ops.aten._int_mm(x, weight.T, **into)
    if x.shape[1] % CUDA_STEP:
        return _slow_product(x, weight)
    rows, columns = max(CUDA_ROWS - len(x), 0), -len(weight) % CUDA_STEP
    padded = torch.ops.aten._int_mm(F.pad(x, (0, 0, 0, rows)), F.pad(weight, (0, 0, 0, columns)).T)
    return padded[: len(x), : len(weight)]


def _slow_product(x: Tensor, weight: Tensor) -> Tensor:
    return (x.double() @ weight.double().T).to(torch.int32)  # float32 is exact for 1,040 numbers only


@cache
def _has_int8_product(device: str) -> bool:
    """Whether PyTorch's private operator exists and is correct; checked once per process."""
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randint(-LARGEST, LARGEST + 1, (64, 64), generator=generator).to(torch.int8) for _ in range(2))
    try:
        actual = torch.ops.aten._int_mm(x.to(device), weight.to(device).T).cpu()
    except (AttributeError, RuntimeError, TypeError):
        return False
    return torch.equal(actual, _slow_product(x, weight))
