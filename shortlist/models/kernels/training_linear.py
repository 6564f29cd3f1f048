"""Fast layers for training on a CPU: the same parameters and gradients, with the products left to oneDNN.

Unlike inference, training packs no weight: a weight that changes would have to be laid out again, and one that does
not gains less than 2% of a step from it, for twice the memory.
"""

import math
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from shortlist.models.kernels.linear import MIN_FEATURES


class FastLinear(nn.Linear):
    """An nn.Linear in all but speed; made by `speed_up_training`."""

    def forward(self, input: Float[Tensor, "*rows in"]) -> Float[Tensor, "*rows out"]:
        if torch.is_autocast_enabled("cpu"):
            return super().forward(input)  # in bf16 that calls oneDNN already: measured 0.93x if done here
        return _Linear.apply(input, self.weight, self.bias)


class SparseEmbedding(nn.Embedding):
    """An nn.Embedding whose gradient is kept for the rows that were read until it is complete.

    Otherwise every micro-batch fills and adds a matrix as large as the vocabulary: a tenth of a small model's step.
    """

    def forward(self, input: Int[Tensor, "*rows"]) -> Float[Tensor, "*rows dim"]:
        return F.embedding(input, self.weight, self.padding_idx, sparse=True)


class FastNorm:
    """Goes before a root-mean-square norm in its class's bases: PyTorch's own, in half the steps."""

    def forward(self: Any, hidden_states: Float[Tensor, "*rows dim"]) -> Float[Tensor, "*rows dim"]:
        if hidden_states.dtype != self.weight.dtype:
            return super().forward(hidden_states)  # type: ignore[misc]
        return F.rms_norm(hidden_states, self.weight.shape, self.weight, self.variance_epsilon)


class FastLora:
    """Goes before peft's Linear in a class's bases: base layer, dropout and both low-rank products in one function.

    Keeps for the backward pass the input, which layers share, and a mask of one byte for each of its features; peft's
    own keeps eight bytes and shares nothing. Dropout draws other masks than nn.Dropout, several times faster.
    """

    def forward(self: Any, x: Float[Tensor, "*rows in"], *args: Any, **options: Any) -> Float[Tensor, "*rows out"]:
        names = self.active_adapters
        if args or options or self.disable_adapters or self.merged or len(names) != 1 or names[0] not in self.lora_A:
            return super().forward(x, *args, **options)  # type: ignore[misc]
        base, (name,) = self.base_layer, names
        p = getattr(self.lora_dropout[name], "p", 0.0) if self.training else 0.0
        a, b = self.lora_A[name].weight, self.lora_B[name].weight
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else a.dtype
        return _LoraLinear.apply(x, base.weight, base.bias, a, b, self.scaling[name], p, dtype)


def speed_up_training(model: nn.Module) -> int:
    """Make the linears, LoRA layers, norms and embeddings of a float32 model on the CPU train faster, in place.

    Parameters, their names and their gradients (to rounding) stay. Does nothing on a GPU, in another dtype, or where
    oneDNN's products are missing or wrong, nor to a sharded model. Call it last: a model is adapted before.

    Returns:
        Number of layers that are faster now.
    """
    changed = 0
    for module in model.modules():
        if faster := _faster_class(module):
            module.__class__ = faster
            changed += 1
    for module in model.modules():  # their base layers are faster by now
        if _is_plain_lora(module):
            module.__class__ = _faster(FastLora, type(module))
            changed += 1
    return changed


def _faster_class(module: nn.Module) -> type[nn.Module] | None:
    weight = getattr(module, "weight", None)
    # a shard of a weight is no plain parameter, nor is a quantised one
    if type(weight) is not nn.Parameter or weight.device.type != "cpu" or weight.dtype != torch.float32:
        return None
    if type(module) is nn.Embedding:
        if not weight.requires_grad or module.max_norm is not None or module.scale_grad_by_freq:
            return None
        weight.register_post_accumulate_grad_hook(_make_dense)
        return SparseEmbedding
    # subclasses of nn.Linear are quantised, or compute something else
    if type(module) is nn.Linear and min(weight.shape) >= MIN_FEATURES and products_are_right():
        return FastLinear
    return _faster(FastNorm, type(module)) if _is_plain_norm(module) else None


def _is_plain_norm(module: Any) -> bool:
    """Whether a module computes weight * x / sqrt(mean(x^2) + epsilon): some families add 1 to the weight."""
    if not type(module).__name__.endswith("RMSNorm") or not hasattr(module, "variance_epsilon"):
        return False
    x = torch.linspace(-2, 3, module.weight.numel())
    with torch.no_grad():
        return _close(FastNorm.forward(module, x), module(x))


def _make_dense(weight: Tensor) -> None:
    if weight.grad is not None and weight.grad.is_sparse:
        weight.grad = weight.grad.to_dense()  # later micro-batches add to it in place


def _is_plain_lora(module: Any) -> bool:
    """Whether peft would compute base(x) + B(A(dropout(x))) * scaling, over a frozen base layer of ours."""
    lora = sys.modules.get("peft.tuners.lora")  # whoever has such a layer has imported it
    return (
        lora is not None
        and type(module) is lora.Linear
        and type(module.base_layer) is FastLinear
        and not module.base_layer.weight.requires_grad
        and not module.lora_variant
        and not any(module.lora_bias.values())
        and all(type(dropout) in (nn.Dropout, nn.Identity) for dropout in module.lora_dropout.values())
        and all(a.weight.dtype == torch.float32 for a in module.lora_A.values())
    )


