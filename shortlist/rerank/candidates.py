"""Candidates to score: a run's hits with their texts, fetched in chunks."""

from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
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
from shortlist.rerankers import Candidates

MOST_NAMED = 5
"""Most missing ids to name in a message."""


class Chunk(NamedTuple):
    """Candidates that are scored together, and their numbers among the run's hits."""

    numbers: Int[np.ndarray, " docs"]
    lists: list[Candidates]


@dataclass
class CandidateReader:
    """The hits of a run, with their queries and the collection that has their texts.

    Attributes:
        name: the run's name in messages.
        split: split that has the queries.
        depth: number of hits to read per query.
        skip_missing: leave out hits that cannot be read, instead of refusing.
        whole_lists: put all of a query's candidates that are not done into one chunk.
        at_once: most pairs in a chunk; a longer list is a chunk by itself.
        skipped: ids of queries whose hits are not read.
    """

    run: RunColumns
    queries: Mapping[str, Query]
    collection: Collection
    name: str
    split: str
    depth: int
    skip_missing: bool
    whole_lists: bool
    at_once: int
    skipped: AbstractSet[str] = frozenset()

    @cached_property
    def ranks(self) -> Int[np.ndarray, " hits"]:
        """The rank of every hit, counted from 0."""
        starts = self.run.starts
        return np.arange(starts[-1]) - np.repeat(starts[:-1], np.diff(starts))

    def readable(self) -> Int[np.ndarray, " readable"]:
        """Find the numbers of the hits within the depth whose query and document exist.

        Raises:
            UserError: a query or document is missing, and `skip_missing` is not set.
        """
        run, wanted = self.run, np.flatnonzero(self.ranks < self.depth)
        there = np.array([query_id in self.queries for query_id in run.query_ids], dtype=bool)
        if lacking := [query_id for query_id, known in zip(run.query_ids, there, strict=True) if not known]:
            self._skip_or_refuse("queries", lacking, len(there))
        there &= np.array([query_id not in self.skipped for query_id in run.query_ids], dtype=bool)
        if not there.all():
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
        shown = ", ".join(map(repr, names[:MOST_NAMED])) + (", ..." if len(names) > MOST_NAMED else "")
        found = f"{self.name}: {len(names):,} of {total:,} {kind} are not in {where}: {shown}"
        if not self.skip_missing:
            raise UserError(f"{found}; check {flags}, or leave them where they are with --skip-missing.")
        say(f"rerank: {found}; left where they are.")

    def first(self, numbers: Int[np.ndarray, " some"], count: int | None) -> Int[np.ndarray, " first"]:
        """Choose at most `count` of the readable hits.

        These are the best-ranked hits of all queries or, with `whole_lists`, the first whole lists.
        """
        if not self.whole_lists:
            return numbers[np.argsort(self.ranks[numbers], kind="stable")][:count]
        if count is None:
            return numbers
        ends = [span.stop for span in self.list_spans(numbers) if span.stop <= count]
        return numbers[: max(ends, default=0)]

    def list_spans(self, numbers: Int[np.ndarray, " some"]) -> list[slice]:
        """Find the slice of each query's hits among the readable hits."""
        starts = np.unique(self.run.queries_of(numbers), return_index=True)[1].tolist()
        return [slice(start, end) for start, end in zip(starts, [*starts[1:], len(numbers)], strict=True)]

    def chunks(self, numbers: Int[np.ndarray, " some"], done: Bool[np.ndarray, " hits"]) -> Iterator[Chunk]:
        """Yield hits with their texts in chunks of at most `at_once` pairs.

        Hits that are done are left out, and this does not move others to another chunk.

        Args:
            done: whether each hit is done; candidates whose document is empty are marked as done.

        Raises:
            UserError: a document is empty, and `skip_missing` is not set.
        """
        for span in self._spans(numbers):
            hits = numbers[span]
            hits = hits[~done[hits]]
            doc_ids = self.run.doc_ids.take(pa.array(hits)).to_pylist()
            documents = self.collection.documents(set(doc_ids))
            empty = {
                doc_id
                for doc_id, document in documents.items()
                if not (document.text.strip() or document.title.strip())
            }
            if empty and not self.skip_missing:
                raise UserError(
                    f"{self.collection.name}: document {min(empty)!r} has neither title nor text; give it some, or "
                    "leave such candidates where they are with --skip-missing."
                )
            full = np.array([doc_id not in empty for doc_id in doc_ids], dtype=bool)
            done[hits[~full]] = True
            hits = hits[full]
            if len(hits):
                yield Chunk(hits, self._lists(hits, [documents[doc_id] for doc_id in doc_ids if doc_id not in empty]))

    def _spans(self, numbers: Int[np.ndarray, " some"]) -> Iterator[slice]:
        """Yield the slice of each chunk among the numbers."""
        if not self.whole_lists:
            yield from (slice(start, start + self.at_once) for start in range(0, len(numbers), self.at_once))
            return
        begin = 0
        for start, end in ((span.start, span.stop) for span in self.list_spans(numbers)):
            if end - begin > self.at_once and start > begin:
                yield slice(begin, start)
                begin = start
        if len(numbers):
            yield slice(begin, len(numbers))

    def _lists(self, numbers: Int[np.ndarray, " docs"], documents: Sequence[Document]) -> list[Candidates]:
        """Group consecutive hits of the same query as its candidates."""
        queries = self.run.queries_of(numbers)
        starts = [0, *(np.flatnonzero(np.diff(queries)) + 1).tolist(), len(numbers)]
        names = [self.run.query_ids[query] for query in queries[starts[:-1]].tolist()]
        return [
            Candidates(self.queries[name], documents[start:end])
            for name, start, end in zip(names, starts, starts[1:], strict=False)
        ]
