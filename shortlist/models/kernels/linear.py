"""Fast linears for inference on a CPU, with weights laid out once for oneDNN."""

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeGuard, TypeVar, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

PACKED_ROWS = 2048
"""The number of tokens that a packed weight is laid out for; other numbers are as correct and nearly as fast."""

MIN_FEATURES = 64
"""The least width of a linear to replace; narrower ones (heads, small adapters) gain nothing."""

ONEDNN_ACTIVATIONS = {"SiLU": "swish", "SiLUActivation": "swish"}
"""Class of an activation -> oneDNN's name for it."""


EXACTNESS = {torch.float32: 1e-5, torch.bfloat16: 3e-2}
"""The largest error of a replacement, as a share of the largest number: a few roundings."""


@runtime_checkable
class FusibleLinear(Protocol):
    """A linear that also applies the operations after it.

    It computes activation(x W^T + bias) * times + add.
    """

    def __call__(self, x: Tensor, *, times: Tensor | None = None, add: Tensor | None = None) -> Tensor: ...


MakesLinear = Callable[..., FusibleLinear]
"""A function of an nn.Linear and, if it has one, the name of its activation."""


class PlainLinear(nn.Module):
    """A FusibleLinear that runs PyTorch's operators one after another; it defines the results."""

    def __init__(self, linear: nn.Linear, activation: str = "none") -> None:
        super().__init__()
        self.linear, self.activation = linear, activation

    def forward(
        self, x: Float[Tensor, "*rows in"], *, times: Tensor | None = None, add: Tensor | None = None
    ) -> Float[Tensor, "*rows out"]:
        return finish(self.linear(x), self.activation, times=times, add=add)


def finish(
    x: Float[Tensor, "*rows out"], activation: str, *, times: Tensor | None = None, add: Tensor | None = None
) -> Float[Tensor, "*rows out"]:
    """Compute activation(x) * times + add, in place."""
    x = F.silu(x, inplace=True) if activation == "swish" else x
    x = x if times is None else x.mul_(times)
    return x if add is None else x.add_(add)


class PackedLinear(nn.Module):
    """A linear whose weight only oneDNN can read.

    It has no gradient and no state dict, and cannot change its device.
    """

    def __init__(self, linear: nn.Linear, activation: str = "none") -> None:
        super().__init__()
        self.in_features, self.out_features, self.activation = linear.in_features, linear.out_features, activation
        self.weight = linear.weight.detach().to("meta")  # some models ask a layer's weight for its dtype
        self.bias = None if linear.bias is None else linear.bias.detach()
        self.packed = _pack(linear.weight)

    def forward(
        self, x: Float[Tensor, "*rows in"], *, times: Tensor | None = None, add: Tensor | None = None
    ) -> Float[Tensor, "*rows out"]:
        if x.requires_grad and torch.is_grad_enabled():
            raise RuntimeError("packed linears have no gradient, and PyTorch would only warn; run under no_grad.")
        if self.activation != "none" or (times is None and add is None):
            return finish(_multiply(x, self.packed, self.bias, self.activation), "none", times=times, add=add)
        if times is None:
            return _multiply_and("add", add, x, self.packed, self.bias)
        return finish(_multiply_and("mul", times, x, self.packed, self.bias), "none", add=add)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}, activation={self.activation}"


class PackedGatedMLP(nn.Module):
    """A gated MLP, down(activation(gate(x)) * up(x)), that fuses its operations.

    The activation and the product are computed inside the matrix multiplications.
    """

    def __init__(self, gate: nn.Linear, up: nn.Linear, down: nn.Linear, activation: str) -> None:
        super().__init__()
        self.gate_proj = PackedLinear(gate, activation)
        self.up_proj = PackedLinear(up)
        self.down_proj = PackedLinear(down)

    def forward(self, x: Float[Tensor, "*rows dim"]) -> Float[Tensor, "*rows dim"]:
        return self.down_proj(self.up_proj(x, times=self.gate_proj(x)))


def pack_linears(model: nn.Module) -> int:
    """Replace the linears of a model on the CPU by faster ones.

    They give the same results up to rounding. This is for inference only and must come last: merge adapters and choose
    dtype and device before. Nothing is replaced on a GPU, in other dtypes than float32 and bfloat16, or where oneDNN is
    missing or incorrect. The original weights are released.

    Returns:
        The number of linears replaced.
    """
    replaced = 0
    for name, child in list(model.named_children()):
        if fused := _fuse(child):
            setattr(model, name, fused)
            replaced += 3
        elif _packable(child):
            setattr(model, name, PackedLinear(child))
            replaced += 1
        else:
            replaced += pack_linears(child)
    return replaced


