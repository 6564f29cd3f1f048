"""Late interaction of several queries with many documents, piece by piece."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Int8, Int32
from torch import Tensor

from shortlist.math.maxsim import TokenVectors
from shortlist.math.products import full_precision
from shortlist.math.quantize import int8_product, to_int8
from shortlist.math.ragged import text_parts

TILE_TOKENS = 512
"""Tokens of queries that are multiplied together, with which products reach their highest rate."""
PIECE_SIMILARITIES = 1 << 19
"""Similarities that are computed together, which stay in the cache."""
CACHE_LINE = 16
"""Numbers of a line of the cache."""
PIECE_TOKENS = 8192
"""The most tokens of documents that are multiplied together."""
FEWEST_COLUMNS = 64
"""Tokens of queries from which documents of different lengths are better searched for the best one by one."""
LEAST_ROWS = 16
"""Rows of both sides are padded to a multiple of this, or to at least it. With fewer, other code computes the product,
and the same pair of tokens would get other last digits."""


class QueryTile(NamedTuple):
    """Some queries, whose tokens are multiplied together."""

    values: Float[Tensor, "even dim"]
    """Their tokens, and zeros behind them."""
    starts: Int[np.ndarray, " queries"]
    """The first token of each query."""
    num_tokens: int
    integers: Int8[Tensor, "even dim"]
    """The tokens rounded to integers, and the factors that restore them."""
    scales: Float[np.ndarray, " tokens"]


def query_tiles(queries: TokenVectors) -> list[QueryTile]:
    """Divide queries into tiles of at most TILE_TOKENS tokens, or one query each.

    Every query must have tokens.
    """
    tiles, values = list[QueryTile](), torch.from_numpy(np.ascontiguousarray(queries.values, dtype=np.float32))
    for first, last, start, stop in text_parts(queries.counts, TILE_TOKENS):
        counts, count = queries.counts[first:last], stop - start
        padded = F.pad(values[start:stop], (0, 0, 0, -count % LEAST_ROWS))
        integers, scales = to_int8(padded)
        tiles.append(QueryTile(padded, np.cumsum(counts) - counts, count, integers, scales[:count].numpy()))
    return tiles


Widen = Callable[[int, int], Float[Tensor, "_ dim"]]
"""Gives the vectors of some tokens, from the first to the one behind the last."""


def score_documents(
    tiles: list[QueryTile], counts: Int[np.ndarray, " docs"], tokens: Widen
) -> list[Float[np.ndarray, "docs _"]]:
    """Score documents for the queries of each tile.

    The score of a pair is the same whatever it is computed with. A document without tokens scores -inf.

    Args:
        counts: the number of tokens of each document.
        tokens: gives their vectors, of a piece at a time.
    """
    scores = [np.full((len(counts), len(tile.starts)), -np.inf, dtype=np.float32) for tile in tiles]
    space = Space()
    for first, last, start, stop in text_parts(counts, _piece_tokens(tiles)):
        if stop == start:
            continue
        there, vectors = np.flatnonzero(counts[first:last]), tokens(start, stop)
        for tile, found in zip(tiles, scores, strict=True):
            best = _float_matches(tile, vectors, counts[first:last][there], space)
            found[first:last][there] = np.add.reduceat(best, tile.starts, axis=0).T
    return scores


def _piece_tokens(tiles: list[QueryTile]) -> int:
    return min(PIECE_TOKENS, PIECE_SIMILARITIES // max((len(tile.values) for tile in tiles), default=LEAST_ROWS))


def _float_matches(
    tile: QueryTile, vectors: Float[Tensor, "found dim"], counts: Int[np.ndarray, " docs"], space: "Space"
) -> Float[np.ndarray, "tokens docs"]:
    """Compute `best_matches` of a tile's tokens with the vectors of documents."""
    length, queries = int(counts[0]), tile.values
    if len(vectors) >= LEAST_ROWS and (counts == length).all():  # quicker by a tenth
        found = torch.mm(vectors, queries.T, out=space("product", len(vectors), len(queries), torch.float32))
        return found.view(len(counts), length, len(queries)).amax(1).numpy()[:, : tile.num_tokens].T
    rows = vectors if len(vectors) >= LEAST_ROWS else F.pad(vectors, (0, 0, 0, LEAST_ROWS - len(vectors)))
    found = torch.mm(queries, rows.T, out=space("product", len(queries), len(rows), torch.float32, step=CACHE_LINE))
    return best_matches(found.numpy()[: tile.num_tokens, : len(vectors)], counts)


