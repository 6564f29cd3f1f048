"""Fast layers for training on a CPU, with products computed by oneDNN.

Parameters and gradients stay the same. Unlike inference, training packs no weights: a weight that changes would have to
be laid out again, and packing a frozen one saves less than 2% of a step, for twice the memory.
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
    """An nn.Linear that is faster; made by `speed_up_training`."""

    def forward(self, input: Float[Tensor, "*rows in"]) -> Float[Tensor, "*rows out"]:
        if torch.is_autocast_enabled("cpu"):
            return super().forward(input)  # in bf16 this calls oneDNN already; calling it here was slower (0.93x)
        return _Linear.apply(input, self.weight, self.bias)


class SparseEmbedding(nn.Embedding):
    """An nn.Embedding with a sparse gradient, made dense once it is accumulated.

    The gradient covers only the rows that were read. Otherwise every micro-batch would fill and add a matrix as large
    as the vocabulary, which takes a tenth of a small model's step.
    """

    def forward(self, input: Int[Tensor, "*rows"]) -> Float[Tensor, "*rows dim"]:
        return F.embedding(input, self.weight, self.padding_idx, sparse=True)


class FastNorm:
    """A mixin that replaces a root-mean-square norm by PyTorch's, which needs half the steps.

    It precedes the norm's class in the bases.
    """

    def forward(self: Any, hidden_states: Float[Tensor, "*rows dim"]) -> Float[Tensor, "*rows dim"]:
        if hidden_states.dtype != self.weight.dtype:
            return super().forward(hidden_states)  # type: ignore[misc]
        return F.rms_norm(hidden_states, self.weight.shape, self.weight, self.variance_epsilon)


class FastLora:
    """A mixin for peft's Linear that computes base layer, dropout and LoRA in one function.

    It precedes peft's class in the bases. For the backward pass it keeps the input, which layers share, and a mask of
    one byte for each of the input's features; peft's code keeps eight bytes and shares nothing. Dropout draws other
    masks than nn.Dropout, and several times faster.
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
    """Make the layers of a float32 model on the CPU train faster, in place.

    This replaces linears, LoRA layers, norms and embeddings. Parameters, their names and their gradients (up to
    rounding) stay the same. It does nothing on a GPU, in another dtype, to a sharded model, or where oneDNN's products
    are missing or incorrect. Call it last, after adapters have been added.

    Returns:
        The number of layers made faster.
    """
    changed = 0
    for module in model.modules():
        if faster := _faster_class(module):
            module.__class__ = faster
            changed += 1
    for module in model.modules():  # the base layers have been replaced by now
        if _is_plain_lora(module):
            module.__class__ = _faster(FastLora, type(module))
            changed += 1
    return changed


def _faster_class(module: nn.Module) -> type[nn.Module] | None:
    weight = getattr(module, "weight", None)
    # neither shards of weights nor quantised weights are plain parameters
    if type(weight) is not nn.Parameter or weight.device.type != "cpu" or weight.dtype != torch.float32:
        return None
    if type(module) is nn.Embedding:
        if not weight.requires_grad or module.max_norm is not None or module.scale_grad_by_freq:
            return None
        weight.register_post_accumulate_grad_hook(_make_dense)
        return SparseEmbedding
    # subclasses of nn.Linear are quantised or compute something different
    if type(module) is nn.Linear and min(weight.shape) >= MIN_FEATURES and products_are_right():
        return FastLinear
    return _faster(FastNorm, type(module)) if _is_plain_norm(module) else None


def _is_plain_norm(module: Any) -> bool:
    """Whether a module computes weight * x / sqrt(mean(x^2) + epsilon).

    Some families add 1 to the weight.
    """
    if not type(module).__name__.endswith("RMSNorm") or not hasattr(module, "variance_epsilon"):
        return False
    x = torch.linspace(-2, 3, module.weight.numel())
    with torch.no_grad():
        return _close(FastNorm.forward(module, x), module(x))


def _make_dense(weight: Tensor) -> None:
    if weight.grad is not None and weight.grad.is_sparse:
        weight.grad = weight.grad.to_dense()  # later micro-batches add to it in place


def _is_plain_lora(module: Any) -> bool:
    """Whether a module is peft's plain LoRA over a frozen FastLinear.

    It computes base(x) + B(A(dropout(x))) * scaling.
    """
    lora = sys.modules.get("peft.tuners.lora")  # a model with such a layer has imported it
    return (
        lora is not None
        and type(module) is lora.Linear
        and type(module.base_layer) is FastLinear
        and not any(p.requires_grad for p in module.base_layer.parameters())
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
    """Whether the functions below give PyTorch's results here; checked once per process.

    Their speed is not measured: a continued run must make the same decision again, and times vary.
    """
    generator = torch.Generator().manual_seed(0)  # does not disturb the caller's random numbers
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
    except (AttributeError, RuntimeError, TypeError):  # private operators: missing or changed in this PyTorch
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
    """A linear layer, x W^T + bias, with its gradients."""

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
    """A linear layer with LoRA over a frozen weight W.

    It computes x W^T + bias + scaling * dropout(x) A^T B^T in `dtype`, where each input is dropped with probability p.
    """

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
        ctx.save_for_backward(x, weight, a, b, kept, inner)  # not cast: casting again is cheaper than keeping a copy
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
    """Draw a dropout mask: 1 for numbers that are kept, 0 for dropped ones.

    It uses PyTorch's generator, and is ten times as fast as bernoulli_. Each number gets a random byte, and is kept if
    the byte reaches a threshold. The threshold is one of the two integers around 256 p, drawn once for the whole mask
    so that each number is dropped with probability p.
    """
    exact = 256 * p
    dropped = math.floor(exact) + (torch.rand(()).item() < exact % 1)
    count = shape.numel()
    words = torch.empty(-(-count // 8), dtype=torch.int64).random_(-(1 << 63), None)
    kept = words.view(torch.int8)[:count].view(shape) >= dropped - 128
    return kept.view(torch.int8)  # twice as fast to multiply with as bool


def _drop(x: Tensor, kept: Tensor | None) -> Tensor:
    # twenty times as fast as x * kept, which first converts the mask to floats
    return x if kept is None else torch.mul(x, kept, out=torch.empty_like(x))


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


def _weight_gradient(gradient: Float[Tensor, "*rows out"], x: Float[Tensor, "*rows in"]) -> Float[Tensor, "out in"]:
    gradient, x = _rows(gradient), _rows(x)
    if not len(x):
        return gradient.T @ x  # oneDNN cannot sum over zero rows
    # transposing copies the first factor, so it should be the narrow one
    if gradient.shape[1] <= x.shape[1]:
        return _multiply(gradient.T, x.T)
    return _multiply(x.T, gradient.T).T


def _multiply(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute x W^T + bias.

    oneDNN takes a weight of any layout, so it may be transposed.
    """
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def _multiply_and_add(other: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise.binary(x, other, weight, None, "add")
