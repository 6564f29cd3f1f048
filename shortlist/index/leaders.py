"""The best documents of several queries, while scores of ever more documents stream past."""

from threading import Lock
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from shortlist.math.scoring import at_least, from_keys, to_keys, top_keys

FEWEST_WAITING = 1024
"""Candidates that wait until they are compared with the best, at least."""

NOTHING = torch.iinfo(torch.int64).min
"""Key of no document."""


@final
class Leaders:
    """The best k documents of some queries so far, and a few candidates that are still to be compared with them.

    What scores less than the k-th best is never looked at again: after the first blocks that is nearly everything.
    Blocks may be offered by several threads, in any order.

    Args:
        unused: columns behind those of the queries whose scores mean nothing.
        wave: scores that are looked at together, at least; fewer would not be worth it.
    """

    def __init__(
        self, num_queries: int, k: int, *, unused: int = 0, wave: int = 1, device: torch.device | None = None
    ) -> None:
        self.num_queries, self.k, self.wave = num_queries, k, wave
        self.waiting = max(k, FEWEST_WAITING)
        self.keys = torch.full((num_queries + unused, self.capacity(k)), NOTHING, device=device)
        self.counts = torch.zeros(num_queries + unused, dtype=torch.int64, device=device)
        self.thresholds = torch.full((num_queries + unused,), -torch.inf, device=device)
        self.thresholds[num_queries:] = torch.inf
        self.seen = 0
        self.pending: list[tuple[Tensor, Tensor]] = []
        self.lock = Lock()

    @staticmethod
    def capacity(k: int) -> int:
        """Keys held for a query."""
        return k + 2 * max(k, FEWEST_WAITING)

    def offer(self, scores: Float[Tensor, "rows columns"], positions: Int[Tensor, " rows"]) -> None:
        """Take in the scores of some documents."""
        with self.lock:
            self.pending.append((scores, positions))
            if sum(scores.numel() for scores, _ in self.pending) >= self.wave:
                self._take_pending()

    def expect(self, thresholds: Float[Tensor, " columns"]) -> None:
        """Look only at what reaches these scores, before any is offered: a guess, which `are_short` judges."""
        self.thresholds[: self.num_queries] = thresholds[: self.num_queries]

    def are_short(self) -> bool:
        """Whether fewer than k documents have reached what was expected of them, of some query."""
        self._take_pending()
        return bool((self.counts[: self.num_queries] < min(self.k, self.seen)).any())

    def start_again(self) -> None:
        """Forget everything, and expect nothing."""
        self.keys.fill_(NOTHING)
        self.counts.zero_()
        self.thresholds[: self.num_queries] = -torch.inf
        self.seen = 0

    def best(self) -> Int[Tensor, "queries k"]:
        """Keys of the best k documents, best first; fewer where there were fewer."""
        self._take_pending()
        return top_keys(self.keys[: self.num_queries], min(self.k, self.seen))

    def _take_pending(self) -> None:
        if not self.pending:
            return
        scores, positions = (_joined(parts) for parts in zip(*self.pending, strict=True))
        self.pending, start = [], 0
        while start < len(scores):  # never more than were seen before, so that about k of each query pass
            step = max(self.seen, self.keys.shape[1])
            self._add(scores[start : start + step], positions[start : start + step])
            start += step

    def _add(self, scores: Float[Tensor, "rows columns"], positions: Int[Tensor, " rows"]) -> None:
        width = scores.shape[1]
        found, columns = at_least(scores, self.thresholds)  # one that equals the k-th may come earlier in the corpus
        new = columns.bincount(minlength=width)
        if int((self.counts + new).max()) > self.keys.shape[1]:
            self._split(scores, positions)
            return
        places = torch.arange(len(found), device=found.device) + (self.counts + new - new.cumsum(0))[columns]
        self.keys[columns, places] = to_keys(scores.reshape(-1)[found], positions[found // width])
        self.counts += new
        self.seen += len(scores)
        if int(self.counts.max()) > self.k + self.waiting:
            self._drop(self.counts > self.k + self.waiting // 2)

    def _split(self, scores: Float[Tensor, "rows columns"], positions: Int[Tensor, " rows"]) -> None:
        """Add in two parts what does not fit at once."""
        self._drop(self.counts > self.k)
        middle = len(scores) // 2 if len(scores) > self.waiting else len(scores)
        for part in (slice(0, middle), slice(middle, None)):
            if len(scores[part]):
                self._add(scores[part], positions[part])

    def _drop(self, crowded: Bool[Tensor, " columns"]) -> None:
        """Keep the best k of some queries, in any order, and raise what others must reach."""
        places = crowded.nonzero()[:, 0]
        best = top_keys(self.keys[places], self.k, ordered=False)
        self.keys[places, : self.k] = best
        self.keys[places, self.k :] = NOTHING
        self.counts[places] = self.k
        self.thresholds[places] = from_keys(best.amin(1))[0]


def _joined(parts: tuple[Tensor, ...]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
