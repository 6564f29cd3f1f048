"""Embedding, scoring and searching through one batcher, for the endpoints."""

import asyncio
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar, copy_context
from copy import copy
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, final

import numpy as np
from jaxtyping import Float

from shortlist.data.texts import Change
from shortlist.errors import UserError
from shortlist.index.sparse import TermMatches
from shortlist.math.maxsim import TokenVectors
from shortlist.math.terms import TermWeights
from shortlist.models.run import TokenIds, compact_ids
from shortlist.models.sparse_retriever import as_term_weights
from shortlist.pipeline import Answer, Pipeline
from shortlist.pipeline.heat import WarmPiece, passage_tokens, warm_pieces
from shortlist.pipeline.live import LivePipeline
from shortlist.pipeline.loading import Opener, finder_of
from shortlist.pipeline.spec import Description
from shortlist.pipeline.steps import Step
from shortlist.pipeline.terms import term_matches
from shortlist.pipeline.wholes import AnswerUnit
from shortlist.records import Document, Query, as_documents
from shortlist.rerankers import Ranker
from shortlist.rerankers.late_reranker import LateReranker
from shortlist.rerankers.pointwise import pointwise
from shortlist.rerankers.reranker import Reranker
from shortlist.serve.batcher import Batcher
from shortlist.serve.gate import Gate, Limits, Ticket
from shortlist.serve.metrics import Metrics

T = TypeVar("T")

TOKENIZING = 4
"""Number of threads that tokenise. With several, a short text need not wait for a large request."""


WATCH_SECONDS = 0.5
"""How often to look whether the files have changed that are searched."""
PACKED = False
"""Whether linear layers are packed for oneDNN. They are not, as oneDNN keeps memory for every shape of batch and a
server meets new shapes all the time."""
NO_EMBEDDINGS = {"late": "a vector for each token", "sparse": "weights of terms"}
"""What models give that search but do not embed, by the name of their search."""
REQUEST: ContextVar[Ticket] = ContextVar("REQUEST")
"""The request that a thread works for, so that its work can be cancelled when nobody waits any more."""


class FieldError(Exception):
    """A field of a request that does not fit this server's models."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


class Read(NamedTuple):
    """A model's outputs for some texts."""

    outputs: Float[np.ndarray, "texts *dim"]
    num_tokens: int
    truncated: list[int]
    """Numbers of the texts that were too long and have been cut."""


@final
class Batched:
    """A model that is run through the batcher.

    Its work belongs to the request of the calling thread.

    Args:
        name: the model's name in the batcher.
        title: the model's name in answers.
    """

    def __init__(self, batcher: Batcher, name: str, title: str, model: Any) -> None:
        self._batcher, self.name, self.title = batcher, name, title
        self.inputs, self.contract, self.dim = model.inputs, model.contract, getattr(model, "dim", None)

    def encode_queries(self, queries: Sequence[Query]) -> Float[np.ndarray, "queries dim"]:
        """Compute vectors of queries."""
        return self._read(compact_ids(self.inputs.query_ids, queries))

    def encode_documents(self, documents: Sequence[Document]) -> Float[np.ndarray, "docs dim"]:
        """Compute vectors of documents."""
        return self._read(compact_ids(self.inputs.document_ids, documents))

    def score(self, query: Query, documents: Sequence[Document]) -> Float[np.ndarray, " docs"]:
        """Score documents for a query."""
        return self._read(compact_ids(self.inputs.pair_ids, [(query, document) for document in documents]))

    def _read(self, ids: Sequence[TokenIds]) -> np.ndarray:
        return REQUEST.get().watch(self._batcher.submit(self.name, ids)).result().values.numpy()


