"""The endpoints, in this process."""

import base64
import json
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from serving import Built
from tiny import DOCUMENTS

from shortlist import Pipeline
from shortlist.serve import Config, open_service, openai_ids, served_pipeline
from shortlist.serve.app import create_app
from shortlist.serve.gate import Limits
from shortlist.serve.service import Service
from shortlist.text.inputs import Inputs

QUESTION = "which colour has the apple"
TEXTS = [document.text for document in DOCUMENTS[:5]]
LONG = "apple " * 500


@pytest.fixture(scope="module")
def pipeline(built: Built) -> Pipeline:
    """For expectations: the service has models of its own, which nobody else may run."""
    return built.pipeline()


@pytest.fixture(scope="module")
def client(built: Built) -> Iterator[TestClient]:
    service = built.service()
    service.warm_up()
    yield TestClient(create_app(service))
    service.close()


def stage(pipeline: Pipeline, name: str) -> Any:
    """What a step works with."""
    [found] = [step.stage for step in pipeline.steps if step.name == name]
    return found


def ask(client: TestClient, path: str, **body: Any) -> Any:
    answer = client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_search_finds_what_the_pipeline_does_and_tells_what_every_stage_made_of_it(
    client: TestClient, pipeline: Pipeline
):
    [expected] = pipeline.answer([QUESTION], 12, depth=5)
    told = ask(client, "/search", query=QUESTION, k=12, depth=5, explain=True)
    [answer] = told["answers"]
    assert told["milliseconds"] >= sum(answer["milliseconds"].values())
    assert answer["query"] == QUESTION
    assert [result["doc_id"] for result in answer["results"]] == [each.document.doc_id for each in expected.results]
    assert [result["rank"] for result in answer["results"]] == list(range(1, 13))
    for result, each in zip(answer["results"], expected.results, strict=True):
        assert result["score"] == pytest.approx(each.score, abs=1e-6)
        assert (result["title"], result["text"]) == (each.document.title, each.document.text)
        assert {step: (at["rank"], at.get("moved")) for step, at in result["stages"].items()} == {
            step: (at.rank, at.moved) for step, at in each.places.items()
        }
    assert set(answer["milliseconds"]) == {"bm25", "dense", "hybrid", "documents", "reranker"}
    assert answer["truncated"] is False
    first = answer["results"][0]
    assert "".join(piece["text"] for piece in first["heading"]) == (first["title"] or first["doc_id"])
    assert "".join(piece["text"] for piece in first["passage"]) == first["text"].strip()
    assert {piece["text"] for piece in first["passage"] if piece["found"]} <= {"colour", "apple"}


def test_a_search_that_need_not_be_explained_is_short(client: TestClient):
    [answer] = ask(client, "/search", query=QUESTION, k=1)["answers"]
    assert set(answer) == {"query", "results"}
    assert set(answer["results"][0]) == {"rank", "doc_id", "score", "title", "text", "url", "metadata"}


@pytest.mark.slow
def test_the_first_stage_may_have_its_share_of_the_score(built: Built):
    pipeline, names = built.pipeline(), built.names
    mixed = Pipeline.load(names.pop("collection"), **names, reranker_share=0.4)
    service = open_service(built.config(reranker_share=0.4))
    [answer] = ask(TestClient(create_app(service)), "/search", query=QUESTION, k=12, depth=5)["answers"]
    service.close()
    scores = [each.score for each in mixed.search(QUESTION, 12, depth=5)]
    assert [result["score"] for result in answer["results"]] == pytest.approx(scores, abs=1e-6)
    assert scores != pytest.approx([each.score for each in pipeline.search(QUESTION, 12, depth=5)], abs=1e-3)


@pytest.mark.parametrize("stage", ["bm25", "dense", "hybrid"])
def test_stages_can_be_chosen(client: TestClient, pipeline: Pipeline, stage: Any):
    expected = pipeline.search(QUESTION, 4, first_stage=stage, rerank=False)
    [answer] = ask(client, "/search", query=QUESTION, k=4, first_stage=stage, rerank=False, explain=True)["answers"]
    assert [result["doc_id"] for result in answer["results"]] == [each.document.doc_id for each in expected]
    assert "reranker" not in answer["milliseconds"]


