"""Matrix products of many rows with one weight, which is prepared once for all rows."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from threading import Lock
from typing import Generic, TypeVar, final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

ROWS = 2048
"""The number of rows that a weight is laid out for; other numbers are as correct and nearly as fast."""

T = TypeVar("T")

Product = Callable[[Float[Tensor, "rows dim"]], Float[Tensor, "rows out"]]


def float_product(weight: Float[Tensor, "out dim"]) -> Product:
    """Return the function x -> x W^T in float32.

    On a CPU where oneDNN's product is correct, the weight is laid out once in oneDNN's format, which is faster.
    """
    plain = partial(F.linear, weight=weight)
    if weight.device.type != "cpu" or not packed_product_is_right():
        return plain
    return _packed(weight)


@cache
def packed_product_is_right() -> bool:
    """Whether oneDNN's private operators exist and give the results of PyTorch's public ones.

    This is checked once per process.
    """
    generator = torch.Generator().manual_seed(0)
    weight, rows = torch.randn(24, 96, generator=generator), torch.randn(50, 96, generator=generator)
    try:
        with full_precision():
            actual, expected = _packed(weight)(rows), F.linear(rows, weight)
    except (AttributeError, RuntimeError, TypeError):  # private operators: missing or changed in this PyTorch
        return False
    return bool((actual - expected).abs().max() <= 1e-5 * expected.abs().max())


@contextmanager
def full_precision() -> Iterator[None]:
    """Compute float32 products in full float32 inside the block.

    They are not rounded to TF32 or bfloat16, even if the caller has allowed that outside the block.
    """
    with _PRECISION.changed():
        torch.set_float32_matmul_precision("highest")
        yield


@final
class SharedSetting(Generic[T]):
    """A setting of the process that several threads change for a while."""

    def __init__(self, read: Callable[[], T], write: Callable[[T], object]) -> None:
        self._read, self._write, self._lock, self._inside = read, write, Lock(), 0
        self._before: T

    @contextmanager
    def changed(self) -> Iterator[T]:
        """Yield the value from before the first thread entered, which the last one restores."""
        with self._lock:
            if not self._inside:
                self._before = self._read()
            self._inside += 1
        try:
            yield self._before
        finally:
            with self._lock:
                self._inside -= 1
                if not self._inside:
                    self._write(self._before)


_PRECISION = SharedSetting(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision)


def _packed(weight: Tensor) -> Product:
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), ROWS)
    return lambda rows: torch.ops.mkldnn._linear_pointwise(rows, packed, None, "none", [], "")
