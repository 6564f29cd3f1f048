"""Contexts of blocks: documents behind a shared beginning, and a question that sees them all."""

from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from shortlist.errors import UserError
from shortlist.math.attention import span_sums
from shortlist.math.blocks import block_spans
from shortlist.models.attention import AttentionReader
from shortlist.models.cache import RoomyCache, slides
from shortlist.models.heads import OutputHead
from shortlist.models.kernels.beginnings import SharedBeginnings
from shortlist.models.prefixes import PromptIds
from shortlist.models.reading import Probe
from shortlist.text.batching import token_batches

TOKENS_A_PASS = 1024
"""Most tokens of documents in one pass on a CPU behind the shared beginning, as in `models.generator`."""


class Blocks(NamedTuple):
    """The token ids of a context of blocks."""

    first: PromptIds
    """The instruction, with the query."""
    documents: Sequence[PromptIds]
    last: PromptIds
    """The question, up to where the answer begins."""
    asking: slice
    """The tokens of the last block whose attention scores documents."""

    @property
    def lengths(self) -> list[int]:
        """The number of tokens of each block."""
        return [len(self.first), *map(len, self.documents), len(self.last)]


def check_blocks(reader: AttentionReader, layer: int) -> None:
    """Refuse a layer that is not there, and models that count places.

    Raises:
        UserError: the model does not suit blocks.
    """
    layers = reader.backbone.config.num_hidden_layers
    if not 0 <= layer < layers:
        raise UserError(f"--layer is {layer}; the model has layers 0 to {layers - 1}.")
    if slides(reader.backbone):
        raise UserError(
            f"{type(reader.backbone).__name__}: some layers see only the last tokens, so blocks would not be seen as a "
            "whole; take a model without sliding windows."
        )


def score_blocks(
    reader: AttentionReader, blocks: Blocks, *, layer: int, start: int, early: bool = True
) -> Float[Tensor, " docs"]:
    """Score documents by the attention that they get in a layer.

    Attention is shared among the tokens of documents only, averaged over heads and the asking tokens, and added up over
    each document. The order of documents changes nothing but their places.

    Args:
        reader: the model.
        blocks: the context.
        layer: the layer whose attention is read.
        start: the position of the last block's first token.
        early: whether the passes end in that layer; without it the scores are the same, and take longer.
    """
    if not blocks.documents:
        return torch.empty(0)
    last = layer if early else None
    whole = _documents(reader, blocks, last=last)
    num_heads = reader.backbone.config.num_attention_heads
    spans = block_spans(blocks.lengths)
    over = slice(spans[1].start, spans[-2].stop)
    heads = {layer: torch.arange(num_heads, device=reader.device)}
    probe = Probe(heads, [blocks.asking], last, over=[over])
    reader.read_behind(whole, [blocks.last], probe, start=start)
    [mass] = probe.found[layer]
    moved = [slice(span.start - over.start, span.stop - over.start) for span in spans[1:-1]]
    return span_sums(mass.mean(0), moved).cpu()


def answer_blocks(
    reader: AttentionReader, head: OutputHead, blocks: Blocks, *, start: int, most: int, stop: Collection[int]
) -> list[int]:
    """Continue a context of blocks with the likeliest tokens.

    Args:
        reader: the model without its head.
        head: its head.
        blocks: the context.
        start: the position of the last block's first token.
        most: most ids to generate.
        stop: ids after which the answer ends; they are part of it.
    """
    cache = _documents(reader, blocks, last=None)
    said: list[int] = []
    ids = list(blocks.last)
    while len(said) < most and not (said and said[-1] in stop):
        states = reader.run([ids], Probe(), cache=cache, start=start)
        assert states is not None  # such a pass does not end early
        start += len(ids)
        with torch.inference_mode():
            ids = [int(head(states[:, -1])[0].argmax())]
        said += ids
    return said


def _documents(reader: AttentionReader, blocks: Blocks, *, last: int | None) -> RoomyCache:
    """Compute keys and values of the first block and all documents, as one row."""
    first = reader.begin(blocks.first, last=last)
    spans = block_spans(blocks.lengths)
    buffers: list[tuple[Tensor, Tensor]] = []
    for layer in first.layers:
        if layer.is_initialized:
            both = tuple(_with_room(states, spans[-1].start) for states in (layer.keys, layer.values))
            buffers.append(both)  # pyright: ignore[reportArgumentType]
    lengths = [len(ids) for ids in blocks.documents]
    budget = min(reader.token_budget, TOKENS_A_PASS) if reader.splits else reader.token_budget
    for batch in token_batches(lengths, budget) if lengths else []:
        rows = [blocks.documents[place] for place in batch]
        cache = reader.read_behind(first, rows, Probe(last=last), keeps=True)
        places = torch.cat([torch.arange(spans[1 + n].start, spans[1 + n].stop) for n in batch]).to(reader.device)
        own = torch.tensor([len(ids) for ids in rows], device=reader.device)
        for buffer, states in zip(buffers, _own(cache, len(blocks.first)), strict=True):
            _put(buffer, states, own, places)
    whole = RoomyCache(reader.backbone.config)
    for layer, (keys, values) in zip(whole.layers, buffers, strict=False):
        layer.fill(keys, values, extra=len(blocks.last))
    return whole


def _with_room(states: Float[Tensor, "1 heads tokens size"], room: int) -> Float[Tensor, "1 heads room size"]:
    buffer = states.new_empty(1, states.shape[1], room, states.shape[3])
    buffer[:, :, : states.shape[2]] = states
    return buffer


def _own(cache: Any, begun: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the rows' own keys and values of each layer."""
    if isinstance(cache, SharedBeginnings):
        yield from (cache.own[number] for number in sorted(cache.own))
        return
    for layer in cache.layers:
        if layer.is_initialized and layer.keys.shape[2] > begun:
            yield layer.keys[:, :, begun:], layer.values[:, :, begun:]


def _put(buffer: tuple[Tensor, Tensor], states: tuple[Tensor, Tensor], lengths: Tensor, places: Tensor) -> None:
    """Put the rows' real tokens into their places in one row."""
    for into, rows in zip(buffer, states, strict=True):
        real = torch.arange(rows.shape[2], device=rows.device) < lengths[:, None]
        with torch.inference_mode():
            into[0, :, places] = rows.transpose(1, 2)[real].transpose(0, 1)