def test_several_queries_are_answered_in_their_order(client: TestClient):
    queries = [QUESTION, "which price has the boat"]
    together = ask(client, "/search", queries=queries)["answers"]
    assert together == [ask(client, "/search", query=query)["answers"][0] for query in queries]


def test_a_query_and_a_document_that_are_not_read_to_their_end_are_marked(built: Built):
    service = built.service()
    reranker: Any = service.reranker
    reranker.inputs = Inputs(reranker.inputs.form.with_lengths(document=18), reranker.inputs.tokenizer)
    client = TestClient(create_app(service))
    [answer] = ask(client, "/search", query=QUESTION, k=12, explain=True)["answers"]
    texts = {result["doc_id"]: result["truncated"] for result in answer["results"]}
    assert texts == {d.doc_id: len(d.text.split()) + len(QUESTION.split()) + 6 > 18 for d in DOCUMENTS}
    query = "apple " * 40
    [answer] = ask(client, "/search", query=query, rerank=False, explain=True)["answers"]
    assert answer["truncated"] is True
    service.close()


def test_embeddings_are_the_retrievers_as_numbers_and_as_bytes(client: TestClient, built: Built, pipeline: Pipeline):
    retriever: Any = stage(pipeline, "dense").retriever
    expected = retriever.encode_documents(TEXTS)
    plain = ask(client, "/v1/embeddings", input=TEXTS, model="whatever")
    assert [each["index"] for each in plain["data"]] == list(range(5))
    np.testing.assert_allclose([each["embedding"] for each in plain["data"]], expected, atol=1e-6)
    packed = ask(client, "/v1/embeddings", input=TEXTS, encoding_format="base64")["data"]
    vectors = [np.frombuffer(base64.b64decode(each["embedding"]), dtype="<f4") for each in packed]
    np.testing.assert_allclose(vectors, expected, atol=1e-6)
    assert plain["model"] == built.tiny.retriever.name
    tokens = sum(map(len, retriever.inputs.document_ids([DOCUMENTS[i] for i in range(5)])))
    assert plain["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
    assert plain["truncated"] == []


def test_queries_get_the_queries_prompt_and_vectors_can_be_narrowed(client: TestClient, pipeline: Pipeline):
    [expected] = stage(pipeline, "dense").retriever.encode_queries([QUESTION])
    [found] = ask(client, "/v1/embeddings", input=QUESTION, input_type="query")["data"]
    np.testing.assert_allclose(found["embedding"], expected, atol=1e-6)
    [found] = ask(client, "/v1/embeddings", input=QUESTION, input_type="query", dimensions=8)["data"]
    np.testing.assert_allclose(found["embedding"], expected[:8] / np.linalg.norm(expected[:8]), atol=1e-6)


def test_an_input_that_was_cut_is_named(client: TestClient):
    assert ask(client, "/v1/embeddings", input=["apple", LONG])["truncated"] == [1]
    assert ask(client, "/v2/rerank", query="apple", documents=["boat", LONG])["truncated"] == [1]


def relevance(score: float) -> float:
    return 1 / (1 + np.exp(-float(score)))


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_documents_are_reranked_for_coheres_and_jinas_clients(client: TestClient, pipeline: Pipeline, version: str):
    scores = stage(pipeline, "reranker").score(QUESTION, TEXTS)
    best = np.argsort(-scores)
    asked = {"query": QUESTION, "documents": [TEXTS[0], *({"text": text} for text in TEXTS[1:])]}
    answer = ask(client, f"/{version}/rerank", **asked)
    assert [result["index"] for result in answer["results"]] == best.tolist()
    for result in answer["results"]:
        assert result["relevance_score"] == pytest.approx(relevance(scores[result["index"]]), abs=1e-6)
    assert answer["meta"]["api_version"] == {"version": version[1:]}
    [first, second] = ask(client, f"/{version}/rerank", **asked, top_n=2, return_documents=True)["results"]
    assert (first["index"], first["document"]) == (best[0], {"text": TEXTS[best[0]]})
    assert second["index"] == best[1]


def test_documents_can_be_cut_before_they_are_reranked(client: TestClient):
    [short] = ask(client, "/v2/rerank", query="apple", documents=["the boat has"])["results"]
    answer = ask(client, "/v2/rerank", query="apple", documents=["the boat has a price"], max_tokens_per_doc=3)
    assert answer["results"][0] == pytest.approx(short)
    assert answer["truncated"] == [0]


def test_texts_are_embedded_for_the_clients_of_text_embeddings_inference(client: TestClient, pipeline: Pipeline):
    retriever: Any = stage(pipeline, "dense").retriever
    np.testing.assert_allclose(ask(client, "/embed", inputs=TEXTS), retriever.encode_documents(TEXTS), atol=1e-6)
    [vector] = ask(client, "/embed", inputs=QUESTION, prompt_name="query")
    np.testing.assert_allclose(vector, retriever.encode_queries([QUESTION])[0], atol=1e-6)
    assert len(ask(client, "/embed", inputs=[LONG, "a"], truncate=True)) == 2


def test_texts_are_reranked_for_the_clients_of_text_embeddings_inference(client: TestClient, pipeline: Pipeline):
    scores = stage(pipeline, "reranker").score(QUESTION, TEXTS)
    ranks = ask(client, "/rerank", query=QUESTION, texts=TEXTS, raw_scores=True, return_text=True)
    assert [(each["index"], each["text"]) for each in ranks] == [(i, TEXTS[i]) for i in np.argsort(-scores)]
    assert [each["score"] for each in ranks] == pytest.approx(sorted(scores, reverse=True), abs=1e-6)
    ranks = ask(client, "/rerank", query=QUESTION, texts=TEXTS)
    assert [each["score"] for each in ranks] == pytest.approx(sorted(map(relevance, scores), reverse=True), abs=1e-6)
    assert set(ranks[0]) == {"index", "score"}


def test_pairs_are_scored_for_the_clients_of_vllm(client: TestClient, pipeline: Pipeline):
    reranker = stage(pipeline, "reranker")
    one_to_many = ask(client, "/score", text_1=QUESTION, text_2=TEXTS[:2])["data"]
    assert ask(client, "/v1/score", text_1=QUESTION, text_2=TEXTS[:2])["data"] == one_to_many
    expected = [relevance(score) for score in reranker.score(QUESTION, TEXTS[:2])]
    assert [each["score"] for each in one_to_many] == pytest.approx(expected, abs=1e-6)
    pairwise = ask(client, "/score", text_1=[QUESTION, "boat"], text_2=TEXTS[:2])["data"]
    assert pairwise[0]["score"] == pytest.approx(expected[0], abs=1e-6)
    assert pairwise[1]["score"] == pytest.approx(relevance(reranker.score("boat", TEXTS[1:2])[0]), abs=1e-6)


def test_texts_are_embedded_for_coheres_client(client: TestClient, pipeline: Pipeline):
    retriever: Any = stage(pipeline, "dense").retriever
    answer = ask(client, "/v2/embed", texts=TEXTS, input_type="search_document", model="any")
    np.testing.assert_allclose(answer["embeddings"]["float"], retriever.encode_documents(TEXTS), atol=1e-6)
    assert (answer["texts"], answer["response_type"], answer["truncated"]) == (TEXTS, "embeddings_by_type", [])
    both = {"embedding_types": ["float", "base64"], "output_dimension": 8}
    found = ask(client, "/v2/embed", texts=[QUESTION, LONG], input_type="search_query", **both)
    packed = [np.frombuffer(base64.b64decode(vector), dtype="<f4") for vector in found["embeddings"]["base64"]]
    np.testing.assert_allclose(packed, found["embeddings"]["float"], atol=1e-6)
    expected = retriever.encode_queries([QUESTION])[0][:8]
    np.testing.assert_allclose(packed[0], expected / np.linalg.norm(expected), atol=1e-6)
    assert found["truncated"] == [1]


def test_documents_are_reranked_where_text_embeddings_inference_has_texts(client: TestClient):
    asked = {"query": QUESTION, "documents": TEXTS, "top_n": 3, "model": "any", "user": "me"}
    short, long = ask(client, "/rerank", **asked), ask(client, "/v2/rerank", **asked)
    assert short["results"] == long["results"]
    assert len(short["results"]) == 3


def test_models_are_listed_for_openais_clients(client: TestClient, built: Built):
    answer = client.get("/v1/models").json()
    names = [model["id"] for model in answer["data"]]
    assert names == [built.tiny.retriever.name, built.tiny.reranker.name]
    assert (answer["object"], answer["data"][0]["object"]) == ("list", "model")


def test_token_ids_of_openais_tokenizer_are_read_as_their_texts(client: TestClient, monkeypatch: pytest.MonkeyPatch):
    class Bytes:
        """Stands for a vocabulary of the 256 bytes."""

        name = "bytes"

        def decode(self, ids: list[int]) -> str:
            if max(ids) > 255:
                raise KeyError("Invalid token for decoding")
            return bytes(ids).decode()

    asked: list[str] = []

    def load(vocabulary: str) -> Future[Any]:
        asked.append(vocabulary)
        loaded: Future[Any] = Future()
        loaded.set_result(Bytes())
        return loaded

    monkeypatch.setattr(openai_ids, "_loading", load)
    ids = [list(text.encode()) for text in TEXTS]
    expected = ask(client, "/v1/embeddings", input=TEXTS)
    assert ask(client, "/v1/embeddings", input=ids, model="text-embedding-3-small") == expected
    alone = ask(client, "/v1/embeddings", input=TEXTS[0])
    assert ask(client, "/v1/embeddings", input=ids[0], model="our-own") == alone
    assert asked == ["cl100k_base", "cl100k_base"]
    answer = client.post("/v1/embeddings", json={"input": [[1], [300]]})
    assert (answer.status_code, answer.json()["error"]["field"]) == (422, "input")


def test_token_ids_without_their_vocabulary_are_refused_with_a_way_out(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
):
    def fail(vocabulary: str) -> Future[Any]:
        raise OSError("no network")

    monkeypatch.setattr(openai_ids, "_loading", fail)
    answer = client.post("/v1/embeddings", json={"input": [[1, 2, 3]]})
    assert answer.status_code == 422
    assert "(no network); send texts instead: LangChain's OpenAIEmbeddings(check_" in answer.json()["error"]["message"]


def test_a_search_can_be_an_address(client: TestClient):
    asked = {"k": 3, "first_stage": "bm25", "rerank": False}
    assert client.get("/search", params={"q": QUESTION, **asked}).json() == ask(
        client, "/search", query=QUESTION, **asked
    )
    for params, field in (({}, "q"), ({"q": "a", "k": "x"}, "k"), ({"q": "a", "kk": "3"}, "kk")):
        answer = client.get("/v1/search", params=params)
        assert (answer.status_code, answer.json()["error"]["field"]) == (422, field)


def test_a_field_that_is_null_asks_for_nothing(client: TestClient):
    assert ask(client, "/v1/embeddings", input="a", task=None) == ask(client, "/v1/embeddings", input="a")


def test_a_body_that_is_not_said_to_be_json_is_told_how_to_say_it(client: TestClient):
    answer = client.post("/search", content=b'{"query": "a"}', headers={"content-type": "text/plain"})
    assert answer.status_code == 422
    assert "`content-type: application/json`" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/search", {}, "query"),
        ("/search", {"query": "a", "queries": ["b"]}, "query"),
        ("/search", {"query": ""}, "query"),
        ("/search", {"query": 3}, "query"),
        ("/search", {"queries": ["a", None]}, "queries.1"),
        ("/search", {"query": "a", "k": 1001}, "k"),
        ("/search", {"query": "a", "depth": 0}, "depth"),
        ("/search", {"query": "a", "first_stage": "sparse"}, "first_stage"),
        ("/search", {"query": "a", "kk": 3}, "kk"),
        ("/search", {"query": "a", "\ud800": 3}, "\\ud800"),
        ("/search", {"query": LONG}, "query"),
        ("/search", {"queries": ["a", LONG]}, "queries"),
        ("/score", {"text_1": ["a", LONG], "text_2": ["b", "c"]}, "text_1"),
        ("/v1/embeddings", {"input": []}, "input"),
        ("/v1/embeddings", {"input": [1, "a"]}, "input"),
        ("/v1/embeddings", {"input": [[1], "a"]}, "input"),
        ("/v1/embeddings", {"input": "a", "task": "retrieval.query"}, "task"),
        ("/v1/embeddings", {"input": "a", "truncate_prompt_tokens": 3}, "truncate_prompt_tokens"),
        ("/v2/embed", {"texts": ["a"]}, "input_type"),
        ("/v2/embed", {"texts": ["a"], "input_type": "classification"}, "input_type"),
        ("/v2/embed", {"texts": ["a"], "input_type": "search_query", "embedding_types": ["int8"]}, "embedding_types.0"),
        ("/v2/embed", {"texts": ["a"], "input_type": "search_query", "truncate": "START"}, "truncate"),
        ("/v2/embed", {"texts": ["a", LONG], "input_type": "search_document", "truncate": "NONE"}, "texts.1"),
        ("/v2/embed", {"texts": ["a"], "input_type": "search_query", "output_dimension": 33}, "output_dimension"),
        ("/embed", {"inputs": "a", "truncation_direction": "left"}, "truncation_direction"),
        ("/rerank", {"query": "a"}, "texts"),
        ("/rerank", {"query": "a", "documents": ["b"], "raw_scores": True}, "raw_scores"),
        ("/rerank", {"query": "a", "documents": ["b", 3]}, "documents.1"),
        ("/v2/rerank", {"query": "a", "documents": ["b"], "rank_fields": ["text"]}, "rank_fields"),
        ("/v1/score", {"text_1": "a", "text_2": "b", "use_activation": False}, "use_activation"),
        ("/search", {"q": "a"}, "q"),
        ("/search", {"query": "a", "filter": {"tag": "x"}}, "filter"),
        ("/v1/embeddings", {"input": ["a"] * 2049}, "input"),
        ("/v1/embeddings", {"input": "a", "dimensions": 33}, "dimensions"),
        ("/v1/embeddings", {"input": "a", "encoding_format": "hex"}, "encoding_format"),
        ("/v1/embeddings", {"input": "\ud800"}, "input"),
        ("/embed", {"inputs": ["a", LONG]}, "inputs.1"),
        ("/v2/rerank", {"query": "a", "documents": ["b", {"txt": "c"}]}, "documents.1"),
        ("/v2/rerank", {"documents": ["b"]}, "query"),
        ("/v2/rerank", {"query": LONG, "documents": ["b"]}, "query"),
        ("/rerank", {"query": "a", "texts": [LONG]}, "texts.0"),
        ("/score", {"text_1": ["a", "b"], "text_2": ["c"]}, "text_1"),
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_a_wrong_field_is_named(client: TestClient, path: str, body: dict, field: str):
    content = json.dumps(body).encode()
    answer = client.post(path, content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 422, answer.text
    error = answer.json()["error"]
    assert error["type"] == "invalid_request"
    assert error["field"] == field
    assert len(error["message"]) < 300


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b"\xff\xfe\x00", 400),
        (b'{"query": "\xff"}', 400),
        (b"[" * 100_000, 400),
        (b'{"query": "a", "k": ' + b"9" * 5000 + b"}", 400),
        (b'{"query": "a", "k": 1e999}', 422),
        (b'{"query": "a", "k": NaN}', 422),
        (b"[]", 422),
        (b"null", 422),
        (b"", 422),
        (b'"query"', 422),
    ],
    ids=lambda value: ascii(value)[:20],
)
def test_a_broken_body_is_refused(client: TestClient, body: bytes, status: int):
    answer = client.post("/search", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["field"] in ("body", "k")


def test_other_paths_and_methods_are_refused_in_the_same_form(client: TestClient):
    assert client.get("/nope").json()["error"]["type"] == "not_found"
    assert client.put("/search").json()["error"]["type"] == "invalid_request"
    assert client.put("/search").status_code == 405
    assert client.get("/docs").status_code == 404  # FastAPI's page would load scripts from elsewhere


def test_a_stage_that_is_not_there_is_named(built: Built):
    service = Service(served_pipeline(Config(collection=built.names["collection"], bm25=built.words)))
    client = TestClient(create_app(service))
    for body, field in (({"first_stage": "dense"}, "first_stage"), ({"rerank": True}, "rerank")):
        answer = client.post("/search", json={"query": "apple", **body})
        assert (answer.status_code, answer.json()["error"]["field"]) == (422, field)
    assert ask(client, "/search", query="apple", k=1)["answers"][0]["results"][0]["doc_id"] == "d0"
    service.close()


@pytest.mark.parametrize(
    ("model", "there"),
    [
        ("retriever", {"/v1/embeddings", "/v2/embed", "/embed"}),
        ("reranker", {"/v1/rerank", "/v2/rerank", "/rerank", "/score", "/v1/score"}),
    ],
)
def test_a_server_with_one_model_has_the_paths_that_it_can_answer(built: Built, model: str, there: set[str]):
    service = Service(**{model: built.names[model]})  # type: ignore[arg-type]
    client = TestClient(create_app(service))
    state = {"/health", "/ready", "/info", "/metrics", "/v1/models"}
    assert set(client.get("/openapi.json").json()["paths"]) == there | state
    assert client.post("/search", json={"query": "a"}).status_code == 404
    assert client.get("/").status_code == 404
    if "/embed" in there:
        assert len(ask(client, "/embed", inputs="apple")[0]) == 32
    else:
        assert len(ask(client, "/rerank", query="a", texts=["apple"])) == 1
    service.close()


def test_info_tells_models_contracts_and_limits(client: TestClient, built: Built):
    info = client.get("/info").json()
    assert info["retriever"]["name"] == built.tiny.retriever.name
    assert info["retriever"]["dim"] == 32
    assert info["reranker"]["contract"]["pair_length"] == 196
    assert info["first_stages"] == ["bm25", "dense", "hybrid"]
    assert info["rerankers"] == ["reranker"]
    assert info["limits"] == {
        **Limits()._asdict(),
        "texts": 2048,
        "queries": 128,
        "characters": 262144,
        "k": 1000,
        "depth": 1000,
    }


def test_what_happens_is_counted(client: TestClient):
    def count(series: str) -> float:
        lines = client.get("/metrics").text.splitlines()
        return next((float(line.split()[-1]) for line in lines if line.startswith(series + " ")), 0.0)

    def counts() -> list[float]:
        names = ['requests_total{path="/search",status="200"}', 'requests_total{path="other",status="404"}']
        names += ['stage_seconds_count{stage="bm25"}', 'batch_texts_total{model="reranker"}']
        return [count(f"shortlist_{name}") for name in names]

    before = counts()
    ask(client, "/search", query=QUESTION, depth=4)
    client.get("/some/path")
    assert [now - then for now, then in zip(counts(), before, strict=True)] == [1, 1, 1, 4]
    assert count("shortlist_queue_requests") == count("shortlist_queue_tokens") == 0


def test_a_search_among_documents_that_fit_a_filter(client: TestClient, pipeline: Pipeline):
    where = "doc_id in ('d1', 'd4', 'd7') and url = ''"
    [expected] = pipeline.answer([QUESTION], 5, where=where)
    [answer] = ask(client, "/v1/search", query=QUESTION, k=5, where=where)["answers"]
    assert [result["doc_id"] for result in answer["results"]] == [r.document.doc_id for r in expected.results]
    assert {result["doc_id"] for result in answer["results"]} == {"d1", "d4", "d7"}
    link = client.get("/search", params={"q": QUESTION, "k": 2, "where": where, "answer": "documents"}).json()
    assert [r["doc_id"] for r in link["answers"][0]["results"]] == [r["doc_id"] for r in answer["results"]][:2]
    assert "chunk" not in answer["results"][0]


def test_a_filter_that_does_not_fit_is_a_bad_request_that_no_log_repeats(client: TestClient, capsys):
    answer = client.post("/search", json={"query": QUESTION, "where": "secret = 'x'"})
    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error["field"]) == (400, "invalid_filter", "where")
    assert error["message"].startswith("where \"secret = 'x'\": at character 1: unknown field 'secret': known: doc_id")
    assert client.get("/search", params={"q": QUESTION, "where": "doc_id ="}).status_code == 400
    assert client.post("/search", json={"query": QUESTION, "where": "x" * 20_001}).status_code == 422
    assert client.post("/search", json={"query": QUESTION, "answer": "pages"}).status_code == 422
    out, err = capsys.readouterr()
    assert "secret" not in out + err
