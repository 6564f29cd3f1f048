"""Updates of a store whose corpus has changed.

Beside every document lies its key, a hash of id and text. The keys show which documents of a changed corpus are in the
store already. The others are encoded into new shards, and the order file gives every row the position of its document,
or none. Only then is snapshot.json replaced, in one step, which makes this the store.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from shortlist.data.files import atomic_write
from shortlist.data.keyed import KEY_BYTES
from shortlist.data.stores.kinds import Store, kind_of_store
from shortlist.data.stores.shards import (
    DEAD,
    SNAPSHOT,
    Snapshot,
    finished_shards,
    read_keys,
    read_snapshot,
    remove_shard,
)
from shortlist.records import Document
from shortlist.text.batching import windows

KEYS_AT_ONCE = 10_000
"""Number of documents whose keys are looked up together."""


def document_keys(documents: Iterable[Document]) -> bytes:
    """Return KEY_BYTES for each document.

    A different id, title, text or url gives a different key.
    """
    return b"".join(blake2b("\0".join(document[:4]).encode(), digest_size=KEY_BYTES).digest() for document in documents)


class Known(NamedTuple):
    """The sorted keys of all rows of a store, and the row of each key."""

    keys: np.ndarray
    rows: Int[np.ndarray, " rows"]

    def look_up(self, keys: bytes) -> Int[np.ndarray, " keys"]:
        """Return the row of each key, DEAD for unknown keys."""
        wanted = _as_keys(keys)
        if not len(self.keys):
            return np.full(len(wanted), DEAD)
        places = np.searchsorted(self.keys, wanted).clip(max=len(self.keys) - 1)
        return np.where(self.keys[places] == wanted, self.rows[places], DEAD)


def read_known(folder: Path, shards: Iterable[int]) -> Known:
    """Read the keys of the documents in these shards, in this order.

    Raises:
        UserError: a shard whose keys are missing, or are not as they were written.
    """
    keys = _as_keys(b"".join(read_keys(folder, number) for number in shards))
    rows = np.argsort(keys, kind="stable")
    return Known(keys[rows], rows)


def _as_keys(keys: bytes) -> np.ndarray:
    return np.frombuffer(keys, dtype=f"S{KEY_BYTES}")


def missing(documents: Iterable[Document], known: Known, skipped: Callable[[int], None]) -> Iterator[Document]:
    """Yield the documents that are not known.

    `skipped` is called with the number of the others, part by part.
    """
    for window in windows(documents, KEYS_AT_ONCE):
        rows = known.look_up(document_keys(window))
        yield from (document for document, row in zip(window, rows, strict=True) if row == DEAD)
        skipped(int((rows != DEAD).sum()))


def pin(folder: Path) -> None:
    """Record which shards count, so that others may be added beside them."""
    if read_snapshot(folder) is None:
        _write_snapshot(folder, Snapshot(finished_shards(folder)))


def renew(folder: Path, documents: Iterable[Document]) -> int:
    """Make the store hold exactly these documents, in this order.

    Their vectors must be in the store already, in any order.

    Returns:
        Number of rows that belong to none of the documents.
    """
    shards = finished_shards(folder)
    known = read_known(folder, shards)
    positions, start = np.full(len(known.rows), DEAD, dtype="<i8"), 0
    for window in windows(documents, KEYS_AT_ONCE):
        positions[known.look_up(document_keys(window))] = np.arange(start, start + len(window))
        start += len(window)
    in_order = np.array_equal(positions, np.arange(len(positions)))
    _replace(folder, shards, None if in_order else positions)
    return int((positions == DEAD).sum())


def compact(folder: Path, shard_size: int) -> int:
    """Copy the rows of documents still in the corpus, in its order, into new shards.

    All other shards are deleted.

    Returns:
        Number of rows dropped.
    """
    kind = kind_of_store(folder)
    store: Store = kind.open(folder)
    snapshot = read_snapshot(folder)
    if snapshot is None or (store.num_docs == store.num_rows and _in_order(store)):
        return 0
    known = np.concatenate([_as_keys(read_keys(folder, n)) for n in snapshot.shards])
    copy, first = kind.copier(store), finished_shards(folder)[-1] + 1
    starts = range(0, store.num_docs, shard_size)
    for number, start in enumerate(starts, first):
        positions = np.arange(start, min(start + shard_size, store.num_docs))
        copy(positions, number, lambda rows: known[rows].tobytes())
    _replace(folder, list(range(first, first + len(starts))), None)
    return store.num_rows - store.num_docs


def _in_order(store: Store) -> bool:
    rows = np.arange(store.num_rows)
    return bool((store.positions_of(rows) == rows).all())


def _replace(folder: Path, shards: list[int], positions: Int[np.ndarray, " rows"] | None) -> None:
    """Switch to another snapshot, then delete the files that it does not need."""
    order = digest = None
    if positions is not None:
        before = [int(path.stem.removeprefix("order-")) for path in folder.glob("order-*.bin")]
        order = f"order-{max(before, default=0) + 1:05d}.bin"
        with atomic_write(folder / order, "wb") as file:
            file.write(positions.tobytes())
        digest = hashlib.sha256(positions.data).hexdigest()
    _write_snapshot(folder, Snapshot(shards, order, digest))
    drop_replaced(folder)


def drop_replaced(folder: Path) -> None:
    """Delete the shards and order files that the store's snapshot does not name."""
    if (snapshot := read_snapshot(folder)) is None:
        return
    for path in folder.glob("order-*.bin"):
        if path.name != snapshot.order:
            path.unlink()
    for number in set(finished_shards(folder)) - set(snapshot.shards):
        remove_shard(folder, number)


def _write_snapshot(folder: Path, snapshot: Snapshot) -> None:
    with atomic_write(folder / SNAPSHOT) as file:
        json.dump({name: value for name, value in snapshot._asdict().items() if value or name != "sha256"}, file)
