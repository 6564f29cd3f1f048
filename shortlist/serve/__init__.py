"""Stage `serve`: search, embeddings and reranking over HTTP, and a search page."""

import sys
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from shortlist.config import flag_of, refuse_idle
from shortlist.engine import Engine
from shortlist.errors import UserError

if TYPE_CHECKING:
    from shortlist.pipeline.spec import Description
    from shortlist.serve.protection import Protection
    from shortlist.serve.service import Service

FEWEST_KEY_CHARACTERS = 16
SWITCH_SECONDS = 0.0001
"""Longest time that one thread may keep the others from running Python. It is short because the models' thread needs
its turn at every operation."""


@dataclass(frozen=True, kw_only=True)
class Config:
    retriever: str | None = None
    """Retriever to embed with, and to search with if there are vectors: folder or hub name."""
    retriever_contract: str | None = None
    """Input contract of the retriever by name, for a folder without one."""
    vectors: Path | None = None
    """Vectors made by the retriever, from `shortlist encode`."""
    index: Path | None = None
    """Index over the vectors, from `shortlist index`; by default they are searched exactly."""
    collection: str | None = None
    """Collection of the documents to search: folder, `irds:` or `hf:` name."""
    bm25: Path | None = None
    """BM25 index over the documents, from `shortlist index`. Without any index, and without --vectors, the
    collection's own are searched: its words and, with --retriever, its vectors."""
    language: str | None = None
    """Language of the words of the collection's own index (None: as it is, at first english)."""
    pipeline: Path | None = None
    """YAML file that describes all steps of a search, in place of --vectors, --index and --bm25 (docs/pipelines.md)."""
    budget_ms: float | None = None
    """With --costs: most milliseconds that a search is expected to take; the pipeline gets the best numbers within."""
    target_quality: float | None = None
    """With --costs, in place of --budget-ms: least quality, in the measure of `shortlist tune`; the pipeline gets the
    cheapest numbers that reached it."""
    costs: Path | None = None
    """With --budget-ms or --target-quality: costs.json of `shortlist tune` for this pipeline."""
    reranker: str | None = None
    """Reranker to score with, and to rerank search results with: folder or hub name."""
    reranker_contract: str | None = None
    """Input contract of the reranker by name, for a folder without one."""
    reranker_share: float = 1.0
    """Weight of the reranker's scores in a search, 0 to 1; the first stage's scores have the rest."""
    host: str = "127.0.0.1"
    """Address to listen on; any but a loopback address needs --api-key-file."""
    port: int = 8000
    """Port to listen on; 0 takes a free one."""
    api_key_file: Path | None = None
    """File with the key that clients must send."""
    workers: int = 1
    """Processes on this machine, or replicas on a Ray cluster; each loads the models."""
    engine: Engine = "local"
    """`ray`: serve with Ray Serve, on the cluster of RAY_ADDRESS or `ray start`."""
    token_budget: int | None = None
    """Tokens per forward pass, padding included (None: 512 on a CPU, 4,096 on a GPU)."""
    queue_requests: int = 256
    """Most requests that wait or are being processed; more are answered with 429."""
    queue_tokens: int = 1_048_576
    """Most tokens in these requests; more are answered with 429, or with 413 if one request exceeds the limit alone."""
    timeout_seconds: float = 30.0
    """Longest time that a request may take."""
    drain_seconds: float = 30.0
    """Longest time to finish accepted requests after SIGTERM."""
    log: Literal["errors", "requests", "queries"] = "errors"
    """Log on stderr: `errors` only, `requests` also a line for each request, `queries` also the texts of requests."""


def run(config: Config) -> None:
    """Serve until SIGTERM or Ctrl-C."""
    check_servable(config)
    if find_spec("fastapi") is None or find_spec("uvicorn") is None:
        raise UserError("fastapi or uvicorn is not installed; pip install 'shortlist[serve]'.")
    read_key(config)
    check_there(config)
    make_app = partial(open_app, config)
    if config.engine == "ray":
        from shortlist.serve.deploy import serve_on_ray

        sizes = {"replicas": config.workers, "queue_requests": config.queue_requests}
        serve_on_ray(make_app, host=config.host, port=config.port, drain_seconds=config.drain_seconds, **sizes)
        return
    from shortlist.serve.server import bind, serve, serve_in_processes

    listener = bind(config.host, config.port)
    if config.workers == 1:
        serve(make_app, listener, config.drain_seconds)
    else:
        serve_in_processes(make_app, listener, config.drain_seconds, config.workers)


