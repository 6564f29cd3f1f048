"""Products of many rows with few: each form is laid out or rounded once, and the rows stream past."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

ROWS = 2048
"""Rows that a weight is laid out for; other numbers of rows are as right and nearly as fast."""

Product = Callable[[Float[Tensor, "rows dim"]], Float[Tensor, "rows out"]]


def float_product(weight: Float[Tensor, "out dim"]) -> Product:
    """x -> x W^T in float32, with the weight laid out once as oneDNN reads it, where that is right and faster."""
    plain = partial(F.linear, weight=weight)
    if weight.device.type != "cpu" or not packed_product_is_right():
        return plain
    return _packed(weight)


@cache
def packed_product_is_right() -> bool:
    """Whether oneDNN's private operators are there and give what PyTorch's own give; looked at once per process."""
    generator = torch.Generator().manual_seed(0)
    weight, rows = torch.randn(24, 96, generator=generator), torch.randn(50, 96, generator=generator)
    try:
        with full_precision():
            actual, expected = _packed(weight)(rows), F.linear(rows, weight)
    except (AttributeError, RuntimeError, TypeError):  # private operators: absent, or changed since
        return False
    return bool((actual - expected).abs().max() <= 1e-5 * expected.abs().max())


@contextmanager
def full_precision() -> Iterator[None]:
    """Within, float32 products are not rounded to TF32 or bfloat16, whatever the caller has allowed elsewhere."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _packed(weight: Tensor) -> Product:
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), ROWS)
    return lambda rows: torch.ops.mkldnn._linear_pointwise(rows, packed, None, "none", [], "")
