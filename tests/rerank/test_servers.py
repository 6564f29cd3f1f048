"""The command with a model on a server, which knows the right answers and may fail in any way."""

import json
import re
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from oracle import RUN, best_first, candidates_of
from processes import PATIENCE, Started, shortlist
from replying import Local, Said, chat, serving
from tiny import QUERIES, Tiny

from shortlist.cli import main
from shortlist.data.answers import AnswerLog
from shortlist.data.manifest import read_manifest
from shortlist.data.runs import read_run
from shortlist.models import server as http
from shortlist.models.server import KEYS
from shortlist.records import Document, Query

BY_TEXT = {document.text.strip(): document for document in candidates_of("q0")[1]}


@pytest.fixture(autouse=True)
def _no_keys_and_no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in KEYS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(http, "FIRST_WAIT_SECONDS", 0.001)


@pytest.fixture
def local() -> Iterator[Local]:
    with serving() as server:
        server.answer = right_answer
        yield server


def shown(body: dict[str, Any]) -> tuple[Query, list[Document]]:
    """The query and the documents that a prompt shows, in their order."""
    text = "\n".join(message["content"] for message in body["messages"])
    query = next(query for query in QUERIES[::-1] if query.text in text)
    places = sorted((text.index(words), words) for words in BY_TEXT if words in text)
    return query, [BY_TEXT[words] for _, words in places]


def right_answer(body: dict[str, Any]) -> dict[str, Any]:
    """The right order, or the log-probabilities of letters."""
    if "logprobs" not in body:
        query, documents = shown(body)
        ids = [document.doc_id for document in documents]
        return chat(" > ".join(f"[{ids.index(doc_id) + 1}]" for doc_id in best_first(query, documents)))
    if "A or B" in body["messages"][-1]["content"] and len(body["messages"][-1]["content"]) < 100:  # the probe
        top = {"A": -1.0, "B": -2.0}
    else:
        query, documents = shown(body)
        best = best_first(query, documents)
        top = {f" {chr(65 + place)}": -1.0 - best.index(d.doc_id) for place, d in enumerate(documents)}
    listed = [{"token": token, "logprob": value} for token, value in top.items()]
    reply = chat(max(top, key=top.__getitem__))
    reply["choices"][0]["logprobs"] = {"content": [{**listed[0], "top_logprobs": listed}]}
    return reply


def listwise(command: list[str], server: Local, *flags: str) -> list[str]:
    model = ["--model", server.url, "--model-name", "tiny"]
    return [*command, *model, "--method", "listwise", "--window", "6", "--stride", "3", *flags]


def right_top(path: Path, top: int) -> bool:
    return all(
        [hit.doc_id for hit in hits[:top]] == best_first(*candidates_of(query_id))[:top]
        for query_id, hits in read_run(path).items()
    )


def results(path: Path) -> dict[str, Any]:
    manifest = read_manifest(path)
    assert manifest is not None
    return manifest["results"]


def test_a_server_puts_windows_in_order(command: list[str], local: Local, tmp_path: Path):
    assert main(listwise(command, local)) == 0
    assert right_top(tmp_path / "out.trec", 3)
    assert (
        results(tmp_path / "out.trec").items()
        >= {"calls": 18, "prompt_tokens": 18 * 7, "answer_tokens": 18 * 2}.items()
    )
    assert {body["max_tokens"] for body in local.bodies} == {8 * 6 + 32}
    assert {(body["model"], body["temperature"]) for body in local.bodies} == {("tiny", 0.0)}


def test_a_servers_log_probabilities_choose_the_best_of_a_set(command: list[str], local: Local, tmp_path: Path):
    model = ["--model", local.url, "--model-name", "tiny"]
    assert main([*command, *model, "--method", "setwise", "--sort", "insertion", "--top", "4"]) == 0
    assert right_top(tmp_path / "out.trec", 4)
    assert results(tmp_path / "out.trec")["calls"] == len(local.bodies) - 1  # the first asks what the server gives
    assert {body["max_tokens"] for body in local.bodies} == {1}


def failure(command: list[str], capfd: pytest.CaptureFixture[str]) -> str:
    capfd.readouterr()
    assert main(command) == 1
    [line] = [line for line in capfd.readouterr().err.splitlines() if line.startswith("shortlist rerank: ")]
    return line


