"""Exact search, which compares every query with every vector, block by block."""

import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, cast, final
from weakref import WeakKeyDictionary

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from shortlist.data.allowed import Allowed
from shortlist.data.stores.vectors import DTYPES, Block, VectorReader, refuse_not_finite
from shortlist.errors import UserError
from shortlist.index.leaders import Leaders
from shortlist.index.threads import product_threads, work_in_threads
from shortlist.math.products import float_product, full_precision
from shortlist.math.quantize import int8_product, to_int8
from shortlist.math.scoring import best_of, contenders, from_keys, top_k
from shortlist.records import Hit

Best = tuple[Float[np.ndarray, "queries _"], Int[np.ndarray, "queries _"]]
"""Scores and positions, best first."""

ScoreBlock = Callable[[Block], Float[Tensor, "rows queries"]]
Tile = tuple[ScoreBlock, Leaders]
"""The product of a block with some queries, and the best documents of these queries so far."""


class Sizes(NamedTuple):
    """Sizes of the units of work.

    They do not depend on the store's size or on memory, so results do not depend on these either.
    """

    queries: int
    """The number of queries multiplied together."""
    piece_bytes: int
    """Bytes of the documents that one thread multiplies together."""
    scores: int
    """The number of scores of one such piece with these queries."""


SIZES = {"cpu": Sizes(256, 1 << 24, 1 << 19), "cuda": Sizes(512, 1 << 30, 1 << 26)}
"""Sizes by device. On a CPU they keep the scores in the cache and multiply at the highest rate."""

EVEN = 16
"""Queries are padded to a multiple of this, since other numbers are slower: 100 take longer than 112."""

CANDIDATES_BYTES = 1 << 28
"""Memory for the candidates of all queries that are served by one pass over the store."""

RESCORED_BYTES = 1 << 20
"""Size of the vectors that a thread rescores at a time, so that they stay in the cache."""

FEWEST_RESCORED = 128
"""The least number of candidates from whose scores the error of a narrow scan is estimated."""

REFINE = 2
"""The number of candidates of a narrow scan, in multiples of k."""

BLOCK_PIECES = 4
"""The number of pieces in a block that is read at once."""

SAMPLED_BYTES = 1 << 25
"""Size of the sample of documents whose scores predict a threshold for the best; at most 1 document in SAMPLED."""

SAMPLED = 64

GATHERED = 0.5
"""The share of documents below which a filtered search gathers those that are allowed, instead of scanning all."""

GATHERED_AT_ONCE = 1 << 22
"""The most scores of allowed documents that are computed and sorted in one go, which is quicker where they are few."""

COPIES_BYTES = 1 << 30
"""The most memory for copies of the vectors that filters allow, which are kept for the next searches."""


def check_queries(queries: Float[np.ndarray, "queries dim"], k: int, *, dim: int) -> None:
    """Raise UserError if the queries or k do not suit vectors of `dim` numbers."""
    if getattr(queries, "ndim", None) != 2:
        raise UserError(
            f"queries are {_shown(queries)}; expected an array with a row for each query: encode a list of them, or "
            "search texts with DenseSearch(retriever, index)."
        )
    if queries.shape[1] != dim:
        raise UserError(
            f"queries have {queries.shape[1]} dimensions, the vectors {dim}: encode both with the same model."
        )
    if k < 1:
        raise UserError(f"k is {k}; expected at least 1.")
    if not np.isfinite(queries).all():
        raise UserError("the vector of a query is not finite: the model overflows on it; try a wider precision.")


def _shown(queries: Any) -> str:
    shape = getattr(queries, "shape", None)
    return f"a {type(queries).__name__}" if shape is None else f"of shape {tuple(shape)}"


class _Some(NamedTuple):
    """The documents that a search may find."""

    keep: Bool[np.ndarray, " docs"]
    """Whether the document at each position is allowed."""
    num_docs: int
    copy: Block | None
    """Their vectors (None: they are read from the store, or all are scanned)."""
    gather: bool
    """Whether only their vectors are read."""


