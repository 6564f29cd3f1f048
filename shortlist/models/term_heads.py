"""Heads that weigh a text's terms: logits, a linear layer on tokens, or a list."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar, cast, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import AutoModelForMaskedLM, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from shortlist.math.term_pooling import log_weights, strongest_logits, summed_weights
from shortlist.models.lookups import LOOKUP_KEY
from shortlist.text.contract import TERMS_SUM, Reading

SHIFT = 8.0
"""What a new head adds to states before GELU, which then leaves them as they are (to 1e-14 where they are above -2)."""
FAR = 4.0
"""How many standard deviations above the mean a new head's logit has to be to count. The norm before it gives states a
variance of 1, so that the logits of states without a direction have the norm of a term's embedding as their own."""


@final
class VocabularyHead(nn.Module):
    """A language model's head, whose logits at all tokens become one weight for each term.

    Args:
        reading: says how logits become weights.
        transform: the layers before the output embedding, if any.
        weight: the output embedding (None: the backbone's input embedding).
        bias: added to the logits.
        keys: the names of parameters -> their keys in a folder of transformers.
    """

    reads_states = True

    def __init__(
        self,
        reading: Reading,
        transform: nn.Module | None = None,
        weight: Float[Tensor, "vocabulary dim"] | None = None,
        bias: Float[Tensor, " vocabulary"] | None = None,
        keys: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        super().__init__()
        self.reading, self.transform, self.keys = reading, transform, dict(keys)
        self.weight = None if weight is None else nn.Parameter(weight)
        self.bias = None if bias is None else nn.Parameter(bias)

    def forward(
        self,
        states: Float[Tensor, "texts tokens dim"],
        wanted: Bool[Tensor, "texts tokens"],
        token_ids: Int[Tensor, "texts tokens"],
        embedding: Float[Tensor, "vocabulary dim"],
    ) -> Float[Tensor, "texts vocabulary"]:
        """Compute each text's weight of each term, in float32.

        Args:
            states: the backbone's states of the tokens.
            wanted: the tokens that count.
            token_ids: the ids of the tokens, without marks.
            embedding: the backbone's input embedding.
        """
        reading = self.reading
        if self.transform is not None:
            states = self.transform(inputs_embeds=states).logits
        embedding = embedding if self.weight is None else self.weight
        if reading.pooling == TERMS_SUM:
            return summed_weights(states, wanted, embedding, self.bias, scale=reading.logit_scale, logs=reading.logs)
        logits = strongest_logits(states, wanted, embedding, self.bias, scale=reading.logit_scale)
        return log_weights(logits, reading.logs)


@final
class TokenHead(nn.Module):
    """A linear layer that weighs each token of a text as a term.

    Args:
        logs: how often the logarithm is applied.
        summed: add up the weights of a term that a text has more than once, instead of taking the greatest.
        keys: the names of parameters -> their keys in a folder.

    https://arxiv.org/abs/2106.14807
    """

    reads_states = True

    def __init__(
        self,
        weight: Float[Tensor, " dim"],
        bias: Float[Tensor, "1"],
        *,
        logs: int,
        summed: bool,
        keys: Mapping[str, str],
    ) -> None:
        super().__init__()
        self.logs, self.summed, self.keys = logs, summed, dict(keys)
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(
        self,
        states: Float[Tensor, "texts tokens dim"],
        wanted: Bool[Tensor, "texts tokens"],
        token_ids: Int[Tensor, "texts tokens"],
        embedding: Float[Tensor, "vocabulary dim"],
    ) -> Float[Tensor, "texts vocabulary"]:
        """Compute each text's weight of each term, in float32; arguments as for `VocabularyHead`."""
        weights = log_weights(states.float() @ self.weight.float() + self.bias.float(), self.logs) * wanted
        empty = weights.new_zeros(len(states), len(embedding))
        if self.summed:
            return empty.scatter_add(1, token_ids, weights)
        return empty.scatter_reduce(1, token_ids, weights, "amax")


@final
class Lookup(nn.Module):
    """A list of weights, from which a text takes those for its tokens."""

    reads_states = False
    keys: ClassVar[Mapping[str, str]] = {"weight": LOOKUP_KEY}

    def __init__(self, weight: Float[Tensor, " vocabulary"]) -> None:
        super().__init__()
        self.register_buffer("weight", weight)

    def forward(
        self,
        states: Float[Tensor, "texts tokens dim"] | None,
        wanted: Bool[Tensor, "texts tokens"],
        token_ids: Int[Tensor, "texts tokens"],
        embedding: Float[Tensor, "vocabulary dim"],
    ) -> Float[Tensor, "texts vocabulary"]:
        """Look up each text's weight of each term; arguments as for `VocabularyHead`."""
        weight = cast(Tensor, self.weight)
        there = weight.new_zeros(len(token_ids), len(weight))
        return there.scatter_reduce(1, token_ids, wanted.to(weight.dtype), "amax") * weight


@final
class _Given(nn.Module):
    """Stands in the place of a backbone, and gives the states that it is given."""

    def forward(self, *others: Any, inputs_embeds: Tensor, **more: Any) -> BaseModelOutput:
        """Return the states as a backbone's."""
        return BaseModelOutput(last_hidden_state=cast(Any, inputs_embeds))


@final
class _Unchanged(nn.Module):
    """Stands in the place of an output embedding."""

    def forward(self, states: Tensor) -> Tensor:
        """Return the states."""
        return states


def masked_head(
    backbone: PreTrainedModel,
    reading: Reading,
    stored: Mapping[str, Tensor],
    *,
    seed: int | None = None,
    empty: bool = False,
) -> tuple[VocabularyHead | None, list[str]]:
    """Make the masked-language-model head that transformers has for a backbone.

    Args:
        backbone: the encoder without its head.
        reading: says how logits become weights.
        stored: the tensors of the folder beside the backbone's, by key.
        seed: the seed of a new head's weights, for a folder that has none (None: make none).
        empty: make it without contents, on the device `meta`.

    Returns:
        The head, and the keys that the folder lacks; no head if it lacks any and none is to be made.
    """
    with torch.device("meta"):
        model = AutoModelForMaskedLM.from_config(backbone.config, trust_remote_code=False, dtype=torch.float32)
    place = next(name for name, module in model.named_modules() if module is model.get_output_embeddings())
    tied: Mapping[str, str] = getattr(model, "_tied_weights_keys", None) or {}
    untied = not getattr(backbone.config, "tie_word_embeddings", True)  # which is said of the bias, too
    weight_key, bias_key = f"{place}.weight", f"{place}.bias"
    bias_key = bias_key if untied else tied.get(bias_key, bias_key)
    has_bias = getattr(model.get_output_embeddings(), "bias", None) is not None
    model.set_submodule(place, _Unchanged())
    setattr(model, model.base_model_prefix, _Given())
    if has_bias and bias_key != f"{place}.bias":  # it is the head's own parameter, beside the output embedding
        parent, _, name = bias_key.rpartition(".")
        delattr(model.get_submodule(parent), name)
    size, dim = cast(Tensor, backbone.get_input_embeddings().weight).shape
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    shapes |= {bias_key: torch.Size([size])} if has_bias else {}
    shapes |= {weight_key: torch.Size([size, dim])} if untied else {}
    lacking = sorted(shapes.keys() - stored.keys())
    other = [key for key in shapes.keys() & stored.keys() if stored[key].shape != shapes[key]]
    if other or (lacking and seed is None and not empty):
        return None, lacking + other
    model.to_empty(device="meta" if empty else "cpu")
    if not empty:
        embedding = cast(Tensor, backbone.get_input_embeddings().weight).detach().float()
        std = getattr(backbone.config, "initializer_range", 0.02)
        values = _new_weights(shapes, embedding, weight_key, bias_key, std=std, seed=seed) if lacking else stored
        model.load_state_dict({name: values[name].float() for name, _ in model.named_parameters()})
    else:
        values = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    keys = {f"transform.{name}": name for name, _ in model.named_parameters()} | {
        "bias": bias_key,
        "weight": weight_key,
    }
    weight = values[weight_key].float() if untied else None
    bias = values[bias_key].float() if has_bias else None
    return VocabularyHead(reading, model.eval(), weight, bias, keys), lacking


def _new_weights(
    shapes: Mapping[str, torch.Size],
    embedding: Float[Tensor, "vocabulary dim"],
    weight_key: str,
    bias_key: str,
    *,
    std: float,
    seed: int | None,
) -> dict[str, Tensor]:
    """Make a head that weighs the terms whose embeddings are near to a state.

    A random layer would know nothing of them, and give every text nearly all terms. A square one starts as the
    identity: states moved by SHIFT pass GELU nearly unchanged, and the norm behind it takes the move away.
    """
    generator = torch.Generator().manual_seed(seed or 0)
    values = {
        key: torch.randn(shape, generator=generator) * std
        if len(shape) > 1
        else torch.full(shape, float(key.endswith("weight")))
        for key, shape in shapes.items()
    }
    dim = embedding.shape[1]
    for key, shape in shapes.items():
        shift_key = f"{key.removesuffix('weight')}bias"
        if shape == (dim, dim) and key != weight_key:
            values[key] = torch.eye(dim)
            if shift_key in values:
                values[shift_key] += SHIFT
    given = {weight_key: embedding.clone(), bias_key: -FAR * embedding.norm(dim=1)}
    return values | {key: value for key, value in given.items() if key in shapes}