def check_servable(config: Config) -> None:
    """Refuse settings that cannot be served, before anything is loaded.

    Raises:
        UserError: flags do not go together, or anybody on the network could use the server.
    """
    from shortlist.serve.protection import LOOPBACK

    if config.host not in LOOPBACK and config.api_key_file is None:
        raise UserError(
            f"--host {config.host}: others could reach the server there, and it has no key; "
            "name a file with one in --api-key-file, or serve on 127.0.0.1."
        )
    searches = config.vectors or config.index or config.bm25
    if config.pipeline and searches:
        raise UserError("--pipeline says what is searched; leave out --vectors, --index and --bm25.")
    searches = searches or config.pipeline
    if not (config.retriever or config.reranker or config.collection or searches):
        raise UserError("nothing to serve: give --collection, --retriever or --reranker.")
    if searches and not (config.collection or config.pipeline):
        raise UserError("--collection is missing: it holds the texts of the documents that are found.")
    if (config.vectors or config.index) and not config.retriever:
        raise UserError("--vectors without --retriever: searching vectors takes the model that made them.")
    for role in ("retriever", "reranker"):
        if getattr(config, f"{role}_contract") and not getattr(config, role):
            raise UserError(f"--{role}-contract without --{role}: a contract says how that model reads; name it.")
    for name in ("workers", "queue_requests", "queue_tokens", "timeout_seconds"):
        if getattr(config, name) <= 0:
            raise UserError(f"{flag_of(name)} is {getattr(config, name)}; expected more than 0.")
    served_pipeline(config)


def check_there(config: Config) -> None:
    """Refuse missing models and files before PyTorch is loaded.

    Raises:
        UserError: the collection, an index, vectors or a model is missing, or is of another kind; or no setting is
            within the budget.
    """
    from shortlist.data.collections import check_collection
    from shortlist.models.folder import check_model
    from shortlist.pipeline.budget import point_within
    from shortlist.pipeline.opening import check_steps

    if described := served_pipeline(config):
        point_within(described)
        check_collection(described.collection or "")
        check_steps(described)
    if config.retriever:
        check_model(config.retriever, "document", config.retriever_contract)
    if config.reranker:
        check_model(config.reranker, "pair", config.reranker_contract)


def read_key(config: Config) -> str | None:
    """Read the key that clients must send; None if none is needed.

    Raises:
        UserError: the file cannot be read, or holds no safe key.
    """
    if config.api_key_file is None:
        return None
    try:
        key = config.api_key_file.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError):
        raise UserError(f"--api-key-file {config.api_key_file}: cannot be read; expected a file with a key.") from None
    if len(key) < FEWEST_KEY_CHARACTERS or not key.isascii() or len(key.split()) != 1:
        raise UserError(
            f"--api-key-file {config.api_key_file}: holds no safe key; expected at least {FEWEST_KEY_CHARACTERS} "
            "ASCII characters without spaces, such as `openssl rand -hex 32` prints."
        )
    return key


def served_pipeline(config: Config) -> "Description | None":
    """Describe the pipeline to serve; None if nothing is searched.

    Raises:
        UserError: the flags or the file do not describe a pipeline.
    """
    from shortlist.pipeline.budget import Budget, with_budget
    from shortlist.pipeline.flags import Sources, from_flags
    from shortlist.pipeline.spec import read_description

    said = Budget(config.budget_ms, config.target_quality, config.costs)
    if config.pipeline:
        refuse_idle(config, ("language", "reranker_share"), "is said in the file of --pipeline")
        return with_budget(read_description(config.pipeline, collection=config.collection), said)
    if not config.collection:
        names = ("language", "reranker_share", "budget_ms", "target_quality", "costs")
        refuse_idle(config, names, "is for a search, and there is no --collection")
        return None
    dense = config.vectors or config.index or not config.bm25
    sources = Sources(
        index=tuple(path for path in (config.bm25, config.index) if path),
        model=config.retriever if dense else None,
        vectors=config.vectors,
        contract=config.retriever_contract if dense else None,
        language=config.language,
    )
    second = {"reranker_contract": config.reranker_contract, "reranker_share": config.reranker_share}
    description = from_flags(sources, collection=config.collection, reranker=config.reranker, **second)
    return with_budget(description, said)


def open_service(config: Config) -> "Service":
    """Load the models, indexes and collection that a Config names.

    Raises:
        UserError: a model, store, index or collection is missing, or they do not belong together.
    """
    from shortlist.serve.gate import Limits
    from shortlist.serve.service import Service

    service = Service(
        served_pipeline(config),
        retriever=config.retriever,
        retriever_contract=config.retriever_contract,
        reranker=config.reranker,
        reranker_contract=config.reranker_contract,
        limits=Limits(config.queue_requests, config.queue_tokens, config.timeout_seconds),
        token_budget=config.token_budget,
    )
    service.warm_up()
    service.watch()
    return service


def open_app(config: Config) -> "Protection":
    """Open the application for a Config, in this process."""
    from shortlist.serve.app import create_app
    from shortlist.serve.protection import LOOPBACK

    sys.setswitchinterval(SWITCH_SECONDS)
    key = read_key(config)
    return create_app(open_service(config), key=key, hosts=LOOPBACK if key is None else None, log=config.log)
