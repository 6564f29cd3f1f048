"""What a server does when the files that it searches change."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from fastapi.testclient import TestClient
from serving import Built
from tiny import DOCUMENTS

from shortlist.data.formats import write_corpus
from shortlist.errors import UserError
from shortlist.serve import Config, open_service
from shortlist.serve.app import create_app


class Served(NamedTuple):
    """A server over words of a collection that a test may change."""

    client: TestClient
    collection: Path
    words: Path

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
    service = open_service(copied)
    client = TestClient(create_app(service), raise_server_exceptions=False)
    yield Served(client, tmp_path / "collection", tmp_path / "words")
    service.close()


def state(served: Served) -> tuple[int, str]:
    answer: Any = served.client.get("/ready")
    return answer.status_code, answer.json()["status"]


def test_old_answers_go_on_from_the_file_that_was_opened(served: Served):
    before = served.find("apple")
    assert state(served) == (200, "ready")
    write_corpus(served.collection / "corpus.jsonl", [DOCUMENTS[0]._replace(text="something else")])
    assert served.find("apple") == before
    assert state(served) == (200, "stale")
    assert "start it anew" in served.client.get("/ready").json()["message"]


def test_an_index_that_is_made_anew_is_told(served: Served):
    before = served.find("apple")
    manifest = served.words / "manifest.json"
    os.utime(manifest, ns=(0, manifest.stat().st_mtime_ns + 1))
    assert state(served) == (200, "stale")
    shutil.rmtree(served.words)
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
