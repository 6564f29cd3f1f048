"""Exact search on many machines that each scan some shards of a store."""

from collections.abc import Callable, Sequence
from functools import partial, reduce
from typing import final

import numpy as np
import torch
from jaxtyping import Bool, Float

from shortlist.data.allowed import Allowed
from shortlist.engine import Engine, spread
from shortlist.index.flat import Best, FlatIndex, ScanShards
from shortlist.index.late import LateIndex, ScanTokens
from shortlist.math.maxsim import TokenVectors
from shortlist.math.scoring import best_of
from shortlist.records import Hit

PIECES = 64
"""The most pieces that the shards are divided into; a free worker takes the next piece."""


@final
class ScatteredIndex:
    """An index that scans the store of a FlatIndex on other machines.

    Its results are the same to the last bit; with `allowed`, up to rounding, as other pieces are multiplied.

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
        best = _scatter(task, len((scan or vectors).shard_hashes), depth, engine=self.engine)
        return vectors.doc_ids.hits(*self.index.settle(queries, [best], k))


@final
class ScatteredTokens:
    """An index that scans the token store of a LateIndex on other machines.

    Its results are the same to the last bit.

    Args:
        index: opened on this machine, which merges the results at the end. All machines must see its folders at the
            same paths.
        engine: what runs the scans.
    """

    def __init__(self, index: LateIndex, *, engine: Engine = "ray") -> None:
        self.index = index
        self.engine: Engine = engine

    @property
    def doc_ids(self) -> Sequence[str]:
        """The ids of the documents, in corpus order."""
        return self.index.doc_ids

    def find(self, queries: TokenVectors, k: int, *, allowed: Allowed | None = None) -> list[list[Hit]]:
        """Find the at most k documents that score highest for each query.

        They are sorted best first, equal ones in corpus order.

        Args:
            allowed: the only documents to find (None: all).
        """
        keep = None if allowed is None else allowed.mask(self.doc_ids)
        found = self.index.search_some(queries, k, keep, candidates=self._candidates)
        return self.index.tokens.doc_ids.hits(*found)

    def _candidates(self, queries: TokenVectors, k: int, keep: Bool[np.ndarray, " docs"] | None) -> Best:
        task = ScanTokens(
            queries=queries,
            k=k,
            tokens=self.index.scanned.folder.resolve(),
            keep=None if keep is None else np.packbits(keep),
            narrow=self.index.scan is not None,
        )
        return _scatter(task, len(self.index.scanned.shard_hashes), k, engine=self.engine)


def _scatter(task: Callable[[Sequence[int]], Best], num_shards: int, k: int, *, engine: Engine) -> Best:
    """Find the k best candidates of all shards by a task that searches some."""
    pieces = [piece.tolist() for piece in np.array_split(np.arange(num_shards), min(num_shards, PIECES))]
    return reduce(partial(_merge, k=k), spread(task, pieces, engine=engine))


def _merge(one: Best, other: Best, k: int) -> Best:
    scores, positions = (torch.from_numpy(np.concatenate(pair, axis=1)) for pair in zip(one, other, strict=True))
    best = best_of(scores, positions, k)
    return best[0].numpy(), best[1].numpy()