@cache
def _faster(fast: type, kind: type[nn.Module]) -> type[nn.Module]:
    return type(fast.__name__, (fast, kind), {})


@cache
def products_are_right() -> bool:
    """Whether the functions below give what PyTorch's own give here; looked at once per process.

    Not whether they are faster: a run that is continued must decide as it did, and time would not.
    """
    generator = torch.Generator().manual_seed(0)  # leaves the caller's random numbers alone
    shapes = ((48, 64), (96, 64), (8, 64), (96, 8))
    x, weight, a, b = (torch.randn(*shape, generator=generator).requires_grad_() for shape in shapes)

    def linear(x: Tensor, weight: Tensor) -> Tensor:
        return _Linear.apply(x, weight, None)

    def lora(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return _LoraLinear.apply(x, weight.detach(), None, a, b, 2.0, 0.0, x.dtype)

    def plain_lora(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return F.linear(x, weight.detach()) + F.linear(F.linear(x, a), b) * 2.0

    try:
        return _same(linear, F.linear, [x, weight]) and _same(lora, plain_lora, [x, a, b])
    except (AttributeError, RuntimeError, TypeError):  # private operators: absent, or changed since
        return False


def _with_gradients(product: Callable[..., Tensor], inputs: list[Tensor]) -> list[Tensor]:
    with torch.enable_grad():
        out = product(*inputs)
    return [out.detach(), *torch.autograd.grad(out, inputs, out.detach())]


def _same(product: Callable[..., Tensor], reference: Callable[..., Tensor], inputs: list[Tensor]) -> bool:
    pairs = zip(_with_gradients(product, inputs), _with_gradients(reference, inputs), strict=True)
    return all(_close(actual, expected) for actual, expected in pairs)


def _close(actual: Tensor, expected: Tensor) -> bool:
    return bool((actual - expected).abs().max() <= 1e-5 * expected.abs().max())


class _Linear(torch.autograd.Function):
    """x W^T + bias."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x if weight.requires_grad else None, weight)
        return _multiply(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        return (
            _multiply(gradient, weight.T) if of_x else None,
            _weight_gradient(gradient, x) if of_weight else None,
            _rows(gradient).sum(0) if of_bias else None,
        )


class _LoraLinear(torch.autograd.Function):
    """x W^T + bias + scaling * dropout(x) A^T B^T over a frozen W, computed in `dtype`; p of the inputs are dropped."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        a: Tensor,
        b: Tensor,
        scaling: float,
        p: float,
        dtype: torch.dtype,
    ) -> Tensor:
        kept = draw_kept(x.shape, p) if p else None
        ctx.scaling, ctx.dtype = scaling / (1 - p), dtype
        low = x.to(dtype)
        base = _multiply(low, weight.to(dtype), None if bias is None else bias.to(dtype))
        inner = _multiply(_drop(low, kept), a.to(dtype)).mul_(ctx.scaling)
        ctx.save_for_backward(x, weight, a, b, kept, inner)  # as they are: casting again is cheaper than keeping
        return _multiply_and_add(base, inner, b.to(dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        x, weight, a, b, kept, inner = ctx.saved_tensors
        dropped = _drop(x.to(ctx.dtype), kept)
        of_inner = _multiply(gradient, b.to(ctx.dtype).T).mul_(ctx.scaling)
        of_x = None
        if ctx.needs_input_grad[0]:
            through_lora = _multiply(of_inner, a.to(ctx.dtype).T)
            through_lora = through_lora if kept is None else through_lora.mul_(kept)
            of_x = _multiply_and_add(through_lora, gradient, weight.to(ctx.dtype).T)
        of_a, of_b = _weight_gradient(of_inner, dropped), _weight_gradient(gradient, inner)
        return of_x, None, None, of_a, of_b, None, None, None


def draw_kept(shape: torch.Size, p: float) -> Int[Tensor, "*shape"]:
    """1 where dropout keeps a number, 0 where it drops it, from PyTorch's generator: ten times as fast as bernoulli_.

    A random byte decides for each number, against one of the two bytes around p: which one is drawn for the whole mask,
    so that each number is dropped with probability p.
    """
    exact = 256 * p
    dropped = math.floor(exact) + (torch.rand(()).item() < exact % 1)
    count = shape.numel()
    words = torch.empty(-(-count // 8), dtype=torch.int64).random_(-(1 << 63), None)
    kept = words.view(torch.int8)[:count].view(shape) >= dropped - 128
    return kept.view(torch.int8)  # twice as fast to multiply with as bool


def _drop(x: Tensor, kept: Tensor | None) -> Tensor:
    # twenty times as fast as x * kept, which first makes float numbers of the mask
    return x if kept is None else torch.mul(x, kept, out=torch.empty_like(x))


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


def _weight_gradient(gradient: Float[Tensor, "*rows out"], x: Float[Tensor, "*rows in"]) -> Float[Tensor, "out in"]:
    gradient, x = _rows(gradient), _rows(x)
    if not len(x):
        return gradient.T @ x  # oneDNN has no sum over nothing
    # the first factor is transposed by copying it, so it had better be the narrow one
    if gradient.shape[1] <= x.shape[1]:
        return _multiply(gradient.T, x.T)
    return _multiply(x.T, gradient.T).T


def _multiply(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + bias; the layout of a weight is oneDNN's own affair, so it may be transposed."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def _multiply_and_add(other: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise.binary(x, other, weight, None, "add")
