"""Shards, the numbered sets of files that every store of documents is made of.

Shard 7 is a few files: shard-00007.ids (one document id per line, in row order), shard-00007.keys (16 bytes per
document that say what its text was; see snapshots.py), those with the contents, and shard-00007.json (what the contents
are, the number of documents, SHA-256 of the other files). The header, the .json file, is written last: a shard that has
one is whole.

A row of a shard is a document. A document is known by its position in corpus order. In a newly encoded store the
position is the row; where the corpus has changed since, snapshot.json names the shards that count and the file that
gives each row's position.
"""

import ctypes
import hashlib
import json
import mmap
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, final

import numpy as np
import torch
from jaxtyping import Bool, Int, UInt8
from torch import Tensor

from shortlist.data.contents import check_files
from shortlist.data.files import atomic_write, sha256
from shortlist.data.ids import DocIds
from shortlist.data.manifest import described, read_manifest
from shortlist.errors import UserError, unknown

SNAPSHOT = "snapshot.json"
HEADER = re.compile(r"shard-\d+\.json")
CODEBOOK = "codebook.safetensors"
"""A file that all shards of a store may depend on; their headers have its digest under `beside`."""
VOCABULARY = "vocabulary.json"
"""The terms of a store of term weights, beside its shards like the codebook."""
VECTORS = "vectors"
"""The kind of store whose headers name no kind."""
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


class ShardFormat(NamedTuple):
    """The contents of the shards of one kind of store."""

    kind: str
    """Its name in headers."""
    holds: str
    """Words for the contents, in messages."""
    dtypes: Collection[str]
    """The number types that contents may be stored in."""
    suffixes: tuple[str, ...]
    """The files with the contents; a shard need not have all of them."""
    identity: Callable[[Mapping[str, Any]], str]
    """Digest of the contents from the header, by which an index knows what it was built from."""
    instead: str
    """What to do with a store of another kind, for a message."""


def contents_identity(suffixes: Sequence[str]) -> Callable[[Mapping[str, Any]], str]:
    """Make a function that digests all that a header says of a shard's contents."""

    def identity(header: Mapping[str, Any]) -> str:
        digests = [header["sha256"].get(suffix, "") for suffix in suffixes] + [*header.get("beside", {}).values()]
        return hashlib.sha256("\n".join(digests).encode()).hexdigest()

    return identity


def shard_file(folder: Path, number: int, suffix: str) -> Path:
    """Return the path of one of the files of a shard."""
    return folder / f"shard-{number:05d}.{suffix}"


def finished_shards(folder: Path) -> list[int]:
    """List the numbers of the whole shards, ascending; none if there is no folder."""
    return sorted(int(path.stem.removeprefix("shard-")) for path in folder.glob("shard-*.json"))


def remove_shard(folder: Path, number: int) -> None:
    """Delete a shard, its header first, and with the last one what all share."""
    shard_file(folder, number, "json").unlink(missing_ok=True)
    for path in folder.glob(f"shard-{number:05d}.*"):
        path.unlink(missing_ok=True)
    if not finished_shards(folder):
        for name in (CODEBOOK, VOCABULARY):
            (folder / name).unlink(missing_ok=True)


def owner_of(counts: Int[np.ndarray, " docs"], fine: Bool[np.ndarray, " entries"]) -> int:
    """Return the number of the document with the first entry that is not fine."""
    return int(np.searchsorted(np.cumsum(counts), int(fine.argmin()), side="right"))


def count_rows(folder: Path) -> int:
    """Count the documents in all whole shards."""
    return sum(read_header(folder, number)["count"] for number in finished_shards(folder))


def shard_digests(folder: Path) -> dict[str, str]:
    """Read the SHA-256 of the files of all whole shards from their headers."""
    return {
        name: value
        for number in finished_shards(folder)
        for name, value in _written(folder, number, read_header(folder, number)).items()
    }