@final
class BatchedLate:
    """A late-interaction model that is run through the batcher, like `Batched`.

    The batcher chooses how many tokens it runs at a time, whatever `token_budget` says.
    """

    def __init__(self, batcher: Batcher, name: str, title: str, model: Any) -> None:
        self._batcher, self.name, self.title = batcher, name, title
        self.inputs, self.contract, self.dim = model.inputs, model.contract, getattr(model, "dim", None)

    def encode_queries(self, queries: Sequence[Query], *, token_budget: int | None = None) -> TokenVectors:
        """Compute the token vectors of queries."""
        return self.read(compact_ids(self.inputs.query_ids, queries))

    def encode_documents(self, documents: Sequence[Document], *, token_budget: int | None = None) -> TokenVectors:
        """Compute the token vectors of documents."""
        return self.read(compact_ids(self.inputs.document_ids, documents))

    def read(self, ids: Sequence[TokenIds]) -> TokenVectors:
        """Compute the token vectors of inputs."""
        rows = REQUEST.get().watch(self._batcher.submit(self.name, ids)).result()
        return TokenVectors(rows.values.numpy(), rows.counts.numpy())


@final
class BatchedSparse:
    """A sparse model that is run through the batcher, like `Batched`."""

    def __init__(self, batcher: Batcher, name: str, title: str, model: Any) -> None:
        self._batcher, self.name, self.title = batcher, name, title
        self.inputs, self.contract, self.terms = model.inputs, model.contract, model.terms

    def encode_queries(self, queries: Sequence[Query]) -> TermWeights:
        """Compute the weights of queries' terms."""
        ids = compact_ids(self.inputs.query_ids, queries)
        return as_term_weights(REQUEST.get().watch(self._batcher.submit(self.name, ids)).result())


@final
class OneAtATime:
    """A reranker that the batcher cannot run; it scores one query after another."""

    def __init__(self, reranker: Ranker) -> None:
        self._reranker, self._lock = reranker, threading.Lock()

    def score(self, query: Query, documents: Sequence[Document]) -> Float[np.ndarray, " docs"]:
        """Score documents for a query."""
        with self._lock:
            return self._reranker.score(query, documents)


