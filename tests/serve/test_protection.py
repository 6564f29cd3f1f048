"""Who is let in, how much, for how long."""

import asyncio
import hmac
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient
from serving import Built

from shortlist.models.outputs import Rows
from shortlist.serve import batcher as batcher_module
from shortlist.serve.app import create_app
from shortlist.serve.gate import Limits
from shortlist.serve.protection import HEADERS, OPEN, Protection
from shortlist.serve.service import Service

KEY = "a-key-of-some-length"
ALLOWED = {"Authorization": f"Bearer {KEY}"}
SECRET = "which colour has the apple"
EMBED = {"input": ["apple"]}
DEFAULT = Limits()
WORK = [("/v1/embeddings", EMBED), ("/search", {"query": "apple"})]

Make = Callable[..., tuple[TestClient, Service]]


@pytest.fixture
def make(built: Built) -> Iterator[Make]:
    """Makes servers over the tiny pipeline."""
    services = []

    def make_one(limits: Limits = DEFAULT, **options: Any) -> tuple[TestClient, Service]:
        service = built.service(limits=limits)
        services.append(service)
        return TestClient(create_app(service, **options), raise_server_exceptions=False), service

    yield make_one
    for service in services:
        service.close()


class Blocked:
    """Stands for the models, and waits until it may go on."""

    def __init__(self) -> None:
        self.go_on, self.started, self.texts = threading.Event(), threading.Event(), 0

    def __call__(self, model: Any, token_ids: Any, **options: Any) -> Rows:
        self.started.set()
        assert self.go_on.wait(60)
        self.texts += len(token_ids)
        return Rows(torch.zeros(len(token_ids), *model.row_shape))


@pytest.fixture
def blocked(monkeypatch: pytest.MonkeyPatch) -> Iterator[Blocked]:
    models = Blocked()
    monkeypatch.setattr(batcher_module, "run_model", models)
    yield models
    models.go_on.set()


@pytest.mark.slow
def test_without_the_key_no_path_answers_but_the_open_ones(make: Make):
    client, _ = make(key=KEY)
    paths = client.get("/openapi.json", headers=ALLOWED).json()["paths"]
    assert set(paths) > {"/search", "/v1/rerank", "/v2/rerank", "/embed", "/rerank", "/score", "/info"}
    for path, methods in paths.items():
        for method in methods:
            body = {} if method == "post" else None
            assert (client.request(method, path, json=body).status_code == 401) == (path not in OPEN), path
            assert client.request(method, path, json=body, headers=ALLOWED).status_code != 401
    for path in ("/openapi.json", "/nope"):
        assert client.get(path).status_code == 401


@pytest.mark.parametrize(
    "header",
    [b"", b"Bearer", f"Bearer {KEY}x".encode(), f"Bearer {KEY[:-1]}".encode(), KEY.encode(), b"Bearer \xff\xfe"],
)
def test_another_key_is_none(make: Make, header: bytes):
    client, _ = make(key=KEY)
    answer = client.get("/info", headers={b"Authorization": header})
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert KEY not in answer.text


def test_keys_are_compared_in_constant_time(make: Make, monkeypatch: pytest.MonkeyPatch):
    compared = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return one == other

    monkeypatch.setattr(hmac, "compare_digest", compare)
    client, _ = make(key=KEY)
    assert client.get("/info", headers={"Authorization": "bearer guess"}).status_code == 401
    assert compared == [(b"guess", KEY.encode())]


def test_the_openapi_document_says_that_a_key_is_needed(make: Make):
    client, _ = make(key=KEY)
    document = client.get("/openapi.json", headers=ALLOWED).json()
    assert document["paths"]["/search"]["post"]["security"] == [{"HTTPBearer": []}]


@pytest.mark.parametrize(
    ("host", "status"),
    [("localhost:8000", 200), ("127.0.0.1", 200), ("[::1]:80", 200), ("evil.example", 400), ("", 400)],
)
def test_a_server_without_a_key_is_only_known_by_its_own_names(make: Make, host: str, status: int):
    client, _ = make(hosts=("localhost", "127.0.0.1", "::1"))
    assert client.get("/info", headers={"Host": host}).status_code == status


def test_every_answer_has_the_security_headers(make: Make):
    client, _ = make()
    for path in ("/health", "/nope", "/"):
        answer = client.get(path)
        assert {name: answer.headers[name] for name in HEADERS} == HEADERS


