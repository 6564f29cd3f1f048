"""Stage `mcp`: offer search and reranking as tools, by the Model Context Protocol."""

import sys
from dataclasses import dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shortlist.config import refuse_idle
from shortlist.errors import UserError
from shortlist.pipeline.flags import Sources, from_file_or_flags

if TYPE_CHECKING:
    from shortlist.pipeline.loading import Opener
    from shortlist.rerankers import Ranker


@dataclass(frozen=True, kw_only=True)
class Config(Sources):
    collection: str | None = None
    """Collection with the documents: folder, `irds:` or `hf:` name. Alone, its own index is searched."""
    pipeline: Path | None = None
    """YAML file that describes all steps, in place of flags (docs/pipelines.md)."""
    reranker: str | None = None
    """Reranker for the tool `rerank`, and to order the first --depth documents of a search: folder or hub name."""
    reranker_contract: str | None = None
    """With --reranker: its input contract by name, for a folder without one."""
    depth: int | None = None
    """With --reranker: number of documents it reads in a search (None: 100)."""
    reranker_share: float = 1.0
    """With --reranker: weight of its scores in a search, 0 to 1; the first stage's scores have the rest."""
    http: bool = False
    """Serve over HTTP at /mcp (streamable HTTP), instead of over stdin and stdout."""
    host: str = "127.0.0.1"
    """With --http: loopback address to listen on; there is no key, so others are refused."""
    port: int = 8001
    """With --http: port to listen on; 0 takes a free one."""


def run(config: Config) -> None:
    """Serve the tools until stdin ends or, over HTTP, until Ctrl-C."""
    from shortlist.serve.protection import LOOPBACK

    if config.host not in LOOPBACK:
        raise UserError(f"--host {config.host}: others could reach the tools there; serve on {', '.join(LOOPBACK)}.")
    if not config.http:
        refuse_idle(config, ("host", "port"), "is for --http")
    searches = config.collection or config.pipeline or config.index or config.vectors or config.model
    if not (searches or config.reranker):
        raise UserError("nothing to offer: give --collection, --pipeline or --reranker.")
    if not searches:
        names = (*(field.name for field in fields(Sources)), "depth", "reranker_share")
        refuse_idle(config, names, "is for a search, and there is no --collection or --pipeline")
    if find_spec("mcp") is None:
        raise UserError("mcp is not installed; pip install 'shortlist[mcp]'.")
    if config.http:
        serve_http(open_server(config, searches=bool(searches)), config.host, config.port)
    else:
        import anyio

        anyio.run(_serve_stdio, open_server(config, searches=bool(searches)))


def open_server(config: Config, *, searches: bool) -> Any:
    """Load what a Config names, and make the server."""
    from shortlist.integrations.mcp import make_server
    from shortlist.pipeline.live import LivePipeline
    from shortlist.pipeline.loading import Opener

    opener = Opener()
    if not searches:
        return make_server(None, _reranker(config, opener))
    names = ("reranker", "reranker_contract", "depth", "reranker_share")
    given = {name: getattr(config, name) for name in names}
    description = from_file_or_flags(config.pipeline, config, collection=config.collection, **given)
    if description.collection is None:
        raise UserError("--collection is missing: it says where the documents are.")
    live = LivePipeline(description, opener, command="mcp")
    rerankers = [step.stage for step in live.pipeline.steps if step.name in live.pipeline.rerankers]

    def pipeline() -> Any:
        live.follow(settled=False)
        return live.pipeline

    return make_server(pipeline, rerankers[-1] if rerankers else None)


def _reranker(config: Config, opener: "Opener") -> "Ranker":
    from shortlist.rerankers.pointwise import pointwise

    settings = {"model": config.reranker} | ({"contract": config.reranker_contract} if config.reranker_contract else {})
    return opener.reranker(pointwise, settings)


async def _serve_stdio(server: Any) -> None:
    from mcp.server.stdio import stdio_server

    async with stdio_server() as (read, write):
        await server.run(read, write, server.create_initialization_options())


def serve_http(server: Any, host: str, port: int) -> None:
    """Serve over streamable HTTP until a signal comes."""
    import uvicorn

    from shortlist.serve.server import address, bind

    listener = bind(host, port)
    listener.listen(128)  # whoever reads the next line may connect at once
    settings = uvicorn.Config(
        server.streamable_http_app(host=host), log_level="warning", access_log=False, timeout_graceful_shutdown=3
    )
    print(f"mcp: ready on {address(listener)}/mcp", file=sys.stderr, flush=True)
    uvicorn.Server(settings).run(sockets=[listener])
