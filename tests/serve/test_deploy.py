"""Replicas on a cluster of two nodes, one of which is killed under load."""

import os
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

import httpx
import pytest
from cluster import two_nodes
from serving import Built

from shortlist.serve import Config, open_app
from shortlist.serve.deploy import application

pytest.importorskip("ray.serve", reason="needs Ray Serve", exc_type=ImportError)
QUERY = {"query": "which colour has the apple"}


@pytest.fixture(scope="module")
def url(built: Built) -> Iterator[str]:
    """Two replicas over the tiny pipeline that accept three requests each."""
    from ray import serve

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with two_nodes():
        serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
        names: Any = built.names | {"vectors": built.vectors, "bm25": built.words}
        make_app = partial(open_app, Config(**names, queue_requests=3))
        serve.run(application(make_app, replicas=2, queue_requests=3, drain_seconds=30), name="shortlist")
        yield f"http://127.0.0.1:{port}"
        serve.shutdown()


def test_replicas_answer_as_one_process_does(url: str, built: Built):
    [answer] = httpx.post(f"{url}/search", json=QUERY, timeout=60).json()["answers"]
    expected = built.pipeline().search(QUERY["query"])
    assert [result["doc_id"] for result in answer["results"]] == [each.document.doc_id for each in expected]
    refused = httpx.post(f"{url}/search", json={"query": "a", "k": 0})
    assert (refused.status_code, refused.json()["error"]["field"]) == (422, "k")
    assert refused.headers["x-content-type-options"] == "nosniff"


def ask_until(stopped: Event, url: str, answers: Counter[str]) -> None:
    with httpx.Client(base_url=url, timeout=60) as client:
        while not stopped.is_set():
            answer = client.post("/search", json=QUERY)
            kind = answer.json().get("error", {}).get("type", "")
            answers[f"{answer.status_code} {kind}".strip()] += 1


def command(folder: Path) -> bytes:
    try:
        return (folder / "cmdline").read_bytes()
    except OSError:  # it has ended
        return b""


def replica_pids() -> list[int]:
    folders = [folder for folder in Path("/proc").iterdir() if folder.name.isdigit()]
    return [int(folder.name) for folder in folders if b"ServeReplica:shortlist:Replica" in command(folder)]


def wait_until(holds: Callable[[], bool], answers: Counter[str]) -> None:
    deadline = time.monotonic() + 120
    while not holds():
        assert time.monotonic() < deadline, answers
        time.sleep(0.05)


def test_overload_is_429_and_only_what_a_killed_replica_worked_on_is_503(url: str):
    stopped, answers = Event(), Counter[str]()
    with ThreadPoolExecutor(12) as threads:
        asking = [threads.submit(ask_until, stopped, url, answers) for _ in range(12)]
        try:
            wait_until(lambda: answers["200"] > 30 and answers["429 overloaded"] > 0, answers)
            os.kill(replica_pids()[0], signal.SIGKILL)
            before = answers["200"]
            wait_until(lambda: answers["200"] > before + 100, answers)
        finally:
            stopped.set()
        for each in asking:
            each.result()
    assert set(answers) <= {"200", "429 overloaded", "503 replica_lost"}, answers
    assert 0 < answers["503 replica_lost"] <= 12, answers
