"""Exact search on many machines that each scan some shards of a store."""

from typing import final

import numpy as np
import torch
from jaxtyping import Float

from shortlist.data.allowed import Allowed
from shortlist.engine import Engine, spread
from shortlist.index.flat import Best, FlatIndex, ScanShards
from shortlist.math.scoring import best_of
from shortlist.records import Hit

PIECES = 64
"""The most pieces that the shards are divided into; a free worker takes the next piece."""


@final
class ScatteredIndex:
    """An index that scans the store of a FlatIndex on other machines.

    Its results are the same to the last bit.

    Args:
        index: opened on this machine, which merges the results at the end. All machines must see its folders at the
            same paths.
        engine: what runs the scans.
    """

    def __init__(self, index: FlatIndex, *, engine: Engine = "ray") -> None:
        self.index = index
        self.engine: Engine = engine

    def find(
        self, queries: Float[np.ndarray, "queries dim"], k: int, *, allowed: Allowed | None = None
    ) -> list[list[Hit]]:
        """Find the at most k documents with the greatest inner product with each query.

        They are sorted best first, equal ones in corpus order.

        Args:
            allowed: the only documents to find (None: all).
        """
        scan, vectors = self.index.scan, self.index.vectors
        task = ScanShards(
            queries=queries,
            k=k,
            vectors=vectors.folder.resolve(),
            scan=scan.folder.resolve() if scan else None,
            refine=self.index.refine,
            keep=None if allowed is None else np.packbits(allowed.mask(vectors.doc_ids)),
        )
        depth = k if scan is None else k * self.index.refine
        num_shards = len((scan or vectors).shard_hashes)
        pieces = [piece.tolist() for piece in np.array_split(np.arange(num_shards), min(num_shards, PIECES))]
        best: Best | None = None
        for part in spread(task, pieces, engine=self.engine):
            best = part if best is None else _merge(best, part, depth)
        return vectors.doc_ids.hits(*self.index.settle(queries, [best], k)) if best else [[] for _ in queries]


def _merge(one: Best, other: Best, k: int) -> Best:
    scores, positions = (torch.from_numpy(np.concatenate(pair, axis=1)) for pair in zip(one, other, strict=True))
    best = best_of(scores, positions, k)
    return best[0].numpy(), best[1].numpy()