@pytest.mark.parametrize("told", [True, False], ids=["told", "in chunks"])
def test_a_body_that_is_too_large_is_refused(make: Make, told: bool):
    client, service = make(Limits(body_bytes=1000))
    content: Any = b" " * 2000 if told else (b" " * 100 for _ in range(20))
    answer = client.post("/search", content=content, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["type"]) == (413, "too_large")
    assert service.gate.requests == 0


def test_what_has_more_tokens_than_are_ever_accepted_is_refused(make: Make):
    client, service = make(Limits(queue_tokens=50))
    answer = client.post("/v1/embeddings", json={"input": ["apple boat"] * 20})
    assert answer.status_code == 413
    assert "the server accepts 50 at a time" in answer.json()["error"]["message"]
    assert client.post("/v1/embeddings", json=EMBED).status_code == 200
    assert service.gate.tokens == 0


def test_pages_and_states_take_no_body_and_no_place_in_the_queue(make: Make):
    client, service = make(Limits(queue_requests=1), key=KEY)
    service.gate.enter()
    for path in OPEN:
        assert client.get(path).status_code == 200
        assert client.post(path, content=b"any").status_code == 405
    assert client.post("/nope", json={}, headers=ALLOWED).status_code == 404
    assert client.post("/search", json={"query": "a"}, headers=ALLOWED).status_code == 429
    assert client.get("/search", params={"q": "a"}, headers=ALLOWED).status_code == 429


def test_a_body_that_never_comes_is_not_waited_for(make: Make):
    client, service = make(key=KEY)
    app: Any = client.app
    statuses: list[int] = []

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    async def never() -> Any:
        return await asyncio.get_running_loop().create_future()

    async def ask() -> None:
        for path in OPEN | {"/nope"}:
            headers = [(b"content-length", b"10"), (b"authorization", f"Bearer {KEY}".encode())]
            scope: dict[str, Any] = {"type": "http", "method": "POST", "path": path, "headers": headers}
            scope |= {"query_string": b""}
            scope |= {"raw_path": path.encode(), "root_path": "", "scheme": "http", "http_version": "1.1"}
            await asyncio.wait_for(app(scope, never, send), 30)

    asyncio.run(ask())
    assert sorted(statuses) == [404] + [405] * len(OPEN)
    assert service.gate.requests == 0


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_a_page_of_another_site_cannot_search_without_a_key(make: Make, site: str):
    client, _ = make()
    assert client.get("/search?q=apple", headers={"sec-fetch-site": site}).status_code == 403
    assert client.get("/health", headers={"sec-fetch-site": site}).status_code == 200
    assert client.get("/search?q=apple&rerank=0", headers={"sec-fetch-site": "none"}).status_code == 200


def test_a_line_of_the_log_is_one_line_without_control_signs(make: Make, capfd: pytest.CaptureFixture[str]):
    client, _ = make(log="queries")
    client.post("/x%0afalse%1b[31m", json={"query": "a"})
    client.get("/search?q=one%0atwo%1b[31m")
    client.post("/search", content='{"query": "a\\n\u202e"}'.encode(), headers={"content-type": "application/json"})
    err = capfd.readouterr().err
    assert len(err.splitlines()) == 5
    assert "one\\ntwo\\x1b[31m" in err
    assert all(line.isprintable() for line in err.split("\n"))


@pytest.mark.parametrize("limits", [Limits(queue_requests=1), Limits(queue_tokens=8)], ids=["of requests", "of tokens"])
def test_a_full_queue_is_told_to_new_requests_and_what_was_accepted_is_answered(
    make: Make, blocked: Blocked, limits: Limits
):
    client, service = make(limits)
    with ThreadPoolExecutor(1) as threads:
        accepted = threads.submit(client.post, "/v1/embeddings", json=EMBED)
        assert blocked.started.wait(30)
        refused = client.post("/v1/embeddings", json=EMBED)
        assert (refused.status_code, refused.json()["error"]["type"]) == (429, "overloaded")
        assert int(refused.headers["retry-after"]) >= 1
        blocked.go_on.set()
        assert accepted.result().status_code == 200
    assert client.post("/v1/embeddings", json=EMBED).status_code == 200
    assert service.gate.requests == service.gate.tokens == 0


