"""The vector store on disk: shards of memory-mapped, checksummed rows and their document ids.

Shard 7 is a few files: shard-00007.bin (raw little-endian rows), shard-00007.ids (one document id per line, in row
order), shard-00007.keys (16 bytes per document that say what its text was; see snapshots.py), shard-00007.scales (a
float32 per row of int8), and shard-00007.json (dtype, dim, count, SHA-256 of the others). The header, the .json file,
is written last: a shard that has one is whole.

A document is known by its position in corpus order. In a newly encoded store the position is the row; where the corpus
has changed since, snapshot.json names the shards that count and the file that gives each row's position.
"""

import ctypes
import hashlib
import json
import mmap
import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, final

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from shortlist.data.contents import check_files
from shortlist.data.files import atomic_write, sha256
from shortlist.data.ids import DocIds
from shortlist.data.manifest import described, read_manifest
from shortlist.errors import UserError, unknown
from shortlist.math.matryoshka import shortened
from shortlist.math.quantize import from_int8, to_int8

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "int8": torch.int8}
HEADER = re.compile(r"shard-\d+\.json")
DEAD = -1
"""Position of a row whose document is no longer in the corpus."""


class Snapshot(NamedTuple):
    """The shards of a store that count, in row order, and its order file.

    The order file gives each row's position; it is None where row and position are the same.
    """

    shards: list[int]
    order: str | None = None
    sha256: str | None = None
    """Digest of the order file; None where there is none, or where nothing says it."""


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


def shard_file(folder: Path, number: int, suffix: str) -> Path:
    """Return the path of one of the files of a shard."""
    return folder / f"shard-{number:05d}.{suffix}"


def finished_shards(folder: Path) -> list[int]:
    """List the numbers of the whole shards, ascending; none if there is no folder."""
    return sorted(int(path.stem.removeprefix("shard-")) for path in folder.glob("shard-*.json"))


def remove_shard(folder: Path, number: int) -> None:
    """Delete a shard, its header first."""
    for suffix in ("json", "bin", "ids", "keys", "scales"):
        shard_file(folder, number, suffix).unlink(missing_ok=True)


def count_rows(folder: Path) -> int:
    """Count the vectors in all whole shards."""
    return sum(_read_header(shard_file(folder, number, "json"))["count"] for number in finished_shards(folder))


def shard_digests(folder: Path) -> dict[str, str]:
    """Read the SHA-256 of the files of all whole shards from their headers."""
    return {
        shard_file(folder, number, suffix).name: value
        for number in finished_shards(folder)
        for suffix, value in _read_header(shard_file(folder, number, "json"))["sha256"].items()
    }


def read_snapshot(folder: Path) -> Snapshot | None:
    """Read the snapshot that an update has written.

    The result is None where every shard counts.

    Raises:
        UserError: the snapshot cannot be read.
    """
    path = folder / "snapshot.json"
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_text("utf-8"))
        shards = [int(number) for number in record["shards"]]
        if not shards or any(one >= other for one, other in pairwise(shards)):
            raise ValueError(shards)
        return Snapshot(shards, record["order"], record.get("sha256"))
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path}: not a snapshot of a vector store; encode into an empty folder.") from None


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
        if broken := [doc_id for doc_id in doc_ids if "\n" in doc_id]:
            raise UserError(f"document id {broken[0]!r} holds a line end; rename it.")
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
        contents = {"bin": _bytes(rows), "ids": "".join(f"{doc_id}\n" for doc_id in doc_ids).encode()}
        contents |= {"scales": _bytes(scales)} if scales is not None else {}
        contents |= {"keys": keys} if keys is not None else {}
        shard_file(self.folder, number, "json").unlink(missing_ok=True)  # while its files change, it is not whole
        for suffix, content in contents.items():
            with atomic_write(shard_file(self.folder, number, suffix), "wb") as file:
                file.write(content)
        hashes = {suffix: hashlib.sha256(content).hexdigest() for suffix, content in contents.items()}
        header = {"dtype": self.dtype, "dim": self.dim, "count": len(doc_ids), "sha256": hashes}
        with atomic_write(shard_file(self.folder, number, "json")) as file:
            json.dump(header, file)

    def _check_finite(self, doc_ids: Sequence[str], rows: Tensor) -> None:
        finite = rows.isfinite().all(1)
        if not finite.all():
            first = doc_ids[int(finite.int().argmin())]
            raise UserError(
                f"the vector of document {first!r} is not finite in {self.dtype} ({int((~finite).sum())} such in its "
                "shard): the model overflows on it; try a wider --dtype or --precision."
            )


def _check_all_there(folder: Path, finished: Sequence[int]) -> None:
    """Refuse a finished store that has lost a shard since, the last one too."""
    manifest = read_manifest(folder)
    if manifest is None or not manifest["complete"]:
        return
    there = {shard_file(folder, number, "json").name for number in finished}
    lost = sorted(name for name in manifest.get("files", {}) if HEADER.fullmatch(name) and name not in there)
    if lost:
        raise UserError(f"{folder / lost[0]}: is missing; write it again with `shortlist verify {folder} --repair`.")


