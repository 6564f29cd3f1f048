"""A server in a process of its own, asked by the clients that people have, and ended in the middle of its work."""

import os
import re
import signal
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import httpx
import numpy as np
import pytest
from processes import PATIENCE
from serving import Built, Live, live
from tiny import DOCUMENTS, QUERIES

from shortlist import Reranker, Retriever

pytestmark = pytest.mark.slow

KEY = "a-key-of-some-length"
TEXTS = [document.text for document in DOCUMENTS]
QUESTION = QUERIES[0].text


@pytest.fixture(scope="module")
def server(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    folder = tmp_path_factory.mktemp("live")
    (folder / "key").write_text(f"{KEY}\n")
    with live({**built.names, "api_key_file": folder / "key"}, folder / "stderr") as server:
        yield server


def test_the_client_that_the_documents_show_works(server: Live, built: Built):
    document = (Path(__file__).parents[2] / "docs/serving.md").read_text("utf-8")
    [block] = re.findall(r"^```python\n(.*?)^```", document, re.MULTILINE | re.DOTALL)
    space: dict = {}
    exec(block.replace("http://127.0.0.1:8000", server.url).replace('"none"', repr(KEY)), space)
    ours = Retriever.load(str(built.tiny.retriever))
    for name, expected in (
        ("vectors", ours.encode_documents(["Otters live in rivers."])),
        ("queries", ours.encode_queries(["where do otters live"])),
    ):
        np.testing.assert_allclose([each.embedding for each in space[name].data], expected, atol=1e-6)


def test_openais_client_gets_the_retrievers_vectors(server: Live, built: Built):
    openai = pytest.importorskip("openai")
    expected = Retriever.load(str(built.tiny.retriever)).encode_documents(TEXTS)
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0) as client:
        answer = client.embeddings.create(model="any", input=TEXTS)
        np.testing.assert_allclose([each.embedding for each in answer.data], expected, atol=1e-6)
        assert answer.usage.total_tokens > 0
        answer = client.embeddings.create(model="any", input=TEXTS[0], encoding_format="float", dimensions=4)
        assert len(answer.data[0].embedding) == 4
        with pytest.raises(openai.UnprocessableEntityError) as refused:
            client.embeddings.create(model="any", input=[])
        assert refused.value.body["field"] == "input"
    stranger = openai.OpenAI(base_url=f"{server.url}/v1", api_key="another-key-of-some-length", max_retries=0)
    with stranger, pytest.raises(openai.AuthenticationError):
        stranger.embeddings.create(model="any", input="a")


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_coheres_client_gets_the_rerankers_order(server: Live, built: Built, version: str):
    cohere = pytest.importorskip("cohere")
    scores = Reranker.load(str(built.tiny.reranker)).score(QUESTION, TEXTS)
    client = (cohere.Client if version == "v1" else cohere.ClientV2)(api_key=KEY, base_url=server.url)
    answer = client.rerank(model="any", query=QUESTION, documents=TEXTS, top_n=5)
    assert [result.index for result in answer.results] == np.argsort(-scores)[:5].tolist()
    expected = 1 / (1 + np.exp(np.sort(-scores)[:5]))
    assert [result.relevance_score for result in answer.results] == pytest.approx(expected, abs=1e-6)
    assert answer.meta.api_version.version == version[1:]


def ask_until(stopped: Event, url: str, answers: Counter[str]) -> None:
    """Ask over and over, on one connection as long as the server lets it; count what comes."""
    with httpx.Client(base_url=url, timeout=60) as client:
        while not stopped.is_set():
            try:
                answers[str(client.post("/search", json={"query": QUESTION, "depth": 12}).status_code)] += 1
            except httpx.ConnectError:
                answers["not accepted"] += 1
                return
            except httpx.TransportError as error:
                answers[type(error).__name__] += 1


@pytest.mark.parametrize("workers", [1, 2])
def test_a_server_that_is_ended_under_load_answers_what_it_accepted(built: Built, tmp_path: Path, workers: int):
    stopped, answers = Event(), Counter[str]()
    with live({**built.names, "workers": workers, "log": "requests"}, tmp_path / "stderr") as server:
        with ThreadPoolExecutor(6) as threads:
            asking = [threads.submit(ask_until, stopped, server.url, answers) for _ in range(6)]
            while answers["200"] < 30:
                time.sleep(0.05)
            assert server.terminate() == 0
            stopped.set()
        for each in asking:
            each.result()
    log = (tmp_path / "stderr").read_text()
    assert QUESTION not in log
    # a request that meets an idle connection just as it is closed never arrives; each of the six clients can have one
    arrived = Counter(re.findall(r"^POST /search (\d+) ", log, re.MULTILINE))
    assert arrived == {name: count for name, count in answers.items() if name.isdecimal()}, answers
    assert set(arrived) <= {"200", "429", "503"}
    assert answers.total() - arrived.total() - answers["not accepted"] <= 6


def test_a_worker_that_dies_is_replaced(built: Built, tmp_path: Path):
    with live({**built.names, "workers": 2}, tmp_path / "stderr") as server:
        children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children")
        if not children.exists():
            pytest.skip("needs /proc with children")
        workers = [int(pid) for pid in children.read_text().split() if b"spawn_main" in command(pid)]
        assert len(workers) == 2
        wait_until_ready(tmp_path / "stderr", 2)
        os.kill(workers[0], signal.SIGKILL)
        wait_until_ready(tmp_path / "stderr", 3)
        answers = [httpx.post(f"{server.url}/embed", json={"inputs": "apple"}).status_code for _ in range(10)]
        assert answers == [200] * 10
        wait_until_counted(server.url, 'shortlist_requests_total{path="/embed",status="200"} 10')
        assert server.terminate() == 0


def wait_until_ready(stderr: Path, count: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while stderr.read_text().count("ready on") < count:
        assert time.monotonic() < deadline
        time.sleep(0.2)


def wait_until_counted(url: str, line: str) -> None:
    """Whichever worker answers, it counts what the others do."""
    deadline = time.monotonic() + PATIENCE
    while line not in (metrics := httpx.get(f"{url}/metrics").text).splitlines():
        assert time.monotonic() < deadline, metrics
        time.sleep(0.2)


def command(pid: str) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()
