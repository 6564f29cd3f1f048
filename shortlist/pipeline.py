"""First stages and a reranker over one collection, ready for questions: what programs and servers search with."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple, final, get_args

from shortlist import search
from shortlist.data.collections import Collection, open_collection
from shortlist.errors import UserError, unknown
from shortlist.index.dense import DenseSearch
from shortlist.index.protocols import FirstStage
from shortlist.math.fusion import interpolate, reorder, rrf
from shortlist.records import Document, Hit, Query, as_queries
from shortlist.rerankers import Ranker
from shortlist.rerankers.pointwise import Reranker

StageName = Literal["bm25", "dense", "hybrid"]

DEPTH = 100
"""Candidates that are reranked."""


class Place(NamedTuple):
    """Where a stage put a document."""

    rank: int
    """From 1."""
    score: float


class Result(NamedTuple):
    """One document that was found."""

    document: Document
    score: float
    """That of the last stage."""
    places: dict[str, Place]
    """By stage: `bm25`, `dense`, `hybrid` and `reranker`, those that were asked and have found it."""


class Answer(NamedTuple):
    """What was found for one query."""

    results: list[Result]
    """Best first."""
    milliseconds: dict[str, float]
    """By stage, as `places`, and `documents` for fetching texts."""


@final
class Pipeline:
    """First stages and a reranker over one collection.

    Args:
        bm25: finds by words.
        dense: finds by vectors.
        reranker: reads the first candidates.
        reranker_share: how much its scores count, 0 to 1, the first stage's being the rest (`math.fusion.interpolate`).

    Raises:
        UserError: nothing to search with, or a share out of range.
    """

    def __init__(
        self,
        collection: Collection,
        *,
        bm25: FirstStage | None = None,
        dense: FirstStage | None = None,
        reranker: Ranker | None = None,
        reranker_share: float = 1.0,
    ) -> None:
        self.collection, self.reranker, self.reranker_share = collection, reranker, reranker_share
        self.parts = {name: part for name, part in (("bm25", bm25), ("dense", dense)) if part is not None}
        if not self.parts:
            raise UserError("nothing to search with: give a BM25 index, or a retriever with its vectors, or both.")
        if not 0 <= reranker_share <= 1:
            raise UserError(f"reranker_share is {reranker_share}; expected 0 to 1.")

    @classmethod
    def load(
        cls,
        collection: str,
        *,
        retriever: str | None = None,
        vectors: str | Path | None = None,
        index: str | Path | None = None,
        bm25: str | Path | None = None,
        reranker: str | None = None,
        reranker_share: float = 1.0,
        packed: bool | None = None,
        **options: Any,
    ) -> "Pipeline":
        """Open everything by name.

        Args:
            collection: folder, `irds:` or `hf:` name.
            retriever: the model that made the vectors.
            vectors: from `shortlist encode`.
            index: an index over them, of whichever kind.
            bm25: from `shortlist index`.
            reranker: model folder or hub name.
            reranker_share: as of the class.
            packed: of both models' linears, as for `models.run.for_inference`.
            options: other settings of `search.Config`, such as memory_gib and effort.

        Raises:
            UserError: something is missing, or the vectors are another model's.
        """
        paths = tuple(Path(path) for path in (bm25, index) if path)
        where = {"model": retriever, "vectors": Path(vectors) if vectors else None, "index": paths}
        opened = search.open_parts(search.Config(collection=collection, **where, **options), packed=packed)
        parts = {"dense" if isinstance(part, DenseSearch) else "bm25": part for part in opened}
        scorer = Reranker.load(reranker, packed=packed) if reranker else None
        return cls(open_collection(collection), **parts, reranker=scorer, reranker_share=reranker_share)

    @property
    def first_stages(self) -> list[StageName]:
        """What can be asked for, the best last."""
        return [stage for stage in get_args(StageName) if stage in self.parts or len(self.parts) > 1]

    def search(self, query: str, k: int = 10, **options: Any) -> list[Result]:
        """The k best documents for a question; options as for `answer`."""
        [answer] = self.answer([query], k, **options)
        return answer.results

    def answer(
        self,
        queries: Sequence[str | Query],
        k: int = 10,
        *,
        depth: int = DEPTH,
        first_stage: StageName | None = None,
        rerank: bool | None = None,
    ) -> list[Answer]:
        """The k best documents for each query, with what every stage made of them.

        Args:
            depth: candidates that are reranked; those behind them keep their order.
            first_stage: what finds the candidates (None: the best there is, `hybrid` if both).
            rerank: whether the reranker reads them (None: if there is one).

        Raises:
            UserError: a stage that is not there.
        """
        first_stage = first_stage or self.first_stages[-1]
        if first_stage not in self.first_stages:
            raise unknown("first stage", first_stage, self.first_stages)
        if rerank and self.reranker is None:
            raise UserError("rerank: there is no reranker here; leave it out, or name one when loading.")
        rerank = self.reranker is not None if rerank is None else rerank
        return [self._answer(query, k, depth, first_stage, rerank) for query in as_queries(queries)]

    def _answer(self, query: Query, k: int, depth: int, first_stage: StageName, rerank: bool) -> Answer:
        milliseconds: dict[str, float] = {}
        lists = self._first(query, max(k, depth) if rerank else k, first_stage, milliseconds)
        found = lists[first_stage]
        with _timed("documents", milliseconds):
            documents = self.collection.documents([hit.doc_id for hit in (found if rerank else found[:k])])
        if rerank and self.reranker is not None:
            with _timed("reranker", milliseconds):
                scores = self.reranker.score(query, [documents[hit.doc_id] for hit in found[:depth]])
            lists["reranker"] = found = reorder(found, interpolate(found, scores.tolist(), self.reranker_share))
        places = {stage: _places(hits) for stage, hits in lists.items()}
        if rerank:  # those behind the depth were not read
            places["reranker"] = {i: p for i, p in places["reranker"].items() if p.rank <= depth}
        results = [
            Result(
                documents[hit.doc_id], hit.score, {s: at[hit.doc_id] for s, at in places.items() if hit.doc_id in at}
            )
            for hit in found[:k]
        ]
        return Answer(results, milliseconds)

    def _first(
        self, query: Query, k: int, first_stage: StageName, milliseconds: dict[str, float]
    ) -> dict[str, list[Hit]]:
        """What each first stage that is asked finds, fused ones included."""
        lists: dict[str, list[Hit]] = {}
        hybrid = first_stage == "hybrid"
        for name, part in self.parts.items():
            if hybrid or name == first_stage:
                with _timed(name, milliseconds):
                    lists[name] = part.search([query], max(k, search.HYBRID_DEPTH) if hybrid else k)[query.query_id]
        if hybrid:
            fused = rrf([{query.query_id: hits} for hits in lists.values()])
            lists["hybrid"] = fused.get(query.query_id, [])[:k]
        return lists


@contextmanager
def _timed(stage: str, milliseconds: dict[str, float]) -> Iterator[None]:
    start = time.perf_counter()
    yield
    milliseconds[stage] = 1000 * (time.perf_counter() - start)


def _places(hits: Sequence[Hit]) -> dict[str, Place]:
    return {hit.doc_id: Place(rank, hit.score) for rank, hit in enumerate(hits, start=1)}
