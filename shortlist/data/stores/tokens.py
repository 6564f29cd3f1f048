"""The token store on disk, shards with many vectors for each document.

To what every shard has (see shards.py), shard 7 adds shard-00007.counts (a 32-bit integer per document, the number of
its vectors), shard-00007.bin (raw little-endian rows, a document's next to one another), for int8 shard-00007.scales (a
float32 per vector), and for residual codes shard-00007.codes (a 16-bit integer per vector, the number of its centroid).
Its header says the dtype, the dim and the number of vectors.

Residual codes are restored with codebook.safetensors, which the first shard is the sample for and which never changes.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, final

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from shortlist.data.contents import digest
from shortlist.data.files import atomic_write
from shortlist.data.ids import DocIds
from shortlist.data.stores.shards import (
    CODEBOOK,
    REPAIR,
    OpenShard,
    OpenShards,
    ShardFormat,
    bytewise,
    contents_identity,
    map_file,
    owner_of,
    release_pages,
    shard_file,
    to_bytes,
    write_shard_files,
)
from shortlist.data.stores.vectors import DTYPES, to_rows
from shortlist.errors import UserError, unknown
from shortlist.math.maxsim import TokenVectors
from shortlist.math.quantize import from_int8
from shortlist.math.ragged import spans, text_parts
from shortlist.math.residual import BITS, Codebook, ResidualCodes, fit_codebook, from_residual, to_residual

RESIDUALS = {f"residual{bits}": bits for bits in BITS}
"""The dtypes of residual codes, and their bits for each dimension."""
TOKEN_DTYPES = [*DTYPES, *RESIDUALS]
"""The number types that token vectors may be stored in."""
CONTENTS = ("bin", "counts", "scales", "codes")
UNIT = 0.01
"""How far from 1 the length of a vector in residual codes may be, which do not keep lengths."""


TOKEN_SHARDS = ShardFormat(
    kind="tokens",
    holds="token vectors",
    dtypes=TOKEN_DTYPES,
    suffixes=CONTENTS,
    identity=contents_identity(CONTENTS),
    instead="encode with a late model for these.",
)


class TokenRows(NamedTuple):
    """Token vectors as a store holds them."""

    values: Tensor
    """[tokens, width] in the dtype of the store; of residual codes, the bytes of the residuals."""
    scales: Float[Tensor, " tokens"] | None = None
    """Factors of int8 rows."""
    codes: Shaped[Tensor, " tokens"] | None = None
    """Numbers of the centroids of residual codes, as unsigned 16-bit integers."""

    def changed(self, change: Callable[[Tensor], Tensor]) -> "TokenRows":
        """Apply a function to all that is there."""
        others = (None if part is None else change(part) for part in (self.scales, self.codes))
        return TokenRows(change(self.values), *others)

    def copy(self, places: Int[np.ndarray, " n"], out: "TokenRows") -> None:
        """Copy some vectors into others' place."""
        for part, target in zip(self, out, strict=True):
            if part is not None and target is not None:
                _copy_rows(part, places, target)

    def taken(self, places: Int[np.ndarray, " n"]) -> "TokenRows":
        """Return some vectors, in the order asked."""
        found = self.changed(lambda part: part.new_empty((len(places), *part.shape[1:])))
        self.copy(places, found)
        return found


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
    codes: Shaped[Tensor, " tokens"] | None = None
    """Numbers of the centroids of residual codes, as unsigned 16-bit integers."""
    codebook: Codebook | None = None
    """The codebook of residual codes."""

    def stored(self) -> TokenRows:
        """Return the vectors as they are stored."""
        return TokenRows(self.values, self.scales, self.codes)

    def float32(self) -> Float[Tensor, "tokens dim"]:
        """Return the vectors as float32, to compute with."""
        if self.codebook is not None and self.codes is not None:
            return from_residual(ResidualCodes(self.codes, self.values), self.codebook)
        return self.values.float() if self.scales is None else from_int8(self.values, self.scales)


def _check_packs(dim: int, dtype: str) -> None:
    """Refuse vectors that do not fill whole bytes."""
    if dtype in RESIDUALS and dim * RESIDUALS[dtype] % 8:
        raise UserError(
            f"token vectors have {dim} dimensions, and {dtype} packs {8 // RESIDUALS[dtype]} of them into a byte; "
            "choose a --dtype with more bits."
        )


