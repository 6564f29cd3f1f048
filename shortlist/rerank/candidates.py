"""The pairs that are to be scored: a run's hits, with their texts put to them a bounded number at a time."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Int

from shortlist.data.collections import Collection
from shortlist.data.runs import RunColumns
from shortlist.errors import UserError
from shortlist.progress import say
from shortlist.records import Document, Query

LISTED = 5
"""Ids that the collection lacks which are named."""


class Chunk(NamedTuple):
    """Pairs that are scored together, and their numbers among the run's hits."""

    numbers: Int[np.ndarray, " pairs"]
    pairs: list[tuple[Query, Document]]


@dataclass
class Candidates:
    """The hits of a run, with what is needed to read them.

    Attributes:
        name: what to call the run in a message.
        split: where the queries are from.
        depth: hits of each query to read.
        skip_missing: leave out what cannot be read, instead of refusing.
        at_once: most pairs in a chunk.
        num_empty: of those that were put into chunks, how many were left out because their document has no text.
    """

    run: RunColumns
    queries: Mapping[str, Query]
    collection: Collection
    name: str
    split: str
    depth: int
    skip_missing: bool
    at_once: int
    num_empty: int = 0

    @cached_property
    def ranks(self) -> Int[np.ndarray, " hits"]:
        """The rank of every hit, from 0."""
        starts = self.run.starts
        return np.arange(starts[-1]) - np.repeat(starts[:-1], np.diff(starts))

    def readable(self) -> Int[np.ndarray, " readable"]:
        """The numbers of the hits down to the depth whose query and document there are.

        Raises:
            UserError: others are not to be skipped.
        """
        run, wanted = self.run, np.flatnonzero(self.ranks < self.depth)
        there = np.array([query_id in self.queries for query_id in run.query_ids], dtype=bool)
        if lacking := [query_id for query_id, known in zip(run.query_ids, there, strict=True) if not known]:
            self._skip_or_refuse("queries", lacking, len(there))
            wanted = wanted[there[run.queries_of(wanted)]]
        doc_ids = run.doc_ids.take(pa.array(wanted))
        asked = doc_ids.unique()
        if lacking := self.collection.missing(asked.to_pylist()):
            self._skip_or_refuse("documents", sorted(lacking), len(asked))
            wanted = wanted[~np.isin(doc_ids.to_numpy(zero_copy_only=False), lacking)]
        return wanted

    def _skip_or_refuse(self, kind: str, names: Sequence[str], total: int) -> None:
        where, flags = self.collection.name, "--collection"
        if kind == "queries":
            where, flags = f"{where} {self.split}", "--collection and --split"
        some = ", ".join(map(repr, names[:LISTED])) + (", ..." if len(names) > LISTED else "")
        found = f"{self.name}: {len(names):,} of {total:,} {kind} are not in {where}: {some}"
        if not self.skip_missing:
            raise UserError(f"{found}; check {flags}, or leave them where they are with --skip-missing.")
        say(f"rerank: {found}; left where they are.")

    def chunks(self, numbers: Int[np.ndarray, " some"], done: Bool[np.ndarray, " hits"]) -> Iterator[Chunk]:
        """Put texts to the numbers, a bounded number of pairs at a time; what is done is left out, and moves no other.

        Raises:
            UserError: a document is empty, and such are not to be skipped.
        """
        for start in range(0, len(numbers), self.at_once):
            some = numbers[start : start + self.at_once]
            some = some[~done[some]]
            names = self.run.pairs(some)
            documents = self.collection.documents({doc_id for _, doc_id in names})
            empty = {doc_id for doc_id, each in documents.items() if not (each.text.strip() or each.title.strip())}
            if empty and not self.skip_missing:
                raise UserError(
                    f"{self.collection.name}: document {min(empty)!r} has neither title nor text; give it some, or "
                    "leave such candidates where they are with --skip-missing."
                )
            full = np.array([doc_id not in empty for _, doc_id in names], dtype=bool)
            self.num_empty += int((~full).sum())
            pairs = [(self.queries[query_id], documents[doc_id]) for query_id, doc_id in names if doc_id not in empty]
            if pairs:
                yield Chunk(some[full], pairs)
