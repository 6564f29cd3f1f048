"""The best documents of several queries, selected from a stream of scores."""

from threading import Lock
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from shortlist.math.scoring import at_least, from_keys, to_keys, top_keys

FEWEST_WAITING = 1024
"""The least number of candidates to collect before they are compared with the best."""

NOTHING = torch.iinfo(torch.int64).min
"""The key of an empty entry."""


@final
class Leaders:
    """The best k documents of several queries so far, with candidates to compare with them.

    Documents that score less than the k-th best are dropped at once, which after the first blocks is nearly all of
    them. Several threads may offer blocks, in any order.

    Args:
        num_queries: the number of queries.
        k: how many documents to keep for each query.
        unused: the number of columns after the queries' columns whose scores are ignored.
        device: where the scores are.
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
        """Compute the number of keys held for a query."""
        return k + 2 * max(k, FEWEST_WAITING)

    def offer(self, scores: Float[Tensor, "rows columns"], positions: Int[Tensor, " rows"]) -> None:
        """Take in the scores of some documents."""
        start = 0
        while start < len(scores):  # at most as many as before, so that about k of each query pass
            step = len(scores) if self.expecting else max(self.seen, self.keys.shape[1])
            self._look_at(scores[start : start + step], positions[start : start + step])
            start += step

    def expect(self, thresholds: Float[Tensor, " columns"]) -> None:
        """Ignore all scores below these thresholds; call it before offering any.

        The thresholds are a guess; `are_short` says afterwards whether they were too high.
        """
        self.thresholds[: self.num_queries] = thresholds[: self.num_queries]
        self.expecting = True

    def are_short(self) -> bool:
        """Whether some query has fewer than k documents that reach its expected threshold."""
        self._take_pending()
        return bool((self.counts[: self.num_queries] < min(self.k, self.seen)).any())

    def start_again(self) -> None:
        """Forget all documents and the expected thresholds."""
        self.keys.fill_(NOTHING)
        self.counts.zero_()
        self.thresholds[: self.num_queries] = -torch.inf
        self.seen, self.expecting = 0, False

    def best(self) -> Int[Tensor, "queries k"]:
        """Return the keys of the best k documents, best first; fewer if fewer were offered."""
        self._take_pending()
        return top_keys(self.keys[: self.num_queries], min(self.k, self.seen))

    def _look_at(self, scores: Float[Tensor, "rows columns"], positions: Int[Tensor, " rows"]) -> None:
        # A score equal to the k-th best counts too, since its document may come earlier in the corpus. Another thread
        # may raise the thresholds meanwhile.
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
        while len(keys):  # as many keys as each column has room for, then the next ones
            columns, order = columns.sort(stable=True)
            new = columns.bincount(minlength=len(self.counts))
            places = self.counts[columns] + torch.arange(len(keys), device=keys.device) - (new.cumsum(0) - new)[columns]
            keys, fits = keys[order], places < self.keys.shape[1]
            self.keys[columns[fits], places[fits]] = keys[fits]
            self.counts = (self.counts + new).clamp(max=self.keys.shape[1])
            self._drop(self.counts > self.k + self.waiting)
            columns, keys = columns[~fits], keys[~fits]

    def _drop(self, crowded: Bool[Tensor, " columns"]) -> None:
        """Keep the best k of the crowded queries, in any order, and raise their thresholds."""
        places = crowded.nonzero()[:, 0]
        best = top_keys(self.keys[places], self.k, ordered=False)
        self.keys[places, : self.k] = best
        self.keys[places, self.k :] = NOTHING
        self.counts[places] = self.k
        self.thresholds[places] = from_keys(best.amin(1))[0]
