"""Learned sparse search behind the adapters."""

from pathlib import Path
from typing import Any

import pytest
from sparse import write_masked
from test_mcp import calls
from tiny import QUERIES, Tiny

from shortlist import Pipeline, encode, index
from shortlist.mcp import Config, open_server

QUESTION = QUERIES[3].text


@pytest.fixture(scope="module")
def sparse(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Flags of a search with a masked language model."""
    folder = tmp_path_factory.mktemp("sparse")
    how: dict[str, Any] = {"model": str(write_masked(folder / "model")), "contract": "splade"}
    how |= {"collection": str(tiny.collection)}
    encode.run(encode.Config(out=folder / "terms", **how))
    index.run(index.Config(kind="sparse", vectors=folder / "terms", out=folder / "index"))
    return {**how, "index": folder / "index"}


@pytest.fixture(scope="module")
def pipeline(sparse: dict[str, Any]) -> Pipeline:
    given = {**sparse, "retriever": sparse["model"]}
    return Pipeline.load(given.pop("collection"), **{name: given[name] for name in ("retriever", "contract", "index")})


def test_langchain_finds_what_the_pipeline_finds(pipeline: Pipeline):
    pytest.importorskip("langchain_core")
    from shortlist.integrations.langchain import PipelineRetriever

    found = PipelineRetriever(pipeline=pipeline, k=3).invoke(QUESTION)
    expected = pipeline.search(QUESTION, 3)
    assert [each.id for each in found] == [result.document.doc_id for result in expected]
    assert [each.metadata["score"] for each in found] == [result.score for result in expected]
    assert set(found[0].metadata["places"]) == {"sparse"}
    kept = PipelineRetriever(pipeline=pipeline, k=3, where="doc_id in ('d2', 'd3')").invoke(QUESTION)
    assert {each.id for each in kept} == {"d2", "d3"}


def test_llama_index_finds_what_the_pipeline_finds(pipeline: Pipeline):
    pytest.importorskip("llama_index.core")
    from shortlist.integrations.llama_index import PipelineRetriever

    found = PipelineRetriever(pipeline, 3).retrieve(QUESTION)
    assert [each.score for each in found] == [result.score for result in pipeline.search(QUESTION, 3)]


def test_the_tool_finds_what_the_pipeline_finds(sparse: dict[str, Any], pipeline: Pipeline, tmp_path: Path):
    server = open_server(Config(**{**sparse, "index": (sparse["index"],)}), searches=True)
    [answer] = calls(server, ("search", {"query": QUESTION, "k": 3}))
    expected = [(result.document.doc_id, result.score) for result in pipeline.search(QUESTION, 3)]
    assert [(one["doc_id"], one["score"]) for one in answer.structured_content["results"]] == expected