def late_scores(queries: TokenVectors, documents: TokenVectors) -> Float[np.ndarray, "queries docs"]:
    """Compute what `math.maxsim.maxsim` defines, all pairs together; queries must have tokens."""
    values = torch.from_numpy(np.ascontiguousarray(documents.values, dtype=np.float32))
    with torch.no_grad(), full_precision():
        found = score_documents(query_tiles(queries), documents.counts, lambda start, stop: values[start:stop])
    return np.concatenate([np.empty((len(documents), 0), np.float32), *found], axis=1).T


def scan_integers(
    tiles: list[QueryTile], counts: Int[np.ndarray, " docs"], integers: Int8[Tensor, "tokens dim"], scale: float
) -> list[Float[np.ndarray, "docs _"]]:
    """Score documents like `score_documents`, approximately, by products of integers.

    Args:
        integers: the documents' tokens.
        scale: the factor that restores all of them.
    """
    scores = [np.full((len(counts), len(tile.starts)), -np.inf, dtype=np.float32) for tile in tiles]
    space = Space()
    for first, last, start, stop in text_parts(counts, 2 * _piece_tokens(tiles)):
        if stop == start:
            continue
        there = np.flatnonzero(counts[first:last])
        for tile, found in zip(tiles, scores, strict=True):
            best = _integer_matches(tile, integers[start:stop], counts[first:last][there], space)
            found[first:last][there] = np.add.reduceat(best * (scale * tile.scales[:, None]), tile.starts, axis=0).T
    return scores


def _integer_matches(
    tile: QueryTile, integers: Int8[Tensor, "found dim"], counts: Int[np.ndarray, " docs"], space: "Space"
) -> Int32[np.ndarray, "tokens docs"]:
    """Compute `best_matches` of a tile's integers with the integers of documents."""
    length, queries = int(counts[0]), tile.integers
    same = bool((counts == length).all())
    if not same and len(queries) < FEWEST_COLUMNS:
        out = space("integers", len(queries), len(integers), torch.int32)
        return best_matches(int8_product(queries, integers, out).numpy()[: tile.num_tokens], counts)
    products = int8_product(integers, queries, space("integers", len(integers), len(queries), torch.int32))
    if same:
        best = products.view(len(counts), length, len(queries)).amax(1).numpy()
    else:
        best, ends, rows = np.empty((len(counts), len(queries)), np.int32), np.cumsum(counts), products.numpy()
        for number, (start, end) in enumerate(zip(ends - counts, ends, strict=True)):
            np.maximum.reduce(rows[start:end], axis=0, out=best[number])
    return best[:, : tile.num_tokens].T


def best_matches(
    similarities: Float[np.ndarray, "tokens found"] | Int32[np.ndarray, "tokens found"],
    counts: Int[np.ndarray, " docs"],
) -> Float[np.ndarray, "tokens docs"] | Int32[np.ndarray, "tokens docs"]:
    """Find each token's greatest similarity with a token of each document.

    Args:
        similarities: those with the tokens of one document after another.
        counts: the number of tokens of each document, none of them 0.
    """
    return np.maximum.reduceat(similarities, np.cumsum(counts) - counts, axis=1)


class Space:
    """Memory for results that are used up before the next ones are computed.

    New memory for every product would take as long as a tenth of it.
    """

    def __init__(self) -> None:
        self._held: dict[str, Tensor] = {}

    def __call__(self, name: str, rows: int, columns: int, dtype: torch.dtype, *, step: int = 1) -> Tensor:
        """Return memory for a matrix, whose rows begin at multiples of `step` numbers."""
        width = columns + -columns % step
        if name not in self._held or self._held[name].numel() < rows * width:
            self._held[name] = torch.empty(rows * width, dtype=dtype)
        return self._held[name][: rows * width].view(rows, width)[:, :columns]
