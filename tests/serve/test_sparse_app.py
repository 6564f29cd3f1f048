"""A server that searches with learned sparse models: one that encodes queries, and one whose queries are looked up."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from browser import chromium
from fastapi.testclient import TestClient
from serving import live
from sparse import write_masked, write_opensearch
from tiny import Tiny

from shortlist import Pipeline, ask, encode
from shortlist.errors import UserError
from shortlist.models.folder import open_folder
from shortlist.models.loading_sparse import sparse_to_train
from shortlist.models.save import save_model
from shortlist.pipeline.spec import parse_description
from shortlist.serve import Config, check_there, open_service
from shortlist.serve.app import create_app
from shortlist.serve.service import BatchedSparse, Service
from shortlist.settings.encode import Config as EncodeConfig

QUESTION = "which colour has the apple"


@pytest.fixture(scope="module")
def steps(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A step for each model."""
    folder = tmp_path_factory.mktemp("sparse")
    save_model(sparse_to_train(open_folder(str(write_masked(folder / "bert")))), folder / "encoded")
    write_opensearch(folder / "looked-up")
    made = {}
    for name in ("encoded", "looked-up"):
        model, terms = str(folder / name), folder / f"{name}-terms"
        encode.run(EncodeConfig(model=model, collection=str(tiny.collection), out=terms))
        made[name] = {"find": "sparse", "model": model, "vectors": str(terms), "depth": 8}
    return made


def described(tiny: Tiny, steps: dict[str, Any]) -> dict[str, Any]:
    return {"collection": str(tiny.collection), "steps": {**steps, "both": {"fuse": "rrf", "of": [*steps]}}}


@pytest.fixture(scope="module")
def service(tiny: Tiny, steps: dict[str, Any]) -> Iterator[Service]:
    service = Service(parse_description(described(tiny, steps), where="test"))
    yield service
    service.close()


@pytest.fixture(scope="module")
def client(service: Service) -> TestClient:
    return TestClient(create_app(service))


def test_models_of_every_kind_are_run_before_the_first_request(service: Service, monkeypatch: pytest.MonkeyPatch):
    seen, submit = [], service.batcher.submit
    monkeypatch.setattr(service.batcher, "submit", lambda name, ids: seen.append(name) or submit(name, ids))
    monkeypatch.setattr(service, "_warm_up_search", lambda pipeline: None)
    service.warm_up()
    assert seen == ["sparse"]  # the other one's queries are looked up


def test_a_server_finds_what_a_pipeline_and_ask_find(
    tiny: Tiny,
    steps: dict[str, Any],
    service: Service,
    client: TestClient,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    description = described(tiny, steps)
    expected = Pipeline.load(pipeline=description).search(QUESTION, 4)
    [answer] = client.post("/search", json={"query": QUESTION, "k": 4}).json()["answers"]
    assert [result["doc_id"] for result in answer["results"]] == [each.document.doc_id for each in expected]
    assert [result["score"] for result in answer["results"]] == pytest.approx([e.score for e in expected], abs=1e-5)
    assert "terms" not in answer
    (tmp_path / "pipeline.yaml").write_text(yaml.safe_dump(description, sort_keys=False))
    ask.run(ask.Config(question=QUESTION, k=4, pipeline=tmp_path / "pipeline.yaml", json=True))
    said = json.loads(capsys.readouterr().out)["results"]
    assert [each["doc_id"] for each in said] == [result["doc_id"] for result in answer["results"]]
    stands = {step.name: type(step.stage.retriever) for step in service.pipeline.steps[:2]}  # type: ignore[union-attr]
    assert stands["encoded"] is BatchedSparse
    assert stands["looked-up"] is not BatchedSparse  # nothing has to run for it


@pytest.mark.parametrize("name", ["encoded", "looked-up"])
def test_it_tells_the_terms_that_match(client: TestClient, name: str):
    body = {"query": QUESTION, "k": 3, "explain": True, "first_stage": name}
    [answer] = client.post("/search", json=body).json()["answers"]
    asked = {one["term"]: one["weight"] for one in answer["terms"]}
    assert list(asked.values()) == sorted(asked.values(), reverse=True)
    for result in answer["results"]:
        products = [asked[one["term"]] * one["weight"] for one in result["terms"]]
        assert sum(products) == pytest.approx(result["score"], rel=1e-5)
    assert answer.get("truncated") is (False if name == "encoded" else None)


def test_a_question_without_terms_finds_nothing(client: TestClient):
    body = {"query": "[SEP]", "k": 3, "explain": True, "first_stage": "looked-up"}
    [answer] = client.post("/search", json=body).json()["answers"]
    assert (answer["results"], answer["terms"]) == ([], [])


@pytest.mark.parametrize("name", ["encoded", "looked-up"])
def test_flags_serve_a_sparse_model_and_it_gives_no_embeddings(tiny: Tiny, steps: dict[str, Any], name: str):
    model, terms = steps[name]["model"], Path(steps[name]["vectors"])
    service = open_service(Config(retriever=model, vectors=terms, collection=str(tiny.collection)))
    with TestClient(create_app(service)) as client:
        [answer] = client.post("/search", json={"query": QUESTION, "k": 2}).json()["answers"]
        assert client.post("/v1/embeddings", json={"input": "text"}).status_code == 404
    assert len(answer["results"]) == 2
    assert service.pipeline is not None
    assert service.pipeline.first_stages == ["sparse"]
    with pytest.raises(UserError, match="gives weights of terms, which no embedding request takes; give --collection"):
        Service(retriever=model)


def test_a_folder_without_a_contract_is_served_with_one(tiny: Tiny, tmp_path: Path):
    model = str(write_masked(tmp_path / "bert"))
    config = Config(retriever=model, collection=str(tiny.collection), retriever_contract="splade")
    encode.run(EncodeConfig(model=model, contract="splade", collection=str(tiny.collection), out=tmp_path / "terms"))
    with pytest.raises(UserError, match=r"name one with --contract \(--retriever-contract in serve\)"):
        check_there(replace(config, retriever_contract=None, vectors=tmp_path / "terms"))
    config = replace(config, vectors=tmp_path / "terms")
    check_there(config)
    with TestClient(create_app(open_service(config))) as client:
        [answer] = client.post("/search", json={"query": QUESTION, "k": 2}).json()["answers"]
    assert len(answer["results"]) == 2


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_the_page_shows_the_terms(tiny: Tiny, steps: dict[str, Any], tmp_path: Path):
    step = steps["encoded"]
    flags = {"retriever": step["model"], "vectors": step["vectors"], "collection": str(tiny.collection)}
    with live(flags, tmp_path / "stderr") as server, chromium(tmp_path / "profile") as tab:
        tab.open(f"{server.url}/?q=which+colour+has+the+apple&k=5")
        tab.wait("document.querySelectorAll('#results li').length === 5")
        assert tab.run("document.querySelector('#times .terms').textContent").startswith("terms: ")
        assert tab.run("document.querySelectorAll('#results .terms').length") == 5
        assert tab.complaints == []
