"""Attention to beginnings that several rows share, without a copy for each row."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer

Heads = Float[Tensor, "rows _ _ size"]  # keys have fewer heads than queries, and another number of tokens
LARGEST_ERROR = 1e-4
"""The largest error of the split attention in the check below."""


@final
class SharedBeginnings(Cache):
    """The keys and values of common beginnings, to which rows of tokens attend.

    What a fused layer is given in place of a cache. To the model nothing seems to come before the rows, so it masks
    only their own tokens; positions have to be given.

    Args:
        before: keys and values of the beginnings, right-aligned, by layer.
        lengths: the length of each beginning.
        counts: the number of consecutive rows that begin with each of them, by its number, in order.
        keeps: whether the rows' own keys and values are kept, too.

    Attributes:
        own: the rows' own keys and values by layer, if they are kept.
    """

    def __init__(
        self,
        before: Sequence[tuple[Heads, Heads]],
        lengths: Sequence[int],
        counts: Mapping[int, int],
        *,
        keeps: bool = False,
    ) -> None:
        super().__init__(layers=[DynamicLayer() for _ in before])
        self.before, self.lengths, self.counts, self.keeps = before, lengths, counts, keeps
        self.own: dict[int, tuple[Heads, Heads]] = {}

    def keep(self, key: Heads, value: Heads, number: int) -> None:
        """Keep the rows' own keys and values of a layer, if that is wanted."""
        if self.keeps:
            self.own[number] = key, value

    def keys_before(self, number: int, row: int) -> Float[Tensor, "heads tokens size"]:
        """Return a layer's keys of the beginning of a row."""
        places = [place for place, count in self.counts.items() for _ in range(count)]
        keys = self.before[number][0][places[row]]
        return keys[:, keys.shape[1] - self.lengths[places[row]] :]

    def attend(
        self, query: Heads, key: Heads, value: Heads, number: int, *, mask: Tensor | None, scale: float
    ) -> Heads:
        """Attend to the beginnings and to the rows' own tokens.

        Args:
            number: the layer's number.
            mask: which of their own tokens the queries see (None: themselves and earlier ones).
        """
        own, own_logs = attention(query, key, value, mask=mask, causal=mask is None, scale=scale)
        split = zip(query.split(list(self.counts.values())), self.counts, strict=True)
        parts = [self._to_beginning(rows, place, number, scale) for rows, place in split]
        begun, begun_logs = parts[0] if len(parts) == 1 else (torch.cat(part) for part in zip(*parts, strict=True))
        return torch.lerp(begun, own, torch.sigmoid(own_logs - begun_logs)[..., None])

    def _to_beginning(self, query: Heads, place: int, number: int, scale: float) -> tuple[Heads, Tensor]:
        """Attend to one beginning from the rows that share it, together."""
        rows, heads, tokens, size = query.shape
        start = self.before[number][0].shape[2] - self.lengths[place]
        key, value = (states[place : place + 1, :, start:] for states in self.before[number])
        together = query.transpose(0, 1).reshape(1, heads, rows * tokens, size)
        found, logs = attention(together, key, value, mask=None, causal=False, scale=scale)
        apart = found.view(heads, rows, tokens, size).transpose(0, 1)
        return apart, logs.view(heads, rows, tokens).transpose(0, 1)


def attention(
    query: Heads, key: Heads, value: Heads, *, mask: Tensor | None, causal: bool, scale: float
) -> tuple[Heads, Float[Tensor, "rows heads tokens"]]:
    """Compute attention, and the logarithm of each query's sum of exponents."""
    repeats = query.shape[1] // key.shape[1]
    if repeats > 1:
        key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    if mask is not None and mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape, dtype=query.dtype).masked_fill_(~mask, -torch.inf)
    attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return attend(query, key, value, 0.0, causal, attn_mask=mask, scale=scale)


@cache
def splitting_is_right() -> bool:
    """Whether attention may be split, which is checked once per process.

    PyTorch's private attention for CPUs has to exist, and the parts to give the same as the whole.
    """
    source = torch.Generator().manual_seed(0)  # does not disturb the caller's random numbers
    query, key, value = (torch.randn(3, heads, 5, 16, generator=source) for heads in (4, 2, 2))
    before = torch.randn(2, 2, 7, 16, generator=source), torch.randn(2, 2, 7, 16, generator=source)
    lengths, counts = [7, 4], {0: 2, 1: 1}
    try:
        found = SharedBeginnings([before], lengths, counts).attend(query, key, value, 0, mask=None, scale=0.25)
        return float((found - _whole(query, key, value, before, lengths, counts)).abs().max()) < LARGEST_ERROR
    except (AttributeError, RuntimeError, TypeError):  # missing or changed in this PyTorch
        return False


def _whole(query: Heads, key: Heads, value: Heads, before: Any, lengths: list[int], counts: Mapping[int, int]) -> Heads:
    """Attend to everything at once, from copies."""
    repeats = torch.tensor(list(counts.values()))
    begun = [states.repeat_interleave(repeats, 0) for states in before]
    places = torch.arange(7 + 5)
    starts = (7 - torch.tensor(lengths)).repeat_interleave(repeats)
    mask = (places >= starts[:, None, None]) & (places <= 7 + torch.arange(5)[:, None])
    keys, values = (torch.cat(pair, 2) for pair in zip(begun, (key, value), strict=True))
    return F.scaled_dot_product_attention(query, keys, values, attn_mask=mask[:, None], scale=0.25, enable_gqa=True)
