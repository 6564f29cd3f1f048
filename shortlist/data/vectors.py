"""The vector store on disk: shards of raw little-endian rows with their document ids, checksummed and memory-mapped.

Shard 7 is three files: shard-00007.bin (rows), shard-00007.ids (one document id per line, in row order) and
shard-00007.json (dtype, dim, count, SHA-256 of the other two). The header comes last: a shard that has one is whole.
"""

import hashlib
import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, final

import numpy as np

from shortlist.data.files import atomic_write, sha256
from shortlist.errors import UserError, unknown

DTYPES = {"float32": "<f4"}


def _shard(folder: Path, index: int, suffix: str) -> Path:
    return folder / f"shard-{index:05d}.{suffix}"


def finished_shards(folder: Path) -> list[int]:
    """Numbers of the shards that are whole, ascending; empty where there is no folder."""
    return sorted(int(path.stem.removeprefix("shard-")) for path in folder.glob("shard-*.json"))


@final
class VectorWriter:
    """Writes a store shard by shard; a crash loses at most the shard in flight.

    Args:
        folder: where the shards go; made if missing.
        dim: numbers per vector.
        dtype: how they are stored, one of DTYPES.
    """

    def __init__(self, folder: Path, dim: int, dtype: str = "float32"):
        if dtype not in DTYPES:
            raise unknown("vector dtype", dtype, DTYPES)
        self.folder, self.dim, self.dtype = folder, dim, dtype

    def write_shard(self, index: int, doc_ids: list[str], vectors: np.ndarray) -> None:
        """Write one shard, replacing it if it is there.

        Args:
            index: its place in corpus order, from 0.
            doc_ids: one per row.
            vectors: [rows, dim].

        Raises:
            UserError: a vector that is not finite, an id that holds a line end.
            ValueError: shapes that do not fit.
        """
        if vectors.shape != (len(doc_ids), self.dim) or not doc_ids:
            raise ValueError(
                f"{len(doc_ids)} ids and vectors of shape {vectors.shape} do not make a shard of dim {self.dim}"
            )
        _check(doc_ids, vectors)
        rows = np.ascontiguousarray(vectors, dtype=DTYPES[self.dtype])
        contents = {"bin": rows.tobytes(), "ids": "".join(f"{doc_id}\n" for doc_id in doc_ids).encode()}
        for suffix, content in contents.items():
            with atomic_write(_shard(self.folder, index, suffix), "wb") as file:
                file.write(content)
        hashes = {suffix: hashlib.sha256(content).hexdigest() for suffix, content in contents.items()}
        header = {"dtype": self.dtype, "dim": self.dim, "count": len(doc_ids), "sha256": hashes}
        with atomic_write(_shard(self.folder, index, "json")) as file:
            json.dump(header, file)


def _check(doc_ids: list[str], vectors: np.ndarray) -> None:
    if broken := [doc_id for doc_id in doc_ids if "\n" in doc_id]:
        raise UserError(f"document id {broken[0]!r} holds a line end; rename it.")
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        first = doc_ids[int(finite.argmin())]
        raise UserError(
            f"the vector of document {first!r} is not finite ({(~finite).sum()} such in its shard): "
            "the model overflows on it; try float32 instead of a narrower type."
        )


@final
class VectorReader:
    """A store opened for reading; rows stay on disk until they are touched.

    Attributes:
        dim: numbers per vector.
        dtype: how they are stored.
        num_docs: vectors in all shards.

    Raises:
        UserError: no shard, a missing shard, shards that differ in dtype or dim, a file of the wrong size.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        indices = finished_shards(folder)
        if not indices:
            raise UserError(f"{folder}: holds no vectors (no shard-*.json); expected the output of `shortlist encode`.")
        if gap := sorted(set(range(len(indices))) - set(indices)):
            raise UserError(f"{folder}: shard {gap[0]} is missing; run `shortlist encode` again to fill it in.")
        self._headers = [_read_header(_shard(folder, index, "json")) for index in indices]
        self.dtype, self.dim = self._headers[0]["dtype"], self._headers[0]["dim"]
        self.num_docs: int = sum(header["count"] for header in self._headers)
        for index, header in enumerate(self._headers):
            self._check_shard(index, header)

    def _check_shard(self, index: int, header: dict[str, Any]) -> None:
        path = _shard(self.folder, index, "bin")
        if (header["dtype"], header["dim"]) != (self.dtype, self.dim):
            raise UserError(
                f"{path}: holds {header['dtype']} vectors of dim {header['dim']}, "
                f"but shard 0 {self.dtype} of dim {self.dim}; encode into an empty folder."
            )
        expected = header["count"] * self.dim * np.dtype(DTYPES[self.dtype]).itemsize
        found = path.stat().st_size if path.is_file() else 0
        if found != expected:
            raise UserError(
                f"{path}: holds {found:,} bytes, its header says {expected:,}; {_repair(self.folder, index)}"
            )

    @cached_property
    def doc_ids(self) -> list[str]:
        """The document ids in row order."""
        doc_ids: list[str] = []
        for index, header in enumerate(self._headers):
            path = _shard(self.folder, index, "ids")
            names = path.read_bytes().decode(errors="replace").split("\n")[:-1] if path.is_file() else []
            if len(names) != header["count"]:
                counts = f"{len(names):,} ids, its header says {header['count']:,}"
                raise UserError(f"{path}: holds {counts}; {_repair(self.folder, index)}")
            doc_ids += names
        return doc_ids

    def blocks(self, rows: int) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (number of the first row, vectors [at most rows, dim]); a block never spans two shards."""
        start = 0
        for index, header in enumerate(self._headers):
            shape = (header["count"], self.dim)
            shard = np.memmap(_shard(self.folder, index, "bin"), dtype=DTYPES[self.dtype], mode="r", shape=shape)
            for first in range(0, len(shard), rows):
                yield start + first, shard[first : first + rows]
            start += len(shard)

    def verify(self) -> None:
        """Hash every file again.

        Raises:
            UserError: a file that differs from its header, a document that occurs twice.
        """
        for index, header in enumerate(self._headers):
            for suffix, expected in header["sha256"].items():
                path = _shard(self.folder, index, suffix)
                if not path.is_file() or sha256(path) != expected:
                    raise UserError(
                        f"{path}: its contents are not those that were written; {_repair(self.folder, index)}"
                    )
        if len(set(self.doc_ids)) < self.num_docs:
            raise UserError(f"{self.folder}: a document occurs in it twice; encode into an empty folder.")


def _repair(folder: Path, index: int) -> str:
    return f"delete {_shard(folder, index, 'json')} and run `shortlist encode` again to redo this shard."


def _read_header(path: Path) -> dict[str, Any]:
    try:
        header = json.loads(path.read_text(encoding="utf-8"))
        fields = (header["dim"], header["count"], header["sha256"]["bin"], header["sha256"]["ids"], header["dtype"])
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f"{path}: not the header of a vector shard; delete it and run `shortlist encode` again."
        ) from None
    if fields[-1] not in DTYPES:
        raise unknown(f"vector dtype in {path}", str(fields[-1]), DTYPES)
    return header
