"""Linears whose weights and inputs are rounded to 8-bit integers: several times faster, close to the same results."""

from functools import cache
from typing import TypeGuard

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int8, Int32
from torch import Tensor, nn

from shortlist.models.linear import MIN_FEATURES, finish

LEVELS = 127
"""Largest integer a number is rounded to; -128 is not used, so that plus and minus are alike."""

CUDA_ROWS, CUDA_STEP = 32, 8
"""On a GPU the integer product takes at least so many rows (PyTorch asks for 17), and features in multiples of 8."""


class Int8Linear(nn.Module):
    """x W^T + bias with one scale for each row of x, found as it comes, and one for each output's weights.

    The products are summed as integers, so their order changes nothing: a row gives the same in any batch. No gradient.

    https://arxiv.org/abs/2208.07339
    """

    integers: Tensor
    scales: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear, activation: str = "none") -> None:
        super().__init__()
        self.activation = activation
        self.in_features, self.out_features = linear.in_features, linear.out_features
        integers, scales = to_int8(linear.weight.detach().float())
        self.register_buffer("integers", integers)
        self.register_buffer("scales", scales[:, 0])
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach())
        self.weight = linear.weight.detach().to("meta")  # some models ask a layer's weight for its dtype

    def forward(
        self, x: Float[Tensor, "*rows in"], *, times: Tensor | None = None, add: Tensor | None = None
    ) -> Float[Tensor, "*rows out"]:
        rows, scales = to_int8(x.reshape(-1, self.in_features))
        sums = int8_product(rows, self.integers)
        out = sums.to(scales.dtype).mul_(scales).mul_(self.scales).view(*x.shape[:-1], self.out_features).to(x.dtype)
        out = out if self.bias is None else out.add_(self.bias)
        return finish(out, self.activation, times=times, add=add)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}"


def quantize_linears(model: nn.Module) -> int:
    """Replace the linears of a model by Int8Linear, in place; narrow ones, and subclasses of nn.Linear, stay.

    Returns:
        Number of linears replaced.
    """
    replaced = 0
    for name, child in list(model.named_children()):
        if _quantizable(child):
            setattr(model, name, Int8Linear(child))
            replaced += 1
        else:
            replaced += quantize_linears(child)
    return replaced


def to_int8(x: Float[Tensor, "rows dim"]) -> tuple[Int8[Tensor, "rows dim"], Float[Tensor, "rows 1"]]:
    """Integers from -127 to 127 and a float32 scale per row, whose product is x to half a scale."""
    largest = x.abs().amax(-1, keepdim=True).float()
    scales = largest.clamp_min_(torch.finfo(torch.float32).tiny * LEVELS).div_(LEVELS)
    return torch.mul(x, scales.reciprocal()).round_().to(torch.int8), scales


def int8_product(x: Int8[Tensor, "rows in"], weight: Int8[Tensor, "out in"]) -> Int32[Tensor, "rows out"]:
    """x W^T, exactly: by the processor's own integer product, or slowly where it has none for these shapes."""
    if not _has_int8_product(x.device.type) or (x.is_cuda and (weight.shape[0] | weight.shape[1]) % CUDA_STEP):
        return _slow_product(x, weight)
    if x.is_cuda and len(x) < CUDA_ROWS:
        return torch.ops.aten._int_mm(F.pad(x, (0, 0, 0, CUDA_ROWS - len(x))), weight.T)[: len(x)]
    return torch.ops.aten._int_mm(x, weight.T)


def _slow_product(x: Tensor, weight: Tensor) -> Tensor:
    return (x.double() @ weight.double().T).to(torch.int32)  # float32 is exact for 1,040 features only


@cache
def _has_int8_product(device: str) -> bool:
    """Whether PyTorch's private operator is there and right; looked at once per process."""
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randint(-LEVELS, LEVELS + 1, (64, 64), generator=generator).to(torch.int8) for _ in range(2))
    try:
        actual = torch.ops.aten._int_mm(x.to(device), weight.to(device).T).cpu()
    except (AttributeError, RuntimeError, TypeError):
        return False
    return torch.equal(actual, _slow_product(x, weight))


def _quantizable(module: nn.Module) -> TypeGuard[nn.Linear]:
    return type(module) is nn.Linear and min(module.weight.shape) >= MIN_FEATURES
