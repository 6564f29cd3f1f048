"""The token store on disk, shards with many vectors for each document.

To what every shard has (see shards.py), shard 7 adds shard-00007.counts (a 32-bit integer per document, the number of
its vectors), shard-00007.bin (raw little-endian rows, those of a document next to one another) and, for int8,
shard-00007.scales (a float32 per vector). Its header says the dtype, the dim and the number of vectors.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, final

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from shortlist.data.ids import DocIds
from shortlist.data.stores.shards import (
    OpenShard,
    OpenShards,
    ShardFormat,
    bytewise,
    map_file,
    release_pages,
    to_bytes,
    write_shard_files,
)
from shortlist.data.stores.vectors import DTYPES, to_rows
from shortlist.errors import UserError, unknown
from shortlist.math.maxsim import TokenVectors
from shortlist.math.quantize import from_int8

TOKEN_DTYPES = [*DTYPES]
"""The number types that token vectors may be stored in."""
CONTENTS = ("bin", "counts", "scales")


def _identity(header: Mapping[str, Any]) -> str:
    """Digest all that a shard says of its documents' vectors."""
    digests = [header["sha256"].get(suffix, "") for suffix in CONTENTS]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


TOKEN_SHARDS = ShardFormat(
    kind="tokens",
    holds="token vectors",
    dtypes=TOKEN_DTYPES,
    suffixes=CONTENTS,
    identity=_identity,
    instead="encode with a late model for these.",
)


class TokenRows(NamedTuple):
    """Token vectors as a store holds them."""

    values: Tensor
    """[tokens, width] in the dtype of the store."""
    scales: Float[Tensor, " tokens"] | None = None
    """Factors of int8 rows."""

    def float32(self) -> Float[Tensor, "tokens dim"]:
        """Return the vectors as float32, to compute with."""
        return self.values.float() if self.scales is None else from_int8(self.values, self.scales)


class TokenBlock(NamedTuple):
    """The token vectors of some documents of a store, for reading only.

    The vectors of a document are next to one another. They may lie on disk and must never be written to.
    """

    rows: Int[Tensor, " docs"]
    positions: Int[Tensor, " docs"]
    counts: Int[Tensor, " docs"]
    """The number of vectors of each document."""
    values: Tensor
    """[tokens, width] in the dtype of the store."""
    scales: Float[Tensor, " tokens"] | None = None
    """Factors of int8 rows."""

    def stored(self) -> TokenRows:
        """Return the vectors as they are stored."""
        return TokenRows(self.values, self.scales)

    def float32(self) -> Float[Tensor, "tokens dim"]:
        """Return the vectors as float32, to compute with."""
        return self.stored().float32()


@final
class TokenWriter:
    """A writer of a token store, shard by shard.

    A crash loses at most the shard that is being written.

    Args:
        folder: where the shards go; made if missing.
        dim: numbers per vector.
        dtype: how they are stored, one of TOKEN_DTYPES.
    """

    def __init__(self, folder: Path, dim: int, dtype: str = "float32"):
        if dtype not in TOKEN_DTYPES:
            raise unknown("vector dtype", dtype, TOKEN_DTYPES)
        self.folder, self.dim, self.dtype = folder, dim, dtype

    def write_shard(
        self, number: int, doc_ids: Sequence[str], vectors: TokenVectors, keys: bytes | None = None
    ) -> None:
        """Write one shard, replacing it if it is there.

        Args:
            number: number of the shard in row order, from 0.
            doc_ids: one per document.
            vectors: those of all documents.
            keys: KEY_BYTES per document, for a store that can be updated.

        Raises:
            UserError: a vector that is not finite, an id that holds a line end.
            ValueError: shapes that do not fit.
        """
        fits = vectors.values.shape == (int(vectors.counts.sum()), self.dim) and (vectors.counts >= 0).all()
        if not doc_ids or len(doc_ids) != len(vectors) or not fits:
            raise ValueError(
                f"{len(doc_ids)} ids, {len(vectors)} counts of {vectors.counts.sum()} vectors and vectors of shape "
                f"{vectors.values.shape} do not make a shard of dim {self.dim}"
            )
        given = torch.from_numpy(np.ascontiguousarray(vectors.values, dtype=np.float32))
        self.write_rows(number, doc_ids, vectors.counts, TokenRows(*to_rows(given, self.dtype)), keys)

    def write_rows(
        self,
        number: int,
        doc_ids: Sequence[str],
        counts: Int[np.ndarray, " docs"],
        rows: TokenRows,
        keys: bytes | None,
    ) -> None:
        """Write one shard like `write_shard`, from rows as a store holds them.

        Raises:
            UserError: a vector that is not finite.
        """
        self._check_finite(doc_ids, counts, rows.values if rows.scales is None else rows.scales[:, None])
        contents = {"bin": to_bytes(rows.values), "counts": counts.astype("<i4").tobytes()}
        contents |= {"scales": to_bytes(rows.scales)} if rows.scales is not None else {}
        header = {"kind": TOKEN_SHARDS.kind, "dtype": self.dtype, "dim": self.dim, "tokens": len(rows.values)}
        write_shard_files(self.folder, number, doc_ids, contents, header, keys)

    def _check_finite(self, doc_ids: Sequence[str], counts: Int[np.ndarray, " docs"], rows: Tensor) -> None:
        finite = rows.isfinite().all(1).numpy()
        if not finite.all():
            first = int(np.searchsorted(np.cumsum(counts), int(finite.argmin()), side="right"))
            raise UserError(
                f"a token vector of document {doc_ids[first]!r} is not finite in {self.dtype} "
                f"({int((~finite).sum()):,} such in its shard): the model overflows on it; try a wider --dtype or "
                "--precision."
            )


