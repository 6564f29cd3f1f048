"""Linears with weights and inputs rounded to 8-bit integers.

They are several times faster, with nearly the same results.
"""

from typing import TypeGuard

from jaxtyping import Float
from torch import Tensor, nn

from shortlist.math.quantize import int8_product, to_int8
from shortlist.models.kernels.linear import MIN_FEATURES, finish


class Int8Linear(nn.Module):
    """A linear layer that rounds inputs and weights to 8-bit integers.

    It computes x W^T + bias. Each row of W has a fixed scale, and each row of x a scale computed from the row. The
    products are summed as integers, so their order does not matter and a row gives the same output in any batch. There
    is no gradient.

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
        self.register_buffer("scales", scales)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach())
        self.weight = linear.weight.detach().to("meta")  # some models ask a layer's weight for its dtype

    def forward(
        self, x: Float[Tensor, "*rows in"], *, times: Tensor | None = None, add: Tensor | None = None
    ) -> Float[Tensor, "*rows out"]:
        rows, scales = to_int8(x.reshape(-1, self.in_features))
        sums = int8_product(rows, self.integers)
        out = sums.float().mul_(scales[:, None]).mul_(self.scales).view(*x.shape[:-1], self.out_features).to(x.dtype)
        out = out if self.bias is None else out.add_(self.bias)
        return finish(out, self.activation, times=times, add=add)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}"


def quantize_linears(model: nn.Module) -> int:
    """Replace the linears of a model by Int8Linear, in place.

    Narrow ones and subclasses of nn.Linear stay.

    Returns:
        The number of linears replaced.
    """
    replaced = 0
    for name, child in list(model.named_children()):
        if _quantizable(child):
            setattr(model, name, Int8Linear(child))
            replaced += 1
        else:
            replaced += quantize_linears(child)
    return replaced


def _quantizable(module: nn.Module) -> TypeGuard[nn.Linear]:
    return type(module) is nn.Linear and min(module.weight.shape) >= MIN_FEATURES
