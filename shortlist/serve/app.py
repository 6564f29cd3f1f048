"""The HTTP application over a Service, whose models and pipeline decide its paths."""

import base64
import math
import sys
import time
import uuid
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from importlib.resources import files
from typing import Annotated, Any

import numpy as np
from fastapi import FastAPI, Query, Request, Security
from fastapi.exceptions import RequestValidationError
from fastapi.responses import PlainTextResponse, Response
from fastapi.security import HTTPBearer
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.routing import Route

from shortlist.data.texts import ChangedError
from shortlist.data.where import WhereError
from shortlist.errors import UserError
from shortlist.pipeline import Answer, Pipeline
from shortlist.pipeline.passages import find_passage, mark, query_stems
from shortlist.serve import schema
from shortlist.serve.gate import FullError, Ticket, TooLargeError
from shortlist.serve.metrics import render
from shortlist.serve.openai_ids import to_texts
from shortlist.serve.protection import Log, Protection, Refusal, explained, problem
from shortlist.serve.service import Batched, FieldError, Read, Service
from shortlist.version import __version__

ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": schema.ErrorResponse, "description": "The body is not JSON, or `where` is no filter that fits."},
    401: {"model": schema.ErrorResponse, "description": "No key, or another one."},
    413: {"model": schema.ErrorResponse, "description": "More than this server ever accepts."},
    422: {"model": schema.ErrorResponse, "description": "A field is wrong; `field` names it."},
    429: {"model": schema.ErrorResponse, "description": "Too much to do already; Retry-After says when to try again."},
    503: {"model": schema.ErrorResponse, "description": "The server is going down, or its files have changed."},
    504: {"model": schema.ErrorResponse, "description": "The request took too long."},
}

CHANGED = "the collection's files have changed in place; the server searches them once its indexes are up to date too."
RENEWING = "the files have changed; the new ones are being opened, and until then the answers are the old ones."
STALE = "the files have changed into what cannot be searched, and the answers are the old ones; the log says why."
UNABLE = "the server cannot answer this with the files and models that it has; its log says why."
LONGEST_NAME = 60
"""Most characters of a field's name that an error repeats."""
SEARCHES = {"/search": "search", "/v1/search": "search_v1"}
"""Names of the paths that search."""

NO_JSON = problem(400, "invalid_json", "the body is not JSON.", field="body")


def create_app(
    service: Service, *, key: str | None = None, hosts: Iterable[str] | None = None, log: Log = "errors"
) -> Protection:
    """Create the whole application inside a `Protection`, which takes the other arguments."""
    app = FastAPI(
        title="shortlist",
        version=__version__,
        docs_url=None,  # these pages load scripts from elsewhere
        redoc_url=None,
        dependencies=[Security(HTTPBearer(auto_error=False))] if key is not None else [],
    )
    _add_errors(app)
    _add_state(app, service)
    if service.retriever is not None:
        _add_embedding(app, service, service.retriever)
    if service.reranker is not None:
        _add_reranking(app, service, service.reranker)
    if service.pipeline is not None:
        _add_search(app, service)
        _add_page(app)
    routes = [
        (method, route.path) for route in app.routes if isinstance(route, Route) for method in route.methods or ()
    ]
    work = [(method, path) for method, path in routes if method == "POST" or path in SEARCHES]
    paths = [path for _, path in routes]
    return Protection(app, service.gate, service.metrics, key=key, hosts=hosts, paths=paths, work=work, log=log)


def _add_errors(app: FastAPI) -> None:
    for kind in (FullError, TooLargeError):
        app.add_exception_handler(kind, _explain)
    app.add_exception_handler(RequestValidationError, _explain_validation)
    app.add_exception_handler(HTTPException, _explain_http)
    app.add_exception_handler(FieldError, _explain_field)
    app.add_exception_handler(WhereError, _explain_where)
    app.add_exception_handler(UserError, _explain_unable)
    app.add_exception_handler(Exception, _explain_bug)


def _send(answer: Refusal | None) -> Response:
    assert answer is not None
    return Response(answer.body, answer.status, answer.headers, media_type="application/json")


async def _explain(request: Request, error: Exception) -> Response:
    return _send(explained(error))


async def _explain_field(request: Request, error: Exception) -> Response:
    assert isinstance(error, FieldError)
    return _send(problem(422, "invalid_request", f"{error.field}: {error}", field=error.field))


async def _explain_where(request: Request, error: Exception) -> Response:
    """Answer a fault in a filter, which no log shows."""
    return _send(problem(400, "invalid_filter", str(error), field="where"))


