"""Reading of a causal model's attention within its ordinary passes.

Queries and keys of chosen layers are seen on their way into the fast kernels, and only products of chosen rows are
computed beside them. A model of transformers hands its attention over by name; a fused layer does so by itself.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from shortlist.data.heads import Head
from shortlist.errors import UserError
from shortlist.math.attention import attention_mass, last_logits
from shortlist.models.backbone import transformer_layers
from shortlist.models.kernels.fused import FusedLayer

WITH_PROBE = "sdpa_that_is_read"
"""The attention's name in transformers: sdpa, with queries and keys shown to a `Probe`."""
FAMILIES = "LLaMA, Mistral, Qwen2, Qwen3, Gemma, Granite and others like them"
"""Models whose attention can be read, for errors."""
PLAIN_ERROR = 1e-3
"""The largest error of what is read, in the check of a model."""

States = Float[Tensor, "rows _ _ size"]


class EnoughReadError(Exception):
    """Enough of a pass has been read; the rest need not be computed."""


class Signal(Protocol):
    """Makes numbers of tokens from the queries of some rows, and the keys."""

    def __call__(self, query: Tensor, key: Tensor, *, scale: float, seen: Tensor | None) -> Tensor:
        """Compute a number for each head and token."""
        ...


SIGNALS: dict[str, Signal] = {"mass": attention_mass, "qk": last_logits}
"""What is read: the rows' mean attention, or the product of keys with the last row's query."""