def test_a_search_reserves_what_its_reranker_may_read_before_anything_runs(make: Make, blocked: Blocked):
    client, service = make()
    with ThreadPoolExecutor(1) as threads:
        accepted = threads.submit(client.post, "/search", json={"query": "apple", "depth": 7})
        assert blocked.started.wait(30)
        assert service.gate.tokens == 7 * 196
        blocked.go_on.set()
        assert accepted.result().status_code == 200


@pytest.mark.slow
@pytest.mark.parametrize(("path", "body"), WORK)
def test_a_request_that_takes_too_long_is_ended_and_what_of_it_waits_is_not_run(
    make: Make, blocked: Blocked, path: str, body: dict
):
    client, service = make(Limits(timeout_seconds=0.3))
    held = service.batcher.submit("reranker", [[1, 2]])
    assert blocked.started.wait(30)
    answer = client.post(path, json=body)
    assert (answer.status_code, answer.json()["error"]["type"]) == (504, "timeout")
    blocked.go_on.set()
    assert len(held.result(30).values) == 1
    service.batcher.submit("reranker", [[1, 2]]).result(30)
    assert blocked.texts == 2
    assert service.gate.requests == service.gate.tokens == 0


async def leave_early(app: Protection, service: Service, path: str, body: dict) -> list:
    """What is sent to a client that leaves as soon as its work waits."""

    messages = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]
    sent: list[Any] = []

    async def receive() -> Any:
        if messages:
            return messages.pop()
        while not service.batcher.queue.works:
            await asyncio.sleep(0.01)
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"content-type", b"application/json")]
    scope: dict[str, Any] = {"type": "http", "method": "POST", "path": path, "headers": headers}
    scope |= {"query_string": b"", "raw_path": path.encode(), "root_path": "", "scheme": "http", "http_version": "1.1"}
    await asyncio.wait_for(app(scope, receive, send), 30)
    return sent


@pytest.mark.parametrize(("path", "body"), WORK)
def test_the_work_of_a_client_that_has_left_is_not_run(make: Make, blocked: Blocked, path: str, body: dict):
    client, service = make()
    held = service.batcher.submit("reranker", [[1, 2]])
    assert blocked.started.wait(30)
    app: Any = client.app
    assert asyncio.run(leave_early(app, service, path, body)) == []
    blocked.go_on.set()
    assert len(held.result(30).values) == 1
    service.batcher.submit("reranker", [[1, 2]]).result(30)
    assert blocked.texts == 2
    assert service.gate.requests == service.gate.tokens == 0
    assert "shortlist_cancelled_total 1" in client.get("/metrics").text


def test_a_server_that_goes_down_refuses_new_work_and_says_that_it_is_not_ready(make: Make):
    client, service = make()
    assert client.get("/ready").json() == {"status": "ready"}
    service.gate.draining = True
    refused = client.post("/v1/embeddings", json=EMBED)
    assert (refused.status_code, refused.json()["error"]["type"]) == (503, "draining")
    assert (refused.headers["connection"], refused.headers["retry-after"]) == ("close", "5")
    assert (client.get("/ready").status_code, client.get("/health").status_code) == (503, 200)


def test_a_server_whose_models_thread_has_ended_is_broken(make: Make):
    client, service = make()
    service.batcher.close()
    answer = client.get("/health")
    assert (answer.status_code, answer.json()) == (503, {"status": "broken"})
    assert client.get("/ready").status_code == 503


def test_a_bug_of_ours_is_told_without_its_words(make: Make, monkeypatch: pytest.MonkeyPatch):
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError(SECRET)

    monkeypatch.setattr(batcher_module, "run_model", broken)
    client, service = make()
    answer = client.post("/v1/embeddings", json=EMBED)
    assert (answer.status_code, answer.json()["error"]["type"]) == (500, "internal_error")
    assert SECRET not in answer.text
    assert service.gate.requests == 0


@pytest.mark.slow
@pytest.mark.parametrize(("log", "lines", "told"), [("errors", 0, False), ("requests", 2, False), ("queries", 3, True)])
def test_texts_are_only_logged_when_asked(
    make: Make, capfd: pytest.CaptureFixture[str], log: Any, lines: int, told: bool
):
    client, _ = make(log=log, key=KEY)
    assert client.post("/search", json={"query": SECRET}, headers=ALLOWED).status_code == 200
    assert client.get(f"/{SECRET}?q={SECRET}", headers=ALLOWED).status_code == 404
    err = capfd.readouterr().err
    assert (len(err.splitlines()), SECRET in err, KEY in err) == (lines, told, False)
