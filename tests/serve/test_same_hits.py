"""One description finds the same everywhere: on the command line, from Python and over HTTP."""

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


@pytest.mark.slow
def test_one_description_gives_the_same_hits_everywhere(
    built: Built, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    names, path = built.names, tmp_path / "pipeline.yaml"
    description = {
        "collection": names["collection"],
        "steps": {
            "words": {"find": "bm25", "index": names["bm25"], "depth": 8},
            "vectors": {"find": "dense", "model": names["retriever"], "vectors": names["vectors"], "depth": 11},
            "both": {"fuse": "weighted", "weights": [0.3, 0.7], "depth": 10},
            "cheap": {"rank": "pointwise", "model": names["reranker"], "depth": 7, "share": 0.5},
            "dear": {"rank": "pointwise", "model": names["reranker"], "depth": 3},
        },
    }
    path.write_text(yaml.safe_dump(description, sort_keys=False))

    [answer] = Pipeline.load(pipeline=path).answer([QUESTION], 9)
    expected = [
        (each.document.doc_id, pytest.approx(each.score, abs=1e-6), {step: at.rank for step, at in each.places.items()})
        for each in answer.results
    ]
    assert {step for _, _, ranks in expected for step in ranks} == description["steps"].keys()

    assert main(["ask", QUESTION, "--pipeline", str(path), "--k", "9", "--json"]) == 0
    asked = json.loads(capsys.readouterr().out)

    service = open_service(Config(pipeline=path))
    response = TestClient(create_app(service)).post("/v1/search", json={"query": QUESTION, "k": 9, "explain": True})
    service.close()
    [served] = response.json()["answers"]

    for found in (asked, served):
        told = [
            (each["doc_id"], each["score"], {step: at["rank"] for step, at in each["stages"].items()})
            for each in found["results"]
        ]
        assert told == expected
        assert list(found["milliseconds"]) == list(answer.milliseconds)

    assert main(["search", "--pipeline", str(path), "--k", "9", "--out", str(tmp_path / "run.trec")]) == 0
    hits = read_run(tmp_path / "run.trec")["q0"]  # the same question
    assert [hit.doc_id for hit in hits] == [doc_id for doc_id, _, _ in expected]
    assert [hit.score for hit in hits] == pytest.approx([each.score for each in answer.results], abs=1e-5)
