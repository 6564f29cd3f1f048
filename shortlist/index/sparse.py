"""Exact search by term weights, over inverted indexes of parts of a store.

A segment is the inverted index of consecutive rows of a store: for each term its rows and its weights in them. A part
is small enough that the scores of its rows stay in the processor's cache. An update adds segments for the new rows.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple, Protocol, final, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, Int32, Int64
from scipy import sparse

from shortlist.data.allowed import Allowed
from shortlist.data.files import atomic_write
from shortlist.data.stores.shards import DEAD
from shortlist.data.stores.terms import TermReader
from shortlist.errors import UserError
from shortlist.index.encoded import find_encoded, search_encoded, stored_positions
from shortlist.index.flat import Best
from shortlist.index.parameters import Footprint
from shortlist.index.protocols import FetchDocuments, Opening, TermIndex, TermTotals, WeightedTerms
from shortlist.math.heaviest import heaviest
from shortlist.math.postings import add_postings, best_scores, error_bound, left_out
from shortlist.math.terms import TermWeights
from shortlist.progress import Advance
from shortlist.records import Hit, Query, Run, as_queries

SEGMENT_ROWS = 1 << 17
"""The most rows of a segment, whose scores take half a mebibyte."""
SEGMENT_ENTRIES = 1 << 25
"""The most entries of a segment, which are in memory when it is built."""
SMALL_SEGMENTS = 8
"""The most segments that updates may add before they are merged."""
INVERTED_AT_ONCE = 1 << 20
"""Entries of a store that are read at a time."""
SCORED_AT_ONCE = 8192
"""Rows that are scored exactly at a time."""
HEAVY = 1.25
"""A term's weight is heavy above so many times its mean in a segment."""
SHARE_LEFT_OUT = 0.2
"""The share of the k-th best score that the postings which are left out may add."""
EXACT_COST = 512
"""Postings that are added in the time in which a row is scored exactly."""
SEGMENTS_LISTED = "index.json"
SEGMENT_COLUMNS = ("rows", "weights", "starts", "tops")


class Segment(NamedTuple):
    """The inverted index of consecutive rows of a store."""

    first: int
    """The first row."""
    last: int
    """The row behind the last one."""
    rows: Int32[np.ndarray, " postings"]
    """The rows of each term, one term after another, counted from `first`: where its weight is heavy, then where it is
    light."""
    weights: Float32[np.ndarray, " postings"]
    starts: Int64[np.ndarray, " _"]
    """Where the heavy postings of each term begin and where its light ones do, and where the last ones end."""
    tops: Float32[np.ndarray, "terms 2"]
    """Each term's largest weight and its largest light one, 0 where there is none."""


