"""Pooling of vocabulary logits over a text's tokens, in parts and with gradients.

The logits of a batch are never in memory together, neither on the way forth nor on the way back, which computes again
what it needs.
"""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

TERMS_AT_ONCE, TOKENS_AT_ONCE = 512, 256
"""Terms and tokens whose logits are in memory together on a CPU: 0.5 MB, which its caches hold."""
ON_GPU = 32
"""How many times as many terms, and tokens, are together on a GPU."""


def log_weights(logits: Float[Tensor, "*shape"], logs: int) -> Float[Tensor, "*shape"]:
    """Turn logits into weights: log(1 + max(0, logit)), with the logarithm applied `logs` times."""
    weights = logits.relu()
    for _ in range(logs):
        weights = weights.log1p()
    return weights


def strongest_logits(
    states: Float[Tensor, "texts tokens dim"],
    wanted: Bool[Tensor, "texts tokens"],
    embedding: Float[Tensor, "vocabulary dim"],
    bias: Float[Tensor, " vocabulary"] | None = None,
    *,
    scale: float = 1.0,
) -> Float[Tensor, "texts vocabulary"]:
    """Find each term's greatest logit among a text's tokens; 0 for a text without tokens.

    The bias and the scale, which is above 0, are the same for all tokens, so they are applied to the greatest product.
    Only logits above 0 pass gradients on, as only those give weight.

    Args:
        states: the tokens' states, as the output embedding expects them.
        wanted: the tokens that count.
        embedding: the output embedding.
        bias: added to the products of states and embedding.
        scale: multiplies the logits.
    """
    first = wanted.int().argmax(1)
    here = torch.arange(len(states), device=states.device)
    states = torch.where(wanted[..., None], states, states[here, first][:, None])  # repeats change no maximum
    logits = _Strongest.apply(*_in_one_dtype(states, embedding), bias, scale)
    return logits.masked_fill(~wanted.any(1, keepdim=True), 0)  # type: ignore[union-attr]


def summed_weights(
    states: Float[Tensor, "texts tokens dim"],
    wanted: Bool[Tensor, "texts tokens"],
    embedding: Float[Tensor, "vocabulary dim"],
    bias: Float[Tensor, " vocabulary"] | None = None,
    *,
    scale: float = 1.0,
    logs: int = 1,
) -> Float[Tensor, "texts vocabulary"]:
    """Add up each term's weights over a text's tokens.

    Args:
        logs: as for `log_weights`.
        states: as for `strongest_logits`, like the other arguments.
    """
    return _Summed.apply(*_in_one_dtype(states, embedding), bias, wanted, scale, logs)  # type: ignore[return-value]


def _in_one_dtype(states: Tensor, embedding: Tensor) -> tuple[Tensor, Tensor]:
    """Convert both to the number type that their product is computed in."""
    kind = states.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else embedding.dtype
    return states.to(dtype), embedding.to(dtype)


class _Strongest(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, embedding: Tensor, bias: Tensor | None, scale: float) -> Tensor:
        learning = any(ctx.needs_input_grad)
        out = states.new_empty((len(states), len(embedding)), dtype=torch.float32)
        best = torch.empty(out.shape, dtype=torch.int32, device=out.device) if learning else None
        with torch.autocast(states.device.type, enabled=False):
            for texts, terms in _blocks(states, len(embedding)):
                products = states[texts] @ embedding[terms].T
                if best is None:
                    out[texts, terms] = products.amax(1)
                else:
                    out[texts, terms], best[texts, terms] = products.max(1)
        if bias is not None:
            out += bias
        out *= scale
        ctx.scale = scale
        if learning:
            ctx.save_for_backward(states, embedding, out, best)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        states, embedding, out, best = ctx.saved_tensors
        texts, terms = ((out > 0) & (gradient != 0)).nonzero(as_tuple=True)
        values = gradient[texts, terms] * ctx.scale
        tokens = texts * states.shape[1] + best[texts, terms]
        flat, shape = states.flatten(0, 1), (states.shape[0] * states.shape[1], len(embedding))
        to_states = to_embedding = to_bias = None
        if ctx.needs_input_grad[0]:
            to_states = (_sparse(tokens, terms, values, shape) @ embedding.float()).view(states.shape).to(states.dtype)
        if ctx.needs_input_grad[1]:
            to_embedding = (_sparse(terms, tokens, values, (shape[1], shape[0])) @ flat.float()).to(embedding.dtype)
        if ctx.needs_input_grad[2]:
            to_bias = values.new_zeros(len(embedding)).index_add_(0, terms, values)
        return to_states, to_embedding, to_bias, None


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, states: Tensor, embedding: Tensor, bias: Tensor | None, wanted: Tensor, scale: float, logs: int
    ) -> Tensor:
        out = states.new_empty((len(states), len(embedding)), dtype=torch.float32)
        with torch.autocast(states.device.type, enabled=False):
            for texts, terms in _blocks(states, len(embedding)):
                weights = log_weights(_logits(states[texts], embedding[terms], _part(bias, terms), scale), logs)
                out[texts, terms] = (weights * wanted[texts, :, None]).sum(1)
        ctx.save_for_backward(states, embedding, bias, wanted)
        ctx.settings = scale, logs
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        states, embedding, bias, wanted = ctx.saved_tensors
        scale, logs = ctx.settings
        to_states, to_embedding = torch.zeros_like(states), torch.zeros_like(embedding)
        to_bias = None if bias is None else torch.zeros_like(bias)
        for texts, terms in _blocks(states, len(embedding)):
            with torch.enable_grad():
                logits = _logits(states[texts], embedding[terms], _part(bias, terms), scale).requires_grad_()
                weights = log_weights(logits, logs)
            given = gradient[texts, None, terms] * wanted[texts, :, None]
            [errors] = torch.autograd.grad(weights, logits, given)
            errors = errors * scale
            if to_bias is not None:
                to_bias[terms] += errors.sum((0, 1))
            errors = errors.to(states.dtype)
            to_states[texts] += errors @ embedding[terms]
            to_embedding[terms] += errors.flatten(0, 1).T @ states[texts].flatten(0, 1)
        return to_states, to_embedding, to_bias, None, None, None


def _logits(states: Tensor, embedding: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    products = (states.detach() @ embedding.detach().T).float()
    return (products if bias is None else products + bias) * scale


def _part(bias: Tensor | None, terms: slice) -> Tensor | None:
    return None if bias is None else bias.detach()[terms]


def _sparse(rows: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    return torch.sparse_coo_tensor(torch.stack([rows, columns]), values, shape, check_invariants=False).coalesce()


def _blocks(states: Float[Tensor, "texts tokens dim"], vocabulary: int) -> Iterator[tuple[slice, slice]]:
    """Yield the texts and terms whose logits are computed together."""
    times = ON_GPU if states.device.type == "cuda" else 1
    many_terms, many_texts = TERMS_AT_ONCE * times, max(1, TOKENS_AT_ONCE * times // max(1, states.shape[1]))
    for term in range(0, vocabulary, many_terms):
        for text in range(0, len(states), many_texts):
            yield slice(text, text + many_texts), slice(term, term + many_terms)
