"""A decoder layer of the LLaMA family that makes fewer passes over memory.

It replaces a model's layer only if it gives the same results.
"""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Complex64, Float, Int
from torch import Tensor, nn

from shortlist.models.kernels.beginnings import SharedBeginnings
from shortlist.models.kernels.linear import ONEDNN_ACTIVATIONS, MakesLinear, PlainLinear, stand_in

PARTS = {
    "": ("self_attn", "mlp", "input_layernorm", "post_attention_layernorm"),
    "self_attn": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "mlp": ("gate_proj", "up_proj", "down_proj", "act_fn"),
}
"""The only parts that a layer, its attention and its MLP may have."""


class FusedLayer(nn.Module):
    """A decoder layer for inference.

    It applies a norm, causal attention with rotary positions, a norm, and a gated MLP. Keys and values come from one
    product, residuals are added inside products, and rotations are one complex product in place.
    """

    def __init__(self, layer: Any, linear: MakesLinear) -> None:
        super().__init__()
        attention, mlp = layer.self_attn, layer.mlp
        self.head_dim, self.scaling, self.number = attention.head_dim, attention.scaling, attention.layer_idx
        self.attention_norm, self.mlp_norm = FusedNorm(layer.input_layernorm), FusedNorm(layer.post_attention_layernorm)
        self.query = linear(_pairs_together(attention.q_proj, self.head_dim))
        self.key_value = linear(_stacked(_pairs_together(attention.k_proj, self.head_dim), attention.v_proj))
        self.gate = linear(mlp.gate_proj, ONEDNN_ACTIVATIONS[type(mlp.act_fn).__name__])
        self.out, self.up, self.down = linear(attention.o_proj), linear(mlp.up_proj), linear(mlp.down_proj)

    def forward(
        self,
        hidden_states: Float[Tensor, "batch tokens dim"],
        *,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache_position: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = False,
        only_at: Int[Tensor, " batch"] | None = None,
        probe: Any = None,
    ) -> Float[Tensor, "batch _ dim"]:
        """Compute the layer's output states.

        Args:
            hidden_states: the layer's input states.
            position_embeddings: cosines and sines of the positions; position_ids and cache_position are not needed.
            past_key_values: a cache of earlier tokens' keys and values, to which these tokens are added.
            only_at: compute everything except keys and values only for this token of each row.
            probe: a `models.reading.Probe` that sees queries and keys, and may end the pass.

        Raises:
            RuntimeError: a cache is wanted and none is given.
        """
        if use_cache and past_key_values is None:
            raise RuntimeError("fused layers make no key-value cache; pass one, or use_cache=False.")
        x = self.attention_norm(hidden_states)
        rotation = _rotation(*position_embeddings)
        key, value = self._heads(self.key_value(x)).chunk(2, dim=2)
        key = _rotated(key, rotation)
        if only_at is not None:
            hidden_states, x, rotation = (_at(only_at, states) for states in (hidden_states, x, rotation))
            attention_mask = _mask_at(only_at, attention_mask, key.shape[1])
        query, key, value = (
            heads.transpose(1, 2) for heads in (_rotated(self._heads(self.query(x)), rotation), key, value)
        )
        attended = self._attend(query, key, value, past_key_values, attention_mask, probe)
        states = self.out(attended.transpose(1, 2).flatten(2), add=hidden_states)
        x = self.mlp_norm(states)
        return self.down(self.up(x, times=self.gate(x)), add=states)

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, earlier: Any, mask: Tensor | None, probe: Any
    ) -> Tensor:
        if isinstance(earlier, SharedBeginnings):
            earlier.keep(key, value, self.number)
            if probe is not None:
                before = partial(earlier.keys_before, self.number)
                probe.see(self.number, query, key, mask=mask, scale=self.scaling, before=before)
            return earlier.attend(query, key, value, self.number, mask=mask, scale=self.scaling)
        if earlier is not None:
            key, value = earlier.update(key, value, self.number)
        if probe is not None:
            probe.see(self.number, query, key, mask=mask, scale=self.scaling)
        return F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            is_causal=mask is None and query.shape[2] > 1,
            scale=self.scaling,
            enable_gqa=query.shape[1] != key.shape[1],
        )

    def _heads(self, x: Float[Tensor, "batch tokens _"]) -> Float[Tensor, "batch tokens heads head_dim"]:
        return x.unflatten(-1, (-1, self.head_dim))


