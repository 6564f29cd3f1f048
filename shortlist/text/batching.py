"""Batches of texts of similar length, which need little padding."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from jaxtyping import Int

from shortlist.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")


def windows(items: Iterable[T], count: int) -> Iterator[list[T]]:
    """Yield the items in lists of `count`; the last one may be shorter.

    Only one list is held in memory at a time.
    """
    stream = iter(items)
    while window := list(islice(stream, count)):
        yield window


def batches_by_size(items: Sequence[T], sizes: Sequence[int], *, most: int, count: int) -> Iterator[Sequence[T]]:
    """Yield the items in parts of bounded number and size.

    A part has at most `count` items, whose sizes add up to at most `most`. An item that is larger is a part by itself.
    """
    start, size = 0, 0
    for end in range(len(items)):
        if end > start and (end - start == count or size + sizes[end] > most):
            yield items[start:end]
            start, size = end, 0
        size += sizes[end]
    if start < len(items):
        yield items[start:]


def token_batches(lengths: Sequence[int] | np.ndarray, token_budget: int) -> list[np.ndarray]:
    """Split texts into batches of similar length within a token budget.

    Each batch is as large as `longest * count <= token_budget` allows. The longest texts come first, so that memory
    runs out at the beginning or never, and the time left is overestimated rather than underestimated.

    Args:
        lengths: number of tokens of each text.
        token_budget: tokens per batch, padding included; a text longer than that is a batch of its own.

    Returns:
        Indices into `lengths`, with every index in exactly one batch; texts of equal length keep their order.

    Raises:
        UserError: the budget is below one token.
    """
    if token_budget < 1:
        raise UserError(f"token_budget is {token_budget}, expected at least 1; 2048 suits a CPU.")
    lengths = np.asarray(lengths, dtype=np.int64)
    order = np.argsort(-lengths, kind="stable")
    batches, start = [], 0
    while start < len(order):
        longest = max(int(lengths[order[start]]), 1)
        end = start + max(token_budget // longest, 1)
        batches.append(order[start:end])
        start = end
    return batches


def pad(
    token_ids: Sequence[Sequence[int] | np.ndarray], pad_id: int
) -> "tuple[Int[Tensor, 'batch tokens'], Int[Tensor, ' batch']]":
    """Pad token ids on the right into one rectangle.

    With padding on the right, a causal model needs no mask, as no real token ever sees a padding token.

    Returns:
        Token ids, and the number of real tokens in each row.
    """
    import torch

    lengths = np.fromiter(map(len, token_ids), dtype=np.int64, count=len(token_ids))
    ids = np.full((len(token_ids), lengths.max(initial=0)), pad_id, dtype=np.int64)
    if ids.size:
        ids[np.arange(ids.shape[1]) < lengths[:, None]] = np.concatenate(token_ids)
    return torch.from_numpy(ids), torch.from_numpy(lengths)
