"""Exact search: every query against every vector, block by block."""

import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import NamedTuple, cast, final

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from shortlist.data.vectors import DTYPES, Block, VectorReader
from shortlist.errors import UserError
from shortlist.index.leaders import Leaders
from shortlist.math.products import float_product, full_precision
from shortlist.math.quantize import int8_product, to_int8
from shortlist.math.scoring import best_of, contenders, from_keys
from shortlist.records import Hit

Found = tuple[Float[np.ndarray, "queries _"], Int[np.ndarray, "queries _"]]
"""Scores and positions, best first."""

Product = Callable[[Block], Float[Tensor, "rows queries"]]
Tile = tuple[Product, Leaders]
"""Queries that are multiplied together, and what they have found."""


class Sizes(NamedTuple):
    """What is worked on at a time. Results never depend on the store's size or on memory, so neither do these."""

    queries: int
    """Multiplied together."""
    piece_bytes: int
    """Of documents, multiplied together by one thread."""
    scores: int
    """Of a piece and as many queries."""


SIZES = {"cpu": Sizes(256, 1 << 24, 1 << 19), "cuda": Sizes(512, 1 << 30, 1 << 26)}
"""By device. On a CPU the scores stay in the cache, and many queries at a time are multiplied at the highest rate."""

EVEN = 16
"""Queries are filled up to a multiple of this, as odd numbers take longer: 100 longer than 112."""

CANDIDATES_BYTES = 1 << 28
"""For the candidates of all queries that one reading of the store serves."""

RESCORED_BYTES = 1 << 20
"""For the vectors that a thread rescores at a time: they stay in the cache."""

FEWEST_RESCORED = 128
"""Candidates of a narrow scan from whose scores its error is judged, at least."""

REFINE = 2
"""Candidates of a narrow scan, in multiples of k."""

THREADS = 4
"""That multiply different pieces at most; they share the cores. More would wait for each other."""

PIECES = 4
"""Of a block that is read at once."""

SAMPLE_BYTES = 1 << 25
"""Of the documents whose scores say in advance what the best will reach; they are 1 in SAMPLED at most."""

SAMPLED = 64