class FusedNorm(nn.Module):
    """A root-mean-square norm that reads its input twice.

    It computes weight * x / sqrt(mean(x^2) + epsilon).
    """

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.weight, self.epsilon = norm.weight, norm.variance_epsilon

    def forward(self, x: Float[Tensor, "*rows dim"]) -> Float[Tensor, "*rows dim"]:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        return (x * self.weight).mul_(length.square_().div_(x.shape[-1]).add_(self.epsilon).rsqrt_())


def fuse_layers(model: nn.Module, linear: MakesLinear, dtype: torch.dtype) -> int:
    """Replace the layers of a causal decoder on the CPU by fused ones.

    This is for inference only, without a cache; merge adapters before. A layer is replaced if its fused form, in
    float32, gives the same for a few random states; its original weights are then released.

    Args:
        model: the decoder.
        linear: makes the linears of the fused layers.
        dtype: the dtype of the fused layers.

    Returns:
        The number of layers replaced.
    """
    layers, rotary = getattr(model, "layers", None), getattr(model, "rotary_emb", None)
    if not isinstance(layers, nn.ModuleList) or rotary is None:
        return 0
    replaced = 0
    for number, layer in enumerate(layers):
        if _is_made_of_parts(layer) and _is_the_same_fused(layer.float(), rotary):
            layers[number] = FusedLayer(layer.to(dtype), linear)
            replaced += 1
    return replaced


def _is_made_of_parts(layer: Any) -> bool:
    for place, parts in PARTS.items():
        try:
            children = dict(layer.get_submodule(place).named_children())
        except AttributeError:
            return False
        linears = [part for name, part in children.items() if name.endswith("_proj")]
        if {*children} != {*parts} or any(type(part) is not nn.Linear for part in linears):
            return False
    return type(layer.mlp.act_fn).__name__ in ONEDNN_ACTIVATIONS


def _is_the_same_fused(layer: Any, rotary: Any) -> bool:
    x = torch.randn(2, 7, layer.input_layernorm.weight.numel(), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        positions = rotary(x, torch.arange(x.shape[1])[None])
    return stand_in(layer, partial(FusedLayer, layer, PlainLinear), x, position_embeddings=positions) is not None


def _pairs_together(projection: nn.Linear, head_dim: int) -> nn.Linear:
    """Reorder a projection's outputs so that numbers rotated together are neighbours.

    These are the numbers i and i + head_dim / 2 of each head. Queries and keys in the same order have the same dot
    products as before.
    """
    order = torch.arange(projection.out_features).view(-1, 2, head_dim // 2).transpose(1, 2).flatten()
    return _linear(projection.weight[order], None if projection.bias is None else projection.bias[order])


def _stacked(first: nn.Linear, second: nn.Linear) -> nn.Linear:
    bias = None if first.bias is None else torch.cat([first.bias, second.bias])
    return _linear(torch.cat([first.weight, second.weight]), bias)


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias, requires_grad=False)
    return linear


def _rotation(cos: Tensor, sin: Tensor) -> Complex64[Tensor, "rows tokens 1 pairs"]:
    half = cos.shape[-1] // 2  # the other half is the same
    return torch.complex(cos[..., :half].float(), sin[..., :half].float())[:, :, None]


def _rotated(x: Float[Tensor, "batch tokens heads head_dim"], rotation: Tensor) -> Tensor:
    full = x.float()  # x itself, if it is float32
    torch.view_as_complex(full.unflatten(-1, (-1, 2))).mul_(rotation)
    return full.to(x.dtype)


def _at(positions: Int[Tensor, " batch"], x: Tensor) -> Tensor:
    """Select one token of each row and keep the axis.

    A single row is used for all positions.
    """
    rows = torch.arange(len(positions))
    return x.expand(len(positions), *x.shape[1:])[rows, positions][:, None]


def _mask_at(positions: Int[Tensor, " batch"], mask: Tensor | None, num_keys: int) -> Tensor:
    """Make the attention mask of the tokens at the given positions.

    They attend to themselves and everything before them, or as `mask` says.
    """
    if mask is None:
        return (torch.arange(num_keys) <= positions[:, None])[:, None, None]
    return _at(positions, mask.transpose(1, 2)).transpose(1, 2)
