"""Exact search: every query against every vector, block by block."""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, cast, final

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from shortlist.data.vectors import DTYPES, Block, VectorReader, VectorWriter, finished_shards, to_rows
from shortlist.errors import UserError
from shortlist.math.products import float_product, full_precision
from shortlist.math.quantize import int8_product, to_int8
from shortlist.math.scoring import at_least, best_of, from_keys, to_keys, top_keys
from shortlist.records import Hit

Found = tuple[Float[np.ndarray, "queries _"], Int[np.ndarray, "queries _"]]
"""Scores and positions, best first."""


class Sizes(NamedTuple):
    """What is worked on at a time. Results never depend on the store's size or on memory, so neither do these."""

    queries: int
    """Multiplied together."""
    block_bytes: int
    scores: int
    """Of a block and as many queries."""


SIZES = {"cpu": Sizes(64, 1 << 25, 1 << 20), "cuda": Sizes(512, 1 << 30, 1 << 26)}
"""By device. On a CPU, 64 queries are multiplied at the highest rate, and their scores stay in the cache."""

CANDIDATES_BYTES = 1 << 28
"""For the candidates of all queries that one reading of the store serves."""

RESCORED_BYTES = 1 << 24
"""For the vectors that are rescored at a time."""

NARROW_NUMBERS = 1 << 24
"""In a shard of a narrow copy."""

FEWEST_WAITING = 1024
"""Candidates that wait until they are compared with the best, at least."""

NOTHING = torch.iinfo(torch.int64).min
"""Key of no document."""