def test_a_server_without_log_probabilities_is_told_before_anything_is_asked(
    command: list[str], local: Local, capfd: pytest.CaptureFixture[str]
):
    local.answer = lambda body: chat("B")
    line = failure([*command, "--model", local.url, "--model-name", "tiny", "--method", "setwise"], capfd)
    assert f"{local.url}: the server gives no log-probabilities, from which the prompt 'setwise' is read" in line
    assert "--answers text" in line
    assert len(local.bodies) < 4


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (Said({"error": {"message": "no such model"}}, 404), "answered 404 (no such model)"),
        (Said({"error": {"message": "prompt is too long"}}, 400), "answered 400 (prompt is too long)"),
        (Said({}, 500), "answered 500, 5 times"),
        (Said(b"<html>busy</html>"), "answered no JSON ('<html>busy</html>')"),
        (Said({"choices": []}), "the server's answer has no choices"),
    ],
)
def test_a_server_that_fails_half_way_is_one_line_and_nothing_is_lost(
    command: list[str], local: Local, tmp_path: Path, capfd: pytest.CaptureFixture[str], said: Said, words: str
):
    lock, answered = threading.Lock(), [0]

    def fails(body: dict[str, Any]) -> Said | dict[str, Any]:
        with lock:
            answered[0] += 1
            return said if answered[0] > 8 else right_answer(body)

    local.answer = fails
    line = failure(listwise(command, local), capfd)
    assert f"{local.url}, model 'tiny': " in line
    assert words in line
    kept = AnswerLog(tmp_path / "out.trec.answers")
    assert len(kept) == 8
    kept.close()
    local.answer = right_answer
    local.bodies.clear()
    assert main(listwise(command, local)) == 0
    assert len(local.bodies) == 18 - 8
    assert right_top(tmp_path / "out.trec", 3)


def test_a_server_that_is_not_there_is_one_line(command: list[str], capfd: pytest.CaptureFixture[str]):
    flags = ["--model", "http://127.0.0.1:9/v1", "--model-name", "x", "--method", "listwise"]
    assert "http://127.0.0.1:9/v1, model 'x': no connection" in failure([*command, *flags], capfd)


@pytest.mark.slow
@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_run_asks_nothing_twice_and_writes_the_same_bytes(
    command: list[str], local: Local, tmp_path: Path, ending: signal.Signals
):
    assert main(listwise([*command, "--out", str(tmp_path / "whole.trec")], local)) == 0
    local.bodies.clear()
    lock, held, answered = threading.Lock(), threading.Event(), []

    def holds(body: dict[str, Any]) -> dict[str, Any]:
        with lock:
            answered.append(json.dumps(body["messages"]))
            late = len(answered) > 9
        if late:
            held.wait(PATIENCE)
        return right_answer(body)

    local.answer = holds
    process = Started(shortlist, *listwise(command, local))
    log = tmp_path / "out.trec.answers"
    while not (log.exists() and log.stat().st_size and len(AnswerLog(log)) == 9):
        assert process.poll() is None
        held.wait(0.02)
    process.send_signal(ending)
    assert process.wait() == (-signal.SIGKILL if ending == signal.SIGKILL else 130)
    held.set()
    local.answer = right_answer
    local.bodies.clear()
    assert main(listwise(command, local)) == 0
    assert not {json.dumps(body["messages"]) for body in local.bodies} & set(answered[:9])
    assert results(tmp_path / "out.trec")["calls"] == 18 - 9
    assert (tmp_path / "out.trec").read_bytes() == (tmp_path / "whole.trec").read_bytes()


@pytest.mark.slow
def test_two_processes_ask_each_question_once_and_write_the_same_bytes(
    tiny: Tiny, command: list[str], local: Local, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from shortlist import rerank

    assert main(listwise([*command, "--out", str(tmp_path / "whole.trec")], local)) == 0
    local.bodies.clear()
    monkeypatch.setattr(rerank, "PAIRS_AT_ONCE", 24)  # two lists
    assert main(listwise(command, local, "--workers", "2")) == 0
    assert (tmp_path / "out.trec").read_bytes() == (tmp_path / "whole.trec").read_bytes()
    assert len(local.bodies) == 18
    assert len(AnswerLog(tmp_path / "out.trec.answers")) == 18


def test_the_prompts_of_these_tests_show_what_is_read_from_them(local: Local, command: list[str]):
    assert main(listwise(command, local)) == 0
    for body in local.bodies:
        query, documents = shown(body)
        assert len(documents) == 6
        assert {document.doc_id for document in documents} <= {hit.doc_id for hit in RUN[query.query_id]}
        assert len(re.findall(r"\[\d+\]", body["messages"][-1]["content"])) >= 6
