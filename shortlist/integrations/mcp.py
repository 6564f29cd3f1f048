"""Search and reranking as tools of the Model Context Protocol (the extra `mcp`)."""

import json
import threading
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import anyio
import numpy as np

from shortlist.data.where import LONGEST_FILTER
from shortlist.errors import UserError
from shortlist.integrations import not_installed
from shortlist.pipeline import Pipeline, Result
from shortlist.pipeline.wholes import AnswerUnit
from shortlist.records import Document, Query
from shortlist.rerankers import Ranker
from shortlist.version import __version__

try:
    from mcp import types
    from mcp.server.lowlevel import Server
    from mcp.shared.exceptions import MCPError
    from pydantic import BaseModel, ConfigDict, Field, ValidationError
except ModuleNotFoundError as error:
    raise not_installed(error, "mcp") from None

MOST_HITS, MOST_DOCUMENTS = 100, 1000
"""Most documents that one call finds, and reranks."""


class SearchArguments(BaseModel):
    """Arguments of the tool `search`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    query: str = Field(min_length=1, description="What to look for: a question or some words.")
    k: int = Field(10, ge=1, le=MOST_HITS, description="Number of results.")
    where: str | None = Field(
        None,
        max_length=LONGEST_FILTER,
        description="Filter over the metadata that results show, such as year >= 2020 and lang = 'de'.",
    )
    answer: AnswerUnit = Field("chunks", description="`documents`: whole documents, each for its best passage.")


class Place(BaseModel):
    """Place of a passage in its document."""

    document: str | None = Field(None, description="Id of the document that the passage is from.")
    page: int | None = Field(None, description="Page on which it begins.")
    begin: int | None = Field(None, description="Its first character in the document's text.")
    end: int | None = Field(None, description="The character behind its last one.")


class FoundDocument(BaseModel):
    """A document or passage that was found."""

    rank: int
    score: float = Field(description="Higher is better; comparable within one list only.")
    doc_id: str
    text: str
    titles: list[str] = Field(description="Title path, outermost first.")
    place: Place
    url: str
    metadata: dict[str, Any]


class FoundDocuments(BaseModel):
    """Documents or passages that were found, best first."""

    results: list[FoundDocument]


class RerankArguments(BaseModel):
    """Arguments of the tool `rerank`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    query: str = Field(min_length=1, description="What the documents should answer.")
    documents: list[str] = Field(min_length=1, max_length=MOST_DOCUMENTS, description="Texts to order.")
    top_n: int | None = Field(None, ge=1, description="Number of results (null: all).")


class RankedText(BaseModel):
    """A text with its new place."""

    index: int = Field(description="Its position in `documents`, from 0.")
    score: float = Field(description="Higher is better; comparable within one list only.")
    text: str


class RankedTexts(BaseModel):
    """Texts in their new order, best first."""

    results: list[RankedText]


class OfferedTool(NamedTuple):
    """A tool, and the function that carries out a call of it."""

    words: str
    arguments: type[BaseModel]
    results: type[BaseModel]
    call: Callable[[Any], BaseModel]


def make_server(pipeline: Callable[[], Pipeline] | None, reranker: Ranker | None) -> "Server[Any]":
    """Make a server with the tools `search` and `rerank`.

    Args:
        pipeline: returns the pipeline to search with, as it is now (None: no tool `search`).
        reranker: the reranker (None: no tool `rerank`).
    """
    tools: dict[str, OfferedTool] = {}
    if pipeline is not None:
        words = "Search the user's documents. Returns passages, best first, with their title path, place and metadata."
        tools["search"] = OfferedTool(
            words, SearchArguments, FoundDocuments, lambda asked: answer_search(pipeline(), asked)
        )
    if reranker is not None:
        words = "Order texts by how well they answer a query, best first."
        tools["rerank"] = OfferedTool(words, RerankArguments, RankedTexts, lambda asked: answer_rerank(reranker, asked))
    alone = threading.Lock()  # models and indexes may not be used by several threads at a time

    def call(name: str, arguments: Mapping[str, Any]) -> types.CallToolResult:
        tool = tools[name]
        try:
            asked = tool.arguments.model_validate(dict(arguments))
            with alone:
                results = tool.call(asked)
        except ValidationError as error:
            return _refused(name, _in_one_line(error))
        except UserError as error:
            return _refused(name, str(error))
        found = results.model_dump(mode="json")
        text = types.TextContent(type="text", text=json.dumps(found, ensure_ascii=False))
        return types.CallToolResult(content=[text], structured_content=found)

    async def list_tools(context: Any, params: Any) -> types.ListToolsResult:
        return types.ListToolsResult(tools=[_described(name, tool) for name, tool in tools.items()])

    async def call_tool(context: Any, params: types.CallToolRequestParams) -> types.CallToolResult:
        if params.name not in tools:
            raise MCPError(types.INVALID_PARAMS, f"no tool {params.name!r} here; expected {' or '.join(tools)}")
        return await anyio.to_thread.run_sync(call, params.name, params.arguments or {})

    return Server("shortlist", version=__version__, on_list_tools=list_tools, on_call_tool=call_tool)


def answer_search(pipeline: Pipeline, asked: SearchArguments) -> FoundDocuments:
    """Carry out a call of the tool `search`."""
    found = enumerate(pipeline.search(asked.query, asked.k, where=asked.where, answer=asked.answer), start=1)
    return FoundDocuments(results=[_found(rank, result) for rank, result in found])


def answer_rerank(reranker: Ranker, asked: RerankArguments) -> RankedTexts:
    """Carry out a call of the tool `rerank`; unread texts come last."""
    documents = [Document(str(place), text) for place, text in enumerate(asked.documents)]
    scores = np.asarray(reranker.score(Query("query", asked.query), documents), dtype=np.float64)
    scores = np.where(np.isnan(scores), np.nanmin(scores, initial=0.0) - 1, scores)
    order = np.argsort(-scores, kind="stable")[: asked.top_n].tolist()
    return RankedTexts(
        results=[RankedText(index=place, score=float(scores[place]), text=asked.documents[place]) for place in order]
    )


def _found(rank: int, result: Result) -> FoundDocument:
    document = result.document
    known = dict(document.metadata)
    titles = known.get("titles")
    if not isinstance(titles, list):
        titles = [document.title] if document.title else []
    numbers = {name: value if type(value := known.get(name)) is int else None for name in ("page", "begin", "end")}
    whole = known.get("document")
    return FoundDocument(
        rank=rank,
        score=result.score,
        doc_id=document.doc_id,
        text=document.text,
        titles=[str(title) for title in titles],
        place=Place(document=whole if isinstance(whole, str) else None, **numbers),
        url=document.url,
        metadata=known,
    )


def _described(name: str, tool: OfferedTool) -> types.Tool:
    return types.Tool(
        name=name,
        description=tool.words,
        input_schema=tool.arguments.model_json_schema(),
        output_schema=tool.results.model_json_schema(),
        annotations=types.ToolAnnotations(read_only_hint=True, open_world_hint=False),
    )


def _refused(name: str, why: str) -> types.CallToolResult:
    text = types.TextContent(type="text", text=f"{name}: {' '.join(why.split())}")
    return types.CallToolResult(content=[text], is_error=True)


def _in_one_line(error: ValidationError) -> str:
    return "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
