"""Exact search: every query against every vector, block by block."""

from typing import final

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from shortlist.data.vectors import VectorReader
from shortlist.errors import UserError
from shortlist.math.scoring import above, merge_top_k, top_k

Candidates = tuple[Float[Tensor, "queries _"], Int[Tensor, "queries _"]]
"""Scores and positions in the store."""

BLOCK_NUMBERS = 1 << 23
"""Numbers held at a time, of vectors or of scores: 32 MiB."""


@final
class FlatIndex:
    """The whole vector store, searched by inner product; memory does not grow with the store."""

    def __init__(self, vectors: VectorReader) -> None:
        self.vectors = vectors

    def search_vectors(
        self, queries: Float[np.ndarray, "queries dim"], k: int
    ) -> tuple[Float[np.ndarray, "queries k"], Int[np.ndarray, "queries k"]]:
        """The k documents of each query with the greatest inner product, equal ones in corpus order.

        Returns:
            Scores and positions in the store, best first; fewer than k columns if the store is smaller.

        Raises:
            UserError: the queries have another dimension than the store.
        """
        if queries.shape[1] != self.vectors.dim:
            raise UserError(
                f"queries have {queries.shape[1]} dimensions, the vectors {self.vectors.dim}: "
                "encode both with the same model."
            )
        k = min(k, self.vectors.num_docs)
        best: Candidates = torch.empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.int64)
        waiting: list[Candidates] = []
        rows = max(BLOCK_NUMBERS // max(len(queries), self.vectors.dim), 1)
        for start, block in self.vectors.blocks(rows):
            scores = torch.from_numpy(queries @ block.T)  # not torch's: it warns about a read-only map
            # Documents come in corpus order, so one that only equals the k-th score has lost the tie already.
            full = 0 < k == best[0].shape[1]
            values, columns = above(scores, best[0][:, -1]) if full else top_k(scores, k)
            waiting.append((values, columns + start))
            if not full or sum(values.shape[1] for values, _ in waiting) >= k:
                best, waiting = _merge(best, waiting, k), []
        scores, indices = _merge(best, waiting, k)
        return scores.numpy(), indices.numpy()


def _merge(best: Candidates, waiting: list[Candidates], k: int) -> Candidates:
    if not waiting:
        return best
    scores, indices = (torch.cat(parts, dim=1) for parts in zip(*waiting, strict=True))
    return merge_top_k(*best, scores, indices, k)
