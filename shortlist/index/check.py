"""Comparison of an index over vectors with exact search: recall, speed, memory, disk."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from jaxtyping import Float

from shortlist.data.collections import open_collection
from shortlist.data.files import folder_bytes
from shortlist.data.manifest import same_identity
from shortlist.data.stores.terms import TermReader
from shortlist.data.stores.tokens import TokenReader
from shortlist.data.stores.vectors import VectorReader
from shortlist.errors import UserError
from shortlist.index.flat import exact_index
from shortlist.index.kinds import find_kind
from shortlist.index.late import LateIndex, some_queries
from shortlist.index.opening import held, kept_dims, kind_of, made_by, open_index
from shortlist.index.protocols import TermIndex, TokenIndex, VectorIndex
from shortlist.index.sparse import SparseIndex
from shortlist.math.heaviest import heaviest, some_texts
from shortlist.math.maxsim import TokenVectors
from shortlist.math.terms import TermWeights
from shortlist.models.folder import open_folder
from shortlist.models.retriever import Retriever
from shortlist.progress import resident_bytes, size
from shortlist.records import Hit

DEPTHS = (10, 100, 1000)
QUERIES = 200
"""The number of queries, or documents used as queries, that are searched together."""
ONE_BY_ONE = 20
"""The number of queries that are searched one at a time."""
QUERY_TOKENS = 32
"""Tokens, the first ones, of a document that serves as a query over token vectors."""

MOST_QUERY_TERMS = 40
"""Terms, the heaviest, of a document that serves as a query over term weights."""

Queries = Float[np.ndarray, "queries dim"] | TokenVectors | TermWeights
PickQueries = Callable[[Any, int, int], Any]
"""Takes the queries from the first to the one before the last."""


@dataclass(frozen=True)
class Findings:
    """Measurements of an index and of exact search."""

    recalls: dict[int, float]
    """For each depth k, the share of the k exactly best documents that are among the k found, averaged over queries."""
    per_second: float
    """Queries per second when they are searched together."""
    exact_per_second: float
    alone_ms: float
    """Median milliseconds of a query searched alone."""
    exact_alone_ms: float
    memory: int
    """Bytes by which this process has grown from opening the index to the last query, without a database's memory."""
    disk: int
    """Bytes of the index, or 0 if it does not know them."""


def rows(queries: Any, first: int, last: int) -> Any:
    """Take some rows of an array."""
    return queries[first:last]


def compare_with_exact(
    open_it: Callable[[], VectorIndex | TokenIndex | TermIndex],
    exact: VectorIndex | TokenIndex | TermIndex,
    queries: Queries,
    *,
    k: int,
    part: PickQueries = rows,
) -> Findings:
    """Search the same queries with an index and exactly.

    Args:
        open_it: opens the index, since the memory for that counts.
        k: how many documents to find for each query.
        part: takes some of the queries.
    """
    before = resident_bytes()
    index: Any = open_it()
    index.find(part(queries, 0, 1), 1)  # loads and compiles what the first use needs, before timing
    found, seconds = _timed(index, queries, k)
    alone = _alone(index, queries, k, part)
    memory, disk = resident_bytes() - before, getattr(index, "disk_bytes", 0)
    _timed(exact, part(queries, 0, 1), 1)
    wanted, exact_seconds = _timed(exact, queries, k)
    recalls = {depth: hit_overlap(found, wanted, depth) for depth in DEPTHS if depth <= k}
    per_second, exact_per_second = len(queries) / seconds, len(queries) / exact_seconds
    return Findings(recalls, per_second, exact_per_second, alone, _alone(exact, queries, k, part), memory, disk)


def hit_overlap(found: Sequence[Sequence[Hit]], wanted: Sequence[Sequence[Hit]], depth: int) -> float:
    """Compute the share of the first `depth` hits of `wanted` that `found` has too.

    Only the first `depth` hits of `found` count. The share is averaged over queries.
    """
    shares = [
        len({hit.doc_id for hit in hits[:depth]} & {hit.doc_id for hit in best[:depth]}) / max(1, len(best[:depth]))
        for hits, best in zip(found, wanted, strict=True)
    ]
    return sum(shares) / max(1, len(shares))


def _timed(index: Any, queries: Queries, k: int) -> tuple[list[list[Hit]], float]:
    start = time.perf_counter()
    return index.find(queries, k), time.perf_counter() - start


def _alone(index: Any, queries: Queries, k: int, part: PickQueries) -> float:
    asked = [part(queries, number, number + 1) for number in range(min(ONE_BY_ONE, len(queries)))]
    return 1000 * median(_timed(index, query, k)[1] for query in asked)


