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
    """

    def __init__(self, num_queries: int, k: int, *, unused: int = 0, device: torch.device | None = None) -> None:
        self.num_queries, self.k = num_queries, k
        self.waiting = max(k, FEWEST_WAITING)
        self.keys = torch.full((num_queries + unused, self.capacity(k)), NOTHING, device=device)
        self.counts = torch.zeros(num_queries + unused, dtype=torch.int64, device=device)
        self.thresholds = torch.full((num_queries + unused,), -torch.inf, device=device)
        self.thresholds[num_queries:] = torch.inf
        self.pending: list[tuple[Tensor, Tensor, Tensor]] = []
        self.num_pending, self.seen, self.expecting = 0, 0, False
        self.lock = Lock()

    @staticmethod
    def capacity(k: int) -> int:
        """Keys held for a query."""
        return k + 2 * max(k, FEWEST_WAITING)

    def offer(self, scores: Float[Tensor, "rows columns"], positions: Int[Tensor, " rows"]) -> None:
        """Take in the scores of some documents."""
        start = 0
        while start < len(scores):  # never more than were seen before, so that about k of each query pass
            step = len(scores) if self.expecting else max(self.seen, self.keys.shape[1])
            self._look_at(scores[start : start + step], positions[start : start + step])
            start += step

    def expect(self, thresholds: Float[Tensor, " columns"]) -> None:
        """Look only at what reaches these scores, before any is offered: a guess, which `are_short` judges."""
        self.thresholds[: self.num_queries] = thresholds[: self.num_queries]
        self.expecting = True

    def are_short(self) -> bool:
        """Whether fewer than k documents have reached what was expected of them, of some query."""
        self._take_pending()
        return bool((self.counts[: self.num_queries] < min(self.k, self.seen)).any())

    def start_again(self) -> None:
        """Forget everything, and expect nothing."""
        self.keys.fill_(NOTHING)
        self.counts.zero_()
        self.thresholds[: self.num_queries] = -torch.inf
        self.seen, self.expecting = 0, False

    def best(self) -> Int[Tensor, "queries k"]:
        """Keys of the best k documents, best first; fewer where there were fewer."""
        self._take_pending()
        return top_keys(self.keys[: self.num_queries], min(self.k, self.seen))

    def _look_at(self, scores: Float[Tensor, "rows columns"], positions: Int[Tensor, " rows"]) -> None:
        # One that equals the k-th may come earlier in the corpus. Another thread may be raising the thresholds.
        found, columns = at_least(scores, self.thresholds)
        candidates = columns, scores.reshape(-1)[found], positions[found // scores.shape[1]]
        with self.lock:
            self.pending.append(candidates)
            self.num_pending += len(found)
            self.seen += len(scores)
            if not self.expecting or self.num_pending > self.waiting * len(self.counts):
                self._take_pending()

    def _take_pending(self) -> None:
        if not self.num_pending:
            return
        columns, scores, positions = (torch.cat(parts) for parts in zip(*self.pending, strict=True))
        self.pending, self.num_pending = [], 0
        keys = to_keys(scores, positions)
        while len(keys):  # as many of each column as there is room for, then the next
            columns, order = columns.sort(stable=True)
            new = columns.bincount(minlength=len(self.counts))
            places = self.counts[columns] + torch.arange(len(keys), device=keys.device) - (new.cumsum(0) - new)[columns]
            keys, fits = keys[order], places < self.keys.shape[1]
            self.keys[columns[fits], places[fits]] = keys[fits]
            self.counts = (self.counts + new).clamp(max=self.keys.shape[1])
            self._drop(self.counts > self.k + self.waiting)
            columns, keys = columns[~fits], keys[~fits]

    def _drop(self, crowded: Bool[Tensor, " columns"]) -> None:
        """Keep the best k of some queries, in any order, and raise what others must reach."""
        places = crowded.nonzero()[:, 0]
        best = top_keys(self.keys[places], self.k, ordered=False)
        self.keys[places, : self.k] = best
        self.keys[places, self.k :] = NOTHING
        self.counts[places] = self.k
        self.thresholds[places] = from_keys(best.amin(1))[0]
