"""What the endpoints are made of: embedding, scoring and searching through one batcher."""

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from functools import partial
from typing import Any, Literal, NamedTuple, TypeVar, final

import numpy as np
from jaxtyping import Float

from shortlist.errors import UserError
from shortlist.index.dense import DenseSearch
from shortlist.models.retriever import Retriever
from shortlist.models.run import TokenIds, compact_ids
from shortlist.pipeline import Answer, Pipeline
from shortlist.records import Document, Query, as_documents
from shortlist.rerankers.pointwise import Reranker
from shortlist.serve.batcher import Batcher
from shortlist.serve.gate import Gate, Limits, Ticket
from shortlist.serve.metrics import Metrics

T = TypeVar("T")

TOKENIZING = 4
"""Threads that do so, so that a short text need not wait for a large body."""


class FieldError(Exception):
    """A field of a request that does not fit this server's models."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


class Read(NamedTuple):
    """What a model made of some texts."""

    outputs: Float[np.ndarray, "texts *dim"]
    num_tokens: int
    truncated: list[int]
    """Texts that were too long and have been cut."""


@final
class Service:
    """Models and a collection, ready for many requests at a time.

    Args:
        pipeline: searches; its models are those that are served.
        retriever: embeds, where there is no pipeline with one.
        reranker: scores, where there is no pipeline with one.
        names: what `retriever` and `reranker` are called in answers.
        token_budget: tokens per forward pass, padding included (None: what suits the device).
    """

    def __init__(
        self,
        pipeline: Pipeline | None = None,
        *,
        retriever: Retriever | None = None,
        reranker: Reranker | None = None,
        names: dict[str, str] | None = None,
        limits: Limits | None = None,
        token_budget: int | None = None,
    ) -> None:
        self.parts, limits = _Parts(pipeline) if pipeline else None, limits or Limits()
        self.retriever: Retriever | None = retriever or (self.parts and self.parts.retriever)  # type: ignore[assignment]
        self.reranker: Reranker | None = reranker or (pipeline and pipeline.reranker)  # type: ignore[assignment]
        self.names = {"retriever": "retriever", "reranker": "reranker"} | (names or {})
        self.first_stages = pipeline.first_stages if pipeline else []
        self.metrics = Metrics(
            shortlist_queue_requests=lambda: self.gate.requests, shortlist_queue_tokens=lambda: self.gate.tokens
        )
        served = {"retriever": self.retriever, "reranker": self.reranker}
        self.batcher = Batcher(
            {name: one.model for name, one in served.items() if one is not None},
            token_budget=token_budget,
            finished=self._count_batch,
        )
        self.gate = Gate(limits, lambda: self.batcher.tokens_per_second)
        self._tokenizing = ThreadPoolExecutor(TOKENIZING, "tokenizing")
        # As many as there are requests: what a thread does here is wait for the batcher, which decides who is first.
        self._searching = ThreadPoolExecutor(limits.queue_requests, "searching")

    def close(self) -> None:
        """End the threads."""
        self.batcher.close()
        self._tokenizing.shutdown(cancel_futures=True)
        self._searching.shutdown(cancel_futures=True)

    def warm_up(self) -> None:
        """Load and compile what the first request would wait for."""
        ticket = Ticket(self.gate)
        if self.retriever is not None:
            self.batcher.submit("retriever", self.text_ids(["warm up"], "query")[0]).result()
        if self.reranker is not None:
            self.batcher.submit("reranker", self.pair_ids([("warm up", "warm up")])[0]).result()
        if self.parts is not None:
            self.parts.pipeline(self.batcher, ticket, self.reranker).answer(["warm up"], 1, depth=1)

    def _count_batch(self, model: str, texts: int, tokens: int, seconds: float) -> None:
        self.metrics.observe("shortlist_batch_seconds", seconds, model=model)
        self.metrics.count("shortlist_batch_texts_total", texts, model=model)
        self.metrics.count("shortlist_tokens_total", tokens, model=model)

    async def embed(self, ticket: Ticket, texts: Sequence[str], kind: Literal["query", "document"]) -> Read:
        """Vectors of queries or documents."""
        ids, truncated = await self._in_thread(partial(self.text_ids, texts, kind))
        return await self._read(ticket, "retriever", ids, truncated)

    async def score(
        self,
        ticket: Ticket,
        pairs: Sequence[tuple[str, str]],
        max_tokens: int | None = None,
        *,
        field: str = "query",
    ) -> Read:
        """Scores of documents for queries, higher is better.

        Args:
            max_tokens: cut each document to so many tokens first.
            field: where the queries are in the request.

        Raises:
            FieldError: a query leaves no room for its document.
        """
        await self._check_queries([query for query, _ in pairs], field)
        ids, truncated = await self._in_thread(partial(self.pair_ids, pairs, max_tokens))
        return await self._read(ticket, "reranker", ids, truncated)

    async def _check_queries(self, queries: Sequence[str], field: str) -> None:
        assert self.reranker is not None
        inputs, different = self.reranker.inputs, [Query("", text) for text in dict.fromkeys(queries)]
        try:
            await self._in_thread(lambda: inputs.check_queries(different))
        except UserError:
            length = inputs.form.pair_length
            message = f"leaves no room for a document in the {length} tokens that the reranker reads; shorten it"
            raise FieldError(field, message) from None

    async def _in_thread(self, task: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._tokenizing, task)

    async def _read(self, ticket: Ticket, model: str, ids: Sequence[TokenIds], truncated: list[int]) -> Read:
        num_tokens = sum(map(len, ids))
        ticket.reserve(num_tokens)
        rows = await asyncio.wrap_future(ticket.watch(self.batcher.submit(model, ids)))
        return Read(rows.values.numpy(), num_tokens, truncated)

    def text_ids(self, texts: Sequence[str], kind: Literal["query", "document"]) -> tuple[list[TokenIds], list[int]]:
        """Token ids of queries or documents, and which of them were cut."""
        assert self.retriever is not None
        inputs = self.retriever.inputs
        if kind == "query":
            items: Any = [Query("", text) for text in texts]
            tokenize: Any = inputs.query_ids
        else:
            items, tokenize = as_documents(texts), inputs.document_ids
        length = getattr(inputs.form, f"{kind}_length")
        ids = compact_ids(tokenize, items)
        return list(ids), _truncated(ids, items, length, tokenize)

    def pair_ids(
        self, texts: Sequence[tuple[str, str]], max_tokens: int | None = None
    ) -> tuple[list[TokenIds], list[int]]:
        """Token ids of each query with its document, and which documents were cut."""
        assert self.reranker is not None
        inputs, length = self.reranker.inputs, self.reranker.inputs.form.pair_length
        documents, cut = [document for _, document in texts], set[int]()
        if max_tokens is not None:
            spans = inputs.token_spans(documents)
            cut = {i for i, some in enumerate(spans) if len(some) > max_tokens}
            documents = [
                text[: some[max_tokens - 1][1]] if i in cut else text
                for i, (text, some) in enumerate(zip(documents, spans, strict=True))
            ]
        pairs = [(Query("", query), Document("", text)) for (query, _), text in zip(texts, documents, strict=True)]
        ids = compact_ids(inputs.pair_ids, pairs)
        return list(ids), sorted(cut | set(_truncated(ids, pairs, length, inputs.pair_ids)))

    async def search(
        self, ticket: Ticket, queries: Sequence[str], k: int, *, field: str = "query", **options: Any
    ) -> list[Answer]:
        """Answers as a Pipeline gives them.

        Args:
            field: where the queries are in the request.
            options: as for Pipeline's `answer`.

        Raises:
            FieldError: a query leaves no room for documents.
        """
        assert self.parts is not None
        if self.reranker is not None and options["rerank"] is not False:
            most = len(queries) * options["depth"] * self.reranker.inputs.form.pair_length
            ticket.reserve(min(most, self.gate.limits.queue_tokens))  # now, so that what is accepted is finished
            await self._check_queries(queries, field)
        pipeline, loop = self.parts.pipeline(self.batcher, ticket, self.reranker), asyncio.get_running_loop()
        asked = [partial(pipeline.answer, [query], k, **options) for query in queries]
        parts = await asyncio.gather(*[loop.run_in_executor(self._searching, each) for each in asked])
        answers = [answer for part in parts for answer in part]
        for answer in answers:
            for stage, milliseconds in answer.milliseconds.items():
                self.metrics.observe("shortlist_stage_seconds", milliseconds / 1000, stage=stage)
        return answers

    async def cut_by_reranker(self, query: str, documents: Sequence[Document]) -> set[str]:
        """Ids of the documents of which the reranker reads only the beginning."""
        assert self.reranker is not None
        inputs, pairs = self.reranker.inputs, [(Query("query", query), document) for document in documents]

        def find() -> set[str]:
            ids = inputs.pair_ids(pairs)
            cut = _truncated(ids, pairs, inputs.form.pair_length, inputs.pair_ids)
            return {documents[i].doc_id for i in cut}

        return await self._in_thread(find)

    async def cut_by_retriever(self, query: str) -> bool:
        """Whether the retriever reads only the beginning of a query."""
        _, truncated = await self._in_thread(partial(self.text_ids, [query], "query"))
        return bool(truncated)


def _truncated(ids: Sequence[Any], items: Sequence[Any], length: int, tokenize: Any) -> list[int]:
    """Which of these inputs were cut: only those that reach the length are tokenised once more."""
    full = [i for i, row in enumerate(ids) if len(row) >= length]
    whole = tokenize([items[i] for i in full], cut=False) if full else []
    return [i for i, row in zip(full, whole, strict=True) if len(row) > length]


@final
class _Parts:
    """What a pipeline is made of, so that each request can have one that runs its models through the batcher."""

    def __init__(self, pipeline: Pipeline) -> None:
        dense, bm25 = pipeline.parts.get("dense"), pipeline.parts.get("bm25")
        self.retriever = dense.retriever if isinstance(dense, DenseSearch) else None
        self.vectors = _guarded(dense.vectors, "find") if isinstance(dense, DenseSearch) else None
        self.bm25 = _guarded(bm25, "search") if bm25 else None
        self.collection = _guarded(pipeline.collection, "documents")
        self.reranker_share = pipeline.reranker_share

    def pipeline(self, batcher: Batcher, ticket: Ticket, reranker: Reranker | None) -> Pipeline:
        """For one request."""
        models = _Batched(batcher, ticket, self.retriever, reranker)
        dense = DenseSearch(models, self.vectors) if self.vectors else None
        return Pipeline(
            self.collection,
            bm25=self.bm25,
            dense=dense,
            reranker=models if reranker else None,
            reranker_share=self.reranker_share,
        )


@final
class _Batched:
    """Stands for both models of one request."""

    def __init__(self, batcher: Batcher, ticket: Ticket, retriever: Any, reranker: Reranker | None) -> None:
        self._batcher, self._ticket, self._retriever, self._reranker = batcher, ticket, retriever, reranker

    def encode_queries(self, queries: Sequence[Query]) -> Float[np.ndarray, "queries dim"]:
        """Vectors of queries."""
        return self._read("retriever", compact_ids(self._retriever.inputs.query_ids, queries))

    def score(self, query: Query, documents: Sequence[Document]) -> Float[np.ndarray, " docs"]:
        """Scores of documents."""
        assert self._reranker is not None
        pairs = [(query, document) for document in documents]
        return self._read("reranker", compact_ids(self._reranker.inputs.pair_ids, pairs))

    def _read(self, model: str, ids: Sequence[TokenIds]) -> np.ndarray:
        return self._ticket.watch(self._batcher.submit(model, ids)).result().values.numpy()


def _guarded(part: T, method: str) -> T:
    """An index or a collection of which nothing says that two threads may ask at once, so that they need not.

    Exact search uses all cores for one question anyway.
    """
    guarded, lock, call = copy(part), threading.Lock(), getattr(part, method)

    def alone(*arguments: Any) -> Any:
        with lock:
            return call(*arguments)

    setattr(guarded, method, alone)
    return guarded
