"""Prompt and prefix tuning: what is learned stands before each text.

The text's own positions stay as they are.

A prompt is read as vectors of further tokens, a prefix as keys and values of further tokens in each layer. The backbone
is called as before, with token ids, and returns the states of these.
"""

from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

VIRTUAL = "virtual"
"""The name in the backbone."""


class SoftPrompt(nn.Module):
    """Vectors that are read before the vectors of a text's tokens.

    Args:
        weight: the vectors.
    """

    fuses = True
    """Whether layers may be replaced by fused ones."""

    def __init__(self, weight: Float[Tensor, "tokens dim"]) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def before(self, model: Any, args: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Put the vectors before the vectors of the call's token ids."""
        options = _with_longer_mask(options, len(self.weight))
        vectors = model.get_input_embeddings()(options.pop("input_ids"))
        prompt = self.weight.to(vectors.dtype).expand(len(vectors), -1, -1)
        return args, options | {"inputs_embeds": torch.cat([prompt, vectors], 1)}

    def after(self, model: Any, args: Any, output: Any) -> Any:
        """Take their states away again, unless the last layer was computed for one token only."""
        if output.last_hidden_state.shape[1] > len(self.weight):
            output.last_hidden_state = output.last_hidden_state[:, len(self.weight) :]
        return output


class Prefix(nn.Module):
    """Keys and values that every layer of a decoder attends to before a text's own.

    Args:
        weight: for each virtual token the keys and values of all layers, as PEFT orders them.
        heads: heads of keys and values.
        layers: number of layers.
    """

    fuses = False

    def __init__(self, weight: Float[Tensor, "tokens numbers"], heads: int, layers: int) -> None:
        super().__init__()
        self.weight, self.heads, self.layers = nn.Parameter(weight), heads, layers

    def before(self, model: Any, args: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Call the backbone with a cache that holds the keys and values."""
        batch, cache, kind = len(options["input_ids"]), DynamicCache(), self.weight.device.type
        weight = self.weight.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else self.weight
        parts = weight.view(len(weight), 2 * self.layers, self.heads, -1).permute(1, 2, 0, 3)
        for layer in range(self.layers):
            key, value = (parts[2 * layer + i].expand(batch, -1, -1, -1) for i in range(2))
            cache.update(key, value, layer)
        return args, _with_longer_mask(options, len(weight)) | {"past_key_values": cache}

    def after(self, model: Any, args: Any, output: Any) -> Any:
        """Leave the states as they are; a prefix has none."""
        return output


def attach(model: PreTrainedModel, virtual: SoftPrompt | Prefix) -> None:
    """Let a backbone read virtual tokens before each text, in place."""
    model.add_module(VIRTUAL, virtual)
    model.register_forward_pre_hook(virtual.before, with_kwargs=True)
    model.register_forward_hook(virtual.after)


def vocabulary_prompt(model: PreTrainedModel, tokens: int) -> SoftPrompt:
    """Make a prompt of the vectors of random tokens, drawn by PyTorch's generator."""
    weight = cast(Tensor, model.get_input_embeddings().weight).detach()
    drawn = torch.randint(len(weight), (tokens,))
    return SoftPrompt(weight[drawn.to(weight.device)].float().clone())


def random_prefix(model: PreTrainedModel, tokens: int) -> Prefix:
    """Make a prefix of small random numbers, drawn by PyTorch's generator."""
    config, device = model.config, model.get_input_embeddings().weight.device
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    weight = torch.randn(tokens, config.num_hidden_layers * 2 * heads * head_dim).to(cast(Any, device))
    return Prefix(weight * getattr(config, "initializer_range", 0.02), heads, config.num_hidden_layers)


def num_virtual(model: nn.Module) -> int:
    """Return how many vectors a backbone reads before each text."""
    virtual = getattr(model, VIRTUAL, None)
    return len(virtual.weight) if isinstance(virtual, SoftPrompt) else 0


def _with_longer_mask(options: dict[str, Any], tokens: int) -> dict[str, Any]:
    """Let a call's attention mask, if there is one, show the virtual tokens too."""
    mask = options.get("attention_mask")
    if mask is None:
        return dict(options)
    return options | {"attention_mask": torch.cat([mask.new_ones(len(mask), tokens), mask], 1)}
