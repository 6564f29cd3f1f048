"""Who sees whom, and where tokens stand, in a context of blocks.

The first block is an instruction and the last one a question; those between are documents. A document sees itself and
the first block, and the last block sees everything. All documents begin at the same position.

https://arxiv.org/abs/2510.05396
"""

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise

import torch
from jaxtyping import Bool, Int
from torch import Tensor

OFFSETS: dict[str, Callable[[Sequence[int]], int]] = {
    "paper": lambda lengths: 8192,
    "code": lambda lengths: 16384,
    "near": lambda lengths: lengths[0] + max(lengths[1:-1], default=0),
}
"""The position of the last block's first token, from the lengths of all blocks: what BlockRank's paper says, what its
code does, and right behind the longest document, for models with fewer positions."""


BLOCK_LENGTH = 384
"""Most tokens of a document's block if nobody says another number; MS MARCO's passages need 160."""


def usual_layer(num_layers: int) -> int:
    """Return the layer whose attention is read if nobody says another: 20 of 32."""
    return 5 * num_layers // 8


def block_spans(lengths: Sequence[int]) -> list[slice]:
    """Return the tokens of each block, if the blocks stand one behind another."""
    return [slice(start, end) for start, end in pairwise([0, *accumulate(lengths)])]


def block_positions(lengths: Sequence[int], start: int) -> Int[Tensor, " tokens"]:
    """Return the position of each token.

    Args:
        lengths: the number of tokens of each block.
        start: the position of the last block's first token.
    """
    first, *documents, last = lengths
    parts = [torch.arange(first), *(first + torch.arange(length) for length in documents), start + torch.arange(last)]
    return torch.cat(parts)


def block_mask(lengths: Sequence[int]) -> Bool[Tensor, "tokens tokens"]:
    """Say which tokens (columns) each token (rows) sees."""
    blocks = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    row, column = blocks[:, None], blocks[None]
    allowed = (row == column) | (column == 0) | (row == len(lengths) - 1)
    return allowed & torch.ones(len(blocks), len(blocks), dtype=torch.bool).tril()