@final
class FlatIndex:
    """The whole vector store, searched by inner product; memory does not grow with the store.

    Args:
        vectors: what scores are computed from, in float32 whatever their dtype.
        scan: a narrow store (int8 or bfloat16) of the same documents, to be read instead: its best candidates are then
            scored from `vectors`.
        memory_gib: most of the scanned store that stays in memory, GiB (None: half of what is free now). A larger store
            is read again for every search.
        device: where to multiply; a GPU keeps the vectors if they fit into its free memory.
        refine: candidates of the narrow scan, in multiples of k.

    Raises:
        UserError: the two stores differ in documents or dimension.
    """

    def __init__(
        self,
        vectors: VectorReader,
        *,
        scan: VectorReader | None = None,
        memory_gib: float | None = None,
        device: torch.device | None = None,
        refine: int = 2,
    ) -> None:
        if scan and (scan.num_docs, scan.dim) != (vectors.num_docs, vectors.dim):
            raise UserError(
                f"{scan.folder}: holds {scan.num_docs:,} vectors of dim {scan.dim}, {vectors.folder} "
                f"{vectors.num_docs:,} of dim {vectors.dim}; build the narrow index again."
            )
        self.vectors, self.scan, self.refine = vectors, scan, refine
        self.device = device or torch.device("cpu")
        self.scanned = scan or vectors
        allowed = _free_bytes() / 2 if memory_gib is None else memory_gib * 2**30
        self.release = self.scanned.num_bytes > allowed
        self._resident: list[Block] = []

    def find(self, queries: Float[np.ndarray, "queries dim"], k: int) -> list[list[Hit]]:
        """The at most k documents of greatest inner product with each query, best first, equal ones in corpus order."""
        return self.vectors.doc_ids.hits(*self.search_vectors(queries, k))

    def search_vectors(self, queries: Float[np.ndarray, "queries dim"], k: int) -> Found:
        """The k documents of each query with the greatest inner product, equal ones in corpus order.

        Returns:
            Scores and positions in the store, best first; fewer than k columns if the store is smaller.

        Raises:
            UserError: the queries have another dimension than the store, or are not finite.
        """
        return self.settle(queries, [self.candidates(queries, k)], k)

    def candidates(
        self, queries: Float[np.ndarray, "queries dim"], k: int, shards: Sequence[int] | None = None
    ) -> Found:
        """What some shards of the scanned store (None: all) offer to the search of the whole.

        Of a narrow scan these are `refine` times k, and the scores compare documents of one query only.
        """
        self._check(queries, k)
        k = min(k if self.scan is None else self.refine * k, self.vectors.num_docs)
        at_once = max(CANDIDATES_BYTES // (8 * _Leaders.capacity(k)), 1)
        parts = [self._scan(queries[start : start + at_once], k, shards) for start in range(0, len(queries), at_once)]
        keys = torch.cat(parts) if parts else torch.empty(0, k, dtype=torch.int64)
        scores, positions = from_keys(keys)
        return scores.numpy(), positions.numpy()

    def settle(self, queries: Float[np.ndarray, "queries dim"], parts: Sequence[Found], k: int) -> Found:
        """The result of a search from the candidates of all shards, in any order: as if one had scanned them all."""
        scores, positions = (torch.from_numpy(np.concatenate(columns, axis=1)) for columns in zip(*parts, strict=True))
        if self.scan is None:
            best = best_of(scores, positions, k) if len(parts) > 1 else (scores, positions)
            return best[0].numpy(), best[1].numpy()
        positions = best_of(scores, positions, self.refine * k)[1].sort(dim=1).values  # neighbours are read together
        best = best_of(self._exact(torch.from_numpy(queries), positions), positions, k)
        return best[0].numpy(), best[1].numpy()

    def _check(self, queries: Float[np.ndarray, "queries dim"], k: int) -> None:
        if queries.shape[1] != self.vectors.dim:
            raise UserError(
                f"queries have {queries.shape[1]} dimensions, the vectors {self.vectors.dim}: "
                "encode both with the same model."
            )
        if k < 1:
            raise UserError(f"k is {k}; expected at least 1.")
        if not np.isfinite(queries).all():
            raise UserError("the vector of a query is not finite: the model overflows on it; try a wider precision.")

    @torch.no_grad()
    def _scan(
        self, queries: Float[np.ndarray, "queries dim"], k: int, shards: Sequence[int] | None
    ) -> Int[Tensor, "queries k"]:
        sizes = SIZES[self.device.type]
        given = torch.from_numpy(np.ascontiguousarray(queries, dtype=np.float32)).to(self.device)
        with full_precision():
            tiles = [(self._product(part), _Leaders(len(part), k, self.device)) for part in given.split(sizes.queries)]
            for block in self._blocks(self._rows(len(queries), sizes), shards):
                rows = block if self.scan else block._replace(vectors=block.float32(), scales=None)
                for product, leaders in tiles:
                    leaders.offer(product(rows), block.positions, wave=sizes.scores // 8)
        return torch.cat([leaders.best() for _, leaders in tiles]).cpu()

    def _rows(self, num_queries: int, sizes: Sizes) -> int:
        """Of a block. On a GPU the same for any number of queries, as the blocks stay there."""
        together = min(num_queries, sizes.queries) if self.device.type == "cpu" else sizes.queries
        itemsize = self.scanned.num_bytes // self.scanned.num_rows if self.scan else 4 * self.vectors.dim
        return max(1, min(sizes.block_bytes // itemsize, sizes.scores // together))

    def _blocks(self, rows: int, shards: Sequence[int] | None) -> Iterable[Block]:
        if self.device.type == "cpu":
            return self.scanned.blocks(rows, shards=shards, release=self.release)
        if self._resident:
            return self._resident
        blocks = (_moved(block, self.device) for block in self.scanned.blocks(rows, shards=shards, release=True))
        if shards is None and self.scanned.num_bytes < torch.cuda.mem_get_info(self.device)[0] / 2:
            self._resident = list(blocks)
            return self._resident
        return blocks

    def _product(self, queries: Float[Tensor, "queries dim"]) -> Callable[[Block], Float[Tensor, "rows queries"]]:
        """The scores of a block; of a narrow scan but for a factor, the same for all documents of a query."""
        if self.scan is None:
            product = float_product(queries)
            return lambda block: product(block.vectors)
        if self.scan.dtype == "int8":
            integers = to_int8(queries)[0]
            return lambda block: int8_product(block.vectors, integers) * cast(Tensor, block.scales)[:, None]
        narrow_queries = queries.to(DTYPES[self.scan.dtype])
        return lambda block: F.linear(block.vectors, narrow_queries).float()

    def _exact(
        self, queries: Float[Tensor, "queries dim"], positions: Int[Tensor, "queries found"]
    ) -> Float[Tensor, "queries found"]:
        """The scores of some documents for each query."""
        scores = torch.empty(positions.shape)
        at_once = max(1, RESCORED_BYTES // (4 * self.vectors.dim * positions.shape[1] + 1))
        with full_precision():
            for start in range(0, len(queries), at_once):
                part, places = queries[start : start + at_once], positions[start : start + at_once]
                vectors = torch.from_numpy(self.vectors.take(places.reshape(-1).numpy())).view(*places.shape, -1)
                scores[start : start + at_once] = torch.bmm(vectors, part[:, :, None])[:, :, 0]
        return scores


def _moved(block: Block, device: torch.device) -> Block:
    scales = None if block.scales is None else block.scales.to(device)
    return Block(block.rows, block.positions.to(device), block.vectors.to(device), scales)


@final
class _Leaders:
    """The best k documents of some queries so far, and a few candidates that are still to be compared with them.

    What scores less than the k-th best is never looked at again: after the first blocks that is nearly everything.
    """

    def __init__(self, num_queries: int, k: int, device: torch.device) -> None:
        self.k, self.waiting = k, max(k, FEWEST_WAITING)
        self.keys = torch.full((num_queries, self.capacity(k)), NOTHING, device=device)
        self.counts = torch.zeros(num_queries, dtype=torch.int64, device=device)
        self.thresholds = torch.full((num_queries,), -torch.inf, device=device)
        self.seen = 0
        self.pending: list[tuple[Tensor, Tensor]] = []

    @staticmethod
    def capacity(k: int) -> int:
        """Keys held for a query."""
        return k + 2 * max(k, FEWEST_WAITING)

    def offer(self, scores: Float[Tensor, "rows queries"], positions: Int[Tensor, " rows"], *, wave: int) -> None:
        """Take in a block, or keep it until there are `wave` scores: small ones are not worth a look each."""
        self.pending.append((scores, positions))
        if sum(scores.numel() for scores, _ in self.pending) >= wave:
            self._take_pending()

    def best(self) -> Int[Tensor, "queries k"]:
        """Keys of the best k documents, best first; fewer where there were fewer."""
        self._take_pending()
        return top_keys(self.keys, min(self.k, self.seen))

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


@dataclass(frozen=True, kw_only=True)
class ScanShards:
    """Searches some shards of a store, in whichever process it is sent to; opens the store when the first ones come."""

    queries: Float[np.ndarray, "queries dim"]
    k: int
    vectors: Path
    scan: Path | None = None
    memory_gib: float | None = None
    refine: int = 2

    @cached_property
    def index(self) -> FlatIndex:
        """The stores, as they are where this runs."""
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        scan = VectorReader(self.scan) if self.scan else None
        return FlatIndex(
            VectorReader(self.vectors), scan=scan, memory_gib=self.memory_gib, device=device, refine=self.refine
        )

    def __call__(self, shards: Sequence[int]) -> Found:
        """What these shards offer; FlatIndex.settle makes the result of all of them."""
        return self.index.candidates(self.queries, self.k, shards)


def narrow(vectors: VectorReader, folder: Path, dtype: str) -> None:
    """Copy a store in a narrower dtype, its documents in corpus order; goes on where it was interrupted."""
    writer = VectorWriter(folder, vectors.dim, dtype)
    size = max(NARROW_NUMBERS // vectors.dim, 1)
    done = set(finished_shards(folder))
    for number, start in enumerate(range(0, vectors.num_docs, size)):
        if number not in done:
            positions = np.arange(start, min(start + size, vectors.num_docs))
            rows, scales = to_rows(torch.from_numpy(vectors.take(positions)), dtype)
            writer.write_rows(number, vectors.doc_ids.take(positions), rows, scales, None)


def _free_bytes() -> int:
    """Memory that could be had now; where the system does not say, all there is."""
    try:
        lines = Path("/proc/meminfo").read_text("utf-8").splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
