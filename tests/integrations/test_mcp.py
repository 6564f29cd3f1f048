"""The tools of `shortlist mcp`, called by the SDK's own client: in this process, over stdio and over HTTP."""

import asyncio
import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny import DOCUMENTS, Tiny

from shortlist import Pipeline, Reranker
from shortlist.data.formats import write_corpus
from shortlist.errors import UserError
from shortlist.mcp import Config, open_server, run
from shortlist.records import Document

mcp = pytest.importorskip("mcp")
CHUNK = {"document": "a.md", "titles": ["A", "B"], "page": 3, "begin": 5, "end": 40, "year": 2020}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A collection whose first document is a chunk of a file."""
    chunk = Document("a.md#0", "the history of the violin", "A > B", "https://x", CHUNK)
    write_corpus(tmp_path / "data/corpus.jsonl", [chunk, *DOCUMENTS])
    return tmp_path / "data"


def calls(server: Any, *asked: tuple[str, dict[str, Any]]) -> list[Any]:
    """Call tools of a server, or of the one behind an address, one after another."""

    async def talk() -> list[Any]:
        async with mcp.Client(server) as client:
            return [await client.call_tool(name, arguments) for name, arguments in asked]

    return asyncio.run(talk())


def test_a_search_gives_passages_with_their_place_and_metadata(data: Path):
    [answer] = calls(open_server(Config(collection=str(data)), searches=True), ("search", {"query": "violin", "k": 2}))
    assert json.loads(answer.content[0].text) == answer.structured_content
    [found] = answer.structured_content["results"]
    expected = Pipeline.load(str(data)).search("violin", 2)[0]
    assert found.pop("score") == expected.score
    assert found.pop("place") == {"document": "a.md", "page": 3, "begin": 5, "end": 40}
    assert found == {
        "rank": 1,
        "doc_id": "a.md#0",
        "text": expected.document.text,
        "titles": ["A", "B"],
        "url": "https://x",
        "metadata": CHUNK,
    }


def test_a_search_is_filtered_and_answers_documents(data: Path):
    asked = {"query": "violin"}
    fitting, others, whole, wrong = calls(
        open_server(Config(collection=str(data)), searches=True),
        ("search", asked | {"where": "page = 3"}),
        ("search", asked | {"where": "page > 3"}),
        ("search", asked | {"answer": "documents"}),
        ("search", asked | {"where": "pgae = 3"}),
    )
    assert [len(answer.structured_content["results"]) for answer in (fitting, others)] == [1, 0]
    assert whole.structured_content["results"][0]["doc_id"] == "a.md"
    assert wrong.is_error
    assert "page" in wrong.content[0].text


def test_the_tools_say_what_they_take_and_give(data: Path, tiny: Tiny):
    async def listed(**settings: Any) -> dict[str, Any]:
        async with mcp.Client(open_server(Config(**settings), searches="collection" in settings)) as client:
            return {tool.name: tool for tool in (await client.list_tools()).tools}

    tools = asyncio.run(listed(collection=str(data), reranker=str(tiny.reranker)))
    assert {*tools["search"].input_schema["properties"]} == {"query", "k", "where", "answer"}
    assert "results" in tools["rerank"].output_schema["properties"]
    assert list(asyncio.run(listed(collection=str(data)))) == ["search"]
    assert list(asyncio.run(listed(reranker=str(tiny.reranker)))) == ["rerank"]


def test_reranked_texts_have_the_rerankers_scores(tiny: Tiny):
    texts = [document.text for document in DOCUMENTS[:5]]
    server = open_server(Config(reranker=str(tiny.reranker)), searches=False)
    [answer] = calls(server, ("rerank", {"query": "a lamp", "documents": texts, "top_n": 3}))
    scores = Reranker.load(str(tiny.reranker)).score("a lamp", texts)
    results = answer.structured_content["results"]
    assert [result["index"] for result in results] == (-scores).argsort(kind="stable")[:3].tolist()
    assert results[0]["score"] == pytest.approx(scores.max())


@pytest.mark.parametrize(
    ("tool", "arguments", "message"),
    [
        ("search", {"query": "x", "k": 0}, "search: k: Input should be greater than or equal to 1"),
        ("search", {"query": "x", "k": "2"}, "search: k: Input should be a valid integer"),
        ("search", {"query": ""}, "search: query: String should have at least 1 character"),
        ("search", {"k": 3, "depht": 4}, "search: query: Field required; depht: Extra inputs are not permitted"),
    ],
)
def test_wrong_arguments_are_an_error_of_one_line(data: Path, tool: str, arguments: dict[str, Any], message: str):
    [answer] = calls(open_server(Config(collection=str(data)), searches=True), (tool, arguments))
    assert answer.is_error
    [content] = answer.content
    assert content.text == message


def test_an_unknown_tool_is_refused(data: Path):
    async def talk() -> None:
        async with mcp.Client(open_server(Config(collection=str(data)), searches=True)) as client:
            with pytest.raises(mcp.MCPError, match="no tool 'rerank' here; expected search"):
                await client.call_tool("rerank", {})

    asyncio.run(talk())


def test_a_changed_collection_is_searched_as_it_is(data: Path):
    server = open_server(Config(collection=str(data)), searches=True)
    [before] = calls(server, ("search", {"query": "lamp"}))
    assert len(before.structured_content["results"]) == 1
    write_corpus(data / "corpus.jsonl", DOCUMENTS[:5])
    [after] = calls(server, ("search", {"query": "lamp"}))
    assert after.structured_content == {"results": []}
    (data / "corpus.jsonl").write_text("broken")  # in place: the old texts are gone too
    [failed] = calls(server, ("search", {"query": "apple"}))
    assert failed.is_error
    assert "was rewritten while it was in use" in failed.content[0].text


def test_settings_that_offer_nothing_or_everybody_are_refused():
    with pytest.raises(UserError, match="nothing to offer"):
        run(Config())
    with pytest.raises(UserError, match=r"--host 0\.0\.0\.0: others could reach the tools"):
        run(Config(collection="any", http=True, host="0.0.0.0"))


@pytest.mark.slow
def test_over_stdio_nothing_but_the_protocol_is_on_stdout(data: Path):
    command = [sys.executable, "-m", "shortlist", "mcp", "--collection", str(data)]
    parameters = mcp.StdioServerParameters(command=command[0], args=command[1:])
    found, wrong = calls(parameters, ("search", {"query": "violin"}), ("search", {}))
    assert found.structured_content["results"][0]["doc_id"] == "a.md#0"
    assert wrong.is_error
    closed = subprocess.run(command, input="", capture_output=True, text=True, timeout=60, check=False)
    assert (closed.returncode, closed.stdout) == (0, "")


@pytest.fixture
def address(data: Path) -> Iterator[str]:
    """The address of a server in a process of its own."""
    command = [sys.executable, "-m", "shortlist", "mcp", "--collection", str(data), "--http", "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said = next(found for line in process.stderr if (found := re.search(r"ready on (\S+)", line)))
        yield said[1]
        process.send_signal(signal.SIGINT)
        process.wait(30)


@pytest.mark.slow
def test_over_http_the_same_is_found(address: str):
    found, wrong = calls(address, ("search", {"query": "violin"}), ("search", {"query": "x", "k": 1000}))
    assert found.structured_content["results"][0]["doc_id"] == "a.md#0"
    assert wrong.content[0].text == "search: k: Input should be less than or equal to 100"