@dataclass
class Probe:
    """The attention to read in one forward pass.

    Attributes:
        heads: the numbers of the heads to read, by layer.
        asking: for each row of the pass, the places of the tokens whose attention is read, in the pass.
        last: the layer in whose attention the pass ends (None: it does not end early).
        over: for each row, the keys among which attention is shared (empty: all that a token sees).
        signal: a key of SIGNALS.
        found: what was read, by layer: for each row heads x tokens.
    """

    heads: Mapping[int, Int[Tensor, " heads"]] = field(default_factory=dict)
    asking: Sequence[slice] = ()
    last: int | None = None
    over: Sequence[slice] = ()
    signal: str = "mass"
    found: dict[int, list[Float[Tensor, "heads tokens"]]] = field(default_factory=dict)

    def see(
        self,
        number: int,
        query: States,
        key: States,
        *,
        mask: Tensor | None,
        scale: float,
        before: Callable[[int], Float[Tensor, "_ _ size"]] | None = None,
    ) -> None:
        """See the queries and keys of a layer.

        Args:
            number: the layer's number.
            query: the rotated queries of the pass.
            key: the rotated keys, those of a cache among them.
            mask: which keys the queries see (None: themselves and earlier ones).
            scale: multiplies the products.
            before: returns a row's keys that stand before `key`, all of which are seen.

        Raises:
            EnoughReadError: the pass ends here.
        """
        if number in self.heads:
            self.found[number] = [
                self._of_row(row, self.heads[number], query, key, mask, scale, before)
                for row in range(len(self.asking))
            ]
        if number == self.last:
            raise EnoughReadError

    def _of_row(
        self, row: int, heads: Tensor, query: States, key: States, mask: Tensor | None, scale: float, before: Any
    ) -> Float[Tensor, "heads tokens"]:
        asking = self.asking[row]
        keys = key[row] if before is None else torch.cat([before(row), key[row]], 1)
        seen = _seen(row, asking, query.shape[2], key.shape[2], mask, query.device)
        if keys.shape[1] > key.shape[2]:
            seen = torch.nn.functional.pad(seen, (keys.shape[1] - key.shape[2], 0), value=True)
        if self.over:
            keys, seen = keys[:, self.over[row]], seen[..., self.over[row]]
        groups = query.shape[1] // keys.shape[0]
        with torch.autocast(query.device.type, enabled=False):
            return SIGNALS[self.signal](query[row, heads, asking], keys[heads // groups], scale=scale, seen=seen)


def _seen(
    row: int, asking: slice, num_queries: int, num_keys: int, mask: Tensor | None, device: torch.device
) -> Bool[Tensor, "rows tokens"]:
    """Say which keys the asking tokens of a row see."""
    if mask is None:
        places = torch.arange(num_keys, device=device)
        return places <= (places[num_keys - num_queries :])[asking, None]
    own = mask[row % len(mask), 0, asking, :num_keys]
    return own if own.dtype == torch.bool else own >= 0


def _attend(
    module: torch.nn.Module, query: States, key: States, value: States, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Compute attention as sdpa does, and show queries and keys to the probe."""
    probe: Probe | None = options.pop("probe", None)
    if probe is not None:
        number: Any = module.layer_idx
        probe.see(number, query, key, mask=attention_mask, scale=options["scaling"])
    return sdpa_attention_forward(module, query, key, value, attention_mask, **options)


def make_readable(model: PreTrainedModel) -> None:
    """Let a model's attention be read, in place; it computes the same as before.

    Raises:
        UserError: this model's attention is computed in another way than sdpa's.
    """
    if _is_fused(model) or model.config._attn_implementation == WITH_PROBE:
        return
    AttentionInterface.register(WITH_PROBE, _attend)
    AttentionMaskInterface.register(WITH_PROBE, sdpa_mask)
    before = model.config._attn_implementation or "sdpa"
    if not model._supports_sdpa or not _reads_right(model):
        model.set_attn_implementation(before)
        raise UserError(
            f"{type(model).__name__}: its attention cannot be read here; take a model whose attention is a softmax of "
            f"products of queries and keys, such as {FAMILIES}, or another --method."
        )
    model.set_attn_implementation(WITH_PROBE)


def _is_fused(model: PreTrainedModel) -> bool:
    return all(isinstance(layer, FusedLayer) for layer in transformer_layers(model))


def _reads_right(model: PreTrainedModel) -> bool:
    """Whether what is read of a few tokens is what the model's plain attention says."""
    layers, heads = model.config.num_hidden_layers, model.config.num_attention_heads
    device = next(model.parameters()).device
    if device.type == "meta":  # the same model is looked at when it has weights
        return True
    ids = torch.arange(7, device=device)[None] % model.config.vocab_size
    probe = Probe({layer: torch.arange(heads, device=device) for layer in range(layers)}, [slice(0, 7)])
    try:
        with torch.no_grad():
            model.set_attn_implementation("eager")
            plain = model(input_ids=ids, use_cache=False, output_attentions=True).attentions
            model.set_attn_implementation(WITH_PROBE)
            model(input_ids=ids, use_cache=False, probe=probe)
    except (TypeError, ValueError, AttributeError, KeyError):
        return False
    if not plain or len(probe.found) != layers:
        return False
    most = PLAIN_ERROR if next(model.parameters()).dtype == torch.float32 else 0.05
    return all(
        float((weights[0].float().mean(1) - probe.found[layer][0]).abs().max()) < most
        for layer, weights in enumerate(plain)
    )


def all_heads(model: PreTrainedModel) -> list[Head]:
    """List all heads of a model."""
    return [
        Head(layer, number)
        for layer in range(model.config.num_hidden_layers)
        for number in range(model.config.num_attention_heads)
    ]


def by_layer(heads: Iterable[Head], device: torch.device) -> dict[int, Int[Tensor, " heads"]]:
    """Group heads by their layers, in ascending order."""
    grouped: dict[int, list[int]] = {}
    for layer, number in sorted(heads):
        grouped.setdefault(layer, []).append(number)
    return {layer: torch.tensor(numbers, device=device) for layer, numbers in grouped.items()}


@contextmanager
def until_read() -> Iterator[None]:
    """End a pass, without an error, where enough was read."""
    with suppress(EnoughReadError):
        yield
