"""Exact search on many machines: each scans some shards of a store, and the best of all are the best of the whole."""

from typing import final

import numpy as np
import torch
from jaxtyping import Float

from shortlist.engine import Engine, spread
from shortlist.index.flat import FlatIndex, Found, ScanShards
from shortlist.math.scoring import best_of
from shortlist.records import Hit

PIECES = 64
"""Into which the shards are divided at most: whoever is free takes the next."""


@final
class ScatteredIndex:
    """A FlatIndex whose store is scanned elsewhere, with its results to the last bit.

    Args:
        index: opened here, for what one machine does at the end; its folders must be found at the same place on all.
        engine: where the scanning is done.
    """

    def __init__(self, index: FlatIndex, *, engine: Engine = "ray") -> None:
        self.index = index
        self.engine: Engine = engine

    def find(self, queries: Float[np.ndarray, "queries dim"], k: int) -> list[list[Hit]]:
        """The at most k documents of greatest inner product with each query, best first, equal ones in corpus order."""
        scan, vectors = self.index.scan, self.index.vectors
        task = ScanShards(
            queries=queries,
            k=k,
            vectors=vectors.folder.resolve(),
            scan=scan.folder.resolve() if scan else None,
            refine=self.index.refine,
        )
        depth = k if scan is None else k * self.index.refine
        num_shards = len((scan or vectors).shard_hashes)
        pieces = [piece.tolist() for piece in np.array_split(np.arange(num_shards), min(num_shards, PIECES))]
        best: Found | None = None
        for part in spread(task, pieces, engine=self.engine):
            best = part if best is None else _merge(best, part, depth)
        return vectors.doc_ids.hits(*self.index.settle(queries, [best], k)) if best else [[] for _ in queries]


def _merge(one: Found, other: Found, k: int) -> Found:
    scores, positions = (torch.from_numpy(np.concatenate(pair, axis=1)) for pair in zip(one, other, strict=True))
    best = best_of(scores, positions, k)
    return best[0].numpy(), best[1].numpy()
