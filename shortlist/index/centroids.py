"""The kind of index `late-centroids`: centroids of tokens propose candidates for late interaction.

Every token of a document belongs to its nearest centroid. A query's tokens look at the documents of their nearest
centroids only, and take the centroid for the token; where a document is not among them, the worst of these centroids
bounds what it could have scored. An update keeps the centroids and assigns only the tokens of new shards.

https://arxiv.org/abs/2205.09707, https://arxiv.org/abs/2501.17788
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from safetensors.torch import load_file, save

from shortlist.data.files import atomic_write
from shortlist.data.stores.tokens import TokenReader
from shortlist.errors import UserError
from shortlist.index.parameters import Footprint
from shortlist.index.protocols import Opening
from shortlist.index.pruned import PrunedIndex, check_positive, read_late, write_late
from shortlist.math.maxsim import TokenVectors
from shortlist.math.residual import count_centroids, nearest, spherical_kmeans
from shortlist.progress import Advance

CENTROID_DEFAULTS = {"probes": 32, "effort": 256, "refine": 4}
"""Centroids that a query's token looks at; the candidates of a query, at least and in multiples of k."""
PER_CENTROID = 32
"""Sampled tokens for each centroid."""
ASSIGNED_TOGETHER = 1 << 16
"""Tokens whose centroids are looked for together."""
CENTROIDS = "centroids.safetensors"
POSTINGS = "postings.npy"
STARTS = "starts.npy"


@final
class Centroids:
    """Proposes documents by the centroids of their tokens.

    Args:
        centroids: the centroids.
        postings: the rows of the documents of each centroid, ascending, one centroid after another.
        starts: where each centroid's rows begin, and the end of the last one's.
        probes: how many centroids a query's token looks at.
    """

    def __init__(
        self,
        centroids: Float[torch.Tensor, "centroids dim"],
        postings: Int[np.ndarray, " postings"],
        starts: Int[np.ndarray, " _"],
        *,
        probes: int,
        num_rows: int,
    ) -> None:
        self._centroids, self._postings, self._starts = centroids, postings, starts
        self._probes, self._num_rows = min(probes, len(centroids)), num_rows

    def propose(
        self, queries: TokenVectors, count: int, keep: Bool[np.ndarray, " rows"] | None
    ) -> Int[np.ndarray, "queries _"]:
        """Return the rows of the documents that score highest with centroids for tokens."""
        values = torch.from_numpy(np.ascontiguousarray(queries.values, dtype=np.float32))
        best, numbers = (values @ self._centroids.T).topk(self._probes)
        found = np.full((len(queries), min(count, self._num_rows)), -1, dtype=np.int64)
        sums, gains = np.zeros(self._num_rows, np.float32), np.zeros(self._num_rows, np.float32)
        ends = np.cumsum(queries.counts)
        for query, (start, end) in enumerate(zip(ends - queries.counts, ends, strict=True)):
            touched = [
                self._add(best[token].numpy(), numbers[token].numpy(), sums, gains) for token in range(start, end)
            ]
            rows = np.unique(np.concatenate(touched))
            if keep is not None:
                rows = rows[keep[rows]]
            if len(rows) > count:
                rows = rows[np.argpartition(-sums[rows], count)[:count]]
            found[query, : len(rows)] = rows
            sums.fill(0)
        return found

    def _add(
        self,
        similarities: Float[np.ndarray, " probes"],
        numbers: Int[np.ndarray, " probes"],
        sums: Float[np.ndarray, " rows"],
        gains: Float[np.ndarray, " rows"],
    ) -> Int[np.ndarray, " touched"]:
        """Add what a token's centroids say of their documents, above the least that they say."""
        lists = [self._postings[self._starts[number] : self._starts[number + 1]] for number in numbers[::-1].tolist()]
        rows = np.concatenate(lists)
        above = np.repeat((similarities - similarities[-1])[::-1], [len(one) for one in lists])
        gains[rows] = above  # of several centroids of a document the last one stays, which is the nearest
        sums[rows] = sums[rows] + gains[rows]
        return rows