@final
class TokenReader:
    """A token store opened for reading, as it is now.

    A later update or compaction changes nothing for a reader that is already open. Vectors stay on disk until they are
    touched. Files that have changed since they were last read are compared with their digests first.

    Args:
        folder: the store.
        compare: whether to compare; False where another process has done so.

    Attributes:
        dim: numbers per vector.
        dtype: how they are stored, one of TOKEN_DTYPES.
        num_docs: number of documents.
        num_tokens: number of their vectors.
        num_rows: number of documents on disk, including those that are gone.
        num_bytes: size of the vectors on disk, including those of documents that are gone.
        counts: number of vectors of each document, by position.
        starts: the first row (document) of each shard, followed by the number of rows.
        shard_hashes: digest of each shard's vectors, in row order, by which an index knows what it was built from.

    Raises:
        UserError: no shard, a missing shard, shards that differ in dtype or dim, a file of the wrong size or with other
            contents than were written.
    """

    def __init__(self, folder: Path, *, compare: bool = True):
        self.folder = folder
        self._open = OpenShards(folder, TOKEN_SHARDS, compare=compare)
        self._shards = [map_tokens(folder, shard) for shard in self._open.shards]
        first = self._open.shards[0].header
        self.dtype: str = first["dtype"]
        self.dim: int = first["dim"]
        self.num_docs, self.num_rows = self._open.num_docs, self._open.num_rows
        self.starts, self.shard_hashes = self._open.starts, self._open.hashes
        self._row_counts = np.concatenate([np.diff(shard.ends, prepend=0) for shard in self._shards])
        self.counts: Int[np.ndarray, " docs"] = self._row_counts[self._open.rows_of(np.arange(self.num_docs))]
        self.num_tokens = int(self.counts.sum())
        self.num_bytes = sum(shard.rows.values.nbytes for shard in self._shards)

    @property
    def doc_ids(self) -> DocIds:
        """Document ids by position."""
        return self._open.doc_ids

    def blocks(
        self,
        tokens: int,
        *,
        shards: Sequence[int] | None = None,
        release: bool = False,
        keep: Bool[np.ndarray, " docs"] | None = None,
    ) -> Iterator[TokenBlock]:
        """Yield the documents in row order, with at most `tokens` vectors at a time.

        A block holds whole documents, one at least, however many vectors it has, and never spans two shards.

        Args:
            shards: the shards to read, by their index in `shard_hashes` (None: all).
            release: give a block's memory back when the next one is asked for, so that only one is held.
            keep: whether the document at each position is wanted (None: all are); the others are neither read nor
                copied, and a block without a wanted one is left out.
        """
        for place in range(len(self._shards)) if shards is None else shards:
            shard, first = self._shards[place], 0
            while first < len(shard.ends):
                before = int(shard.ends[first - 1]) if first else 0
                end = max(first + 1, int(np.searchsorted(shard.ends, before + tokens, side="right")))
                block = self._block(place, first, end, keep)
                if len(block.rows):
                    yield block
                if release:
                    release_pages(shard.rows.values[before : int(shard.ends[end - 1])])
                first = end

    def _block(self, place: int, first: int, end: int, keep: Bool[np.ndarray, " docs"] | None) -> TokenBlock:
        start = int(self.starts[place])
        positions, wanted = self._open.wanted(start + first, start + end, keep)
        rows = np.arange(start + first, start + end)
        if wanted is not None:
            rows, positions = rows[wanted], positions[wanted]
        return self._gathered(rows, positions)

    def take(self, positions: Int[np.ndarray, " n"]) -> TokenVectors:
        """Return the vectors of some documents as float32, in the order asked."""
        block = self.pick(positions)
        return TokenVectors(block.float32().numpy(), block.counts.numpy())

    def pick(self, positions: Int[np.ndarray, " n"]) -> TokenBlock:
        """Return some documents as a block, in the order asked."""
        return self._gathered(self._open.rows_of(positions), positions)

    def _gathered(self, rows: Int[np.ndarray, " n"], positions: Int[np.ndarray, " n"]) -> TokenBlock:
        """Collect documents; those that stand together on disk are read from there without a copy."""
        parts = [self._run(int(run[0]), int(run[-1]) + 1) for run in _runs(rows, self.starts)]
        counts = torch.from_numpy(self._row_counts[rows])
        return TokenBlock(torch.from_numpy(rows), torch.from_numpy(positions), counts, *_joined(parts, self._empty()))

    def _run(self, start: int, end: int) -> TokenRows:
        """Return the vectors of rows of one shard."""
        place = int(np.searchsorted(self.starts, start, side="right")) - 1
        shard, before = self._shards[place], int(self.starts[place])
        first = int(shard.ends[start - before - 1]) if start > before else 0
        here = slice(first, int(shard.ends[end - before - 1]))
        return TokenRows(*(None if part is None else part[here] for part in shard.rows))

    def _empty(self) -> TokenRows:
        return TokenRows(*(None if part is None else part[:0] for part in self._shards[0].rows))

    def positions_of(self, rows: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        """Return the position of each row, DEAD where its document is gone."""
        return self._open.positions_of(rows)

    def beyond(self, shard_hashes: Sequence[str]) -> int:
        """Count the documents that an index built from these shards does not know.

        Raises:
            UserError: the store no longer begins with these shards.
        """
        return self._open.beyond(shard_hashes)


def _runs(rows: Int[np.ndarray, " n"], starts: Int[np.ndarray, " shards"]) -> list[Int[np.ndarray, " _"]]:
    """Split rows where they do not follow one another, or another shard begins."""
    if not len(rows):
        return []
    begins = np.flatnonzero((np.diff(rows) != 1) | np.isin(rows[1:], starts)) + 1
    return np.split(rows, begins)


def _joined(parts: Sequence[TokenRows], empty: TokenRows) -> TokenRows:
    """Put the vectors of several runs together; one alone is not copied."""
    if len(parts) <= 1:
        return parts[0] if parts else empty
    return TokenRows(*(None if column[0] is None else _concatenated(column) for column in zip(*parts, strict=True)))


def _concatenated(parts: Sequence[Tensor]) -> Tensor:
    joined = torch.empty((sum(map(len, parts)), *parts[0].shape[1:]), dtype=parts[0].dtype)
    if len(joined):
        np.concatenate([bytewise(part) for part in parts], out=bytewise(joined))  # faster than torch with many parts
    return joined


class MappedTokens(NamedTuple):
    """The contents of a shard, mapped into memory."""

    ends: Int[np.ndarray, " docs"]
    """Where each document's vectors end."""
    rows: TokenRows


def map_tokens(folder: Path, shard: OpenShard) -> MappedTokens:
    """Map the contents of a shard into memory.

    Raises:
        UserError: a file is not of the size that the header says.
    """
    number, header, _ = shard
    count, tokens, dim, dtype = header["count"], header["tokens"], header["dim"], DTYPES[header["dtype"]]
    counts = map_file(folder, number, "counts", 4 * count).numpy().view("<i4")
    ends = np.cumsum(counts, dtype=np.int64)
    if ends[-1] != tokens:
        raise UserError(
            f"{folder}: the counts of shard {number} are of {ends[-1]:,} vectors, its header of {tokens:,}."
        )
    values = map_file(folder, number, "bin", tokens * dim * dtype.itemsize).view(dtype).view(tokens, dim)
    scales = map_file(folder, number, "scales", 4 * tokens).view(torch.float32) if dtype == torch.int8 else None
    return MappedTokens(ends, TokenRows(values, scales))
