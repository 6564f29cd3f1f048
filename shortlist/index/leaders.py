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
        thresholds: scores that each query's k best are believed to reach (None: any).
    """

    def __init__(
        self, num_queries: int, k: int, device: torch.device, thresholds: Float[Tensor, " queries"] | None = None
    ) -> None:
        self.k, self.waiting = k, max(k, FEWEST_WAITING)
        self.keys = torch.full((num_queries, self.capacity(k)), NOTHING, device=device)
        self.counts = torch.zeros(num_queries, dtype=torch.int64, device=device)
        self.thresholds = torch.full((num_queries,), -torch.inf, device=device) if thresholds is None else thresholds
        self.lock = Lock()
        self.seen = 0
        self.pending: list[tuple[Tensor, Tensor]] = []

    @staticmethod
    def capacity(k: int) -> int:
        """Keys held for a query."""
        return k + 2 * max(k, FEWEST_WAITING)

    def offer(self, scores: Float[Tensor, "rows queries"], positions: Int[Tensor, " rows"], *, wave: int) -> None:
        """Take in a block, or keep it until there are `wave` scores: small ones are not worth a look each."""
        with self.lock:
            self.pending.append((scores, positions))
            if sum(scores.numel() for scores, _ in self.pending) >= wave:
                self._take_pending()

    def best(self) -> Int[Tensor, "queries k"]:
        """Keys of the best k documents, best first; fewer where there were fewer, unless `are_short`."""
        self._take_pending()
        return top_keys(self.keys, min(self.k, self.seen))

    def are_short(self) -> bool:
        """Whether too few documents of some query have reached its threshold."""
        self._take_pending()
        return bool((self.counts < min(self.k, self.seen)).any())

    def start_again(self) -> None:
        """Forget everything: from now on, any score will do."""
        self.keys.fill_(NOTHING)
        self.counts.zero_()
        self.thresholds.fill_(-torch.inf)
        self.seen = 0

    def _take_pending(self) -> None:
        if not self.pending:
            return
        scores, positions = (_joined(parts) for parts in zip(*self.pending, strict=True))
        self.pending, start = [], 0
        while start < len(scores):  # never more than were seen before, so that about k of each query pass
            step = max(self.seen, self.keys.shape[1])
            self._add(scores[start : start + step], positions[start : start + step])
            start += step

    def _add(self, scores: Float[Tensor, "rows queries"], positions: Int[Tensor, " rows"]) -> None:
        queries = scores.shape[1]
        found, columns = at_least(scores, self.thresholds)  # one that equals the k-th may come earlier in the corpus
        new = columns.bincount(minlength=queries)
        if int((self.counts + new).max()) > self.keys.shape[1]:
            self._split(scores, positions)
            return
        places = torch.arange(len(found), device=found.device) + (self.counts + new - new.cumsum(0))[columns]
        self.keys[columns, places] = to_keys(scores.reshape(-1)[found], positions[found // queries])
        self.counts += new
        self.seen += len(scores)
        if int(self.counts.max()) > self.k + self.waiting:
            self._drop(self.counts > self.k + self.waiting // 2)

    def _split(self, scores: Float[Tensor, "rows queries"], positions: Int[Tensor, " rows"]) -> None:
        """Add in two parts what does not fit at once."""
        self._drop(self.counts > self.k)
        middle = len(scores) // 2 if len(scores) > self.waiting else len(scores)
        for part in (slice(0, middle), slice(middle, None)):
            if len(scores[part]):
                self._add(scores[part], positions[part])

    def _drop(self, crowded: Bool[Tensor, " queries"]) -> None:
        """Keep the best k of some queries, in any order, and raise what others must reach."""
        places = crowded.nonzero()[:, 0]
        best = top_keys(self.keys[places], self.k, ordered=False)
        self.keys[places, : self.k] = best
        self.keys[places, self.k :] = NOTHING
        self.counts[places] = self.k
        self.thresholds[places] = from_keys(best.amin(1))[0]


def _joined(parts: tuple[Tensor, ...]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