async def _explain_unable(request: Request, error: Exception) -> Response:
    """Answer that files of the collection or its indexes have changed."""
    print(f"shortlist serve: {error}", file=sys.stderr, flush=True)
    kind, told = ("changed", CHANGED) if isinstance(error, ChangedError) else ("unable", UNABLE)
    return _send(problem(503, kind, told))


async def _explain_bug(request: Request, error: Exception) -> Response:
    return _send(problem(500, "internal_error", "the server has failed at this request; its log says more."))


async def _explain_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        return _send(problem(404, "not_found", "no such path here; /openapi.json lists those that there are."))
    if error.status_code == 400:
        return _send(NO_JSON)
    return _send(problem(error.status_code, "invalid_request", f"{error.detail}.", **dict(error.headers or {})))


async def _explain_validation(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    found = error.errors()
    if any(fault["type"] == "json_invalid" for fault in found):
        return _send(NO_JSON)
    if found[0]["loc"] == ("body",) and "json" not in request.headers.get("content-type", ""):
        message = "body: send JSON, with the header `content-type: application/json`."
        return _send(problem(422, "invalid_request", message, field="body"))
    field = _field(found[0])
    messages = dict.fromkeys(fault["msg"] for fault in found if _field(fault) == field)
    return _send(problem(422, "invalid_request", f"{field}: {'; '.join(messages)}.", field=field))


def _field(fault: Mapping[str, Any]) -> str:
    """Name the field of a fault, without pydantic's names for parts of a union.

    For example, ("body", "documents", 3, "str") becomes `documents.3`.
    """
    if fault["type"] == "unknown_field":
        return fault["ctx"]["name"][:LONGEST_NAME]
    loc = [part for part in fault["loc"] if part not in (schema.TEI, schema.COHERE)]
    parts = [str(part) for part in loc[1:2]] + [str(part) for part in loc[2:] if isinstance(part, int)]
    return ".".join(parts) or "body"


def _json(answer: BaseModel) -> Response:
    return Response(answer.model_dump_json(exclude_none=True), media_type="application/json")


def _ticket(request: Request) -> Ticket:
    return request.state.ticket


def _add_state(app: FastAPI, service: Service) -> None:
    @app.get("/health", response_model=schema.Status, responses={503: {"model": schema.Status}})
    async def health() -> Response:
        """Whether the process is working."""
        alive = service.batcher.alive
        answer = _json(schema.Status(status="alive" if alive else "broken"))
        answer.status_code = 200 if alive else 503
        return answer

    @app.get("/ready", response_model=schema.Status, responses={503: {"model": schema.Status}})
    async def ready() -> Response:
        """Whether new requests are accepted, and files are still as they were read.

        They are refused while the server shuts down, and when a file that it reads from was rewritten.
        """
        draining = service.gate.draining or not service.batcher.alive
        change = None if draining else service.change()
        status = schema.Status(status="draining" if draining else "ready")
        if change is not None:
            unsearchable = service.live is not None and service.live.is_refused
            told = CHANGED if change == "rewritten" else STALE if unsearchable else RENEWING
            status = schema.Status(status="changed" if change == "rewritten" else "stale", message=told)
        answer = _json(status)
        answer.status_code = 503 if draining or change == "rewritten" else 200
        return answer

    started = int(time.time())

    @app.get("/v1/models", response_model=schema.Models, responses={401: ERRORS[401]})
    async def models() -> Response:
        """List the models, with OpenAI's API."""
        names = dict.fromkeys(model.title for model in (service.retriever, service.reranker) if model is not None)
        return _json(schema.Models(data=[schema.ServedModel(id=name, created=started) for name in names]))

    @app.get("/info", response_model=schema.Info, responses={401: ERRORS[401]})
    async def info() -> Response:
        """Return models, contracts and limits."""
        return _json(_info(service))

    @app.get("/metrics", response_class=PlainTextResponse, responses={401: ERRORS[401]})
    async def metrics() -> PlainTextResponse:
        """Return the counters for Prometheus."""
        return PlainTextResponse(render(service.metrics.together()))


def _info(service: Service) -> schema.Info:
    models = {
        name: schema.ModelInfo(name=model.title, contract=model.contract.to_dict(), dim=model.dim)
        for name, model in (("retriever", service.retriever), ("reranker", service.reranker))
        if model is not None
    }
    limits = service.gate.limits._asdict() | {
        "texts": schema.MAX_TEXTS,
        "queries": schema.MAX_QUERIES,
        "characters": schema.MAX_CHARACTERS,
        "k": schema.MAX_K,
        "depth": schema.MAX_DEPTH,
    }
    first, later = (service.pipeline.first_stages, service.pipeline.rerankers) if service.pipeline else ([], [])
    return schema.Info(version=__version__, first_stages=first, rerankers=later, limits=limits, **models)


def _add_embedding(app: FastAPI, service: Service, retriever: Batched) -> None:
    @app.post("/v1/embeddings", response_model=schema.EmbeddingsResponse, responses=ERRORS)
    async def embeddings(asked: schema.EmbeddingsRequest, request: Request) -> Response:
        """Embed texts, with OpenAI's API."""
        texts = await to_texts(asked.input, asked.model)
        read = await service.embed(_ticket(request), texts, asked.input_type)
        vectors = _narrowed(retriever, read.outputs, asked.dimensions)
        encode = _base64 if asked.encoding_format == "base64" else np.ndarray.tolist
        data = [schema.Embedding(index=i, embedding=encode(vector)) for i, vector in enumerate(vectors)]
        name = retriever.title
        return _json(schema.EmbeddingsResponse(data=data, model=name, usage=_usage(read), truncated=read.truncated))

    @app.post("/v2/embed", response_model=schema.CohereEmbedResponse, responses=ERRORS)
    async def cohere_embed(asked: schema.CohereEmbedRequest, request: Request) -> Response:
        """Embed texts, with Cohere's API."""
        kind = "query" if asked.input_type == "search_query" else "document"
        read = await service.embed(_ticket(request), asked.texts, kind)
        _check_whole(read, asked.truncate == "END", "texts", "`truncate: END`")
        vectors = _narrowed(retriever, read.outputs, asked.output_dimension, "output_dimension")
        forms: dict[str, Callable[[np.ndarray], Any]] = {"float": np.ndarray.tolist, "base64": _base64}
        given = {name: [forms[name](vector) for vector in vectors] for name in asked.embedding_types}
        meta = schema.Meta(api_version={"version": "2"}, billed_units={"input_tokens": read.num_tokens})
        common: dict[str, Any] = {"id": str(uuid.uuid4()), "texts": asked.texts, "meta": meta}
        return _json(
            schema.CohereEmbedResponse(embeddings=schema.CohereVectors(**given), truncated=read.truncated, **common)
        )

    @app.post("/embed", response_model=list[list[float]], responses=ERRORS)
    async def embed(asked: schema.TeiEmbedRequest, request: Request) -> Response:
        """Embed texts, with the API of text-embeddings-inference."""
        read = await service.embed(_ticket(request), _texts(asked.inputs), asked.prompt_name or "document")
        _check_whole(read, asked.truncate, "inputs")
        vectors = _narrowed(retriever, read.outputs, asked.dimensions)
        if asked.normalize:
            vectors = _unit(vectors)
        return Response(_numbers(vectors), media_type="application/json")


def _texts(given: str | list[str]) -> list[str]:
    return [given] if isinstance(given, str) else given


def _usage(read: Read) -> schema.Usage:
    return schema.Usage(prompt_tokens=read.num_tokens, total_tokens=read.num_tokens)


def _numbers(vectors: np.ndarray) -> str:
    return f"[{','.join(str(vector.tolist()) for vector in vectors)}]"


def _base64(vector: np.ndarray) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()


def _narrowed(retriever: Batched, vectors: np.ndarray, dimensions: int | None, field: str = "dimensions") -> np.ndarray:
    """Keep the first numbers of each vector.

    The result is scaled to length 1 again if the model's vectors have length 1.
    """
    if dimensions is None or dimensions == vectors.shape[1]:
        return vectors
    if dimensions > vectors.shape[1]:
        raise FieldError(field, f"the model's vectors have {vectors.shape[1]} numbers; ask for no more")
    vectors = vectors[:, :dimensions]
    return _unit(vectors) if retriever.contract.reading.normalize else vectors


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def _check_whole(read: Read, truncate: bool | None, field: str, allowing: str = "`truncate: true`") -> None:
    if read.truncated and not truncate:
        text = f"{field}.{read.truncated[0]}"
        raise FieldError(text, f"longer than the model's input; send {allowing} to have it cut")


def _add_reranking(app: FastAPI, service: Service, reranker: Batched) -> None:
    async def rerank(asked: schema.RerankRequest, request: Request) -> Response:
        """Rank documents by their scores, with the API of Cohere, Jina, vLLM and infinity."""
        texts = asked.texts
        pairs = [(asked.query, text) for text in texts]
        read = await service.score(_ticket(request), pairs, asked.max_tokens_per_doc)
        best = _best_first(read.outputs)[: asked.top_n]
        results = [
            schema.RerankResult(
                index=i,
                relevance_score=_between_0_and_1(read.outputs[i]),
                document=schema.TextObject(text=texts[i]) if asked.return_documents else None,
            )
            for i in best
        ]
        version = "1" if request.url.path.startswith("/v1/") else "2"
        meta = schema.Meta(api_version={"version": version}, billed_units={"search_units": 1})
        common = {"id": str(uuid.uuid4()), "model": reranker.title, "meta": meta}
        return _json(schema.RerankResponse(results=results, usage=_usage(read), truncated=read.truncated, **common))

    for version in ("v1", "v2"):
        options = {"response_model": schema.RerankResponse, "responses": ERRORS, "name": f"rerank_{version}"}
        app.post(f"/{version}/rerank", **options)(rerank)

    @app.post("/rerank", response_model=list[schema.TeiRank] | schema.RerankResponse, responses=ERRORS)
    async def either_rerank(asked: schema.EitherRerankRequest, request: Request) -> Response:
        """Rank texts with the API of text-embeddings-inference, or documents as `/v1/rerank` does."""
        if isinstance(asked, schema.RerankRequest):
            return await rerank(asked, request)
        read = await service.score(_ticket(request), [(asked.query, text) for text in asked.texts])
        _check_whole(read, asked.truncate, "texts")
        scale = float if asked.raw_scores else _between_0_and_1
        ranks = [
            schema.TeiRank(
                index=i, score=scale(read.outputs[i]), text=asked.texts[i] if asked.return_text else None
            ).model_dump_json(exclude_none=True)
            for i in _best_first(read.outputs)
        ]
        return Response(f"[{','.join(ranks)}]", media_type="application/json")

    async def score(asked: schema.ScoreRequest, request: Request) -> Response:
        """Score pairs of texts, with vLLM's API."""
        pairs = _pairs(_texts(asked.text_1), _texts(asked.text_2))
        read = await service.score(_ticket(request), pairs, field="text_1")
        data = [schema.Score(index=i, score=_between_0_and_1(value)) for i, value in enumerate(read.outputs)]
        common = {"id": f"score-{uuid.uuid4()}", "created": int(time.time()), "model": reranker.title}
        return _json(schema.ScoreResponse(data=data, usage=_usage(read), **common))

    for path, name in (("/score", "score"), ("/v1/score", "score_v1")):
        app.post(path, response_model=schema.ScoreResponse, responses=ERRORS, name=name)(score)


def _pairs(first: list[str], second: list[str]) -> list[tuple[str, str]]:
    if len(first) == 1:
        first = first * len(second)
    if len(first) != len(second):
        message = f"{len(first)} texts for the {len(second)} of text_2; expected as many, or one"
        raise FieldError("text_1", message)
    return list(zip(first, second, strict=True))


def _best_first(scores: np.ndarray) -> list[int]:
    return np.argsort(-scores, kind="stable").tolist()


def _between_0_and_1(score: Any) -> float:
    """Apply the logistic function in float64, as float32 would round high scores to 1."""
    return 0.5 * (1 + math.tanh(0.5 * float(score)))


def _add_search(app: FastAPI, service: Service) -> None:
    async def search(asked: schema.SearchRequest, request: Request) -> Response:
        """Find the best documents of the collection for each query."""
        start, pipeline = time.perf_counter(), service.pipeline
        assert pipeline is not None
        _check(pipeline, asked)
        options = {"depth": asked.depth, "first_stage": asked.first_stage, "rerank": asked.rerank, "where": asked.where}
        field = "query" if asked.query is not None else "queries"
        found = await service.search(
            _ticket(request), asked.texts, asked.k, field=field, answer=asked.answer, **options
        )
        answers = [
            _search_answer(text, pipeline_answer, asked.explain)
            for text, pipeline_answer in zip(asked.texts, found, strict=True)
        ]
        if asked.explain:
            for answer, pipeline_answer in zip(answers, found, strict=True):
                await _add_truncation(service, pipeline, answer, pipeline_answer)
                await service.in_thread(partial(_add_passages, answer))
                await _add_warmth(service, _ticket(request), pipeline, answer, pipeline_answer)
                await _add_terms(service, _ticket(request), pipeline, answer, pipeline_answer)
        took = 1000 * (time.perf_counter() - start) if asked.explain else None
        return _json(schema.SearchResponse(answers=answers, milliseconds=took))

    async def search_link(asked: Annotated[schema.SearchLink, Query()], request: Request) -> Response:
        """Find the best documents of the collection for the query in an address."""
        given = asked.model_dump(exclude={"q"})
        return await search(schema.SearchRequest(query=asked.q, **given), request)

    refused = {403: {"model": schema.ErrorResponse, "description": "A page of another site asks."}}
    for path, name in SEARCHES.items():
        app.post(path, response_model=schema.SearchResponse, responses=ERRORS, name=name)(search)
        responses = ERRORS | refused
        app.get(path, response_model=schema.SearchResponse, responses=responses, name=f"{name}_link")(search_link)


def _check(pipeline: Pipeline, asked: schema.SearchRequest) -> None:
    if (asked.query is None) == (asked.queries is None):
        raise FieldError("query", "give either this or queries")
    if asked.first_stage is not None and asked.first_stage not in pipeline.first_stages:
        raise FieldError("first_stage", f"not here; expected one of {', '.join(pipeline.first_stages)}")
    if asked.rerank and not pipeline.rerankers:
        raise FieldError("rerank", "there is no reranker here; leave it out")


def _search_answer(query: str, found: Answer, explain: bool) -> schema.SearchAnswer:
    results = [
        schema.SearchResult(
            rank=rank,
            score=result.score,
            chunk=result.chunk,
            **result.document._asdict(),
            stages={name: schema.StepPlace(**at._asdict()) for name, at in result.places.items()} if explain else None,
        )
        for rank, result in enumerate(found.results, start=1)
    ]
    times = found.milliseconds if explain else None
    return schema.SearchAnswer(query=query, results=results, milliseconds=times, truncated=None, terms=None)


def _add_passages(answer: schema.SearchAnswer) -> None:
    """Add what to show of each document, with the query's words marked."""
    stems = query_stems(answer.query)
    for result in answer.results:
        result.heading = [schema.TextPiece(**piece._asdict()) for piece in mark(result.title or result.doc_id, stems)]
        result.passage = [schema.TextPiece(**piece._asdict()) for piece in find_passage(result.text, stems)]


async def _add_warmth(
    service: Service, ticket: Ticket, pipeline: Pipeline, answer: schema.SearchAnswer, found: Answer
) -> None:
    """Add how well each passage's words match, if late interaction has searched."""
    steps = [step for step in pipeline.steps if step.name in found.milliseconds]
    models = list(service.readers("late", steps).values())
    if not models or not answer.results:
        return
    texts = ["".join(piece.text for piece in result.passage or []) for result in answer.results]
    for result, pieces in zip(answer.results, await service.warm(ticket, models[-1], answer.query, texts), strict=True):
        result.warmth = [schema.WarmTextPiece(**piece._asdict()) for piece in pieces] or None


async def _add_terms(
    service: Service, ticket: Ticket, pipeline: Pipeline, answer: schema.SearchAnswer, found: Answer
) -> None:
    """Add the weighted terms that match, if a sparse model has searched."""
    if not (matches := await service.explain_terms(ticket, pipeline.steps, answer.query, found)):
        return
    answer.terms = [schema.WeightedTerm(term=term, weight=weight) for term, weight in matches.query]
    for result in answer.results:
        terms = matches.matched.get(result.chunk or result.doc_id, ())
        result.terms = [schema.WeightedTerm(term=term, weight=weight) for term, weight in terms]


async def _add_truncation(service: Service, pipeline: Pipeline, answer: schema.SearchAnswer, found: Answer) -> None:
    """Mark the query and documents that the models have not read to the end."""
    steps = [step for step in pipeline.steps if step.name in found.milliseconds]
    readers = [service.readers(role, steps) for role in ("retriever", "late", "sparse")]
    if retrievers := {name: model for found_readers in readers for name, model in found_readers.items()}:
        answer.truncated = any([await service.is_cut(model, answer.query) for model in retrievers.values()])
    cut = set[str]()
    rerankers = service.readers("reranker", steps)
    for name, model in rerankers.items():
        read = [found_result.document for found_result in found.results if name in found_result.places]
        cut |= await service.cut_by(model, answer.query, read)
    for result in answer.results if rerankers else ():
        result.truncated = result.doc_id in cut


def _add_page(app: FastAPI) -> None:
    folder = files("shortlist.serve").joinpath("page")
    kinds = {"/": ("index.html", "text/html"), "/page.css": ("page.css", "text/css")}
    for path, (name, kind) in (kinds | {"/page.js": ("page.js", "text/javascript")}).items():
        response = Response(folder.joinpath(name).read_text("utf-8"), media_type=kind)
        app.add_route(path, _always(response), include_in_schema=False)


def _always(response: Response) -> Callable[[Request], Awaitable[Response]]:
    async def send(request: Request) -> Response:
        return response

    return send
