"""Exact search by late interaction, over all tokens of every document."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol, TypeVar, final, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from shortlist.data.allowed import Allowed
from shortlist.data.stores.tokens import TokenBlock, TokenReader
from shortlist.errors import UserError
from shortlist.index.encoded import find_encoded, search_encoded, stored_positions
from shortlist.index.flat import CANDIDATES_BYTES, Best, free_bytes
from shortlist.index.leaders import Leaders
from shortlist.index.protocols import TokenIndex
from shortlist.index.threads import product_threads, work_in_threads
from shortlist.math.matching import query_tiles, scan_integers, score_documents
from shortlist.math.maxsim import TokenVectors
from shortlist.math.products import full_precision
from shortlist.math.ragged import text_parts
from shortlist.math.scoring import best_of, contenders, from_keys
from shortlist.records import Hit, Query, Run, as_queries

T = TypeVar("T")

UNIT_TOKENS = 1 << 14
"""Tokens of documents that one thread compares with all queries, before the best are chosen."""
BLOCK_UNITS = 4
"""The number of units in a block that is read at once."""
CANDIDATE_TOKENS = 1 << 14
"""Tokens of candidates that are copied from the store at a time."""
NARROW_REFINE = 4
"""The number of candidates of a narrow scan, in multiples of k."""
SAMPLED_DOCS, SAMPLED_TOKENS = 1000, 1 << 16
"""The most documents, and about the most of their tokens, in a sample of the store."""
FEWEST_COMPARED = 32
"""The least number of candidates from whose scores the error of a narrow scan is estimated."""


def check_token_queries(queries: TokenVectors, k: int, *, dim: int) -> None:
    """Raise UserError if the queries or k do not suit token vectors of `dim` numbers."""
    if not isinstance(queries, TokenVectors):
        raise UserError(
            f"queries are a {type(queries).__name__}; expected TokenVectors: encode them with a LateRetriever, or "
            "search texts with LateSearch(retriever, index)."
        )
    if queries.values.shape[1] != dim:
        raise UserError(
            f"the queries' tokens have {queries.values.shape[1]} dimensions, those of the documents {dim}: encode both "
            "with the same model."
        )
    if k < 1:
        raise UserError(f"k is {k}; expected at least 1.")
    if not np.isfinite(queries.values).all():
        raise UserError("a token vector of a query is not finite: the model overflows on it; try a wider precision.")


@final
class LateIndex:
    """Exact search by late interaction over a whole token store.

    Memory does not grow with the store. A document without vectors is never found, and neither is anything for a query
    without vectors.

    Args:
        tokens: the store that scores are computed from, in float32 whatever its dtype.
        scan: an int8 copy of the same documents from `narrow`, to be scanned instead. Its best candidates are then
            scored from `tokens`.
        memory_gib: the largest store that stays in memory, in GiB (None: half of the memory that is free now). A larger
            one is read again for every search.
        refine: the number of candidates of the narrow scan, in multiples of k. Those that can be among the best are
            rescored.

    Raises:
        UserError: the two stores differ in documents or dimension.
    """

    def __init__(
        self,
        tokens: TokenReader,
        *,
        scan: TokenReader | None = None,
        memory_gib: float | None = None,
        refine: int = NARROW_REFINE,
    ) -> None:
        if scan and (scan.num_docs, scan.dim, scan.num_tokens) != (tokens.num_docs, tokens.dim, tokens.num_tokens):
            raise UserError(
                f"{scan.folder}: holds {scan.num_docs:,} documents of {scan.num_tokens:,} token vectors, "
                f"{tokens.folder} {tokens.num_docs:,} of {tokens.num_tokens:,}; build the narrow index again."
            )
        self.tokens, self.scan, self.refine = tokens, scan, refine
        self.scanned = scan or tokens
        self.release = is_too_large(self.scanned, memory_gib)
        self._release_candidates = is_too_large(tokens, memory_gib)

    def __repr__(self) -> str:
        return f"<LateIndex of {self.tokens.num_docs:,} documents, {self.tokens.num_tokens:,} vectors of {self.dim}>"

    @property
    def dim(self) -> int:
        """The dimension of the token vectors."""
        return self.tokens.dim

    @property
    def doc_ids(self) -> Sequence[str]:
        """The ids of the documents, in corpus order."""
        return self.tokens.doc_ids

    def find(self, queries: TokenVectors, k: int, *, allowed: Allowed | None = None) -> list[list[Hit]]:
        """Find the at most k documents that score highest for each query.

        They are sorted best first, equal ones in corpus order.

        Args:
            allowed: the only documents to find (None: all).
        """
        return self.tokens.doc_ids.hits(*self.search_tokens(queries, k, allowed=allowed))

    def search_tokens(self, queries: TokenVectors, k: int, *, allowed: Allowed | None = None) -> Best:
        """Find the k documents that score highest for each query.

        Documents with equal scores are in corpus order.

        Args:
            allowed: the only documents to find (None: all).

        Returns:
            Scores and positions in the store, best first; fewer than k columns if fewer documents can be found. A query
            without vectors has scores of -inf and positions of -1.

        Raises:
            UserError: the queries have another dimension than the store, or are not finite.
        """
        return self.search_some(queries, k, None if allowed is None else allowed.mask(self.tokens.doc_ids))

    def search_some(
        self,
        queries: TokenVectors,
        k: int,
        keep: Bool[np.ndarray, " docs"] | None,
        *,
        candidates: Callable[[TokenVectors, int, Bool[np.ndarray, " docs"] | None], Best] | None = None,
    ) -> Best:
        """Search like `search_tokens` among some documents.

        Args:
            keep: whether the document at each position may be found (None: all).
            candidates: replaces the method of this name, to scan the store elsewhere.
        """
        check_token_queries(queries, k, dim=self.dim)
        there = self.tokens.counts > 0 if keep is None else (self.tokens.counts > 0) & keep
        k = min(k, int(np.count_nonzero(there)))
        found = nothing_found(len(queries), k)
        asked, some = with_vectors(queries)
        if k and len(asked):
            count = k if self.scan is None else min(max(self.refine * k, FEWEST_COMPARED), self.scan.num_docs)
            at_once = max(CANDIDATES_BYTES // (8 * Leaders.capacity(count)), 1)
            for first in range(0, len(some), at_once):
                part, places = some_queries(some, first, first + at_once), asked[first : first + at_once]
                best = (candidates or self.candidates)(part, count, keep)
                found[0][places], found[1][places] = best if self.scan is None else self._settle(part, *best, k)
        return found

    def candidates(
        self,
        queries: TokenVectors,
        k: int,
        keep: Bool[np.ndarray, " docs"] | None,
        shards: Sequence[int] | None = None,
    ) -> Best:
        """Find the k best documents of each query in the scanned store.

        Their scores are those of its vectors.

        Args:
            queries: queries that have vectors.
            keep: whether the document at each position may be found (None: all).
            shards: the shards to scan, by their index in the scanned store's `shard_hashes` (None: all).
        """
        """Scan the store and return the best k documents of each query."""
        tiles = query_tiles(queries)
        leaders = [Leaders(len(tile.starts), k) for tile in tiles]

        def offer(unit: TokenBlock) -> None:
            counts = unit.counts.numpy()
            with torch.no_grad(), full_precision():
                if self.scan is None:
                    found = score_documents(tiles, counts, partial(_widened, unit))
                else:
                    scale = float(unit.scales[0]) if unit.scales is not None and len(unit.scales) else 1.0
                    found = scan_integers(tiles, counts, unit.values, scale)
            there = np.flatnonzero(counts)
            positions = unit.positions[there]
            for number, (scores, best) in enumerate(zip(found, leaders, strict=True)):
                if not number:  # one query's scores tell, at the price of one number for each document
                    _refuse_not_finite(self.scanned, positions, scores[there, 0])
                best.offer(torch.from_numpy(scores[there]), positions)

        blocks = self.scanned.blocks(UNIT_TOKENS * BLOCK_UNITS, shards=shards, release=self.release, keep=keep)
        work_in_threads(offer, map(_units, blocks), ahead=0 if self.release else 2)
        scores, positions = from_keys(torch.cat([best.best() for best in leaders]))
        return scores.numpy(), positions.numpy()

    def _settle(
        self,
        queries: TokenVectors,
        scores: Float[np.ndarray, "queries found"],
        positions: Int[np.ndarray, "queries found"],
        k: int,
    ) -> Best:
        """Select the k best candidates of a narrow scan by exact scores, best first."""

        def settle(row: int) -> tuple[Float[Tensor, "1 _"], Int[Tensor, "1 _"]]:
            query, places = queries_at(queries, row), positions[row]
            first = min(max(k, FEWEST_COMPARED), len(places))
            exact = score_candidates(self.tokens, query, places[:first], release=self._release_candidates)
            near = torch.from_numpy(scores[row])[None]
            count = int(contenders(near, torch.from_numpy(exact)[None], k)[0])
            more = score_candidates(self.tokens, query, places[first:count], release=self._release_candidates)
            known = torch.from_numpy(np.concatenate([exact, more]))[None]
            return best_of(known, torch.from_numpy(places[:count])[None], k)

        rows = work_on_queries(settle, len(queries))
        return torch.cat([row[0] for row in rows]).numpy(), torch.cat([row[1] for row in rows]).numpy()


@dataclass(kw_only=True)
class ScanTokens:
    """A task that searches some shards of a token store, in any process.

    It opens the store when it is first called.
    """

    queries: TokenVectors
    k: int
    tokens: Path
    """The store that is scanned."""
    keep: UInt8[np.ndarray, " bytes"] | None = None
    """Whether the document at each position may be found, as bits (None: all)."""
    narrow: bool = False
    """Whether it is a copy in int8, to be scanned as integers."""

    @cached_property
    def index(self) -> LateIndex:
        """The index over the store, opened in the process where this runs."""
        tokens = TokenReader(self.tokens, compare=False)  # whoever sends this has compared
        return LateIndex(tokens, scan=tokens if self.narrow else None)

    def __call__(self, shards: Sequence[int]) -> Best:
        """Find the candidates in these shards."""
        count = self.index.tokens.num_docs
        keep = None if self.keep is None else np.unpackbits(self.keep, count=count).astype(bool)
        return self.index.candidates(self.queries, self.k, keep, shards)


def work_on_queries(work: Callable[[int], T], num_queries: int) -> list[T]:
    """Work on several queries in threads, and on one alone in this thread.

    A new thread would have to get memory for the candidates first.
    """
    if num_queries == 1:
        return [work(0)]
    with product_threads() as pool:
        return list(pool.map(work, range(num_queries)))


def is_too_large(tokens: TokenReader, memory_gib: float | None) -> bool:
    """Whether a store is larger than what may stay in memory.

    Args:
        memory_gib: how much may (None: half of the memory that is free now).
    """
    return tokens.num_bytes > (free_bytes() / 2 if memory_gib is None else memory_gib * 2**30)


def score_candidates(
    tokens: TokenReader, query: TokenVectors, positions: Int[np.ndarray, " docs"], *, release: bool = False
) -> Float[np.ndarray, " docs"]:
    """Score some documents for one query exactly; they are read in their order on disk.

    Args:
        release: give the memory of what was read back.
    """
    if not len(positions):
        return np.empty(0, dtype=np.float32)
    order, tiles = np.argsort(positions), query_tiles(query)
    ascending, found = positions[order], np.empty(len(positions), dtype=np.float32)
    with torch.no_grad(), full_precision():
        for first, last, _, _ in text_parts(tokens.counts[ascending], CANDIDATE_TOKENS):
            block = tokens.pick(ascending[first:last])
            [part] = score_documents(tiles, block.counts.numpy(), partial(_widened, block))
            found[first:last] = part[:, 0]
    if release:
        tokens.release()
    _refuse_not_finite(tokens, torch.from_numpy(ascending), found)
    scores = np.empty(len(positions), dtype=np.float32)
    scores[order] = found
    return scores


def _widened(block: TokenBlock, start: int, stop: int) -> Float[Tensor, "_ dim"]:
    """Return the vectors of some tokens of a block as float32."""
    return part_of(block, start, stop).float32()


def part_of(block: TokenBlock, start: int, stop: int) -> TokenBlock:
    """Return some tokens of a block, whose counts and positions stay as they are."""
    return block._replace(**block.stored().changed(lambda rows: rows[start:stop])._asdict())


def _units(block: TokenBlock) -> list[TokenBlock]:
    return [
        part_of(block, start, stop)._replace(
            rows=block.rows[first:last], positions=block.positions[first:last], counts=block.counts[first:last]
        )
        for first, last, start, stop in text_parts(block.counts.numpy(), UNIT_TOKENS)
    ]


def _refuse_not_finite(
    tokens: TokenReader, positions: Int[Tensor, " docs"], scores: Float[np.ndarray, " docs"]
) -> None:
    """Raise UserError if a document's score shows that a vector of it is not finite."""
    broken = np.isnan(scores) | np.isposinf(scores)
    if broken.any():
        doc_id = tokens.doc_ids[int(positions[int(broken.argmax())])]
        raise UserError(
            f"{tokens.folder}: a token vector of document {doc_id!r} is not finite, so nothing can be compared with "
            "it; encode again, with a wider --dtype or --precision."
        )


