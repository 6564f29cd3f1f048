"""Fast linears for inference on a CPU: weights laid out once as oneDNN wants them, where that is right."""

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeGuard, TypeVar, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

PACKED_ROWS = 2048
"""Tokens that a packed weight is laid out for; other numbers of rows are as right and nearly as fast."""

MIN_FEATURES = 64
"""Narrower linears (heads, small adapters) gain nothing."""

ONEDNN_ACTIVATIONS = {"SiLU": "swish", "SiLUActivation": "swish"}
"""Class of an activation -> oneDNN's name for it."""


EXACTNESS = {torch.float32: 1e-5, torch.bfloat16: 3e-2}
"""How far a stand-in may be from what it stands in for, as a share of the largest number: a few roundings."""


@runtime_checkable
class FusibleLinear(Protocol):
    """A linear that does what stands next to it as well: activation(x W^T + bias) * times + add."""

    def __call__(self, x: Tensor, *, times: Tensor | None = None, add: Tensor | None = None) -> Tensor: ...


MakesLinear = Callable[..., FusibleLinear]
"""Called with an nn.Linear and, where it has one, the name of an activation."""


class PlainLinear(nn.Module):
    """The definition: PyTorch's own operators, one after another."""

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
    """activation(x) * times + add, in place."""
    x = F.silu(x, inplace=True) if activation == "swish" else x
    x = x if times is None else x.mul_(times)
    return x if add is None else x.add_(add)


class PackedLinear(nn.Module):
    """An nn.Linear whose weight only oneDNN can read: no gradient, no state dict, no change of device."""

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
    """down(activation(gate(x)) * up(x)) with the activation and the product inside the matrix multiplications."""

    def __init__(self, gate: nn.Linear, up: nn.Linear, down: nn.Linear, activation: str) -> None:
        super().__init__()
        self.gate_proj = PackedLinear(gate, activation)
        self.up_proj = PackedLinear(up)
        self.down_proj = PackedLinear(down)

    def forward(self, x: Float[Tensor, "*rows dim"]) -> Float[Tensor, "*rows dim"]:
        return self.down_proj(self.up_proj(x, times=self.gate_proj(x)))


def pack_linears(model: nn.Module) -> int:
    """Replace the linears of a model on the CPU by faster ones that give the same results to rounding.

    For inference only, and last: merge adapters, choose dtype and device before. Nothing is replaced on a GPU, in
    another dtype than float32 and bfloat16, or where oneDNN is missing or wrong. The original weights are let go.

    Returns:
        Number of linears replaced.
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
        type(module) is nn.Linear  # subclasses are quantised, or compute something else
        and module.weight.device.type == "cpu"
        and module.weight.dtype in EXACTNESS
        and min(module.weight.shape) >= MIN_FEATURES
        and packing_is_right(module.weight.dtype)
    )


def _fuse(module: nn.Module) -> PackedGatedMLP | None:
    """Stand in for the gated MLP of the LLaMA family, whatever its class, if a few rows come out the same."""
    children = dict(module.named_children())
    gate, up, down = map(children.get, ("gate_proj", "up_proj", "down_proj"))
    activation = ONEDNN_ACTIVATIONS.get(type(children.get("act_fn")).__name__)
    if not (activation and len(children) == 4 and _packable(gate) and _packable(up) and _packable(down)):
        return None
    sample = torch.randn(8, gate.in_features, generator=torch.Generator().manual_seed(0)).to(gate.weight.dtype)
    return stand_in(module, partial(PackedGatedMLP, gate, up, down, activation), sample)


@cache
def packing_is_right(dtype: torch.dtype = torch.float32) -> bool:
    """Whether oneDNN's private operators are there and give what PyTorch's own give; looked at once per process."""
    plain, x = _sample(dtype)
    forms = [("none", {}), ("swish", {}), ("none", {"times": x}), ("none", {"add": x})]
    return all(
        stand_in(PlainLinear(plain, activation), partial(PackedLinear, plain, activation), x, **options)
        for activation, options in forms
    )


@cache
def packing_pays() -> bool:
    """Whether linears are packed by default: on AMD's processors with AVX-512, where MKL is half as fast as oneDNN.

    A rule and not a measurement, so that the same command gives the same bytes however busy the machine is. On Intel's
    processors packed and plain products are as fast.
    """
    vendor, features = _processor()
    return vendor == "AuthenticAMD" and "avx512f" in features and packing_is_right()


@cache
def bf16_pays() -> bool:
    """Whether products in bfloat16 are faster here than in float32: where the GPU or the processor computes in it."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    return bool(_processor().features & {"avx512_bf16", "amx_bf16"})


class Processor(NamedTuple):
    """What Linux says of the CPU; empty elsewhere."""

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
    generator = torch.Generator().manual_seed(0)  # leaves the caller's random numbers alone
    plain = nn.Linear(512, 512, bias=False, device="meta")
    plain.weight = nn.Parameter(torch.randn(512, 512, generator=generator).to(dtype), requires_grad=False)
    return plain, torch.randn(512, 512, generator=generator).to(dtype)


M = TypeVar("M", bound=nn.Module)


def stand_in(module: nn.Module, make: Callable[[], M], x: Tensor, **options: Any) -> M | None:
    """What `make` builds, if it gives what the module gives for x, but for the order of the sums."""
    try:
        with torch.no_grad():
            replacement = make()
            expected, actual = module(x, **options), replacement(x, **options)
            same = (actual - expected).abs().max() <= EXACTNESS[expected.dtype] * expected.abs().max()
    except (AttributeError, RuntimeError, TypeError):  # private operators: absent, or changed since
        return None
    return replacement if same else None


def _pack(weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach(), PACKED_ROWS)


def _multiply(x: Tensor, packed: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, packed, bias, activation, [], "")


def _multiply_and(operation: str, other: Tensor | None, x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise.binary(x, other, packed, bias, operation)