def _written(folder: Path, number: int, header: Mapping[str, Any]) -> dict[str, str]:
    """Return the digests of a shard's files, and of what lies beside it, by name."""
    own = {shard_file(folder, number, suffix).name: digest for suffix, digest in header["sha256"].items()}
    return own | header.get("beside", {})


def written_digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of the files of whole shards, by name, known from writing them."""
    headers = ((number, read_header(folder, number)) for number in finished_shards(folder))
    return {name: digest for number, header in headers for name, digest in _written(folder, number, header).items()}


def store_kind(folder: Path) -> str:
    """Read the kind of store from the header of its first whole shard.

    Raises:
        UserError: there is no shard, or its header cannot be read.
    """
    return kind_in_header(read_header(folder, _some_shards(folder)[0]))


def kind_in_header(header: Mapping[str, Any]) -> str:
    """Return the kind of store that a header names."""
    return header.get("kind", VECTORS)


def read_snapshot(folder: Path) -> Snapshot | None:
    """Read the snapshot that an update has written.

    The result is None where every shard counts.

    Raises:
        UserError: the snapshot cannot be read.
    """
    path = folder / SNAPSHOT
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


def write_shard_files(
    folder: Path,
    number: int,
    doc_ids: Sequence[str],
    contents: Mapping[str, bytes],
    header: Mapping[str, Any],
    keys: bytes | None,
) -> None:
    """Write one shard, replacing it if it is there.

    Args:
        doc_ids: one per row.
        contents: the bytes of each file with contents, by its suffix.
        header: what the header says of them.
        keys: KEY_BYTES per row, for a store that can be updated.

    Raises:
        UserError: an id that holds a line end.
    """
    if broken := [doc_id for doc_id in doc_ids if "\n" in doc_id]:
        raise UserError(f"document id {broken[0]!r} holds a line end; rename it.")
    files = {**contents, "ids": "".join(f"{doc_id}\n" for doc_id in doc_ids).encode()}
    files |= {"keys": keys} if keys is not None else {}
    shard_file(folder, number, "json").unlink(missing_ok=True)  # while its files change, it is not whole
    for suffix, content in files.items():
        with atomic_write(shard_file(folder, number, suffix), "wb") as file:
            file.write(content)
    hashes = {suffix: hashlib.sha256(content).hexdigest() for suffix, content in files.items()}
    whole = {**header, "count": len(doc_ids), "sha256": hashes}
    with atomic_write(shard_file(folder, number, "json")) as file:
        json.dump(whole | ({"header": _header_digest(whole)} if "kind" in whole else {}), file)


def read_header(folder: Path, number: int) -> dict[str, Any]:
    """Read the header of a shard.

    Raises:
        UserError: it is missing, is no header, or is not as it was written.
    """
    path = shard_file(folder, number, "json")
    if not path.is_file():
        raise UserError(f"{path}: the shard is missing; run `shortlist encode` again to fill it in.")
    try:
        header = json.loads(path.read_text(encoding="utf-8"))
        fields = (header["count"], header["sha256"]["ids"], header["dim"], header["dtype"])
        digest = header.pop("header") if "kind" in header or "header" in header else None
        if digest not in (None, _header_digest(header)):
            raise ValueError(fields)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path}: not the header of a vector shard; {REPAIR.format(folder)}") from None
    return header


def _header_digest(header: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()


def damage(folder: Path, number: int) -> str | None:
    """Describe what is wrong with a shard, in one line that names the file.

    The result is None if every byte is as it was written.
    """
    try:
        header = read_header(folder, number)
    except UserError as error:
        return str(error)
    for name, expected in _written(folder, number, header).items():
        path = folder / name
        if not path.is_file() or sha256(path) != expected:
            return f"{path}: its contents are not those that were written; {REPAIR.format(folder)}"
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


class OpenShard(NamedTuple):
    """The header and ids of a shard that is open for reading.

    The ids can be read even after the file is deleted.
    """

    number: int
    header: dict[str, Any]
    ids: UInt8[np.ndarray, "_"]


@final
class OpenShards:
    """The shards of a store that count, opened for reading, as they are now.

    A later update or compaction changes nothing for it. Files that have changed since they were last read are compared
    with their digests first.

    Args:
        folder: the store.
        format: the kind of store that it must be.
        compare: whether to compare; False where another process has done so.

    Attributes:
        shards: in row order.
        starts: the first row of each shard, followed by the number of rows.
        num_rows: number of documents on disk, including those that are gone.
        num_docs: number of documents.
        hashes: digest of the contents of each shard, by which an index knows what it was built from.
        in_order: whether rows and positions are the same.

    Raises:
        UserError: no shard, a missing shard, shards that differ in dtype or dim, a file with other contents than were
            written, a store of another kind.
    """

    def __init__(self, folder: Path, format: ShardFormat, *, compare: bool):
        self.folder = folder
        finished = _some_shards(folder)
        snapshot = read_snapshot(folder) or Snapshot(list(range(finished[-1] + 1)))
        if compare:
            check_all_there(folder)
            _compare(folder, snapshot.shards, (*format.suffixes, "ids"))
        self.shards = [open_shard(folder, number, format) for number in snapshot.shards]
        _check_alike(folder, self.shards)
        self.starts: Int[np.ndarray, " shards"] = np.cumsum([0, *(shard.header["count"] for shard in self.shards)])
        self.num_rows = int(self.starts[-1])
        self.hashes: list[str] = [format.identity(shard.header) for shard in self.shards]
        self._positions = self._read_order(snapshot) if snapshot.order else None
        self.in_order = self._positions is None
        self.num_docs = self.num_rows if self._positions is None else int((self._positions != DEAD).sum())

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
        counts = [shard.header["count"] for shard in self.shards]
        return DocIds([shard.ids for shard in self.shards], counts, self._rows)

    def rows_of(self, positions: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        """Return the row of each position."""
        return positions if self._rows is None else self._rows[positions]

    def positions_of(self, rows: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        """Return the position of each row, DEAD where its document is gone."""
        return rows if self._positions is None else self._positions[rows]

    def wanted(
        self, start: int, end: int, keep: Bool[np.ndarray, " docs"] | None
    ) -> tuple[Int[np.ndarray, " rows"], Bool[np.ndarray, " rows"] | None]:
        """Return the positions of some rows, and which of the rows are wanted.

        Args:
            keep: whether the document at each position is wanted (None: all are).

        Returns:
            The positions, and whether each row's document is there and wanted (None: all are).
        """
        positions = self.positions_of(np.arange(start, end))
        if self._positions is None and keep is None:
            return positions, None
        wanted = positions != DEAD
        if keep is not None:
            wanted &= keep[positions]
        return positions, None if wanted.all() else wanted

    def beyond(self, hashes: Sequence[str]) -> int:
        """Count the documents that an index built from these shards does not know.

        Raises:
            UserError: the store no longer begins with these shards.
        """
        known = len(hashes)
        if self.hashes[:known] != list(hashes):
            raise UserError(
                f"{self.folder}: does not begin with the vectors that the index was built from (encoded anew or "
                "compacted since); build the index again."
            )
        rows = np.arange(int(self.starts[known]), self.num_rows)
        return int((self.positions_of(rows) != DEAD).sum())


def _some_shards(folder: Path) -> list[int]:
    """List the numbers of the whole shards, or refuse a folder without any."""
    if finished := finished_shards(folder):
        return finished
    found = f"is {said}" if (said := described(folder, wanted="encode")) else "holds no vectors (no shard-*.json)"
    raise UserError(f"{folder}: {found}; expected the output of `shortlist encode`.")


def check_all_there(folder: Path) -> None:
    """Refuse a finished store that has lost a shard or its snapshot since.

    Raises:
        UserError: one is missing that the manifest lists.
    """
    manifest = read_manifest(folder)
    if manifest is None or not manifest["complete"]:
        return
    there = {shard_file(folder, number, "json").name for number in finished_shards(folder)}
    there |= {SNAPSHOT} if (folder / SNAPSHOT).exists() else set()
    needed = (name for name in manifest.get("files", {}) if name == SNAPSHOT or HEADER.fullmatch(name))
    lost = sorted(name for name in needed if name not in there)
    if lost:
        raise UserError(f"{folder / lost[0]}: is missing; write it again with `shortlist verify {folder} --repair`.")


def _check_alike(folder: Path, shards: Sequence[OpenShard]) -> None:
    first = shards[0].header
    for number, header, _ in shards:
        if (header["dtype"], header["dim"]) != (first["dtype"], first["dim"]):
            raise UserError(
                f"{shard_file(folder, number, 'bin')}: holds {header['dtype']} vectors of dim {header['dim']}, but the "
                f"first shard {first['dtype']} of dim {first['dim']}; encode into an empty folder."
            )
        if header.get("beside") != first.get("beside"):
            raise UserError(
                f"{shard_file(folder, number, 'json')}: was written with another "
                f"{' or '.join(header.get('beside') or first['beside'])} than the first shard; "
                "encode into an empty folder."
            )


def open_shard(folder: Path, number: int, format: ShardFormat) -> OpenShard:
    """Open the header and ids of a shard.

    Raises:
        UserError: it is of another kind, has a dtype that nobody knows, or another number of ids than its header says.
    """
    header = read_header(folder, number)
    if kind_in_header(header) != format.kind:
        raise UserError(f"{folder}: holds {kind_in_header(header)}, not {format.holds}; {format.instead}")
    if header["dtype"] not in format.dtypes:
        raise unknown(f"vector dtype in {shard_file(folder, number, 'json')}", str(header["dtype"]), format.dtypes)
    path = shard_file(folder, number, "ids")
    ids = map_file(folder, number, "ids", path.stat().st_size if path.is_file() else 0).numpy()
    if (found := int((ids == ord("\n")).sum())) != header["count"] or not found:
        raise UserError(f"{path}: holds {found:,} ids, its header says {header['count']:,}; {REPAIR.format(folder)}")
    return OpenShard(number, header, ids)


def _compare(folder: Path, shards: Sequence[int], suffixes: Sequence[str]) -> None:
    """Compare files of shards with the digests in their headers."""
    files = {}
    for number in shards:
        header = read_header(folder, number)
        wanted = header | {"sha256": {name: header["sha256"][name] for name in suffixes if name in header["sha256"]}}
        for name, written in _written(folder, number, wanted).items():
            path = folder / name
            files[name] = {"size": path.stat().st_size if path.is_file() else 0, "sha256": written}
    check_files(folder, files, remedy=REPAIR.format(folder))


REPAIR = "`shortlist verify {} --repair` encodes this shard again."


def map_file(folder: Path, number: int, suffix: str, size: int) -> UInt8[Tensor, " size"]:
    """Map a file of a shard into memory without holding the file open.

    The bytes stay on disk until they are read, and can be read even after the file is deleted.

    Raises:
        UserError: the file is not of this size.
    """
    path = shard_file(folder, number, suffix)
    found = path.stat().st_size if path.is_file() else -1
    if found != size:
        raise UserError(f"{path}: holds {max(found, 0):,} bytes, its header says {size:,}; {REPAIR.format(folder)}")
    return torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8) if size else torch.empty(0).byte()


def release_pages(rows: Tensor) -> None:
    """Let the system drop the pages of a mapped tensor from this process.

    They are read again if needed.
    """
    start = -(-rows.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    size = rows.data_ptr() + rows.nbytes - start
    if size > 0 and hasattr(mmap, "MADV_DONTNEED"):
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), mmap.MADV_DONTNEED)


def to_bytes(tensor: Tensor) -> bytes:
    """Return the memory of a tensor."""
    return bytewise(tensor.contiguous()).tobytes() if tensor.numel() else b""


def bytewise(rows: Tensor) -> UInt8[np.ndarray, "*rows bytes"]:
    """View the same memory as bytes: NumPy knows no bfloat16."""
    return rows.view(torch.uint8).numpy()