def nothing_found(num_queries: int, k: int) -> Best:
    """Return the result of a search that found nothing, with room for k documents."""
    return np.full((num_queries, k), -np.inf, dtype=np.float32), np.full((num_queries, k), -1, dtype=np.int64)


def with_vectors(queries: TokenVectors) -> tuple[Int[np.ndarray, " some"], TokenVectors]:
    """Return the numbers of the queries that have vectors, and these queries."""
    some = np.flatnonzero(queries.counts)
    return some, TokenVectors(queries.values, queries.counts[some])


def some_queries(queries: TokenVectors, first: int, last: int) -> TokenVectors:
    """Return the queries from the first to the one before the last."""
    ends = np.concatenate([[0], np.cumsum(queries.counts)])
    last = min(last, len(queries))
    return TokenVectors(queries.values[ends[first] : ends[last]], queries.counts[first:last])


def queries_at(queries: TokenVectors, row: int) -> TokenVectors:
    """Return one of several queries."""
    return some_queries(queries, row, row + 1)


@runtime_checkable
class EncodesTokens(Protocol):
    """A late retriever, or any object that turns queries into token vectors."""

    def encode_queries(self, queries: Sequence[Query]) -> TokenVectors:
        """Compute the token vectors of queries."""
        ...


@final
class LateSearch:
    """A first stage that searches an index by the token vectors of a late retriever."""

    def __init__(self, retriever: EncodesTokens, index: TokenIndex) -> None:
        self.retriever, self.index = retriever, index
        self.temporary: Any = None
        """Whatever must live as long as this does, such as a temporary folder of the vectors."""

    def __repr__(self) -> str:
        return f"<LateSearch with {self.retriever!r} over {self.index!r}>"

    @property
    def doc_ids(self) -> Sequence[str] | None:
        """The ids of the documents, in corpus order, if the index knows them."""
        return getattr(self.index, "doc_ids", None)

    def search(self, queries: str | Query | Iterable[str | Query], k: int, *, allowed: Allowed | None = None) -> Run:
        """Find the k best documents for each query; texts get their positions as ids.

        Args:
            allowed: the only documents to find (None: all).
        """
        return search_encoded(self.retriever, self.index, queries, k, allowed=allowed)

    def query_tokens(self, queries: str | Query | Iterable[str | Query]) -> TokenVectors:
        """Compute the token vectors that `search` uses for these queries."""
        return self.retriever.encode_queries(as_queries(queries))

    def find_by_tokens(self, queries: TokenVectors, k: int, *, allowed: Allowed | None = None) -> list[list[Hit]]:
        """Find the k best documents for each query, given by its token vectors."""
        return find_encoded(self.index, queries, k, allowed=allowed)

    def document_tokens(self, doc_ids: Sequence[str]) -> TokenVectors:
        """Return the token vectors of documents as float32, read from the store in one go.

        Raises:
            UserError: the index knows no store of token vectors, or one of the documents has none.
        """
        return self._store.take(stored_positions(self._store, doc_ids, "token vectors"))

    def sampled_tokens(self) -> TokenVectors:
        """Return the token vectors of some documents that have any, evenly spread over the store."""
        there = np.flatnonzero(self._store.counts)
        count = min(len(there), SAMPLED_DOCS, max(SAMPLED_TOKENS * len(there) // max(self._store.num_tokens, 1), 1))
        return self._store.take(there[np.linspace(0, len(there) - 1, count).astype(np.int64)] if count else there)

    @property
    def _store(self) -> TokenReader:
        store = getattr(self.index, "tokens", None)
        if not isinstance(store, TokenReader):
            raise UserError(
                f"{self.index!r} gives no token vectors of documents; search those of `shortlist encode` here, or an "
                "index over them, without an engine."
            )
        return store
