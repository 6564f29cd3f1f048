"""Reading of a few items in rounds, each guided by the scores so far."""

from collections.abc import Callable, Generator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

AskScores = Generator[Int[np.ndarray, " asked"], Float[np.ndarray, " asked"], "ItemsRead"]
"""Yields the positions of items to score, which are new, and receives their scores."""
Promise = Callable[[Int[np.ndarray, " read"], Float[np.ndarray, " read"]], Float[np.ndarray, " items"]]
"""Approximates the scores of all items from the positions and scores of those read so far."""


class ItemsRead(NamedTuple):
    """The items that a search has read, best first, equal ones in their order."""

    positions: Int[np.ndarray, " read"]
    scores: Float[np.ndarray, " read"]


def read_in_rounds(
    promise: Promise,
    num_items: int,
    *,
    first: Int[np.ndarray, " first"],
    budget: int,
    rounds: int,
    keep: Bool[np.ndarray, " items"] | None = None,
) -> AskScores:
    """Read some items first, then in each round those that the scores so far promise.

    Args:
        promise: approximates all scores; asked before each round, with nothing read if `first` is empty.
        first: positions of the items to read first; may be empty.
        budget: the most items to read, the first ones included.
        rounds: rounds after the first items, in nearly equal parts.
        keep: whether each item may be read after the first ones (None: all may).
    """
    read, known = first, np.empty(0)
    if len(first):
        known = yield first
    open_items = np.ones(num_items, dtype=bool) if keep is None else keep.copy()
    open_items[read] = False
    for size in _sizes(min(budget - len(first), int(open_items.sum())), rounds):
        promised = np.where(open_items, promise(read, known), -np.inf)
        best = np.sort(np.argsort(-promised, kind="stable")[:size])
        known, read = np.concatenate([known, (yield best)]), np.concatenate([read, best])
        open_items[best] = False
    order = np.lexsort((read, -known))
    return ItemsRead(read[order], known[order])


def _sizes(count: int, rounds: int) -> list[int]:
    """Split a number of items into rounds of nearly equal sizes, the first ones larger."""
    whole, more = divmod(max(count, 0), rounds)
    return [size for number in range(rounds) if (size := whole + (number < more))]