def make_segment(terms: TermReader, first: int, last: int) -> Segment:
    """Invert some rows of a store."""
    counts, numbers, weights = [], [], []
    for start in range(first, last, (step := max(1, INVERTED_AT_ONCE // 128))):
        found = terms.rows(np.arange(start, min(start + step, last))).as_float32()
        counts.append(found.counts)
        numbers.append(found.terms)
        weights.append(found.weights)
    ends, kinds, heights = np.cumsum(np.concatenate(counts)), np.concatenate(numbers), np.concatenate(weights)
    means = np.bincount(kinds, heights, terms.num_terms) / np.maximum(np.bincount(kinds, minlength=terms.num_terms), 1)
    lists = 2 * kinds + (heights <= (HEAVY * means).astype(np.float32)[kinds])
    shape = (last - first, 2 * terms.num_terms)
    matrix: Any = sparse.csr_array((heights, lists, np.concatenate([[0], ends])), shape=shape).tocsc()
    used, tops = np.flatnonzero(np.diff(matrix.indptr)), np.zeros(2 * terms.num_terms, dtype=np.float32)
    if len(used):
        tops[used] = np.maximum.reduceat(matrix.data, matrix.indptr[used])
    tops[0::2] = np.maximum(tops[0::2], tops[1::2])
    starts = matrix.indptr.astype(np.int64)
    return Segment(first, last, matrix.indices.astype(np.int32), matrix.data, starts, tops.reshape(-1, 2))


def segment_parts(ends: Int[np.ndarray, " rows"], first: int) -> list[tuple[int, int]]:
    """Divide the rows from `first` on into parts for segments.

    Args:
        ends: where each row's entries end.
    """
    parts: list[tuple[int, int]] = []
    while first < len(ends):
        before = int(ends[first - 1]) if first else 0
        fitting = int(np.searchsorted(ends, before + SEGMENT_ENTRIES, side="right"))
        last = min(max(fitting, first + 1), first + SEGMENT_ROWS, len(ends))
        parts.append((first, last))
        first = last
    return parts


@final
class SparseIndex:
    """Exact search by term weights over a whole term store.

    A document's score is the sum, over the terms of both, of the product of their weights, rounded to float32. A
    document without a term of the query is never found, and neither is anything for a query without terms.

    Args:
        terms: the store.
        segments: inverted indexes of its first rows, in order (None: they are made now, in memory).
        query_terms: terms of a query to search by, the heaviest (None: all).

    Attributes:
        missing: the number of documents of the store that are in no segment.
    """

    def __init__(
        self, terms: TermReader, segments: Sequence[Segment] | None = None, *, query_terms: int | None = None
    ) -> None:
        if query_terms is not None and query_terms < 1:
            raise UserError(f"query_terms is {query_terms}; expected at least 1.")
        self.terms, self.query_terms = terms, query_terms
        if segments is None:
            segments = [make_segment(terms, *part) for part in segment_parts(np.cumsum(terms.row_counts), 0)]
        self.segments = list(segments)
        self._tops, self._lengths = np.zeros((terms.num_terms, 2)), np.zeros((terms.num_terms, 2), dtype=np.int64)
        for segment in self.segments:
            self._tops = np.maximum(self._tops, segment.tops)
            self._lengths += np.diff(segment.starts).reshape(-1, 2)
        inside = self.segments[-1].last if self.segments else 0
        self._positions = terms.positions_of(np.arange(inside))
        self.missing = terms.num_docs - int((self._positions != DEAD).sum())
        living = self._positions != DEAD
        self._living = None if living.all() else living

    def __repr__(self) -> str:
        return f"<SparseIndex of {self.terms.num_docs:,} documents, {self.terms.num_terms:,} terms>"

    @property
    def num_terms(self) -> int:
        """The size of the vocabulary."""
        return self.terms.num_terms

    @property
    def doc_ids(self) -> Sequence[str]:
        """The ids of the documents, in corpus order."""
        return self.terms.doc_ids

    @cached_property
    def vocabulary(self) -> list[str]:
        """The terms by their numbers."""
        return self.terms.vocabulary

    @property
    def disk_bytes(self) -> int:
        """The bytes of all postings."""
        return sum(column.nbytes for segment in self.segments for column in segment[2:])

    def find(self, queries: TermWeights, k: int, *, allowed: Allowed | None = None) -> list[list[Hit]]:
        """Find the at most k documents that score highest for each query.

        They are sorted best first, equal ones in corpus order.

        Args:
            allowed: the only documents to find (None: all).
        """
        return self.terms.doc_ids.hits(*self.search_terms(queries, k, allowed=allowed))

    def search_terms(self, queries: TermWeights, k: int, *, allowed: Allowed | None = None) -> Best:
        """Find the k documents that score highest for each query, equal scores in corpus order.

        Args:
            allowed: the only documents to find (None: all).

        Raises:
            UserError: a term outside the vocabulary, a weight that is negative or not finite, k below 1.
        """
        check_term_queries(queries, k, num_terms=self.num_terms)
        queries = heaviest(queries, self.query_terms)
        k = min(k, max(self.terms.num_docs, 1))
        scores, positions = no_scores(len(queries), k)
        keep = self._rows_to_find(allowed)
        for number, (terms, weights) in enumerate(queries):
            exact, found = self._search(terms, weights, k, keep)
            scores[number, : len(found)], positions[number, : len(found)] = exact, found
        return scores, positions

    def _rows_to_find(self, allowed: Allowed | None) -> Bool[np.ndarray, " rows"] | None:
        """Return the rows that may be found (None: all)."""
        if allowed is None:
            return self._living
        keep = allowed.mask(self.terms.doc_ids)[self._positions]
        return keep if self._living is None else keep & self._living

    def _search(
        self,
        terms: Int32[np.ndarray, " terms"],
        weights: Float32[np.ndarray, " terms"],
        k: int,
        keep: Bool[np.ndarray, " rows"] | None,
    ) -> tuple[Float32[np.ndarray, " found"], Int[np.ndarray, " found"]]:
        """Search one query: scan in float32, then score exactly what can be best.

        The first segment is scanned whole. Then some postings are left out which are many and can add little to a
        score; the most that they can add together is the margin.
        """
        slack, least, margin = 1 - error_bound(len(terms)), 0.0, 0.0
        kept = np.full(len(terms), 2)
        rows, lows, highs = np.empty(0, np.int64), np.empty(0, np.float32), np.empty(0, np.float32)
        scratch = np.empty(max((segment.last - segment.first for segment in self.segments), default=0), np.float32)
        for segment in self.segments:
            scanned, more = scratch[: segment.last - segment.first], margin
            scanned.fill(0)
            starts, stops, ends = (segment.starts[2 * terms + places] for places in (0, kept, 2))
            add_postings(segment.rows, segment.weights, starts, stops, weights, scanned)
            if keep is not None:
                scanned *= keep[segment.first : segment.last]
            found = np.flatnonzero(scanned >= least - margin) if margin else best_scores(scanned, k, slack=slack)
            if len(found) * EXACT_COST > int((ends - stops).sum()) > 0:
                add_postings(segment.rows, segment.weights, stops, ends, weights, scanned)
                if keep is not None:
                    scanned *= keep[segment.first : segment.last]
                found, more = np.flatnonzero(scanned >= least), 0.0
            rows = np.concatenate([rows, found + segment.first])
            lows, highs = np.concatenate([lows, scanned[found]]), np.concatenate([highs, scanned[found] + more])
            if len(rows) > k:
                least = float(np.partition(lows, -k)[-k]) * slack
                near = highs >= least
                rows, lows, highs = rows[near], lows[near], highs[near]
                if not margin:
                    bounds = self._tops[terms] * weights[:, None]
                    kept, margin = left_out(bounds, self._lengths[terms], SHARE_LEFT_OUT * least)
                    margin /= slack
        return self._settle(terms, weights, rows, k)

    def _settle(
        self,
        terms: Int32[np.ndarray, " terms"],
        weights: Float32[np.ndarray, " terms"],
        rows: Int[np.ndarray, " found"],
        k: int,
    ) -> tuple[Float32[np.ndarray, " k"], Int[np.ndarray, " k"]]:
        """Select the k best of some rows by exact scores, best first."""
        positions, scores = self._positions[rows], score_rows(self.terms, terms, weights, rows)
        best = np.lexsort((positions, -scores))[:k]
        return scores[best], positions[best]

    def score(self, query: TermWeights, positions: Int[np.ndarray, " docs"]) -> Float32[np.ndarray, " docs"]:
        """Score some documents for one query exactly."""
        [(terms, weights)] = query
        return score_rows(self.terms, terms, weights, self.terms.rows_of(positions))

    def matches(self, query: TermWeights, positions: Int[np.ndarray, " docs"]) -> list[dict[int, float]]:
        """Return the weights, in some documents, of the terms that a query shares with them."""
        return matching_terms(self.terms, query, positions)


def matching_terms(
    store: TermReader, query: TermWeights, positions: Int[np.ndarray, " docs"]
) -> list[dict[int, float]]:
    """Return the weights, in some documents, of the terms that a query shares with them."""
    asked = set(query.terms.tolist())
    return [
        {term: weight for term, weight in zip(terms.tolist(), weights.tolist(), strict=True) if term in asked}
        for terms, weights in store.take(positions)
    ]


def no_scores(num_queries: int, k: int) -> Best:
    """Return the result of a search that found nothing, with room for k documents."""
    return np.full((num_queries, k), -np.inf, dtype=np.float32), np.full((num_queries, k), -1, dtype=np.int64)


def score_rows(
    store: TermReader,
    terms: Int32[np.ndarray, " terms"],
    weights: Float32[np.ndarray, " terms"],
    rows: Int[np.ndarray, " rows"],
) -> Float32[np.ndarray, " rows"]:
    """Score rows of a store for a query exactly."""
    asked, scores = np.zeros(store.num_terms), np.empty(len(rows), dtype=np.float32)
    asked[terms] = weights
    for first in range(0, len(rows), SCORED_AT_ONCE):
        entries = store.rows(rows[first : first + SCORED_AT_ONCE]).as_float32()
        products = asked[entries.terms] * entries.weights  # exact in float64
        owners = np.repeat(np.arange(len(entries)), entries.counts)
        scores[first : first + SCORED_AT_ONCE] = np.bincount(owners, products, minlength=len(entries))
    return scores


def check_vocabulary(store: TermReader, terms: Sequence[str]) -> None:
    """Refuse queries that have other terms than the documents.

    Args:
        store: the documents' term weights.
        terms: the names of the queries' terms, by their numbers.

    Raises:
        UserError: the vocabularies differ, in a name or in size.
    """
    there = store.vocabulary
    if there == list(terms):
        return
    pairs = enumerate(zip_longest(there, terms, fillvalue=""))
    number, (theirs, ours) = next((number, pair) for number, pair in pairs if pair[0] != pair[1])
    raise UserError(
        f"{store.folder}: its vocabulary is not that of the model of the queries ({len(there):,} and {len(terms):,} "
        f"terms; term {number} is {theirs!r} and {ours!r}); search with the model that encoded the documents, or "
        "encode them again."
    )


def check_term_queries(queries: TermWeights, k: int, *, num_terms: int) -> None:
    """Raise UserError if the queries or k do not suit an index over `num_terms` terms."""
    if not isinstance(queries, TermWeights):
        raise UserError(
            f"queries are a {type(queries).__name__}; expected TermWeights: encode them with a SparseRetriever, or "
            "search texts with SparseSearch(retriever, index)."
        )
    if k < 1:
        raise UserError(f"k is {k}; expected at least 1.")
    if len(queries.terms) and not 0 <= int(queries.terms.min()) <= int(queries.terms.max()) < num_terms:
        wrong = queries.terms[(queries.terms < 0) | (queries.terms >= num_terms)][0]
        raise UserError(
            f"a query has term {wrong}, and the documents' vocabulary {num_terms:,} terms: encode both with the same "
            "model."
        )
    usable = np.isfinite(queries.weights) & (queries.weights >= 0)
    if not usable.all():
        raise UserError(
            f"a query's term has weight {queries.weights[int(usable.argmin())]:g}; expected finite numbers, none below "
            "0."
        )


def build_sparse(terms: TermReader, folder: Path, *, advance: Advance) -> dict[str, Any]:
    """Build an index of the kind `sparse`, or the segments that it lacks."""
    folder.mkdir(parents=True, exist_ok=True)
    ends = np.cumsum(terms.row_counts)
    there = _still_good(folder, terms, ends)
    parts = segment_parts(ends, there[-1]["last"] if there else 0)
    advance(parts[0][0] if parts else terms.num_rows)
    number = max((part["number"] for part in there), default=-1) + 1
    for place, (first, last) in enumerate(parts):
        _write_segment(folder, number + place, make_segment(terms, first, last))
        advance(last - first)
    listed = there + [{"number": number + i, "first": a, "last": b} for i, (a, b) in enumerate(parts)]
    content = {"num_terms": terms.num_terms, "shard_hashes": terms.shard_hashes}
    with atomic_write(folder / SEGMENTS_LISTED) as file:
        json.dump(content | {"segments": listed}, file, indent=2)
    known = {_segment_file(folder, part["number"], column) for part in listed for column in SEGMENT_COLUMNS}
    for path in set(folder.glob("segment-*")) - known:
        path.unlink()
    return {"read": sum(last - first for first, last in parts), "num_entries": terms.num_entries}


def _still_good(folder: Path, terms: TermReader, ends: Int[np.ndarray, " rows"]) -> list[dict[str, int]]:
    """List the segments of an earlier index that a new one can keep."""
    try:
        description = _read_description(folder)
        terms.beyond(description["shard_hashes"])
    except UserError:
        return []
    there: list[dict[str, int]] = description["segments"]
    if any(not _segment_file(folder, part["number"], column).exists() for part in there for column in SEGMENT_COLUMNS):
        return []
    whole = [tuple(part) for part in segment_parts(ends, 0)]
    full = next((i for i, part in enumerate(there) if (part["first"], part["last"]) not in whole), len(there))
    return there if len(there) - full < SMALL_SEGMENTS else there[:full]


def _segment_file(folder: Path, number: int, column: str) -> Path:
    return folder / f"segment-{number:05d}.{column}.npy"


def _write_segment(folder: Path, number: int, segment: Segment) -> None:
    for column in SEGMENT_COLUMNS:
        with atomic_write(_segment_file(folder, number, column), "wb") as file:
            np.save(file, getattr(segment, column))


def _read_description(folder: Path) -> dict[str, Any]:
    try:
        description = json.loads((folder / SEGMENTS_LISTED).read_text("utf-8"))
        whole = {"num_terms", "shard_hashes", "segments"} <= description.keys()
    except (OSError, ValueError, AttributeError):
        whole, description = False, {}
    if not whole:
        raise UserError(
            f"{folder}: holds no whole sparse index ({SEGMENTS_LISTED}); build it again with `shortlist index`."
        )
    return description


def open_segments(folder: Path, built: Mapping[str, Any], how: Opening) -> SparseIndex:
    """Open an index of the kind `sparse` over the term store at `how.vectors`.

    Raises:
        UserError: the folder holds no whole index, or one of another store.
    """
    del built
    assert how.vectors is not None
    terms, description = TermReader(how.vectors), _read_description(folder)
    terms.beyond(description["shard_hashes"])
    segments = []
    for part in description["segments"]:
        try:
            # np.memmap is slow to slice; an array over the same map is fast.
            columns = [
                np.asarray(np.load(_segment_file(folder, part["number"], column), mmap_mode="r"))
                for column in SEGMENT_COLUMNS
            ]
        except (OSError, ValueError) as error:
            raise UserError(f"{folder}: a segment is missing or broken ({error}); build the index again.") from None
        segments.append(Segment(part["first"], part["last"], *columns))
    return SparseIndex(terms, segments, query_terms=how.query_terms)


def sparse_footprint(terms: TermReader) -> Footprint:
    """Compute the size of the inverted indexes of a term store."""
    postings = 8 * int(terms.row_counts.sum())
    starts = (8 * (2 * terms.num_terms + 1) + 8 * terms.num_terms) * len(segment_parts(np.cumsum(terms.row_counts), 0))
    return Footprint(postings + starts, postings + starts, building=2 * 8 * min(SEGMENT_ENTRIES, postings // 8))


@runtime_checkable
class EncodesTerms(Protocol):
    """A sparse retriever, or any object that turns queries into term weights."""

    terms: Any
    """The names of the terms, by their numbers."""

    def encode_queries(self, queries: Sequence[Query]) -> TermWeights:
        """Compute the weights of queries' terms."""
        ...


class TermMatches(NamedTuple):
    """A query's weighted terms, and those that documents share with it."""

    query: WeightedTerms
    """The heaviest first."""
    matched: Mapping[str, WeightedTerms]
    """By document: the terms that it shares with the query, in that order, with their weights in it."""


@final
class SparseSearch:
    """A first stage that searches an index by the term weights of a sparse retriever.

    Raises:
        UserError: the terms of the documents and those of the retriever are not the same.
    """

    def __init__(self, retriever: EncodesTerms, index: TermIndex) -> None:
        check_vocabulary(index.terms, retriever.terms)
        self.retriever, self.index = retriever, index
        self.temporary: Any = None
        """Whatever must live as long as this does, such as a temporary folder of the vectors."""

    def __repr__(self) -> str:
        return f"<SparseSearch with {self.retriever!r} over {self.index!r}>"

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

    def query_weights(self, queries: str | Query | Iterable[str | Query]) -> TermWeights:
        """Compute the term weights that `search` uses for these queries."""
        return self.retriever.encode_queries(as_queries(queries))

    def find_by_weights(self, queries: TermWeights, k: int, *, allowed: Allowed | None = None) -> list[list[Hit]]:
        """Find the k best documents for each query, given by its term weights."""
        return find_encoded(self.index, queries, k, allowed=allowed)

    def explain(self, query: str | Query, doc_ids: Sequence[str]) -> "TermMatches":
        """Return a query's weighted terms, and which of them documents have."""
        weights = self.query_weights([query])
        names: Sequence[str] = self.retriever.terms
        store: TermReader = self.index.terms
        places = store.doc_ids.places_of(doc_ids)
        found = dict(zip(places, matching_terms(store, weights, np.array([*places.values()], np.int64)), strict=True))
        [(terms, numbers)] = weights
        order: list[int] = terms[np.argsort(-numbers, kind="stable")].tolist()
        matched = {
            doc_id: [(names[term], found[doc_id][term]) for term in order if term in found[doc_id]]
            for doc_id in doc_ids
            if doc_id in found
        }
        return TermMatches(named_terms(names, terms, numbers), matched)

    def query_terms(self, queries: str | Query | Iterable[str | Query]) -> list[WeightedTerms]:
        """Return the terms that `search` uses for these queries, the heaviest first."""
        return [named_terms(self.retriever.terms, *query) for query in self.query_weights(queries)]

    def find_by_terms(
        self, queries: Sequence[WeightedTerms], k: int, *, allowed: Allowed | None = None
    ) -> list[list[Hit]]:
        """Find the k best documents for each query of weighted terms; unknown terms are ignored."""
        return self.find_by_weights(numbered_terms(self._numbers, queries), k, allowed=allowed)

    def document_terms(self, doc_ids: Sequence[str], texts: FetchDocuments) -> list[WeightedTerms]:
        """Return the stored terms of documents, the heaviest first.

        Raises:
            UserError: one of them has none stored.
        """
        store: TermReader = self.index.terms
        found = store.take(stored_positions(store, doc_ids, "term weights"))
        return [named_terms(self.retriever.terms, *document) for document in found]

    def term_totals(self, terms: Sequence[str]) -> TermTotals:
        """Return the sums of terms' weights over the store, which is read once."""
        numbers = self._numbers
        totals = [self._totals[numbers[term]] if term in numbers else 0.0 for term in terms]
        return TermTotals(np.array(totals), self.index.terms.num_docs)

    @cached_property
    def _totals(self) -> Float[np.ndarray, " terms"]:
        store: TermReader = self.index.terms
        totals = np.zeros(store.num_terms)
        for block in store.blocks(INVERTED_AT_ONCE):
            entries = block.entries.as_float32()
            totals += np.bincount(entries.terms, entries.weights, store.num_terms)
        return totals

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.retriever.terms) if name}


def named_terms(
    names: Sequence[str], terms: Int32[np.ndarray, " terms"], weights: Float32[np.ndarray, " terms"]
) -> WeightedTerms:
    """Return the terms of a text by their names, the heaviest first."""
    order = np.argsort(-weights, kind="stable")
    numbers: list[int] = terms[order].tolist()
    return [(names[term], weight) for term, weight in zip(numbers, weights[order].tolist(), strict=True)]


def numbered_terms(numbers: Mapping[str, int], texts: Sequence[WeightedTerms]) -> TermWeights:
    """Return weighted terms by their numbers, without unknown ones; repeated ones are added up."""
    parts = []
    for text in texts:
        found = [(numbers[name], weight) for name, weight in text if name in numbers]
        terms, places = np.unique(np.array([term for term, _ in found], dtype=np.int32), return_inverse=True)
        parts.append((terms, np.bincount(places, [weight for _, weight in found], minlength=len(terms))))
    counts = np.array([len(terms) for terms, _ in parts], dtype=np.int64)
    terms = np.concatenate([np.empty(0, np.int32), *(terms for terms, _ in parts)])
    weights = np.concatenate([np.empty(0, np.float32), *(weights for _, weights in parts)])
    return TermWeights(terms.astype(np.int32), weights.astype(np.float32), counts)