def check_queries(queries: Float[np.ndarray, "queries dim"], k: int, *, dim: int) -> None:
    """Refuse what cannot be searched for among vectors of `dim` numbers."""
    if queries.shape[1] != dim:
        raise UserError(
            f"queries have {queries.shape[1]} dimensions, the vectors {dim}: encode both with the same model."
        )
    if k < 1:
        raise UserError(f"k is {k}; expected at least 1.")
    if not np.isfinite(queries).all():
        raise UserError("the vector of a query is not finite: the model overflows on it; try a wider precision.")


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
        refine: candidates of the narrow scan, in multiples of k; those that can be among the best are rescored.

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
        check_queries(queries, k, dim=self.vectors.dim)
        k = min(k if self.scan is None else self.refine * k, self.vectors.num_docs)
        at_once = max(CANDIDATES_BYTES // (8 * Leaders.capacity(k)), 1)
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
        candidates = best_of(scores, positions, self.refine * k)
        at_once = max(CANDIDATES_BYTES // (64 * max(candidates[0].shape[1], 1)), 1)
        columns = (torch.from_numpy(queries), *candidates)
        some = zip(*(column.split(at_once) for column in columns), strict=True)
        found = [self._rescored(*each, k=k) for each in some]
        return np.concatenate([scores for scores, _ in found]), np.concatenate([places for _, places in found])

    @torch.no_grad()
    def _scan(
        self, queries: Float[np.ndarray, "queries dim"], k: int, shards: Sequence[int] | None
    ) -> Int[Tensor, "queries k"]:
        """Keys of the best documents of some shards."""
        sizes = SIZES[self.device.type]
        given = torch.from_numpy(np.ascontiguousarray(queries, dtype=np.float32)).to(self.device)
        rows = self._rows(len(queries), sizes)
        with full_precision():
            rank = self._sample_rank(k) if shards is None else None
            tiles = [self._tile(part, k) for part in given.split(sizes.queries)]
            if rank:
                for product, leaders in tiles:
                    leaders.expect(product(self._sample).T.contiguous().topk(rank).values[:, -1])
            self._read(tiles, rows, shards)
            if short := [tile for tile in tiles if tile[1].are_short()]:
                for _, leaders in short:
                    leaders.start_again()
                self._read(short, rows, shards)
        return torch.cat([leaders.best() for _, leaders in tiles]).cpu()

    def _tile(self, queries: Float[Tensor, "queries dim"], k: int) -> Tile:
        unused = -len(queries) % EVEN if len(queries) > 1 else 0
        product = self._product(F.pad(queries, (0, 0, 0, unused)))
        return product, Leaders(len(queries), k, unused=unused, device=self.device)

    def _read(self, tiles: Sequence[Tile], rows: int, shards: Sequence[int] | None) -> None:
        """Offer all documents of some shards to all tiles."""

        def offer(piece: Block) -> None:
            with torch.no_grad():
                piece = self._widened(piece)
                for product, leaders in tiles:
                    leaders.offer(product(piece), piece.positions)

        blocks = self._blocks(rows if self.device.type == "cuda" else rows * PIECES, shards)
        if self.device.type == "cuda":
            for block in blocks:
                offer(block)
            return
        _in_threads(offer, blocks, rows, ahead=0 if self.release else 2)

    @cached_property
    def _sample_size(self) -> int:
        """Documents in the sample; 0 where it would hold pages that are to be given back."""
        num_docs = self.scanned.num_docs
        return 0 if self.release else min(num_docs // SAMPLED, SAMPLE_BYTES // (4 * self.vectors.dim))

    @cached_property
    def _sample(self) -> Block:
        """Some documents, evenly spread; kept, as every search looks at them first."""
        positions = np.linspace(0, self.scanned.num_docs - 1, self._sample_size).astype(np.int64)
        return self._widened(_moved(self.scanned.pick(positions), self.device))

    def _sample_rank(self, k: int) -> int | None:
        """The rank in the sample that the k best of all exceed nearly always; None where that would save nothing."""
        size = self._sample_size
        expected = k * size / max(self.scanned.num_docs, 1)  # of the k best, in the sample
        rank = math.ceil(expected + 4 * math.sqrt(expected) + 4)
        return rank if 8 * rank <= size else None

    def _widened(self, block: Block) -> Block:
        return block if self.scan else block._replace(vectors=block.float32(), scales=None)

    def _rows(self, num_queries: int, sizes: Sizes) -> int:
        """Of a piece. On a GPU the same for any number of queries, as the blocks stay there."""
        together = min(num_queries, sizes.queries) if self.device.type == "cpu" else sizes.queries
        itemsize = self.scanned.num_bytes // self.scanned.num_rows if self.scan else 4 * self.vectors.dim
        return max(1, min(sizes.piece_bytes // itemsize, sizes.scores // together))

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

    def _product(self, queries: Float[Tensor, "queries dim"]) -> Product:
        """The scores of a block; of a narrow scan but for a factor, the same for all documents of a query."""
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
    ) -> Found:
        """The k best of the candidates of a narrow scan, best first, by their exact scores."""
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
        """Put in the scores of the wanted documents, which are read in the order in which they lie on disk."""
        rows, columns = wanted.nonzero(as_tuple=True)
        order = positions[rows, columns].argsort()

        def score(part: Int[Tensor, " part"]) -> None:
            places = rows[part], columns[part]
            vectors = torch.from_numpy(self.vectors.take(positions[places].numpy()))
            exact[places] = vectors.mul_(queries[places[0]]).sum(1)

        with _threads() as pool:
            for _ in pool.map(score, order.split(max(1, RESCORED_BYTES // (4 * self.vectors.dim)))):
                pass


def _pieces(block: Block, rows: int) -> list[Block]:
    scales = [None] * len(block.rows) if block.scales is None else block.scales.split(rows)
    parts = zip(block.rows.split(rows), block.positions.split(rows), block.vectors.split(rows), scales, strict=False)
    return [Block(*part) for part in parts]


def _in_threads(work: Callable[[Block], None], blocks: Iterable[Block], rows: int, *, ahead: int) -> None:
    """Do the work on pieces of each block, asking for a block when all pieces of the one `ahead` before are done."""
    under_way: deque[list[Future[None]]] = deque()
    with _threads() as pool:
        for block in blocks:
            under_way.append([pool.submit(work, piece) for piece in _pieces(block, rows)])
            while len(under_way) > ahead:
                for piece in under_way.popleft():
                    piece.result()
        for piece in chain(*under_way):
            piece.result()


@contextmanager
def _threads() -> Iterator[ThreadPoolExecutor]:
    """Threads that multiply by themselves: two that share each small product mostly wait for each other."""
    cores = torch.get_num_threads()
    threads = min(cores, THREADS)
    torch.set_num_threads(cores // threads)  # here too: OpenMP's threads of this one would wait by spinning
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(cores // threads,)) as pool:
            yield pool
    finally:
        torch.set_num_threads(cores)  # threads that start later would take the number from those above


def _moved(block: Block, device: torch.device) -> Block:
    scales = None if block.scales is None else block.scales.to(device)
    return Block(block.rows, block.positions.to(device), block.vectors.to(device), scales)


@dataclass(frozen=True, kw_only=True)
class ScanShards:
    """Searches some shards of a store, in whichever process it is sent to; opens the store when the first ones come."""

    queries: Float[np.ndarray, "queries dim"]
    k: int
    vectors: Path
    scan: Path | None = None
    memory_gib: float | None = None
    refine: int = REFINE

    @cached_property
    def index(self) -> FlatIndex:
        """The stores, as they are where this runs."""
        scan = VectorReader(self.scan) if self.scan else None
        return FlatIndex(
            VectorReader(self.vectors), scan=scan, memory_gib=self.memory_gib, device=_device(), refine=self.refine
        )

    def __call__(self, shards: Sequence[int]) -> Found:
        """What these shards offer; FlatIndex.settle makes the result of all of them."""
        return self.index.candidates(self.queries, self.k, shards)


def exact_index(
    vectors: Path, *, scan: Path | None = None, memory_gib: float | None = None, refine: int = REFINE
) -> FlatIndex:
    """Exact search over the vectors of a folder, on a GPU where there is one; arguments as of FlatIndex."""
    narrow_copy = VectorReader(scan) if scan else None
    return FlatIndex(VectorReader(vectors), scan=narrow_copy, memory_gib=memory_gib, device=_device(), refine=refine)


def _device() -> torch.device:
    """The first GPU if there is one; asked for here, as `models` would load transformers."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _free_bytes() -> int:
    """Memory that could be had now; where the system does not say, all there is."""
    try:
        lines = Path("/proc/meminfo").read_text("utf-8").splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