@final
class FlatIndex:
    """Exact search by inner product over a whole vector store.

    Memory does not grow with the store.

    Args:
        vectors: the store that scores are computed from, in float32 whatever its dtype.
        scan: a narrow store (int8 or bfloat16) of the same documents, to be scanned instead. Its best candidates are
            then scored from `vectors`.
        memory_gib: the largest scanned store that stays in memory, in GiB (None: half of the memory that is free now).
            A larger store is read again for every search.
        device: where to multiply; a GPU keeps the vectors if they fit into its free memory.
        refine: the number of candidates of the narrow scan, in multiples of k. Those that can be among the best are
            rescored.

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
        refine: int = REFINE,
    ) -> None:
        if scan and (scan.num_docs, scan.dim) != (vectors.num_docs, vectors.dim):
            raise UserError(
                f"{scan.folder}: holds {scan.num_docs:,} vectors of dim {scan.dim}, {vectors.folder} "
                f"{vectors.num_docs:,} of dim {vectors.dim}; build the narrow index again."
            )
        self.vectors, self.scan, self.refine = vectors, scan, refine
        self.device = device or torch.device("cpu")
        self.scanned = scan or vectors
        allowed = free_bytes() / 2 if memory_gib is None else memory_gib * 2**30
        self.release = self.scanned.num_bytes > allowed
        self._resident: list[Block] = []
        self._copies: WeakKeyDictionary[Allowed, Block] = WeakKeyDictionary()
        self._copies_bytes = min(allowed / 2, COPIES_BYTES)

    def __repr__(self) -> str:
        return f"<FlatIndex of {self.vectors.num_docs:,} vectors of {self.vectors.dim}>"

    def find(
        self, queries: Float[np.ndarray, "queries dim"], k: int, *, allowed: Allowed | None = None
    ) -> list[list[Hit]]:
        """Find the at most k documents with the greatest inner product with each query.

        They are sorted best first, equal ones in corpus order.

        Args:
            allowed: the only documents to find (None: all).
        """
        return self.vectors.doc_ids.hits(*self.search_vectors(queries, k, allowed=allowed))

    def search_vectors(
        self, queries: Float[np.ndarray, "queries dim"], k: int, *, allowed: Allowed | None = None
    ) -> Best:
        """Find the k documents with the greatest inner product with each query.

        Documents with equal scores are in corpus order.

        Args:
            allowed: the only documents to find (None: all).

        Returns:
            Scores and positions in the store, best first; fewer than k columns if the store is smaller.

        Raises:
            UserError: the queries have another dimension than the store, or are not finite.
        """
        if allowed is not None:
            return self.search_some(queries, k, allowed.mask(self.vectors.doc_ids), prepared_for=allowed)
        return self.settle(queries, [self.candidates(queries, k)], k)

    def search_some(
        self,
        queries: Float[np.ndarray, "queries dim"],
        k: int,
        keep: Bool[np.ndarray, " docs"],
        *,
        prepared_for: Allowed | None = None,
    ) -> Best:
        """Search like `search_vectors` among some documents.

        Args:
            keep: whether the document at each position may be found.
            prepared_for: a copy of their vectors is kept as long as this lives, if there is room (None: it is not).
        """
        check_queries(queries, k, dim=self.vectors.dim)
        count = int(np.count_nonzero(keep))
        if not count:
            return _nothing(len(queries))
        gather = count * self.vectors.num_bytes < GATHERED * self.vectors.num_docs * self.scanned.num_bytes
        if self.scan is not None and gather:
            return self._exact.search_some(queries, k, keep, prepared_for=prepared_for)
        some = _Some(keep, count, self._copy(keep, count, prepared_for) if gather else None, gather)
        if some.copy is not None and count * len(queries) <= GATHERED_AT_ONCE and len(queries):
            return self._among(queries, k, some.copy)
        return self.settle(queries, [self._candidates(queries, k, None, some)], k)

    def candidates(
        self,
        queries: Float[np.ndarray, "queries dim"],
        k: int,
        shards: Sequence[int] | None = None,
        *,
        keep: Bool[np.ndarray, " docs"] | None = None,
    ) -> Best:
        """Find the candidates in some shards of the scanned store (None: all).

        `settle` merges the candidates of all shards. A narrow scan gives `refine` times k candidates, with scores that
        can only be compared within a query.

        Args:
            keep: whether the document at each position may be found (None: all).
        """
        if keep is None:
            return self._candidates(queries, k, shards, None)
        count = int(np.count_nonzero(keep))
        return self._candidates(queries, k, shards, _Some(keep, count, None, count < GATHERED * len(keep)))

    def _candidates(
        self, queries: Float[np.ndarray, "queries dim"], k: int, shards: Sequence[int] | None, some: _Some | None
    ) -> Best:
        check_queries(queries, k, dim=self.vectors.dim)
        if some is not None and not some.num_docs:
            return _nothing(len(queries))
        k = min(k if self.scan is None else self.refine * k, self.vectors.num_docs if some is None else some.num_docs)
        at_once = max(CANDIDATES_BYTES // (8 * Leaders.capacity(k)), 1)
        starts = range(0, len(queries), at_once)
        parts = [self._scan(queries[start : start + at_once], k, shards, some) for start in starts]
        keys = torch.cat(parts) if parts else torch.empty(0, k, dtype=torch.int64)
        scores, positions = from_keys(keys)
        return scores.numpy(), positions.numpy()

    @torch.no_grad()
    def _among(self, queries: Float[np.ndarray, "queries dim"], k: int, copy: Block) -> Best:
        """Search a copy of few vectors, which are in corpus order."""
        given = torch.from_numpy(np.ascontiguousarray(queries, dtype=np.float32)).to(self.device)
        with full_precision():
            one = len(queries) == 1  # for which laying out the queries would take as long as the product
            scores = F.linear(copy.vectors, given) if one else self._product(_padded(given))(copy)[:, : len(queries)]
        best, columns = top_k(scores.T.contiguous(), k)
        return best.cpu().numpy(), copy.positions[columns].cpu().numpy()

    @cached_property
    def _exact(self) -> "FlatIndex":
        """Search over the vectors themselves, for the few documents that a filter allows."""
        return FlatIndex(self.vectors, memory_gib=2 * self._copies_bytes / 2**30, device=self.device)

    def _copy(self, keep: Bool[np.ndarray, " docs"], count: int, prepared_for: Allowed | None) -> Block | None:
        """Copy the vectors of kept documents, unless that is done or too large."""
        if prepared_for is not None and prepared_for in self._copies:
            return self._copies[prepared_for]
        size = 4 * self.vectors.dim * count
        if size > self._copies_bytes:
            return None
        blocks = self.vectors.blocks(max(1, len(keep)), release=self.release, keep=keep)
        parts = [(block.rows, block.positions, block.float32()) for block in blocks]
        rows, positions, vectors = (torch.cat(column) for column in zip(*parts, strict=True))
        copy = Block(rows, positions, vectors, None)
        refuse_not_finite(self.vectors, copy.positions, copy.vectors.isfinite().all(1))
        if not bool((copy.positions[1:] > copy.positions[:-1]).all()):
            copy = _picked(copy, copy.positions.argsort())
        copy = _moved(copy, self.device)
        if prepared_for is not None:
            for other in list(self._copies):  # the oldest first
                if sum(block.vectors.nbytes for block in self._copies.values()) + size > self._copies_bytes:
                    self._copies.pop(other, None)
            self._copies[prepared_for] = copy
        return copy

    def settle(self, queries: Float[np.ndarray, "queries dim"], parts: Sequence[Best], k: int) -> Best:
        """Merge the candidates of all shards, in any order, into the result of a search.

        The result is the same as from one scan of all shards.
        """
        scores, positions = (torch.from_numpy(np.concatenate(columns, axis=1)) for columns in zip(*parts, strict=True))
        if self.scan is None:
            best = best_of(scores, positions, k) if len(parts) > 1 else (scores, positions)
            return best[0].numpy(), best[1].numpy()
        candidates = best_of(scores, positions, self.refine * k)
        at_once = max(CANDIDATES_BYTES // (64 * max(candidates[0].shape[1], 1)), 1)
        columns = (torch.from_numpy(queries), *candidates)
        chunks = zip(*(column.split(at_once) for column in columns), strict=True)
        found = [self._rescored(*chunk, k=k) for chunk in chunks]
        return np.concatenate([scores for scores, _ in found]), np.concatenate([places for _, places in found])

    @torch.no_grad()
    def _scan(
        self, queries: Float[np.ndarray, "queries dim"], k: int, shards: Sequence[int] | None, some: _Some | None
    ) -> Int[Tensor, "queries k"]:
        """Scan some shards and return the keys of the best documents."""
        sizes = SIZES[self.device.type]
        given = torch.from_numpy(np.ascontiguousarray(queries, dtype=np.float32)).to(self.device)
        rows = self._rows(len(queries), sizes)
        with full_precision():
            tiles = [self._tile(part, k) for part in given.split(sizes.queries)]
            if sampled := self._sampled(k, shards, some):
                sample, rank = sampled
                for product, leaders in tiles:
                    leaders.expect(product(sample).T.contiguous().topk(rank).values[:, -1])
            self._read(tiles, rows, shards, some)
            if short := [tile for tile in tiles if tile[1].are_short()]:
                for _, leaders in short:
                    leaders.start_again()
                self._read(short, rows, shards, some)
        return torch.cat([leaders.best() for _, leaders in tiles]).cpu()

    def _tile(self, queries: Float[Tensor, "queries dim"], k: int) -> Tile:
        padded = _padded(queries)
        unused = len(padded) - len(queries)
        return self._product(padded), Leaders(len(queries), k, unused=unused, device=self.device)

    def _read(self, tiles: Sequence[Tile], rows: int, shards: Sequence[int] | None, some: _Some | None) -> None:
        """Offer all documents of some shards, or those that are allowed, to all tiles."""
        drop = None if some is None or some.gather else torch.from_numpy(some.keep).to(self.device)

        def offer(piece: Block) -> None:
            with torch.no_grad():
                piece = self._widened(piece)
                places = None if drop is None else drop[piece.positions].nonzero()[:, 0]
                for number, (product, leaders) in enumerate(tiles):
                    scores = product(piece)
                    if not number:  # one query's scores tell, at the price of one number for each vector
                        refuse_not_finite(self.scanned, piece.positions, scores[:, 0].isfinite())
                    if places is None:
                        leaders.offer(scores, piece.positions)
                    else:
                        leaders.offer(scores[places], piece.positions[places])

        blocks = self._blocks(rows if self.device.type == "cuda" else rows * BLOCK_PIECES, shards, some)
        if self.device.type == "cuda":
            for block in blocks:
                offer(block)
            return
        pieces = (_pieces(block, rows) for block in blocks)
        work_in_threads(offer, pieces, ahead=0 if self.release else 2)

    @cached_property
    def _sample_size(self) -> int:
        """The number of documents in the sample; 0 if pages are released after reading."""
        num_docs = self.scanned.num_docs
        return 0 if self.release else min(num_docs // SAMPLED, SAMPLED_BYTES // (4 * self.vectors.dim))

    @cached_property
    def _sample(self) -> Block:
        """Documents spread evenly over the store, kept because every search scores them first."""
        positions = np.linspace(0, self.scanned.num_docs - 1, self._sample_size).astype(np.int64)
        return self._widened(_moved(self.scanned.pick(positions), self.device))

    def _sampled(self, k: int, shards: Sequence[int] | None, some: _Some | None) -> tuple[Block, int] | None:
        """Choose a sample, and a rank whose score the k best nearly always exceed.

        None if using it would save nothing.
        """
        if some is not None and some.gather:
            return self._sampled_of_copy(k, some)
        rank = _sample_rank(k, self._sample_size, self.scanned.num_docs) if shards is None else None
        if rank is None or some is None:
            return None if rank is None else (self._sample, rank)
        places = torch.from_numpy(some.keep[self._sample.positions.cpu().numpy()]).nonzero()[:, 0]
        rank = _sample_rank(k, len(places), some.num_docs)
        return None if rank is None else (_picked(self._sample, places.to(self.device)), rank)

    def _sampled_of_copy(self, k: int, some: _Some) -> tuple[Block, int] | None:
        size = some.num_docs // SAMPLED
        rank = _sample_rank(k, size, some.num_docs)
        if rank is None or some.copy is None:
            return None
        places = torch.arange(0, some.num_docs, SAMPLED, device=self.device)[:size]
        return _picked(some.copy, places), rank

    def _widened(self, block: Block) -> Block:
        return block if self.scan else block._replace(vectors=block.float32(), scales=None)

    def _rows(self, num_queries: int, sizes: Sizes) -> int:
        """Compute the number of rows in a piece.

        On a GPU it is the same for any number of queries, since the blocks stay there.
        """
        together = min(num_queries, sizes.queries) if self.device.type == "cpu" else sizes.queries
        itemsize = self.scanned.num_bytes // self.scanned.num_rows if self.scan else 4 * self.vectors.dim
        return max(1, min(sizes.piece_bytes // itemsize, sizes.scores // together))

    def _blocks(self, rows: int, shards: Sequence[int] | None, some: _Some | None) -> Iterable[Block]:
        if some is not None and some.copy is not None:
            return [some.copy]
        if some is not None and some.gather:
            more = 1 if self.release else max(1, len(some.keep) // some.num_docs)  # so that blocks are about as large
            blocks = self.scanned.blocks(rows * more, shards=shards, release=self.release, keep=some.keep)
            return (_moved(block, self.device) for block in blocks)
        if self.device.type == "cpu":
            return self.scanned.blocks(rows, shards=shards, release=self.release)
        if self._resident:
            return self._resident
        blocks = (_moved(block, self.device) for block in self.scanned.blocks(rows, shards=shards, release=True))
        if shards is None and self.scanned.num_bytes < torch.cuda.mem_get_info(self.device)[0] / 2:
            self._resident = list(blocks)
            return self._resident
        return blocks

    def _product(self, queries: Float[Tensor, "queries dim"]) -> ScoreBlock:
        """Return the function that computes the scores of a block.

        Scores of a narrow scan lack a factor, which is the same for all documents of a query.
        """
        if self.scan is None:
            product = float_product(queries)
            return lambda block: product(block.vectors)
        if self.scan.dtype == "int8":
            integers = to_int8(queries)[0]
            return lambda block: int8_product(block.vectors, integers).float().mul_(cast(Tensor, block.scales)[:, None])
        narrow_queries = queries.to(DTYPES[self.scan.dtype])
        return lambda block: F.linear(block.vectors, narrow_queries).float()

    def _rescored(
        self,
        queries: Float[Tensor, "queries dim"],
        scores: Float[Tensor, "queries found"],
        positions: Int[Tensor, "queries found"],
        *,
        k: int,
    ) -> Best:
        """Select the k best candidates of a narrow scan by exact scores, best first."""
        first = min(max(k, FEWEST_RESCORED), positions.shape[1])
        exact = torch.full(positions.shape, -torch.inf)
        ranks = torch.arange(positions.shape[1]).expand_as(positions)
        self._score(exact, queries, positions, ranks < first)
        count = contenders(scores, exact[:, :first], k)
        self._score(exact, queries, positions, (ranks >= first) & (ranks < count[:, None]))
        best = best_of(exact, positions, k)
        return best[0].numpy(), best[1].numpy()

    def _score(
        self,
        exact: Float[Tensor, "queries found"],
        queries: Float[Tensor, "queries dim"],
        positions: Int[Tensor, "queries found"],
        wanted: Bool[Tensor, "queries found"],
    ) -> None:
        """Write the scores of the wanted documents into `exact`.

        The documents' vectors are read in their order on disk.
        """
        rows, columns = wanted.nonzero(as_tuple=True)
        order = positions[rows, columns].argsort()

        def score(part: Int[Tensor, " part"]) -> None:
            places = rows[part], columns[part]
            vectors = torch.from_numpy(self.vectors.take(positions[places].numpy()))
            scores = vectors.mul_(queries[places[0]]).sum(1)
            refuse_not_finite(self.vectors, positions[places], scores.isfinite())
            exact[places] = scores

        with product_threads() as pool:
            for _ in pool.map(score, order.split(max(1, RESCORED_BYTES // (4 * self.vectors.dim)))):
                pass


def _pieces(block: Block, rows: int) -> list[Block]:
    scales = [None] * len(block.rows) if block.scales is None else block.scales.split(rows)
    parts = zip(block.rows.split(rows), block.positions.split(rows), block.vectors.split(rows), scales, strict=False)
    return [Block(*part) for part in parts]


def _sample_rank(k: int, size: int, num_docs: int) -> int | None:
    """Choose a rank in a sample, whose score the k best nearly always exceed.

    None if using it would save nothing.
    """
    expected = k * size / max(num_docs, 1)  # of the k best, this many are in the sample
    rank = math.ceil(expected + 4 * math.sqrt(expected) + 4)
    return rank if 8 * rank <= size else None


def _padded(queries: Float[Tensor, "queries dim"]) -> Float[Tensor, "even dim"]:
    return F.pad(queries, (0, 0, 0, -len(queries) % EVEN if len(queries) > 1 else 0))


def _nothing(num_queries: int) -> Best:
    return np.empty((num_queries, 0), dtype=np.float32), np.empty((num_queries, 0), dtype=np.int64)


def _picked(block: Block, places: Int[Tensor, " some"]) -> Block:
    scales = None if block.scales is None else block.scales[places]
    return Block(block.rows[places.cpu()], block.positions[places], block.vectors[places], scales)


def _moved(block: Block, device: torch.device) -> Block:
    scales = None if block.scales is None else block.scales.to(device)
    return Block(block.rows, block.positions.to(device), block.vectors.to(device), scales)


@dataclass(frozen=True, kw_only=True)
class ScanShards:
    """A task that searches some shards of a store, in any process.

    It opens the store when it is first called.
    """

    queries: Float[np.ndarray, "queries dim"]
    k: int
    vectors: Path
    scan: Path | None = None
    memory_gib: float | None = None
    refine: int = REFINE
    keep: UInt8[np.ndarray, " bytes"] | None = None
    """Whether the document at each position may be found, as bits (None: all)."""

    @cached_property
    def index(self) -> FlatIndex:
        """The index over the stores, opened in the process where this runs."""
        scan = VectorReader(self.scan, compare=False) if self.scan else None  # whoever sends this has compared
        vectors = VectorReader(self.vectors, compare=False)
        return FlatIndex(vectors, scan=scan, memory_gib=self.memory_gib, device=_device(), refine=self.refine)

    def __call__(self, shards: Sequence[int]) -> Best:
        """Find the candidates in these shards, which FlatIndex.settle merges."""
        count = self.index.vectors.num_docs
        keep = None if self.keep is None else np.unpackbits(self.keep, count=count).astype(bool)
        return self.index.candidates(self.queries, self.k, shards, keep=keep)


def exact_index(
    vectors: Path,
    *,
    scan: Path | None = None,
    memory_gib: float | None = None,
    refine: int = REFINE,
    dims: int | None = None,
    unit: bool = True,
) -> FlatIndex:
    """Open the vectors in a folder for exact search, preferably on a GPU.

    The arguments are those of FlatIndex; `dims` and `unit` are `dim` and `unit` of VectorReader.
    """
    narrow_copy, reader = VectorReader(scan) if scan else None, VectorReader(vectors, dim=dims, unit=unit)
    return FlatIndex(reader, scan=narrow_copy, memory_gib=memory_gib, device=_device(), refine=refine)


def _device() -> torch.device:
    """Return the first GPU if there is one, or the CPU.

    This does not import `models`, which would load transformers.
    """
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def free_bytes() -> int:
    """Return the free memory, or all memory if the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text("utf-8").splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
