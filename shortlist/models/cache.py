"""Keys and values of earlier tokens, in buffers with room for later ones."""

from collections.abc import Sequence
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer


class RoomyLayer(DynamicLayer):
    """Keys and values of one layer, with room for tokens that are to come.

    It keeps all tokens even where a layer attends to the last few only; the mask sees to that.
    """

    keys: Tensor  # pyright: ignore[reportIncompatibleVariableOverride]
    values: Tensor  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self) -> None:
        super().__init__()
        self.buffers: tuple[Tensor, Tensor] | None = None
        self.extra = 0

    def fill(self, keys: Tensor, values: Tensor, *, extra: int = 0) -> None:
        """Begin with these keys and values, with room for some more tokens."""
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True
        self.keys, self.values, self.extra, self.buffers = keys, values, extra, None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Add keys and values of the next tokens, and return the whole of both."""
        start = self.get_seq_length()
        if not start:
            self.fill(key_states, value_states, extra=self.extra)
            return key_states, value_states
        end = start + key_states.shape[2]
        if self.buffers is None or end > self.buffers[0].shape[2]:
            room = max(end, start + self.extra)
            self.buffers = _with_room(self.keys, room), _with_room(self.values, room)
        for buffer, states in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[:, :, start:end] = states
        self.keys, self.values = (buffer[:, :, :end] for buffer in self.buffers)
        return self.keys, self.values


def _with_room(states: Float[Tensor, "rows heads tokens size"], room: int) -> Float[Tensor, "rows heads room size"]:
    rows, heads, tokens, size = states.shape
    buffer = states.new_empty(rows, heads, room, size)
    buffer[:, :, :tokens] = states
    return buffer


def is_plain(model: PreTrainedModel) -> bool:
    """Whether every layer of a model keeps only keys and values of its tokens."""
    layers = DynamicCache(config=model.config).layers
    return bool(layers) and all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)


def slides(model: PreTrainedModel) -> bool:
    """Whether some layers attend only to the last tokens in the cache, by their places."""
    return any(isinstance(layer, DynamicSlidingWindowLayer) for layer in DynamicCache(config=model.config).layers)


@final
class RoomyCache(Cache):
    """The keys and values of every layer of a model.

    Args:
        config: the model's configuration.
    """

    layers: list[RoomyLayer]  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, config: Any) -> None:
        super().__init__(layers=[RoomyLayer() for _ in DynamicCache(config=config).layers])
        self.config = config

    def rows(self, chosen: Sequence[int], *, last: int, extra: int) -> "RoomyCache":
        """Copy some rows, repeated or not, with room for more tokens.

        Args:
            last: copy only the last so many tokens.
            extra: the number of tokens to leave room for.
        """
        copy, index = RoomyCache(self.config), torch.tensor(chosen, device=self.layers[0].keys.device)
        for layer, ours in zip(copy.layers, self.layers, strict=True):
            if not ours.is_initialized:  # a pass that ended before this layer
                continue
            start = ours.keys.shape[2] - last
            layer.fill(ours.keys[index, :, start:], ours.values[index, :, start:], extra=extra)
        return copy

    def keep(self, rows: Sequence[int]) -> None:
        """Keep only these rows."""
        index = torch.tensor(rows, device=self.layers[0].keys.device)
        for layer in self.layers:
            layer.fill(layer.keys[index], layer.values[index], extra=layer.extra)

    def right_aligned(self, lengths: Sequence[int], ends: Sequence[int], *, extra: int = 0) -> "RoomyCache":
        """Copy all rows so that the last token of each is in the last place.

        What is before a row's first token is 0, and has to be masked.

        Args:
            lengths: the number of tokens of each row.
            ends: where they end now.
        """
        copy, longest = RoomyCache(self.config), max(lengths)
        for layer, ours in zip(copy.layers, self.layers, strict=True):
            both = []
            for states in (ours.keys, ours.values):
                moved = states.new_zeros(*states.shape[:2], longest, states.shape[3])
                for row, (length, end) in enumerate(zip(lengths, ends, strict=True)):
                    moved[row, :, longest - length :] = states[row, :, end - length : end]
                both.append(moved)
            layer.fill(both[0], both[1], extra=extra)
        return copy


def joined_caches(caches: Sequence[RoomyCache], *, extra: int) -> RoomyCache:
    """Put the rows of several right-aligned caches under one another."""
    copy, longest = RoomyCache(caches[0].config), max(cache.get_seq_length() for cache in caches)
    for layer, *parts in zip(copy.layers, *(cache.layers for cache in caches), strict=True):
        keys, values = (
            torch.cat([pad(states, (0, 0, longest - states.shape[2], 0)) for states in every])
            for every in zip(*((part.keys, part.values) for part in parts), strict=True)
        )
        layer.fill(keys, values, extra=extra)
    return copy
