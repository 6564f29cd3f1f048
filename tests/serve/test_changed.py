"""What a server does when the files that it searches change."""

import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from fastapi.testclient import TestClient
from serving import Built
from tiny import DOCUMENTS

from shortlist import index
from shortlist.data.formats import write_corpus
from shortlist.errors import UserError
from shortlist.records import Document
from shortlist.serve import Config, open_service, served_pipeline
from shortlist.serve.app import create_app
from shortlist.serve.service import Service


class Served(NamedTuple):
    """A server over words of a collection that a test may change."""

    client: TestClient
    collection: Path
    words: Path
    service: Any

    def find(self, query: str) -> list[str]:
        """Return the texts that are found."""
        answer = self.client.post("/search", json={"query": query})
        assert answer.status_code == 200, answer.text
        return [result["text"] for result in answer.json()["answers"][0]["results"]]


@pytest.fixture
def copied(built: Built, tmp_path: Path) -> Config:
    shutil.copytree(built.tiny.collection, tmp_path / "collection")
    shutil.copytree(built.words, tmp_path / "words")
    return Config(collection=str(tmp_path / "collection"), bm25=tmp_path / "words")


@pytest.fixture
def served(copied: Config, tmp_path: Path) -> Iterator[Served]:
    service = Service(served_pipeline(copied))  # whose files the tests follow themselves
    client = TestClient(create_app(service), raise_server_exceptions=False)
    yield Served(client, tmp_path / "collection", tmp_path / "words", service)
    service.close()


def state(served: Served) -> tuple[int, str]:
    answer: Any = served.client.get("/ready")
    return answer.status_code, answer.json()["status"]


def test_old_answers_go_on_until_the_corpus_and_its_index_are_new_together(
    served: Served, capsys: pytest.CaptureFixture[str]
):
    before = served.find("apple")
    assert state(served) == (200, "ready")
    write_corpus(served.collection / "corpus.jsonl", [DOCUMENTS[0]._replace(text="something else")])
    assert served.find("apple") == before
    assert state(served) == (200, "stale")
    served.service.live.follow(settled=False)  # the index is still the old one, so nothing is taken
    assert (served.find("apple"), state(served)) == (before, (200, "stale"))
    assert "the log says why" in served.client.get("/ready").json()["message"]
    assert "words: was not made from what" in capsys.readouterr().err
    index.run(index.Config(collection=str(served.collection), out=served.words))
    served.service.live.follow(settled=False)
    assert (served.find("apple"), served.find("something"), state(served)) == ([], ["something else"], (200, "ready"))


def test_an_index_that_is_made_anew_is_taken_and_a_deleted_one_is_missed_by_nobody(
    served: Served, capsys: pytest.CaptureFixture[str]
):
    before = served.find("apple")
    manifest = served.words / "manifest.json"
    os.utime(manifest, ns=(0, manifest.stat().st_mtime_ns + 1))
    assert state(served) == (200, "stale")
    assert "are being opened" in served.client.get("/ready").json()["message"]
    assert not served.service.live.follow()  # seen for the first time, it may still be written
    assert served.service.live.follow()
    assert (served.find("apple"), state(served)) == (before, (200, "ready"))
    shutil.rmtree(served.words)
    for _ in range(3):
        assert not served.service.live.follow()
    assert capsys.readouterr().err.count("the old ones are searched further") == 1
    assert (served.find("apple"), state(served)) == (before, (200, "stale"))


def test_a_corpus_that_was_rewritten_in_place_is_a_clean_503(served: Served):
    served.find("apple")
    with open(served.collection / "corpus.jsonl", "r+b") as file:
        file.write(b"x" * 40)
    for _ in range(2):
        answer = served.client.post("/search", json={"query": "apple"})
        assert (answer.status_code, answer.json()["error"]["type"]) == (503, "changed")
        assert state(served) == (503, "changed")
    assert served.client.get("/health").status_code == 200


def test_an_index_of_documents_that_the_collection_lacks_is_not_served(copied: Config):
    write_corpus(Path(str(copied.collection)) / "corpus.jsonl", DOCUMENTS[2:])
    with pytest.raises(UserError, match="lacks 2 of the documents that bm25 finds, such as 'd0'"):
        open_service(copied)


def texts(state: int) -> list[Document]:
    """A corpus in which every text tells which state it is of."""
    return [Document(f"d{i}", f"apple {'apple ' * (i % 3)}of state{state}") for i in range(state % 7, 12)]


@pytest.mark.slow
def test_no_request_fails_or_sees_two_states_while_the_files_change(tmp_path: Path):
    write_corpus(tmp_path / "corpus.jsonl", texts(0))
    service = Service(served_pipeline(Config(collection=str(tmp_path))))
    service.watch(0.02)
    seen: list[set[str]] = []
    wrong: list[str] = []
    done = threading.Event()
    with TestClient(create_app(service), raise_server_exceptions=False) as client:

        def ask() -> None:
            while not done.is_set():
                answer = client.post("/search", json={"queries": ["apple", "of"], "k": 20})
                if answer.status_code != 200:
                    wrong.append(answer.text)
                    return
                for found in answer.json()["answers"]:
                    seen.append({result["text"].rpartition("state")[2] for result in found["results"]})

        clients = [threading.Thread(target=ask) for _ in range(3)]
        for one in clients:
            one.start()
        for number in range(1, 4):
            write_corpus(tmp_path / "corpus.jsonl", texts(number))
            deadline = time.monotonic() + 30
            while {str(number)} not in seen[-12:] and time.monotonic() < deadline and not wrong:
                time.sleep(0.01)
        done.set()
        for one in clients:
            one.join()
        assert wrong == []
        assert {frozenset(states) for states in seen if states} == {frozenset([str(state)]) for state in range(4)}
        assert client.get("/ready").json() == {"status": "ready"}
    service.close()