def _packable(module: nn.Module | None) -> TypeGuard[nn.Linear]:
    return (
        type(module) is nn.Linear  # subclasses are quantised or compute something different
        and module.weight.device.type == "cpu"
        and module.weight.dtype in EXACTNESS
        and min(module.weight.shape) >= MIN_FEATURES
        and packing_is_right(module.weight.dtype)
    )


def _fuse(module: nn.Module) -> PackedGatedMLP | None:
    """Make a packed version of a gated MLP of the LLaMA family, whatever its class.

    None if the module is no such MLP, or if the packed version gives other results for a few rows.
    """
    children = dict(module.named_children())
    gate, up, down = map(children.get, ("gate_proj", "up_proj", "down_proj"))
    activation = ONEDNN_ACTIVATIONS.get(type(children.get("act_fn")).__name__)
    if not (activation and len(children) == 4 and _packable(gate) and _packable(up) and _packable(down)):
        return None
    sample = torch.randn(8, gate.in_features, generator=torch.Generator().manual_seed(0)).to(gate.weight.dtype)
    return stand_in(module, partial(PackedGatedMLP, gate, up, down, activation), sample)


@cache
def packing_is_right(dtype: torch.dtype = torch.float32) -> bool:
    """Whether oneDNN's private operators exist and give the results of PyTorch's public ones.

    This is checked once per process.
    """
    plain, x = _sample(dtype)
    forms = [("none", {}), ("swish", {}), ("none", {"times": x}), ("none", {"add": x})]
    return all(
        stand_in(PlainLinear(plain, activation), partial(PackedLinear, plain, activation), x, **options)
        for activation, options in forms
    )


@cache
def packing_pays() -> bool:
    """Whether linears are packed by default.

    They are on AMD's processors with AVX-512, where MKL is half as fast as oneDNN. On Intel's processors packed and
    plain products are equally fast. This is a rule and not a measurement, so that the same command gives the same bytes
    even on a busy machine.
    """
    vendor, features = _processor()
    return vendor == "AuthenticAMD" and "avx512f" in features and packing_is_right()


@cache
def bf16_pays() -> bool:
    """Whether the GPU or the processor computes in bfloat16, faster than in float32."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    return bool(_processor().features & {"avx512_bf16", "amx_bf16"})


class Processor(NamedTuple):
    """The CPU's vendor and features according to Linux; empty on other systems."""

    vendor: str = ""
    features: frozenset[str] = frozenset()


@cache
def _processor() -> Processor:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").split("\n\n")[0].splitlines()
    except OSError:
        return Processor()
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return Processor(fields.get("vendor_id", ""), frozenset(fields.get("flags", "").split()))


def _sample(dtype: torch.dtype) -> tuple[nn.Linear, Tensor]:
    generator = torch.Generator().manual_seed(0)  # does not disturb the caller's random numbers
    plain = nn.Linear(512, 512, bias=False, device="meta")
    plain.weight = nn.Parameter(torch.randn(512, 512, generator=generator).to(dtype), requires_grad=False)
    return plain, torch.randn(512, 512, generator=generator).to(dtype)


M = TypeVar("M", bound=nn.Module)


def stand_in(module: nn.Module, make: Callable[[], M], x: Tensor, **options: Any) -> M | None:
    """Build a replacement for a module, and return it if its results are the same.

    `make` builds it. The outputs for x may differ only by rounding, since sums may have another order.
    """
    try:
        with torch.no_grad():
            replacement = make()
            expected, actual = module(x, **options), replacement(x, **options)
            same = (actual - expected).abs().max() <= EXACTNESS[expected.dtype] * expected.abs().max()
    except (AttributeError, RuntimeError, TypeError):  # private operators: missing or changed in this PyTorch
        return None
    return replacement if same else None


def _pack(weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach(), PACKED_ROWS)


def _multiply(x: Tensor, packed: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, packed, bias, activation, [], "")


def _multiply_and(operation: str, other: Tensor | None, x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise.binary(x, other, packed, bias, operation)
