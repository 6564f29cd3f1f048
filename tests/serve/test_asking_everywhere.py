"""One description with a language model finds the same everywhere: on the command line, from Python and over HTTP."""

import json
from pathlib import Path

import pytest
import yaml
from fastapi.testclient import TestClient
from serving import Built

from shortlist import Pipeline
from shortlist.cli import main
from shortlist.data.runs import read_run
from shortlist.serve import Config, open_service
from shortlist.serve.app import create_app

QUESTION = "which colour has the apple"
LIST = {"rank": "listwise", "prompt": "first", "window": 6, "stride": 3, "depth": 8}


@pytest.mark.slow
def test_a_list_is_put_in_the_same_order_by_every_way_to_ask(
    built: Built, language_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path, collection = tmp_path / "pipeline.yaml", built.names["collection"]
    words = {"find": "bm25", "index": built.names["bm25"]}
    description = {"collection": collection, "steps": {"words": words, "list": LIST | {"model": str(language_model)}}}
    path.write_text(yaml.safe_dump(description, sort_keys=False))

    [answer] = Pipeline.load(pipeline=path).answer([QUESTION], 9)
    expected = [result.document.doc_id for result in answer.results]
    [first] = Pipeline.load(collection, pipeline={"steps": {"words": words}}).answer([QUESTION], 9)
    assert expected[:8] != [result.document.doc_id for result in first.results][:8]

    assert main(["ask", QUESTION, "--pipeline", str(path), "--k", "9", "--json"]) == 0
    assert [each["doc_id"] for each in json.loads(capsys.readouterr().out)["results"]] == expected

    service = open_service(Config(pipeline=path))
    response = TestClient(create_app(service)).post("/v1/search", json={"query": QUESTION, "k": 9})
    service.close()
    assert [each["doc_id"] for each in response.json()["answers"][0]["results"]] == expected

    run, out = tmp_path / "words.trec", tmp_path / "list.trec"
    assert main(["search", "--index", words["index"], "--collection", collection, "--k", "9", "--out", str(run)]) == 0
    flags = [f"--{name}={value}" for name, value in LIST.items() if name != "rank"]
    command = ["rerank", "--run", str(run), "--collection", collection, "--model", str(language_model)]
    assert main([*command, "--method", "listwise", *flags, "--out", str(out)]) == 0
    assert [hit.doc_id for hit in read_run(out)["q0"]] == expected  # the same question