class _Shard(NamedTuple):
    """The files of a shard, mapped into memory.

    They can be read even after they are deleted.
    """

    number: int
    header: dict[str, Any]
    vectors: Tensor
    scales: Tensor | None
    ids: np.ndarray


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
        finished = finished_shards(folder)
        if not finished:
            found = (
                f"is {said}" if (said := described(folder, wanted="encode")) else "holds no vectors (no shard-*.json)"
            )
            raise UserError(f"{folder}: {found}; expected the output of `shortlist encode`.")
        snapshot = read_snapshot(folder) or Snapshot(list(range(finished[-1] + 1)))
        if compare:
            _check_all_there(folder, finished)
            _compare(folder, snapshot.shards, ("bin", "scales", "ids"))
        self._shards = [_open_shard(folder, number) for number in snapshot.shards]
        first = self._shards[0].header
        self.dtype: str = first["dtype"]
        self._stored_dim: int = first["dim"]
        self.dim = self._stored_dim if dim is None else dim
        if not 1 <= self.dim <= self._stored_dim:
            raise UserError(
                f"{folder}: holds vectors of {self._stored_dim} dimensions, --dims is {dim}; encode again with --dims "
                f"{dim}, or name fewer."
            )
        self.starts: Int[np.ndarray, " shards"] = np.cumsum([0, *(shard.header["count"] for shard in self._shards)])
        self.num_rows = int(self.starts[-1])
        self.num_bytes = self.num_rows * self._stored_dim * DTYPES[self.dtype].itemsize
        self.shard_hashes: list[str] = [shard.header["sha256"]["bin"] for shard in self._shards]
        self._check_alike()
        self._positions = self._read_order(snapshot) if snapshot.order else None
        self.num_docs = self.num_rows if self._positions is None else int((self._positions != DEAD).sum())

    def _check_alike(self) -> None:
        for shard in self._shards:
            if (shard.header["dtype"], shard.header["dim"]) != (self.dtype, self._stored_dim):
                raise UserError(
                    f"{shard_file(self.folder, shard.number, 'bin')}: holds {shard.header['dtype']} vectors of dim "
                    f"{shard.header['dim']}, but the first shard {self.dtype} of dim {self._stored_dim}; "
                    "encode into an empty folder."
                )

    def _read_order(self, snapshot: Snapshot) -> Int[np.ndarray, " rows"]:
        path = self.folder / str(snapshot.order)
        if not path.is_file() or path.stat().st_size != 8 * self.num_rows:
            raise UserError(
                f"{path}: does not hold a position for each of {self.num_rows:,} rows; "
                "run `shortlist encode --update` again to make it."
            )
        positions = np.fromfile(path, dtype="<i8")
        if snapshot.sha256 not in (None, hashlib.sha256(positions.data).hexdigest()):
            raise UserError(
                f"{path}: this order of documents is not the one that was written; "
                f"`shortlist verify {self.folder} --repair` makes it again."
            )
        return positions

    @cached_property
    def _rows(self) -> Int[np.ndarray, " docs"] | None:
        """The row of each position, None where rows and positions are the same."""
        if self._positions is None:
            return None
        living = np.flatnonzero(self._positions != DEAD)
        rows = np.empty(self.num_docs, dtype=np.int64)
        rows[self._positions[living]] = living
        return rows

    @cached_property
    def doc_ids(self) -> DocIds:
        """Document ids by position."""
        counts = [shard.header["count"] for shard in self._shards]
        return DocIds([shard.ids for shard in self._shards], counts, self._rows)

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
                    _release(vectors)

    def _block(
        self, row: int, vectors: Tensor, scales: Tensor | None, first: int, keep: Bool[np.ndarray, " docs"] | None
    ) -> Block:
        rows = torch.arange(row, row + len(vectors))
        scales = None if scales is None else scales[first : first + len(vectors)]
        if self._positions is None and keep is None:
            return self._cut(Block(rows, rows, vectors, scales))
        positions = rows if self._positions is None else torch.from_numpy(self._positions[row : row + len(vectors)])
        wanted = positions.numpy() != DEAD
        if keep is not None:
            wanted &= keep[positions.numpy()]
        if wanted.all():
            return self._cut(Block(rows, positions, vectors, scales))
        places = np.flatnonzero(wanted)
        some, taken = torch.from_numpy(places), torch.empty((len(places), vectors.shape[1]), dtype=vectors.dtype)
        np.take(_bytewise(vectors), places, axis=0, out=_bytewise(taken), mode="clip")  # as in _gathered
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
        rows = positions if self._rows is None else self._rows[positions]
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
            np.take(_bytewise(shard.vectors), inside, axis=0, out=_bytewise(vectors)[here], mode="clip")
            if scales is not None and shard.scales is not None:
                np.take(shard.scales.numpy(), inside, out=scales.numpy()[here], mode="clip")
        return vectors, scales

    def positions_of(self, rows: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        """Return the position of each row, DEAD where its document is gone."""
        return rows if self._positions is None else self._positions[rows]

    def beyond(self, shard_hashes: Sequence[str]) -> int:
        """Count the documents that an index built from these shards does not know.

        Raises:
            UserError: the store no longer begins with these shards.
        """
        known = len(shard_hashes)
        if self.shard_hashes[:known] != list(shard_hashes):
            raise UserError(
                f"{self.folder}: does not begin with the vectors that the index was built from (encoded anew or "
                "compacted since); build the index again."
            )
        rows = np.arange(int(self.starts[known]), self.num_rows)
        return int((self.positions_of(rows) != DEAD).sum())


def damage(folder: Path, number: int) -> str | None:
    """Describe what is wrong with a shard, in one line that names the file.

    The result is None if every byte is as it was written.
    """
    try:
        header = _read_header(shard_file(folder, number, "json"))
    except UserError as error:
        return str(error)
    for suffix, expected in header["sha256"].items():
        path = shard_file(folder, number, suffix)
        if not path.is_file() or sha256(path) != expected:
            return f"{path}: its contents are not those that were written; {_REPAIR.format(folder)}"
    return None


def read_keys(folder: Path, number: int) -> bytes:
    """Read the keys of the documents of a shard.

    Raises:
        UserError: they are missing, or are not as they were written.
    """
    path = shard_file(folder, number, "keys")
    if not path.exists():
        raise UserError(f"{path}: is missing, so nobody knows which texts were encoded; encode into another folder.")
    _compare(folder, [number], ("keys",))
    return path.read_bytes()


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


def _compare(folder: Path, shards: Sequence[int], suffixes: Sequence[str]) -> None:
    """Compare files of shards with the digests in their headers."""
    files = {}
    for number in shards:
        digests = _read_header(shard_file(folder, number, "json"))["sha256"]
        for path, written in ((shard_file(folder, number, s), digests[s]) for s in suffixes if s in digests):
            files[path.name] = {"size": path.stat().st_size if path.is_file() else 0, "sha256": written}
    check_files(folder, files, remedy=_REPAIR.format(folder))


_REPAIR = "`shortlist verify {} --repair` encodes this shard again."


def _open_shard(folder: Path, number: int) -> _Shard:
    header = _read_header(shard_file(folder, number, "json"))
    count, dim, dtype = header["count"], header["dim"], DTYPES[header["dtype"]]
    vectors = _map(folder, number, "bin", count * dim * dtype.itemsize).view(dtype).view(count, dim)
    scales = _map(folder, number, "scales", 4 * count).view(torch.float32) if dtype == torch.int8 else None
    path = shard_file(folder, number, "ids")
    ids = _map(folder, number, "ids", path.stat().st_size if path.is_file() else 0).numpy()
    if (found := int((ids == ord("\n")).sum())) != count:
        raise UserError(f"{path}: holds {found:,} ids, its header says {count:,}; {_REPAIR.format(folder)}")
    return _Shard(number, header, vectors, scales, ids)


def _map(folder: Path, number: int, suffix: str, size: int) -> Tensor:
    """Map a file of a shard into memory without holding the file open.

    The bytes stay on disk until they are read.
    """
    path = shard_file(folder, number, suffix)
    found = path.stat().st_size if path.is_file() else 0
    if found != size or not size:
        raise UserError(f"{path}: holds {found:,} bytes, its header says {size:,}; {_REPAIR.format(folder)}")
    return torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)


def _release(vectors: Tensor) -> None:
    """Let the system drop the pages of a mapped block from this process.

    They are read again if needed.
    """
    start = -(-vectors.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    size = vectors.data_ptr() + vectors.nbytes - start
    if size > 0 and hasattr(mmap, "MADV_DONTNEED"):
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), mmap.MADV_DONTNEED)


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def _bytewise(rows: Tensor) -> UInt8[np.ndarray, "rows bytes"]:
    """View the same memory as bytes: NumPy knows no bfloat16."""
    return rows.view(torch.uint8).numpy()


def _read_header(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"{path}: the shard is missing; run `shortlist encode` again to fill it in.")
    try:
        header = json.loads(path.read_text(encoding="utf-8"))
        fields = (header["dim"], header["count"], header["sha256"]["bin"], header["sha256"]["ids"], header["dtype"])
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path}: not the header of a vector shard; {_REPAIR.format(path.parent)}") from None
    if fields[-1] not in DTYPES:
        raise unknown(f"vector dtype in {path}", str(fields[-1]), DTYPES)
    return header
