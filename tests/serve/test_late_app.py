import shutil
from pathlib import Path

import pytest
from browser import chromium
from fastapi.testclient import TestClient
from late import write_stanford
from serving import live

from shortlist import Pipeline, encode
from shortlist.errors import UserError
from shortlist.pipeline.spec import parse_description
from shortlist.serve import Config, open_service
from shortlist.serve.app import create_app
from shortlist.serve.service import Service
from shortlist.settings.encode import Config as EncodeConfig


@pytest.fixture(scope="module")
def steps(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("late")
    model = write_stanford(folder / "model")
    encode.run(EncodeConfig(model=str(model), collection=str(tiny.collection), out=folder / "tokens"))
    tokens = {"find": "late", "model": str(model), "vectors": str(folder / "tokens")}
    return {"tokens": tokens, "again": {"rank": "late", "model": str(model), "depth": 3}}


@pytest.fixture(scope="module")
def client(tiny, steps):
    content = {"collection": str(tiny.collection), "steps": steps}
    service = Service(parse_description(content, where="test"))
    yield TestClient(create_app(service))
    service.close()


QUESTION = "which colour has the apple"


def test_a_server_finds_what_a_pipeline_finds(tiny, steps, client):
    expected = Pipeline.load(str(tiny.collection), pipeline={"steps": steps}).search(QUESTION, 4)
    [answer] = client.post("/search", json={"query": QUESTION, "k": 4}).json()["answers"]
    assert [result["doc_id"] for result in answer["results"]] == [each.document.doc_id for each in expected]
    assert [result["score"] for result in answer["results"]] == pytest.approx([e.score for e in expected], abs=1e-5)
    assert "warmth" not in answer["results"][0]


def test_it_tells_how_well_each_word_of_a_passage_matches(client):
    body = {"query": QUESTION, "k": 4, "explain": True}
    [answer] = client.post("/search", json=body).json()["answers"]
    assert answer["truncated"] is False
    for result in answer["results"]:
        pieces = result["warmth"]
        assert "".join(piece["text"] for piece in pieces) == "".join(piece["text"] for piece in result["passage"])
        assert any(-1 <= piece["similarity"] <= 1 for piece in pieces if "similarity" in piece)


def test_late_interaction_that_only_reranks_tells_it_too(tiny, steps):
    content = {"collection": str(tiny.collection), "steps": {"words": {"find": "bm25"}, "again": steps["again"]}}
    service = Service(parse_description(content, where="test"))
    service.warm_up()  # by words the search finds nothing to rerank
    assert service.metrics.values()['shortlist_batch_texts_total{model="late"}'] >= 1
    alone = Pipeline.load(str(tiny.collection), pipeline={"steps": content["steps"]}).search(QUESTION, 4)
    with TestClient(create_app(service)) as client:
        body = {"query": QUESTION, "k": 4, "explain": True}
        [answer] = client.post("/search", json=body).json()["answers"]
        [first] = client.post("/search", json=body | {"rerank": False}).json()["answers"]
    service.close()
    assert [result["doc_id"] for result in answer["results"]] == [each.document.doc_id for each in alone]
    assert [result["score"] for result in answer["results"]] == pytest.approx([e.score for e in alone], abs=1e-5)
    assert answer["truncated"] is False
    assert all("similarity" in str(result["warmth"]) for result in answer["results"])
    assert "warmth" not in first["results"][0]  # no late model has looked at these


def test_a_late_model_gives_no_embeddings(tiny, steps, client):
    assert client.post("/v1/embeddings", json={"input": "text"}).status_code == 404
    with pytest.raises(UserError, match="gives a vector for each token, which no embedding request takes"):
        Service(retriever=steps["tokens"]["model"])


def test_flags_serve_late_interaction(tiny, steps):
    tokens = steps["tokens"]
    config = Config(retriever=tokens["model"], vectors=Path(tokens["vectors"]), collection=str(tiny.collection))
    service = open_service(config)
    [answer] = TestClient(create_app(service)).post("/search", json={"query": QUESTION, "k": 2}).json()["answers"]
    service.close()
    assert len(answer["results"]) == 2
    assert service.pipeline is not None
    assert service.pipeline.first_stages == ["late"]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_the_page_draws_how_well_words_match(tiny, steps, tmp_path):
    tokens = steps["tokens"]
    flags = {"retriever": tokens["model"], "vectors": tokens["vectors"], "collection": str(tiny.collection)}
    with live(flags, tmp_path / "stderr") as server, chromium(tmp_path / "profile") as tab:
        tab.open(f"{server.url}/?q=which+colour+has+the+apple&k=5")
        tab.wait("document.querySelectorAll('#results li').length === 5")
        warm = tab.run("document.querySelector('.heat').textContent")
        assert warm == tab.run("document.querySelector('.text').textContent")
        levels = tab.run("[...document.querySelector('.heat').querySelectorAll('span')].map((word) => word.className)")
        assert "heat-4" in levels
        assert "heat-0" in levels
        assert tab.complaints == []
