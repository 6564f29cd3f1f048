"""Replicas on a cluster of two nodes, one of which is killed under load."""

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from operator import eq
from pathlib import Path
from threading import Event
from typing import Any

import httpx
import pytest
from cluster import two_nodes
from processes import PATIENCE, free_port
from serving import Built

from shortlist.serve import Config, open_app
from shortlist.serve.deploy import application

pytest.importorskip("ray.serve", reason="needs Ray Serve", exc_type=ImportError)

pytestmark = pytest.mark.slow
QUERY = {"query": "which colour has the apple"}


@pytest.fixture(scope="module")
def url(built: Built) -> Iterator[str]:
    """Two replicas over the tiny pipeline that accept three requests each."""
    from ray import serve

    port = free_port()
    with two_nodes(), pytest.MonkeyPatch.context() as patch:
        patch.setattr("ray.serve._private.api.HTTP_PROXY_TIMEOUT", PATIENCE)  # a minute is short on a busy machine
        serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
        names: Any = built.names | {"vectors": built.vectors, "bm25": built.words}
        make_app = partial(open_app, Config(**names, queue_requests=3))
        serve.run(application(make_app, replicas=2, queue_requests=3, drain_seconds=30.0), name="shortlist")
        yield f"http://127.0.0.1:{port}"
        serve.shutdown()


def test_replicas_answer_as_one_process_does(url: str, built: Built):
    [answer] = httpx.post(f"{url}/search", json=QUERY, timeout=PATIENCE).json()["answers"]
    expected = built.pipeline().search(QUERY["query"])
    assert [result["doc_id"] for result in answer["results"]] == [each.document.doc_id for each in expected]
    refused = httpx.post(f"{url}/search", json={"query": "a", "k": 0})
    assert (refused.status_code, refused.json()["error"]["field"]) == (422, "k")
    assert refused.headers["x-content-type-options"] == "nosniff"


class Client:
    """Asks one question after the other until it is stopped, and counts the answers of all clients by kind."""

    def __init__(self, url: str, answers: Counter[str]) -> None:
        self.url, self.answers, self.num_answered = url, answers, 0

    def ask_until(self, stopped: Event) -> None:
        with httpx.Client(base_url=self.url, timeout=PATIENCE) as client:
            while not stopped.is_set():
                answer = client.post("/search", json=QUERY)
                kind = answer.json().get("error", {}).get("type", "")
                self.answers[f"{answer.status_code} {kind}".strip()] += 1
                self.num_answered += 1


def command(folder: Path) -> bytes:
    try:
        return (folder / "cmdline").read_bytes()
    except OSError:  # it has ended
        return b""


def replica_pids() -> list[int]:
    folders = [folder for folder in Path("/proc").iterdir() if folder.name.isdigit()]
    return [int(folder.name) for folder in folders if b"ServeReplica:shortlist:Replica" in command(folder)]


def wait_until(holds: Callable[[], bool], answers: Counter[str]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline, answers
        time.sleep(0.05)


def kill_at_work(pid: int, clients: Sequence[Client], answers: Counter[str]) -> None:
    """Kill a replica while it has a request.

    It is halted while the other one answers ten times what it holds at once: whoever still waits then waits for this
    one. If nobody does, it had nothing to do, and goes on until the next try.
    """
    while True:
        os.kill(pid, signal.SIGSTOP)
        before, answered = [client.num_answered for client in clients], answers["200"]
        wait_until(partial(has_answered, answers, answered + 30), answers)
        if any(map(eq, before, [client.num_answered for client in clients])):
            os.kill(pid, signal.SIGKILL)
            return
        os.kill(pid, signal.SIGCONT)
        wait_until(partial(has_answered, answers, answers["200"] + 10), answers)


def has_answered(answers: Counter[str], count: int) -> bool:
    return answers["200"] >= count


def test_overload_is_429_and_only_what_a_killed_replica_worked_on_is_503(url: str):
    stopped, answers = Event(), Counter[str]()
    clients = [Client(url, answers) for _ in range(12)]
    with ThreadPoolExecutor(len(clients)) as threads:
        asking = [threads.submit(client.ask_until, stopped) for client in clients]
        try:
            wait_until(lambda: answers["200"] > 30 and answers["429 overloaded"] > 0, answers)
            killed = 0
            while not answers["503 replica_lost"] and killed < 5:  # whoever waited may have waited for the other one
                wait_until(lambda: len(replica_pids()) == 2, answers)
                kill_at_work(replica_pids()[0], clients, answers)
                killed, before = killed + 1, answers["200"]
                wait_until(partial(has_answered, answers, before + 100), answers)
        finally:
            stopped.set()
        for future in asking:
            future.result()
    assert set(answers) <= {"200", "429 overloaded", "503 replica_lost"}, answers
    assert 0 < answers["503 replica_lost"] <= killed * len(clients), answers