def build_centroids(tokens: TokenReader, folder: Path, *, advance: Advance, **chosen: int) -> dict[str, Any]:
    """Build an index of the kind `late-centroids`, or assign the tokens that it lacks.

    Raises:
        UserError: a parameter is not possible.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parameters = CENTROID_DEFAULTS | chosen
    check_positive(parameters)
    centroids, read = _centroids(tokens, folder, chosen.get("centroids")), 0
    for number, made_from in enumerate(tokens.shard_hashes):
        path, count = _assigned(folder, made_from), int(tokens.starts[number + 1] - tokens.starts[number])
        if not path.exists():
            with atomic_write(path, "wb") as file:
                np.save(file, _assign(tokens, number, centroids))
            read += count
        advance(count)
    names = {_assigned(folder, made_from).name for made_from in tokens.shard_hashes}
    postings, starts = _invert(tokens, folder, len(centroids))
    for name, array in ((POSTINGS, postings), (STARTS, starts)):
        with atomic_write(folder / name, "wb") as file:
            np.save(file, array)
    write_late(folder, tokens, parameters | {"centroids": len(centroids)}, postings=len(postings))
    for path in folder.glob("assigned-*.npy"):
        if path.name not in names:
            path.unlink()
    return {"read": read}


def _centroids(tokens: TokenReader, folder: Path, wanted: int | None) -> Float[torch.Tensor, "centroids dim"]:
    """Return the centroids that an earlier run has found, or find them."""
    path = folder / CENTROIDS
    if path.exists():
        return load_file(path)["centroids"]
    count = wanted or count_centroids(tokens.num_tokens, tokens.num_tokens)
    if count > tokens.num_tokens:
        raise UserError(f"centroids {count:,}: expected no more than there are token vectors, {tokens.num_tokens:,}.")
    share = min(1.0, PER_CENTROID * count / tokens.num_tokens)
    places = np.unique(np.linspace(0, tokens.num_docs - 1, max(1, round(share * tokens.num_docs))).astype(np.int64))
    sample = torch.from_numpy(tokens.take(places).values)
    sample = sample if len(sample) >= count else torch.from_numpy(tokens.take(np.arange(tokens.num_docs)).values)
    centroids = spherical_kmeans(sample, count)
    with atomic_write(path, "wb") as file:
        file.write(save({"centroids": centroids}))
    return centroids


def _assign(
    tokens: TokenReader, number: int, centroids: Float[torch.Tensor, "centroids dim"]
) -> Int[np.ndarray, "2 pairs"]:
    """Find the centroids of a shard's documents, as pairs of row and centroid.

    Rows are counted from the shard's first.
    """
    pairs = []
    for block in tokens.blocks(ASSIGNED_TOGETHER, shards=[number], release=True):
        numbers, _ = nearest(block.float32(), centroids)
        rows = np.repeat(block.rows.numpy() - int(tokens.starts[number]), block.counts.numpy())
        pairs.append(np.unique(rows << 32 | numbers.numpy()))
    found = np.concatenate([np.empty(0, np.int64), *pairs])
    return np.stack([found >> 32, found & 0xFFFFFFFF]).astype(np.int32)


def _invert(
    tokens: TokenReader, folder: Path, num_centroids: int
) -> tuple[Int[np.ndarray, " postings"], Int[np.ndarray, " _"]]:
    """Collect the rows of each centroid, ascending, and where they begin."""
    pairs = [np.load(_assigned(folder, made_from)) for made_from in tokens.shard_hashes]
    rows = np.concatenate([pair[0] + start for pair, start in zip(pairs, tokens.starts, strict=False)])
    numbers = np.concatenate([pair[1] for pair in pairs])
    starts = np.concatenate([[0], np.cumsum(np.bincount(numbers, minlength=num_centroids))])
    return rows[np.argsort(numbers, kind="stable")].astype(np.int32), starts


def _assigned(folder: Path, made_from: str) -> Path:
    """Return the file of the centroids of a shard of tokens."""
    return folder / f"assigned-{made_from[:16]}.npy"


def open_centroids(folder: Path, built: Mapping[str, Any], how: Opening) -> PrunedIndex:
    """Open an index of the kind `late-centroids` over the token vectors at `how.vectors`.

    Raises:
        UserError: the folder holds no whole index, or one of another store.
    """
    del built
    assert how.vectors is not None
    tokens = TokenReader(how.vectors)
    description = read_late(folder, tokens)
    try:
        centroids = load_file(folder / CENTROIDS)["centroids"]
        postings, starts = np.load(folder / POSTINGS, mmap_mode="r"), np.load(folder / STARTS)
    except (OSError, ValueError):
        raise UserError(f"{folder}: lacks a file of its centroids; build it again with `shortlist index`.") from None
    if not len(postings) == description["postings"] == starts[-1]:
        raise UserError(f"{folder}: is being changed, or was left so; run the same `shortlist index` again.")
    num_rows = int(tokens.starts[min(len(description["shard_hashes"]), len(tokens.starts) - 1)])
    proposer = Centroids(centroids, postings, starts, probes=description["parameters"]["probes"], num_rows=num_rows)
    return PrunedIndex(tokens, proposer, description, effort=how.effort, refine=how.refine, memory_gib=how.memory_gib)


def centroids_footprint(tokens: TokenReader, **chosen: int) -> Footprint:
    """Compute the size of the centroids and lists of a token store."""
    count = chosen.get("centroids") or count_centroids(tokens.num_tokens, tokens.num_tokens)
    centroids, lists = 4 * count * tokens.dim, 4 * tokens.num_tokens
    words = ", ".join(f"{name}={value}" for name, value in (CENTROID_DEFAULTS | {"centroids": count} | chosen).items())
    building = centroids + 4 * PER_CENTROID * count * tokens.dim
    return Footprint(centroids + lists, centroids + 3 * lists, building, words)
