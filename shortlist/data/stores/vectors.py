"""The vector store on disk, shards of memory-mapped, checksummed rows.

A row is a document's vector. To what every shard has (see shards.py), shard 7 adds shard-00007.bin (raw little-endian
rows) and, for int8, shard-00007.scales (a float32 per row). Its header says the dtype and the dim.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, final

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from shortlist.data.ids import DocIds
from shortlist.data.stores.shards import (
    VECTORS,
    OpenShard,
    OpenShards,
    ShardFormat,
    bytewise,
    map_file,
    release_pages,
    to_bytes,
    write_shard_files,
)
from shortlist.errors import UserError, unknown
from shortlist.math.matryoshka import shortened
from shortlist.math.quantize import from_int8, to_int8

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "int8": torch.int8}
VECTOR_SHARDS = ShardFormat(
    kind=VECTORS,
    holds="one vector for each document",
    dtypes=DTYPES,
    suffixes=("bin", "scales"),
    identity=lambda header: header["sha256"]["bin"],
    instead="a late model searches token vectors.",
)


class Block(NamedTuple):
    """Some rows of a store, for reading only.

    The vectors may lie on disk and must never be written to.
    """

    rows: Int[Tensor, " block"]
    positions: Int[Tensor, " block"]
    vectors: Tensor
    """[block, dim] in the dtype of the store."""
    scales: Float[Tensor, " block"] | None
    """Factors of int8 rows."""

    def float32(self) -> Float[Tensor, "block dim"]:
        """Return the vectors as float32, to compute with."""
        return self.vectors.float() if self.scales is None else from_int8(self.vectors, self.scales)


def to_rows(vectors: Float[Tensor, "rows dim"], dtype: str) -> tuple[Tensor, Float[Tensor, " rows"] | None]:
    """Convert vectors to rows of a store of this dtype, with scales for int8."""
    return to_int8(vectors) if dtype == "int8" else (vectors.to(DTYPES[dtype]), None)


@final
class VectorWriter:
    """A writer of a store, shard by shard.

    A crash loses at most the shard that is being written.

    Args:
        folder: where the shards go; made if missing.
        dim: numbers per vector.
        dtype: how they are stored, one of DTYPES.
    """

    def __init__(self, folder: Path, dim: int, dtype: str = "float32"):
        if dtype not in DTYPES:
            raise unknown("vector dtype", dtype, DTYPES)
        self.folder, self.dim, self.dtype = folder, dim, dtype

    def write_shard(self, number: int, doc_ids: Sequence[str], vectors: np.ndarray, keys: bytes | None = None) -> None:
        """Write one shard, replacing it if it is there.

        Args:
            number: number of the shard in row order, from 0.
            doc_ids: one per row.
            vectors: [rows, dim].
            keys: KEY_BYTES per row, for a store that can be updated.

        Raises:
            UserError: a vector that is not finite, an id that holds a line end.
            ValueError: shapes that do not fit.
        """
        if vectors.shape != (len(doc_ids), self.dim) or not doc_ids:
            raise ValueError(
                f"{len(doc_ids)} ids and vectors of shape {vectors.shape} do not make a shard of dim {self.dim}"
            )
        given = torch.from_numpy(np.ascontiguousarray(vectors, dtype=np.float32))
        rows, scales = to_rows(given, self.dtype)
        self.write_rows(number, doc_ids, rows, scales, keys)

    def write_rows(
        self, number: int, doc_ids: Sequence[str], rows: Tensor, scales: Tensor | None, keys: bytes | None
    ) -> None:
        """Write one shard like `write_shard`, from rows as a store holds them.

        Raises:
            UserError: a vector that is not finite.
        """
        self._check_finite(doc_ids, rows if scales is None else scales[:, None])
        contents = {"bin": to_bytes(rows)} | ({"scales": to_bytes(scales)} if scales is not None else {})
        header = {"dtype": self.dtype, "dim": self.dim}
        write_shard_files(self.folder, number, doc_ids, contents, header, keys)

    def _check_finite(self, doc_ids: Sequence[str], rows: Tensor) -> None:
        finite = rows.isfinite().all(1)
        if not finite.all():
            first = doc_ids[int(finite.int().argmin())]
            raise UserError(
                f"the vector of document {first!r} is not finite in {self.dtype} ({int((~finite).sum())} such in its "
                "shard): the model overflows on it; try a wider --dtype or --precision."
            )


@final
class VectorReader:
    """A store opened for reading, as it is now.

    A later update or compaction changes nothing for a reader that is already open. Rows stay on disk until they are
    touched. Files that have changed since they were last read are compared with their digests first.

    Args:
        folder: the store.
        compare: whether to compare; False where another process has done so.
        dim: give only this many numbers of each vector, the first ones, in float32 (None: all as they are stored).
        unit: scale vectors that are cut to length 1.

    Attributes:
        dim: numbers per vector, as they are given.
        dtype: how they are stored, one of DTYPES.
        num_docs: number of documents.
        num_rows: number of vectors on disk, including vectors of documents that are gone.
        num_bytes: size of these vectors.
        starts: the first row of each shard, followed by the number of rows.
        shard_hashes: SHA-256 of each shard's vectors, in row order, by which an index knows what it was built from.

    Raises:
        UserError: no shard, a missing shard, shards that differ in dtype or dim, a file of the wrong size or with other
            contents than were written.
    """

    def __init__(self, folder: Path, *, compare: bool = True, dim: int | None = None, unit: bool = True):
        self.folder, self._unit = folder, unit
        self._open = OpenShards(folder, VECTOR_SHARDS, compare=compare)
        self._shards = [map_vectors(folder, shard) for shard in self._open.shards]
        first = self._open.shards[0].header
        self.dtype: str = first["dtype"]
        self._stored_dim: int = first["dim"]
        self.dim = self._stored_dim if dim is None else dim
        if not 1 <= self.dim <= self._stored_dim:
            raise UserError(
                f"{folder}: holds vectors of {self._stored_dim} dimensions, --dims is {dim}; encode again with --dims "
                f"{dim}, or name fewer."
            )
        self.num_docs, self.num_rows = self._open.num_docs, self._open.num_rows
        self.starts, self.shard_hashes = self._open.starts, self._open.hashes
        self.num_bytes = self.num_rows * self._stored_dim * DTYPES[self.dtype].itemsize

    @property
    def doc_ids(self) -> DocIds:
        """Document ids by position."""
        return self._open.doc_ids

    def blocks(
        self,
        rows: int,
        *,
        shards: Sequence[int] | None = None,
        release: bool = False,
        keep: Bool[np.ndarray, " docs"] | None = None,
    ) -> Iterator[Block]:
        """Yield the documents' vectors in row order, at most `rows` at a time.

        A block never spans two shards.

        Args:
            shards: the shards to read, by their index in `shard_hashes` (None: all).
            release: give a block's memory back when the next one is asked for, so that only one is held.
            keep: whether the document at each position is wanted (None: all are); the others are neither read nor
                copied, and a block without a wanted one is left out.
        """
        for place in range(len(self._shards)) if shards is None else shards:
            shard, start = self._shards[place], int(self.starts[place])
            for first in range(0, len(shard.vectors), rows):
                vectors = shard.vectors[first : first + rows]
                block = self._block(start + first, vectors, shard.scales, first, keep)
                if keep is None or len(block.rows):
                    yield block
                if release:
                    release_pages(vectors)

    def _block(
        self, row: int, vectors: Tensor, scales: Tensor | None, first: int, keep: Bool[np.ndarray, " docs"] | None
    ) -> Block:
        rows = torch.arange(row, row + len(vectors))
        scales = None if scales is None else scales[first : first + len(vectors)]
        found, wanted = self._open.wanted(row, row + len(vectors), keep)
        positions = torch.from_numpy(found)
        if wanted is None:
            return self._cut(Block(rows, positions, vectors, scales))
        places = np.flatnonzero(wanted)
        some, taken = torch.from_numpy(places), torch.empty((len(places), vectors.shape[1]), dtype=vectors.dtype)
        np.take(bytewise(vectors), places, axis=0, out=bytewise(taken), mode="clip")  # as in _gathered
        return self._cut(Block(rows[some], positions[some], taken, None if scales is None else scales[some]))

    def _cut(self, block: Block) -> Block:
        """Cut the vectors of a block to the wanted dimension."""
        if self.dim == self._stored_dim:
            return block
        return block._replace(vectors=shortened(block.float32(), self.dim, unit=self._unit), scales=None)

    def take(self, positions: Int[np.ndarray, " n"]) -> Float[np.ndarray, "n dim"]:
        """Return the vectors of some documents as float32, in the order asked."""
        return self.pick(positions).float32().numpy()

    def pick(self, positions: Int[np.ndarray, " n"]) -> Block:
        """Return some documents as a block, in the order asked."""
        rows = self._open.rows_of(positions)
        if (rows[1:] >= rows[:-1]).all():
            vectors, scales = self._gathered(rows)
        else:
            order = np.argsort(rows, kind="stable")
            back = torch.from_numpy(np.argsort(order))
            vectors, scales = self._gathered(rows[order])
            vectors, scales = vectors[back], None if scales is None else scales[back]
        return self._cut(Block(torch.from_numpy(rows), torch.from_numpy(positions), vectors, scales))

    def _gathered(self, rows: Int[np.ndarray, " n"]) -> tuple[Tensor, Tensor | None]:
        """Copy the vectors and scales of rows, which must be in ascending order."""
        ends = np.searchsorted(rows, self.starts)
        vectors = torch.empty((len(rows), self._stored_dim), dtype=DTYPES[self.dtype])
        scales = torch.empty(len(rows)) if self.dtype == "int8" else None
        for place in np.flatnonzero(np.diff(ends)):
            shard, here = self._shards[place], slice(ends[place], ends[place + 1])
            inside = rows[here] - self.starts[place]
            # NumPy copies whole rows, and in mode "clip" straight into `out`: 3 to 5 times as fast as torch
            np.take(bytewise(shard.vectors), inside, axis=0, out=bytewise(vectors)[here], mode="clip")
            if scales is not None and shard.scales is not None:
                np.take(shard.scales.numpy(), inside, out=scales.numpy()[here], mode="clip")
        return vectors, scales

    def positions_of(self, rows: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        """Return the position of each row, DEAD where its document is gone."""
        return self._open.positions_of(rows)

    def beyond(self, shard_hashes: Sequence[str]) -> int:
        """Count the documents that an index built from these shards does not know.

        Raises:
            UserError: the store no longer begins with these shards.
        """
        return self._open.beyond(shard_hashes)


def refuse_not_finite(vectors: "VectorReader", positions: Int[Tensor, " some"], finite: Tensor) -> None:
    """Raise UserError if a document's vector, or its score, is not finite.

    Args:
        positions: positions of some documents.
        finite: whether each one's is finite.
    """
    if not finite.all():
        doc_id = vectors.doc_ids[int(positions[int(finite.int().argmin())])]
        raise UserError(
            f"{vectors.folder}: the vector of document {doc_id!r} is not finite, so nothing can be compared with it; "
            "encode again, with a wider --dtype or --precision."
        )


class MappedVectors(NamedTuple):
    """The contents of a shard, mapped into memory."""

    vectors: Tensor
    scales: Tensor | None


def map_vectors(folder: Path, shard: OpenShard) -> MappedVectors:
    """Map the contents of a shard into memory.

    Raises:
        UserError: a file is not of the size that the header says.
    """
    number, header, _ = shard
    count, dim, dtype = header["count"], header["dim"], DTYPES[header["dtype"]]
    vectors = map_file(folder, number, "bin", count * dim * dtype.itemsize).view(dtype).view(count, dim)
    scales = map_file(folder, number, "scales", 4 * count).view(torch.float32) if dtype == torch.int8 else None
    return MappedVectors(vectors, scales)