def as_stored(vectors: TokenVectors, dtype: str) -> TokenVectors:
    """Return vectors as a store that holds no others would give them in this dtype.

    Raises:
        UserError: a dim that residual codes cannot be packed for.
    """
    _check_packs(vectors.values.shape[1], dtype)
    given = torch.from_numpy(np.ascontiguousarray(vectors.values, dtype=np.float32))
    if dtype in RESIDUALS:
        codebook = fit_codebook(given, bits=RESIDUALS[dtype], num_vectors=len(given))
        restored = from_residual(to_residual(given, codebook), codebook)
    else:
        rows, scales = to_rows(given, dtype)
        restored = rows.float() if scales is None else from_int8(rows, scales)
    return TokenVectors(restored.numpy(), vectors.counts)


@final
class TokenWriter:
    """A writer of a token store, shard by shard.

    A crash loses at most the shard that is being written. The first shard of residual codes is the sample that their
    codebook is fitted to; a store that has one keeps it.

    Args:
        folder: where the shards go; made if missing.
        dim: numbers per vector.
        dtype: how they are stored, one of TOKEN_DTYPES.
        num_docs: number of documents that the store will hold, by which the number of centroids of residual codes is
            chosen (None: those of the first shard).

    Raises:
        UserError: a dtype that nobody knows, or a dim that residual codes cannot be packed for.
    """

    def __init__(self, folder: Path, dim: int, dtype: str = "float32", *, num_docs: int | None = None):
        if dtype not in TOKEN_DTYPES:
            raise unknown("vector dtype", dtype, TOKEN_DTYPES)
        _check_packs(dim, dtype)
        self.folder, self.dim, self.dtype, self._num_docs = folder, dim, dtype, num_docs

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
        if self.dtype not in RESIDUALS:
            rows = TokenRows(*to_rows(given, self.dtype))
        else:
            self._check_finite(doc_ids, vectors.counts, given)
            codes, residuals = to_residual(given, self._codebook_for(doc_ids, given))
            rows = TokenRows(residuals, codes=codes.to(torch.uint16))
        self.write_rows(number, doc_ids, vectors.counts, rows, keys)

    def _codebook_for(self, doc_ids: Sequence[str], vectors: Float[Tensor, "tokens dim"]) -> Codebook:
        """Return the store's codebook, fitted to these vectors if there is none yet."""
        if len(vectors) and float((vectors.norm(dim=1) - 1).abs().max()) > UNIT:
            raise UserError(
                f"{self.dtype} keeps no lengths, and those of the model's token vectors are not 1; choose another "
                "--dtype, such as float16."
            )
        if not (self.folder / CODEBOOK).exists():
            if not len(vectors):
                raise UserError(
                    f"{self.dtype} needs vectors to fit a codebook to, and the first {len(doc_ids):,} documents have "
                    "none; choose another --dtype, such as float16."
                )
            expected = round(len(vectors) / len(doc_ids) * (self._num_docs or len(doc_ids)))
            _write_codebook(self.folder, fit_codebook(vectors, bits=RESIDUALS[self.dtype], num_vectors=expected))
        return _read_codebook(self.folder)

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
        contents |= {"codes": to_bytes(rows.codes)} if rows.codes is not None else {}
        header = {"kind": TOKEN_SHARDS.kind, "dtype": self.dtype, "dim": self.dim, "tokens": len(rows.values)}
        header |= {"beside": {CODEBOOK: digest(self.folder / CODEBOOK)}} if rows.codes is not None else {}
        write_shard_files(self.folder, number, doc_ids, contents, header, keys)

    def _check_finite(self, doc_ids: Sequence[str], counts: Int[np.ndarray, " docs"], rows: Tensor) -> None:
        finite = rows.isfinite().all(1).numpy()
        if not finite.all():
            raise UserError(
                f"a token vector of document {doc_ids[owner_of(counts, finite)]!r} is not finite in {self.dtype} "
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
        codebook: what residual codes are restored with; None for other dtypes.
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
        self.codebook = _read_codebook(folder) if self.dtype in RESIDUALS else None

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
            shard = self._shards[place]
            for first, last, start, stop in text_parts(np.diff(shard.ends, prepend=0), tokens):
                block = self._block(place, first, last, keep)
                if len(block.rows):
                    yield block
                if release:
                    release_pages(shard.rows.values[start:stop])

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
        """Collect documents, without a copy where they stand together on disk."""
        counts = self._row_counts[rows]
        steps = np.diff(rows)
        if len(rows) and (steps == 1).all() and not np.isin(rows[1:], self.starts).any():
            stored = self._run(int(rows[0]), int(rows[-1]) + 1)
        elif (steps >= 0).all():
            stored = self._copied(rows)
        else:
            order = np.argsort(rows, kind="stable")
            back, ends = np.argsort(order), np.cumsum(counts[order])
            stored = self._copied(rows[order]).taken(spans(ends[back] - counts, counts))
        where = torch.from_numpy(rows), torch.from_numpy(positions)
        return TokenBlock(*where, torch.from_numpy(counts), *stored, self.codebook)

    def _run(self, start: int, end: int) -> TokenRows:
        """Return the vectors of rows of one shard, as they are on disk."""
        place = int(np.searchsorted(self.starts, start, side="right")) - 1
        shard, before = self._shards[place], int(self.starts[place])
        first = int(shard.ends[start - before - 1]) if start > before else 0
        here = slice(first, int(shard.ends[end - before - 1]))
        return shard.rows.changed(lambda part: part[here])

    def _copied(self, rows: Int[np.ndarray, " n"]) -> TokenRows:
        """Copy the vectors of rows, which must be in ascending order."""
        counts, bounds = self._row_counts[rows], np.searchsorted(rows, self.starts)
        ends = np.cumsum(counts)
        found = self._shards[0].rows.changed(lambda part: part.new_empty((int(counts.sum()), *part.shape[1:])))
        for place in np.flatnonzero(np.diff(bounds)):
            shard, here = self._shards[place], slice(bounds[place], bounds[place + 1])
            before = int(ends[here.start - 1]) if here.start else 0
            found_at = spans(shard.ends[rows[here] - self.starts[place]] - counts[here], counts[here])
            target = slice(before, before + len(found_at))
            shard.rows.copy(found_at, found.changed(lambda part, target=target: part[target]))
        return found

    def release(self) -> None:
        """Give the memory of vectors that were read back.

        They are read again if needed.
        """
        for shard in self._shards:
            release_pages(shard.rows.values)

    def positions_of(self, rows: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        """Return the position of each row, DEAD where its document is gone."""
        return self._open.positions_of(rows)

    def beyond(self, shard_hashes: Sequence[str]) -> int:
        """Count the documents that an index built from these shards does not know.

        Raises:
            UserError: the store no longer begins with these shards.
        """
        return self._open.beyond(shard_hashes)


def _copy_rows(part: Tensor, places: Int[np.ndarray, " n"], out: Tensor) -> None:
    if len(places):
        size = part[0].nbytes
        # NumPy copies whole rows, and in mode "clip" straight into `out`
        source, target = bytewise(part).reshape(-1, size), bytewise(out).reshape(-1, size)
        np.take(source, places, axis=0, out=target, mode="clip")


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
    count, tokens, dim, dtype = header["count"], header["tokens"], header["dim"], header["dtype"]
    counts = map_file(folder, number, "counts", 4 * count).numpy().view("<i4")
    ends = np.cumsum(counts, dtype=np.int64)
    if ends[-1] != tokens:
        path = shard_file(folder, number, "counts")
        raise UserError(f"{path}: counts {ends[-1]:,} vectors, its header {tokens:,}; {REPAIR.format(folder)}")

    def column(suffix: str, stored: torch.dtype, *shape: int) -> Tensor:
        size = tokens * stored.itemsize * math.prod(shape)
        return map_file(folder, number, suffix, size).view(stored).view(tokens, *shape)

    if dtype in RESIDUALS:
        residuals = column("bin", torch.uint8, dim * RESIDUALS[dtype] // 8)
        return MappedTokens(ends, TokenRows(residuals, codes=column("codes", torch.uint16)))
    scales = column("scales", torch.float32) if dtype == "int8" else None
    return MappedTokens(ends, TokenRows(column("bin", DTYPES[dtype], dim), scales))


def _write_codebook(folder: Path, codebook: Codebook) -> None:
    parts = {"centroids": codebook.centroids, "cutoffs": codebook.cutoffs, "weights": codebook.weights}
    with atomic_write(folder / CODEBOOK, "wb") as file:
        file.write(save({name: part.contiguous() for name, part in parts.items()}))


def _read_codebook(folder: Path) -> Codebook:
    path = folder / CODEBOOK
    try:
        parts = load(path.read_bytes())
        return Codebook(parts["centroids"], parts["cutoffs"], parts["weights"])
    except (OSError, KeyError, ValueError, SafetensorError) as error:
        raise UserError(f"{path}: is no codebook ({error}); {REPAIR.format(folder)}") from None