@final
class Service:
    """Models and a pipeline, ready for many requests at a time.

    Args:
        description: the pipeline to search with.
        retriever: name of the model that embeds (None: the first retriever of the pipeline).
        reranker: name of the model that scores (None: the last reranker of the pipeline).
        token_budget: tokens per forward pass, padding included (None: chosen for the device).

    Raises:
        UserError: a model, store, index or collection is missing, or they do not belong together.
    """

    def __init__(
        self,
        description: Description | None = None,
        *,
        retriever: str | None = None,
        retriever_contract: str | None = None,
        reranker: str | None = None,
        reranker_contract: str | None = None,
        limits: Limits | None = None,
        token_budget: int | None = None,
    ) -> None:
        limits = limits or Limits()
        self.metrics = Metrics(
            shortlist_queue_requests=lambda: self.gate.requests, shortlist_queue_tokens=lambda: self.gate.tokens
        )
        self.batcher = Batcher({}, token_budget=token_budget, finished=self._count_batch)
        self._models: dict[str, list[Any]] = {"retriever": [], "late": [], "sparse": [], "reranker": []}
        opener = Opener(packed=PACKED, model=self._behind_batcher, index=_guarded)
        self.live = LivePipeline(description, opener, command="serve") if description else None
        retrievers, rerankers = self._models["retriever"], self._models["reranker"]
        finder = finder_of(opener.folder(retriever).contract("document", retriever_contract)) if retriever else None
        if finder in NO_EMBEDDINGS:
            if finder not in {part.method for part in (description.steps if description else ())}:
                raise UserError(
                    f"--retriever {retriever}: gives {NO_EMBEDDINGS[finder]}, which no embedding request takes; give "
                    "--collection, and --vectors if they are encoded, to search with it."
                )
            self.retriever: Batched | None = None
        elif retriever:
            self.retriever = opener.retriever(retriever, contract=retriever_contract)
        else:
            self.retriever = retrievers[0] if retrievers else None
        if reranker:
            settings = {"model": reranker} | ({"contract": reranker_contract} if reranker_contract else {})
            self.reranker: Batched | None = opener.reranker(pointwise, settings)
        else:
            self.reranker = rerankers[-1] if rerankers else None
        self.gate = Gate(limits, lambda: self.batcher.tokens_per_second)
        self._watching, self._closed = None, threading.Event()
        self._tokenizing = ThreadPoolExecutor(TOKENIZING, "tokenizing")
        # One thread per request: a thread here only waits for the batcher, which decides the order.
        self._searching = ThreadPoolExecutor(limits.queue_requests, "searching")

    def _behind_batcher(self, role: str, name: str, model: Any) -> Any:
        """Let the batcher run a model; returns the model's stand-in for the pipeline.

        A reranker that is more than its model, such as one that reads segments, runs by itself, one query after
        another.
        """
        if isinstance(model, LateReranker):
            return LateReranker(self._batched("late", name, model.retriever), stored=model.stored)
        if role == "reranker" and not (isinstance(model, Reranker) and model.segments in ("whole", "firstp")):
            return OneAtATime(model)
        if role == "compressor":
            return _guarded(model, "shorten")
        if role == "sparse" and model.contract.reading.queries == "lookup":
            return model  # no model has to run
        return self._batched(role, name, model)

    def _batched(self, role: str, name: str, model: Any) -> Any:
        loaded = self._models[role]
        called = role if not loaded else f"{role}-{len(loaded) + 1}"
        self.batcher.add(called, model.model)
        stands = {"late": BatchedLate, "sparse": BatchedSparse}.get(role, Batched)
        loaded.append(stands(self.batcher, called, _short(name), model))
        return loaded[-1]

    def readers(
        self, role: Literal["retriever", "late", "sparse", "reranker"], steps: Iterable[Step]
    ) -> dict[str, Any]:
        """Return the models of this role that the steps run through the batcher, by step."""
        models = {step.name: getattr(step.stage, "retriever", step.stage) for step in steps}
        return {name: model for name, model in models.items() if model in self._models[role]}

    @property
    def pipeline(self) -> Pipeline | None:
        """The pipeline as it is now; a request keeps the one that it began with."""
        return None if self.live is None else self.live.pipeline

    def watch(self, seconds: float = WATCH_SECONDS) -> None:
        """Follow changes of the files that are searched, from a thread that looks this often."""
        if self.live is not None:
            self._watching = threading.Thread(target=self._follow, args=(self.live, seconds), name="files", daemon=True)
            self._watching.start()

    def _follow(self, live: LivePipeline, seconds: float) -> None:
        while not self._closed.wait(seconds):
            live.follow(self._warm_up_search)

    def close(self) -> None:
        """End the threads."""
        self._closed.set()
        if self._watching is not None:
            self._watching.join()
        self.batcher.close()
        self._tokenizing.shutdown(cancel_futures=True)
        self._searching.shutdown(cancel_futures=True)

    def change(self) -> Change | None:
        """Return what has happened to the files since they were opened that are searched."""
        return None if self.live is None else self.live.change()

    def warm_up(self) -> None:
        """Load and compile what the first request would wait for."""
        _for_request(Ticket(self.gate), self._warm_up_models)()
        if self.pipeline is not None:
            self._warm_up_search(self.pipeline)

    def _warm_up_models(self) -> None:
        """Run every model of the batcher once.

        A search alone would reach none behind a step that finds nothing.
        """
        query, document = Query("", "warm up"), Document("", "warm up")
        for role, models in self._models.items():
            for model in models:
                if role == "reranker":
                    model.score(query, [document])
                else:
                    model.encode_queries([query])

    def _warm_up_search(self, pipeline: Pipeline) -> None:
        import_module("sqlglot")  # which reads filters
        _for_request(Ticket(self.gate), partial(pipeline.answer, ["warm up"], 1, depth=1))()

    def _count_batch(self, model: str, texts: int, tokens: int, seconds: float) -> None:
        self.metrics.observe("shortlist_batch_seconds", seconds, model=model)
        self.metrics.count("shortlist_batch_texts_total", texts, model=model)
        self.metrics.count("shortlist_tokens_total", tokens, model=model)

    async def embed(self, ticket: Ticket, texts: Sequence[str], kind: Literal["query", "document"]) -> Read:
        """Embed queries or documents."""
        ids, truncated = await self.in_thread(partial(self.text_ids, texts, kind))
        assert self.retriever is not None
        return await self._read(ticket, self.retriever.name, ids, truncated)

    async def score(
        self,
        ticket: Ticket,
        pairs: Sequence[tuple[str, str]],
        max_tokens: int | None = None,
        *,
        field: str = "query",
    ) -> Read:
        """Score documents for queries; higher is better.

        Args:
            max_tokens: cut each document to this many tokens first.
            field: the request's field with the queries.

        Raises:
            FieldError: a query leaves no room for its document.
        """
        assert self.reranker is not None
        await self._check_queries(self.reranker, [query for query, _ in pairs], field)
        ids, truncated = await self.in_thread(partial(self.pair_ids, pairs, max_tokens))
        return await self._read(ticket, self.reranker.name, ids, truncated)

    async def _check_queries(self, reranker: Batched, queries: Sequence[str], field: str) -> None:
        inputs, different = reranker.inputs, [Query("", text) for text in dict.fromkeys(queries)]
        try:
            await self.in_thread(lambda: inputs.check_queries(different))
        except UserError:
            length = inputs.form.pair_length
            message = f"leaves no room for a document in the {length} tokens that the reranker reads; shorten it"
            raise FieldError(field, message) from None

    async def in_thread(self, task: Callable[[], T]) -> T:
        """Run a task that takes no model, such as tokenising, beside the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._tokenizing, task)

    async def _read(self, ticket: Ticket, model: str, ids: Sequence[TokenIds], truncated: list[int]) -> Read:
        num_tokens = sum(map(len, ids))
        ticket.reserve(num_tokens)
        rows = await asyncio.wrap_future(ticket.watch(self.batcher.submit(model, ids)))
        return Read(rows.values.numpy(), num_tokens, truncated)

    def text_ids(self, texts: Sequence[str], kind: Literal["query", "document"]) -> tuple[list[TokenIds], list[int]]:
        """Tokenise queries or documents, and list which of them were cut."""
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
        """Tokenise each query with its document, and list which documents were cut."""
        assert self.reranker is not None
        inputs, length = self.reranker.inputs, self.reranker.inputs.form.pair_length
        documents, cut = [document for _, document in texts], set[int]()
        if max_tokens is not None:
            spans = inputs.token_spans(documents)
            cut = {i for i, token_spans in enumerate(spans) if len(token_spans) > max_tokens}
            documents = [
                text[: token_spans[max_tokens - 1][1]] if i in cut else text
                for i, (text, token_spans) in enumerate(zip(documents, spans, strict=True))
            ]
        pairs = [(Query("", query), Document("", text)) for (query, _), text in zip(texts, documents, strict=True)]
        ids = compact_ids(inputs.pair_ids, pairs)
        return list(ids), sorted(cut | set(_truncated(ids, pairs, length, inputs.pair_ids)))

    async def search(
        self,
        ticket: Ticket,
        queries: Sequence[str],
        k: int,
        *,
        field: str = "query",
        where: str | None = None,
        answer: AnswerUnit = "chunks",
        **options: Any,
    ) -> list[Answer]:
        """Search with the pipeline and return its answers.

        Args:
            field: the request's field with the queries.
            where: filter over the documents' metadata, which the first one reads (None: all documents).
            answer: this and the options are as for Pipeline's `answer`.

        Raises:
            FieldError: a query leaves no room for documents.
            WhereError: the filter cannot be read, or does not fit the metadata.
        """
        pipeline = self.pipeline
        assert pipeline is not None
        loop = asyncio.get_running_loop()
        if where is not None:  # before anything is reserved, and not on the event loop: the first takes long
            await loop.run_in_executor(self._searching, pipeline.metadata.allowed, where)
        steps = pipeline.chosen(**options)
        depths = {step.name: step.depth or 0 for step in steps}
        rerankers = self.readers("reranker", steps)
        most = sum(depths[name] * model.inputs.form.pair_length for name, model in rerankers.items())
        if most:
            ticket.reserve(min(len(queries) * most, self.gate.limits.queue_tokens))  # now: accepted searches finish
        for model in dict.fromkeys(rerankers.values()):
            await self._check_queries(model, queries, field)
        only: dict[str, Any] = {"where": where, "answer": answer}
        asked = [_for_request(ticket, partial(pipeline.answer, [query], k, **only, **options)) for query in queries]
        parts = await asyncio.gather(*[loop.run_in_executor(self._searching, call) for call in asked])
        answers = [answer for part in parts for answer in part]
        for one in answers:
            for stage, milliseconds in one.milliseconds.items():
                self.metrics.observe("shortlist_stage_seconds", milliseconds / 1000, stage=stage)
        return answers

    async def cut_by(self, reranker: Batched, query: str, documents: Sequence[Document]) -> set[str]:
        """Find the ids of documents that a reranker cuts."""
        inputs, pairs = reranker.inputs, [(Query("query", query), document) for document in documents]

        def find() -> set[str]:
            ids = inputs.pair_ids(pairs)
            cut = _truncated(ids, pairs, inputs.form.pair_length, inputs.pair_ids)
            return {documents[i].doc_id for i in cut}

        return await self.in_thread(find)

    async def warm(self, ticket: Ticket, model: BatchedLate, query: str, texts: Sequence[str]) -> list[list[WarmPiece]]:
        """Split passages into words with their similarities to a query.

        A list is empty where the model reads the passage otherwise.
        """

        def find() -> list[list[WarmPiece]]:
            passages = [passage_tokens(model.inputs, text) for text in texts]
            known = [one.ids for one in passages if one is not None]
            [asked] = model.encode_queries([Query("", query)])
            vectors = iter(model.read(known)) if known else iter(())
            return [
                [] if one is None else warm_pieces(text, one, asked, next(vectors))
                for text, one in zip(texts, passages, strict=True)
            ]

        return await asyncio.get_running_loop().run_in_executor(self._searching, _for_request(ticket, find))

    async def explain_terms(
        self, ticket: Ticket, steps: Sequence[Step], query: str, found: Answer
    ) -> TermMatches | None:
        """Return the weighted terms that match, where a sparse model has searched."""
        find = partial(term_matches, steps, query, found)
        return await asyncio.get_running_loop().run_in_executor(self._searching, _for_request(ticket, find))

    async def is_cut(self, retriever: Batched | BatchedLate | BatchedSparse, query: str) -> bool:
        """Whether a retriever cuts a query."""
        inputs, queries = retriever.inputs, [Query("", query)]

        def find() -> bool:
            ids = compact_ids(inputs.query_ids, queries)
            return bool(_truncated(ids, queries, inputs.form.query_length, inputs.query_ids))

        return await self.in_thread(find)


def _short(name: str) -> str:
    """Shorten a folder's path to its last part, and keep hub names.

    Clients need not know where the folder is.
    """
    return Path(name).resolve().name if Path(name).exists() else name


def _for_request(ticket: Ticket, work: Callable[[], T]) -> Callable[[], T]:
    """Bind work to a request, in whatever thread it runs."""
    context = copy_context()
    context.run(REQUEST.set, ticket)
    return partial(context.run, work)


def _truncated(ids: Sequence[Any], items: Sequence[Any], length: int, tokenize: Any) -> list[int]:
    """List the numbers of the inputs that were cut.

    Only inputs that reach the length are tokenised again, without cutting.
    """
    full = [i for i, row in enumerate(ids) if len(row) >= length]
    whole = tokenize([items[i] for i in full], cut=False) if full else []
    return [i for i, row in zip(full, whole, strict=True) if len(row) > length]


def _guarded(part: T, method: str) -> T:
    """Guard an index or collection with a lock, as it may not be thread-safe.

    Little is lost, as exact search uses all cores for one query anyway.
    """
    guarded, lock, call = copy(part), threading.Lock(), getattr(part, method)

    def alone(*arguments: Any, **named: Any) -> Any:
        with lock:
            return call(*arguments, **named)

    setattr(guarded, method, alone)
    return guarded