def check_index(folder: Path, store: Path, model: str | None, collection: str | None, split: str) -> str:
    """Compare a finished index with exact search over its vectors.

    The queries come from a collection and are embedded by a model. Without a model, documents serve as queries. They
    are easier to find than answers, since a document is its own nearest neighbour.

    Args:
        folder: the folder of the index.
        store: the folder of its vectors.
        model: the retriever that made them, a folder or hub name.
        collection: the collection with the queries.
        split: the split of the queries.

    Raises:
        UserError: the model has no collection, or is not the model that made the vectors.
    """
    found, num_docs, num_queries = CHECKS[held(store)](
        folder, store, partial(_encoded, store, model, collection, split) if model else None
    )
    name, whose = kind_of(folder), f"queries of {collection}" if model else "documents as queries"
    lines = [f"{name} over {num_docs:,} documents, {num_queries} {whose}"]
    lines += [f"recall@{depth:<5} {share:.4f}" for depth, share in found.recalls.items()]
    lines += [
        f"queries/s    {found.per_second:,.1f} (exact search {found.exact_per_second:,.1f})",
        f"one query    {found.alone_ms:,.1f} ms (exact search {found.exact_alone_ms:,.1f} ms)",
        f"memory       {size(found.memory)}{' here' if find_kind(name).outside else ''}",
        f"disk         {size(found.disk or folder_bytes(folder))}",
    ]
    return "\n".join(lines)


def _check_vectors(folder: Path, store: Path, encode: Callable[[Any], Any] | None) -> tuple[Findings, int, int]:
    """Compare an index over one vector of each document."""
    vectors = VectorReader(store)
    queries = encode(Retriever) if encode else _documents(vectors)
    exact, k = exact_index(store), min(DEPTHS[-1], vectors.num_docs)
    return compare_with_exact(partial(open_index, folder), exact, queries, k=k), vectors.num_docs, len(queries)


def _check_tokens(folder: Path, store: Path, encode: Callable[[Any], Any] | None) -> tuple[Findings, int, int]:
    """Compare an index over token vectors."""
    from shortlist.models.late_retriever import LateRetriever

    tokens = TokenReader(store)
    queries = encode(LateRetriever) if encode else _documents_by_token(tokens)
    exact, k = LateIndex(tokens), min(DEPTHS[-1], tokens.num_docs)
    found = compare_with_exact(partial(open_index, folder), exact, queries, k=k, part=some_queries)
    return found, tokens.num_docs, len(queries)


def _check_terms(folder: Path, store: Path, encode: Callable[[Any], Any] | None) -> tuple[Findings, int, int]:
    """Compare an index over term weights."""
    from shortlist.models.sparse_retriever import SparseRetriever

    terms = TermReader(store)
    queries = encode(SparseRetriever) if encode else _documents_by_terms(terms)
    exact, k = SparseIndex(terms), min(DEPTHS[-1], terms.num_docs)
    found = compare_with_exact(partial(open_index, folder), exact, queries, k=k, part=some_texts)
    return found, terms.num_docs, len(queries)


CHECKS: dict[str, Callable[..., tuple[Findings, int, int]]] = {
    "vectors": _check_vectors,
    "tokens": _check_tokens,
    "terms": _check_terms,
}
"""Functions that compare an index with exact search, by the kind of its store."""


def _documents(vectors: VectorReader) -> Float[np.ndarray, "queries dim"]:
    return vectors.take(np.linspace(0, vectors.num_docs - 1, min(QUERIES, vectors.num_docs)).astype(np.int64))


def _documents_by_token(tokens: TokenReader) -> TokenVectors:
    places = np.linspace(0, tokens.num_docs - 1, min(QUERIES, tokens.num_docs)).astype(np.int64)
    texts = [text[:QUERY_TOKENS] for text in tokens.take(places)]
    return TokenVectors(np.concatenate(texts), np.array([len(text) for text in texts]))


def _documents_by_terms(terms: TermReader) -> TermWeights:
    places = np.linspace(0, terms.num_docs - 1, min(QUERIES, terms.num_docs)).astype(np.int64)
    return heaviest(terms.take(places), MOST_QUERY_TERMS)


def _encoded(store: Path, model: str, collection: str | None, split: str, load_as: Any) -> Queries:
    """Encode the queries of a collection with the model that made the vectors."""
    if collection is None:
        raise UserError("--model without --collection: --check embeds the queries of a collection with the model.")
    found = open_folder(model)
    if (made := made_by(store)) is not None and not same_identity(made, found.identity):
        raise UserError(f"--model {model}: is not what made {store}; name the model that did.")
    queries = open_collection(collection).queries(split)[:QUERIES]
    cut = {} if (dims := kept_dims(store)) is None else {"dims": dims}
    return load_as.load(found, **cut).encode_queries(queries)
