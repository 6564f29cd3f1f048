"""The term store on disk, shards with the term weights of documents.

To what every shard has (see shards.py), shard 7 adds shard-00007.counts (a 32-bit integer per document, the number of
its terms), shard-00007.terms (a 32-bit integer per entry, the number of a term, ascending within a document),
shard-00007.bin (the weight of each entry) and, for uint8, shard-00007.scales (a float32 per document, which its weights
are multiplied by). Its header says the dtype, the size of the vocabulary (dim) and the number of entries.

The terms of the vocabulary are in vocabulary.json, which all shards depend on.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, final

import numpy as np
from jaxtyping import Bool, Float32, Int, Int32, Num

from shortlist.data.contents import digest
from shortlist.data.files import atomic_write
from shortlist.data.ids import DocIds
from shortlist.data.stores.shards import (
    REPAIR,
    VOCABULARY,
    OpenShard,
    OpenShards,
    ShardFormat,
    contents_identity,
    map_file,
    owner_of,
    shard_file,
    write_shard_files,
)
from shortlist.errors import UserError, unknown
from shortlist.math.ragged import spans, text_parts
from shortlist.math.terms import TermWeights

TERM_DTYPES = {"float32": "<f4", "float16": "<f2", "uint8": "u1"}
"""The number types that weights may be stored in, as NumPy writes them."""
HIGHEST = 255
"""The largest weight in uint8."""
TERM_CONTENTS = ("bin", "terms", "counts", "scales")


TERM_SHARDS = ShardFormat(
    kind="terms",
    holds="term weights",
    dtypes=TERM_DTYPES,
    suffixes=TERM_CONTENTS,
    identity=contents_identity(TERM_CONTENTS),
    instead="encode with a sparse model for these.",
)


class TermEntries(NamedTuple):
    """Terms and weights of some documents as a store holds them, one document after another."""

    counts: Int[np.ndarray, " docs"]
    """The number of terms of each document."""
    terms: Int32[np.ndarray, " entries"]
    weights: Num[np.ndarray, " entries"]
    """In the dtype of the store."""
    scales: Float32[np.ndarray, " docs"] | None = None
    """Factors of uint8 weights."""

    def as_float32(self) -> TermWeights:
        """Return the terms with their weights in float32, to compute with."""
        weights = self.weights.astype(np.float32)
        if self.scales is not None:
            weights *= np.repeat(self.scales, self.counts)
        return TermWeights(np.asarray(self.terms), weights, self.counts)


class TermBlock(NamedTuple):
    """Some documents of a store with their terms, for reading only."""

    rows: Int[np.ndarray, " docs"]
    positions: Int[np.ndarray, " docs"]
    entries: TermEntries


def to_entries(weights: TermWeights, dtype: str) -> TermEntries:
    """Convert term weights to what a store of this dtype holds."""
    if dtype != "uint8":
        with np.errstate(over="ignore"):  # the writer refuses what is not finite
            stored = weights.weights.astype(TERM_DTYPES[dtype])
        return TermEntries(weights.counts, weights.terms, stored)
    starts, there = np.cumsum(weights.counts) - weights.counts, weights.counts > 0
    scales = np.zeros(len(weights), dtype=np.float32)
    if there.any():
        scales[there] = np.maximum.reduceat(weights.weights, starts[there]) / np.float32(HIGHEST)
    factors = np.repeat(scales, weights.counts)
    levels = np.rint(weights.weights / np.where(factors > 0, factors, 1))
    return TermEntries(weights.counts, weights.terms, levels.clip(1, HIGHEST).astype(np.uint8), scales)


@final
class TermWriter:
    """A writer of a term store, shard by shard.

    A crash loses at most the shard that is being written.

    Args:
        folder: where the shards go; made if missing.
        vocabulary: all terms, by their numbers.
        dtype: how weights are stored, one of TERM_DTYPES.

    Raises:
        UserError: a dtype that nobody knows.
    """

    def __init__(self, folder: Path, vocabulary: Sequence[str], dtype: str = "float32"):
        if dtype not in TERM_DTYPES:
            raise unknown("dtype of term weights", dtype, TERM_DTYPES)
        self.folder, self.dtype, self._vocabulary = folder, dtype, list(vocabulary)
        self.num_terms = len(self._vocabulary)

    def write_shard(self, number: int, doc_ids: Sequence[str], weights: TermWeights, keys: bytes | None = None) -> None:
        """Write one shard, replacing it if it is there.

        Args:
            number: number of the shard in row order, from 0.
            doc_ids: one per document.
            weights: those of all documents.
            keys: KEY_BYTES per document, for a store that can be updated.

        Raises:
            UserError: a weight that is not finite or not above 0, a term outside the vocabulary, a store with another
                vocabulary, an id that holds a line end.
            ValueError: numbers of ids, counts, terms and weights that do not fit.
        """
        entries = int(weights.counts.sum())
        fits = len(weights.terms) == len(weights.weights) == entries and (weights.counts >= 0).all()
        if not doc_ids or len(doc_ids) != len(weights) or not fits:
            raise ValueError(
                f"{len(doc_ids)} ids, {len(weights)} counts of {entries} entries, {len(weights.terms)} terms and "
                f"{len(weights.weights)} weights do not make a shard"
            )
        self._check(doc_ids, weights)
        self.write_entries(number, doc_ids, to_entries(weights, self.dtype), keys)

    def write_entries(self, number: int, doc_ids: Sequence[str], entries: TermEntries, keys: bytes | None) -> None:
        """Write one shard like `write_shard`, from entries as a store holds them.

        Raises:
            UserError: a weight that is not finite in the dtype.
        """
        if self.dtype != "uint8" and not (finite := np.isfinite(entries.weights)).all():
            raise UserError(
                f"a weight of document {doc_ids[owner_of(entries.counts, finite)]!r} is not finite in {self.dtype}; "
                "choose a wider --dtype."
            )
        self._write_vocabulary()
        contents = {
            "bin": entries.weights.tobytes(),
            "terms": entries.terms.astype("<i4").tobytes(),
            "counts": entries.counts.astype("<i4").tobytes(),
        }
        contents |= {"scales": entries.scales.astype("<f4").tobytes()} if entries.scales is not None else {}
        header = {"kind": TERM_SHARDS.kind, "dtype": self.dtype, "dim": self.num_terms, "entries": len(entries.terms)}
        header |= {"beside": {VOCABULARY: digest(self.folder / VOCABULARY)}}
        write_shard_files(self.folder, number, doc_ids, contents, header, keys)

    def _check(self, doc_ids: Sequence[str], weights: TermWeights) -> None:
        usable = np.isfinite(weights.weights) & (weights.weights > 0)
        if not usable.all():
            found = weights.weights[int(usable.argmin())]
            raise UserError(
                f"a weight of document {doc_ids[owner_of(weights.counts, usable)]!r} is {found:g}; expected finite "
                "numbers above 0: the model overflows on it, or is no sparse model."
            )
        known = (weights.terms >= 0) & (weights.terms < self.num_terms)
        if not known.all():
            raise UserError(
                f"document {doc_ids[owner_of(weights.counts, known)]!r} has term "
                f"{weights.terms[int(known.argmin())]}, and the vocabulary {self.num_terms:,} terms; expected a model "
                "and a tokenizer of one vocabulary."
            )

    def _write_vocabulary(self) -> None:
        path = self.folder / VOCABULARY
        if not path.exists():
            with atomic_write(path) as file:
                json.dump(self._vocabulary, file, ensure_ascii=False)
        elif read_vocabulary(self.folder) != self._vocabulary:
            raise UserError(f"{path}: is another vocabulary than the model's; encode into an empty folder.")


def read_vocabulary(folder: Path) -> list[str]:
    """Read the terms of a store, by their numbers.

    Raises:
        UserError: the file is missing or broken.
    """
    path = folder / VOCABULARY
    try:
        terms = json.loads(path.read_text("utf-8"))
        if not isinstance(terms, list):
            raise ValueError("it is no list")
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: is no vocabulary ({error}); {REPAIR.format(folder)}") from None
    return terms


@final
class TermReader:
    """A term store opened for reading, as it is now.

    A later update or compaction changes nothing for a reader that is already open. Files that have changed since they
    were last read are compared with their digests first.

    Args:
        folder: the store.
        compare: whether to compare; False where another process has done so.

    Attributes:
        dtype: how weights are stored, one of TERM_DTYPES.
        num_terms: the size of the vocabulary.
        num_docs: number of documents.
        num_entries: number of their terms, each counted for every document that has it.
        num_rows: number of documents on disk, including those that are gone.
        counts: number of terms of each document, by position.
        row_counts: the same by row.
        starts: the first row (document) of each shard, followed by the number of rows.
        shard_hashes: digest of each shard's contents, in row order, by which an index knows what it was built from.

    Raises:
        UserError: no shard, a missing shard, shards that differ in dtype or vocabulary, a file of the wrong size or
            with other contents than were written.
    """

    def __init__(self, folder: Path, *, compare: bool = True):
        self.folder = folder
        self._open = OpenShards(folder, TERM_SHARDS, compare=compare)
        self._shards = [map_terms(folder, shard) for shard in self._open.shards]
        first = self._open.shards[0].header
        self.dtype: str = first["dtype"]
        self.num_terms: int = first["dim"]
        self.num_docs, self.num_rows = self._open.num_docs, self._open.num_rows
        self.starts, self.shard_hashes = self._open.starts, self._open.hashes
        self.row_counts: Int[np.ndarray, " rows"] = np.concatenate([shard.entries.counts for shard in self._shards])
        self.counts: Int[np.ndarray, " docs"] = self.row_counts[self._open.rows_of(np.arange(self.num_docs))]
        self.num_entries = int(self.counts.sum())

    @property
    def dim(self) -> int:
        """The size of the vocabulary."""
        return self.num_terms

    @property
    def doc_ids(self) -> DocIds:
        """Document ids by position."""
        return self._open.doc_ids

    @property
    def vocabulary(self) -> list[str]:
        """The terms by their numbers."""
        return read_vocabulary(self.folder)

    def blocks(
        self,
        entries: int,
        *,
        shards: Sequence[int] | None = None,
        keep: Bool[np.ndarray, " docs"] | None = None,
    ) -> Iterator[TermBlock]:
        """Yield the documents in row order, with at most so many entries at a time.

        A block holds whole documents, one at least, however many entries it has, and never spans two shards.

        Args:
            shards: the shards to read, by their index in `shard_hashes` (None: all).
            keep: whether the document at each position is wanted (None: all are); a block without a wanted one is left
                out.
        """
        for place in range(len(self._shards)) if shards is None else shards:
            for first, last, _, _ in text_parts(self._shards[place].entries.counts, entries):
                block = self._block(place, first, last, keep)
                if len(block.rows):
                    yield block

    def _block(self, place: int, first: int, last: int, keep: Bool[np.ndarray, " docs"] | None) -> TermBlock:
        start, shard = int(self.starts[place]), self._shards[place]
        positions, wanted = self._open.wanted(start + first, start + last, keep)
        rows = np.arange(start + first, start + last)
        if wanted is not None:
            return TermBlock(rows[wanted], positions[wanted], self._gathered(rows[wanted]))
        here = slice(int(shard.ends[first - 1]) if first else 0, int(shard.ends[last - 1]))
        counts, terms, weights, scales = shard.entries
        some = TermEntries(
            counts[first:last], terms[here], weights[here], None if scales is None else scales[first:last]
        )
        return TermBlock(rows, positions, some)

    def rows(self, rows: Int[np.ndarray, " n"]) -> TermEntries:
        """Return the entries of some rows, in the order asked."""
        return self._gathered(rows)

    def pick(self, positions: Int[np.ndarray, " n"]) -> TermBlock:
        """Return some documents as a block, in the order asked."""
        rows = self._open.rows_of(positions)
        return TermBlock(rows, positions, self._gathered(rows))

    def take(self, positions: Int[np.ndarray, " n"]) -> TermWeights:
        """Return the terms and float32 weights of some documents, in the order asked."""
        return self.pick(positions).entries.as_float32()

    def _gathered(self, rows: Int[np.ndarray, " n"]) -> TermEntries:
        """Copy the entries of rows."""
        counts = self.row_counts[rows]
        places = np.searchsorted(self.starts, rows, side="right") - 1
        if len(rows) and (places == places[0]).all():
            return self._of_shard(int(places[0]), rows, counts)
        order = np.argsort(places, kind="stable")
        bounds = np.searchsorted(places[order], np.arange(len(self._shards) + 1))
        parts = [
            self._of_shard(place, rows[here], counts[here])
            for place in np.flatnonzero(np.diff(bounds)).tolist()
            for here in [order[bounds[place] : bounds[place + 1]]]
        ]
        if not parts:
            counted, terms, weights, scales = self._shards[0].entries
            return TermEntries(counted[:0], terms[:0], weights[:0], None if scales is None else scales[:0])
        terms, weights = (
            np.concatenate([part.terms for part in parts]),
            np.concatenate([part.weights for part in parts]),
        )
        back = np.argsort(order, kind="stable")
        ends = np.cumsum(counts[order])
        where = spans(ends[back] - counts, counts)
        scales = [part.scales for part in parts if part.scales is not None]
        return TermEntries(counts, terms[where], weights[where], np.concatenate(scales)[back] if scales else None)

    def _of_shard(self, place: int, rows: Int[np.ndarray, " n"], counts: Int[np.ndarray, " n"]) -> TermEntries:
        shard, here = self._shards[place], rows - self.starts[place]
        where = spans(shard.ends[here] - counts, counts)
        _, terms, weights, scales = shard.entries
        return TermEntries(counts, terms[where], weights[where], None if scales is None else scales[here])

    def rows_of(self, positions: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        """Return the row of each position."""
        return self._open.rows_of(positions)

    def positions_of(self, rows: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        """Return the position of each row, DEAD where its document is gone."""
        return self._open.positions_of(rows)

    def beyond(self, shard_hashes: Sequence[str]) -> int:
        """Count the documents that an index built from these shards does not know.

        Raises:
            UserError: the store no longer begins with these shards.
        """
        return self._open.beyond(shard_hashes)


class MappedTerms(NamedTuple):
    """The contents of a shard, mapped into memory."""

    ends: Int[np.ndarray, " docs"]
    """Where each document's entries end."""
    entries: TermEntries


def map_terms(folder: Path, shard: OpenShard) -> MappedTerms:
    """Map the contents of a shard into memory.

    Raises:
        UserError: a file is not of the size that the header says.
    """
    number, header, _ = shard
    count, entries, stored = header["count"], header["entries"], np.dtype(TERM_DTYPES[header["dtype"]])
    counts = map_file(folder, number, "counts", 4 * count).numpy().view("<i4")
    ends = np.cumsum(counts, dtype=np.int64)
    if ends[-1] != entries:
        path = shard_file(folder, number, "counts")
        raise UserError(f"{path}: counts {ends[-1]:,} terms, its header {entries:,}; {REPAIR.format(folder)}")
    terms = map_file(folder, number, "terms", 4 * entries).numpy().view("<i4")
    weights = map_file(folder, number, "bin", stored.itemsize * entries).numpy().view(stored)
    scaled = header["dtype"] == "uint8"
    scales = map_file(folder, number, "scales", 4 * count).numpy().view("<f4") if scaled else None
    return MappedTerms(ends, TermEntries(counts, terms, weights, scales))
