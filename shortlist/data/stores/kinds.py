"""The kinds of stores, and functions for a store of any kind."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from shortlist.data.stores.shards import (
    OpenShard,
    ShardFormat,
    damage,
    kind_in_header,
    open_shard,
    read_header,
    store_kind,
)
from shortlist.data.stores.terms import TERM_SHARDS, TermReader, TermWriter, map_terms
from shortlist.data.stores.tokens import TOKEN_SHARDS, TokenReader, TokenWriter, map_tokens
from shortlist.data.stores.vectors import VECTOR_SHARDS, VectorReader, VectorWriter, map_vectors
from shortlist.errors import UserError, unknown

Store = VectorReader | TokenReader | TermReader
"""A store of any kind, opened for reading."""
Copy = Callable[[Int[np.ndarray, " docs"], int, Callable[[Int[np.ndarray, " docs"]], bytes]], None]
"""Writes the documents at some positions as a new shard with this number; the function gives the keys of rows."""


class StoreKind(NamedTuple):
    """The functions for one kind of store."""

    format: ShardFormat
    map: Callable[[Path, OpenShard], Any]
    """Maps the contents of a shard into memory."""
    open: Callable[..., Any]
    """Opens a folder for reading; takes `compare`."""
    copier: Callable[[Any], Copy]
    """Makes the function that copies documents of an open store into new shards of its folder."""
    like: Callable[[Any, Path], Any]
    """Makes a writer into a folder of the float32 of what an open store holds."""


def _vector_copier(store: VectorReader) -> Copy:
    writer = VectorWriter(store.folder, store.dim, store.dtype)

    def copy(
        positions: Int[np.ndarray, " docs"], number: int, keys: Callable[[Int[np.ndarray, " docs"]], bytes]
    ) -> None:
        block = store.pick(positions)
        doc_ids = store.doc_ids.take(positions)
        writer.write_rows(number, doc_ids, block.vectors, block.scales, keys(block.rows.numpy()))

    return copy


def _token_copier(store: TokenReader) -> Copy:
    writer = TokenWriter(store.folder, store.dim, store.dtype)

    def copy(
        positions: Int[np.ndarray, " docs"], number: int, keys: Callable[[Int[np.ndarray, " docs"]], bytes]
    ) -> None:
        block = store.pick(positions)
        doc_ids = store.doc_ids.take(positions)
        writer.write_rows(number, doc_ids, block.counts.numpy(), block.stored(), keys(block.rows.numpy()))

    return copy


def _term_copier(store: TermReader) -> Copy:
    writer = TermWriter(store.folder, store.vocabulary, store.dtype)

    def copy(
        positions: Int[np.ndarray, " docs"], number: int, keys: Callable[[Int[np.ndarray, " docs"]], bytes]
    ) -> None:
        block = store.pick(positions)
        writer.write_entries(number, store.doc_ids.take(positions), block.entries, keys(block.rows))

    return copy


STORES: dict[str, StoreKind] = {
    kind.format.kind: kind
    for kind in (
        StoreKind(
            VECTOR_SHARDS, map_vectors, VectorReader, _vector_copier, lambda store, to: VectorWriter(to, store.dim)
        ),
        StoreKind(TOKEN_SHARDS, map_tokens, TokenReader, _token_copier, lambda store, to: TokenWriter(to, store.dim)),
        StoreKind(TERM_SHARDS, map_terms, TermReader, _term_copier, lambda store, to: TermWriter(to, store.vocabulary)),
    )
}
"""The kinds of stores, by their names in headers."""


def kind_of_store(folder: Path) -> StoreKind:
    """Look up the kind of store that a folder holds.

    Raises:
        UserError: it holds none, or none that is known.
    """
    kind = store_kind(folder)
    if kind not in STORES:
        raise unknown(f"kind of store in {folder}", kind, STORES)
    return STORES[kind]


def open_store(folder: Path, *, compare: bool = True) -> Store:
    """Open a store of any kind for reading.

    Raises:
        UserError: it holds none, or as for the kind's reader.
    """
    return kind_of_store(folder).open(folder, compare=compare)


def shard_damage(folder: Path, number: int) -> str | None:
    """Describe what is wrong with a shard, its header included, in one line.

    The result is None if every byte is as it was written.
    """
    if found := damage(folder, number):
        return found
    try:
        header = read_header(folder, number)
        kind = STORES.get(kind_in_header(header)) or kind_of_store(folder)
        kind.map(folder, open_shard(folder, number, kind.format))
    except UserError as error:
        return str(error)
    return None
