import json
from pathlib import Path

import pytest

from shortlist import aspects
from shortlist.data.collections import open_collection
from shortlist.data.formats import write_corpus, write_queries
from shortlist.data.manifest import read_manifest
from shortlist.errors import UserError
from shortlist.records import Document, Query
from shortlist.rerankers.models import RawAnswer

QUERIES = [Query("q1", "otters"), Query("q2", "rivers")]


class Writer:
    """Divides the query otters, and says nothing of others."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def keys(self, asked):
        return [documents[0].text for _, documents in asked]

    def replies(self, asked):
        for place, (_, [document]) in enumerate(asked):
            self.asked.append(document.text)
            answer = "1. food of otters\n2. Otters\n3. homes of otters" if document.text == "otters" else "..."
            yield {place: RawAnswer(answer, 7, 3)}


@pytest.fixture
def writer(monkeypatch: pytest.MonkeyPatch) -> Writer:
    writer = Writer()
    monkeypatch.setattr(aspects, "how_to_open", lambda model: {"folder": None, "url": "u", "model_name": "m"})
    monkeypatch.setattr("shortlist.rerankers.opening.open_language_model", lambda **_: (writer, {"model": "m"}))
    return writer


def config(tmp_path: Path, **settings) -> aspects.Config:
    write_corpus(tmp_path / "corpus.jsonl", [Document("d1", "text")])
    write_queries(tmp_path / "queries.jsonl", QUERIES)
    given = {"collection": str(tmp_path), "writer": "m", "split": "all", "out": tmp_path / "out"}
    return aspects.Config(**given | settings)


def test_a_query_is_its_own_first_aspect_and_equal_texts_come_once():
    answer = "1. food of otters\n2. OTTERS\n- homes of otters\n- teeth"
    assert aspects.sub_queries(QUERIES[0], answer, most=2) == [
        Query("q1#0", "otters"),
        Query("q1#1", "food of otters"),
        Query("q1#2", "homes of otters"),
    ]
    assert aspects.sub_queries(QUERIES[1], "", most=2) == [Query("q2#0", "rivers")]


def test_the_output_is_a_collection_to_search(tmp_path: Path, writer: Writer, capsys):
    aspects.run(config(tmp_path))
    made = open_collection(tmp_path / "out")
    assert [query.query_id for query in made.queries("all")] == ["q1#0", "q1#1", "q1#2", "q2#0"]
    assert list(made.corpus()) == [Document("d1", "text")]
    assert "2 sub-queries of 2 queries; 1 have none, and stand for themselves" in capsys.readouterr().err
    results = read_manifest(tmp_path / "out")["results"]
    assert (results["aspects"], results["machine_made"]) == (2, "u m")


def test_an_interrupted_division_asks_only_what_is_left(tmp_path: Path, writer: Writer, capsys):
    aspects.run(config(tmp_path, max_calls=1))
    assert "1 queries are left; the same command goes on" in capsys.readouterr().err
    aspects.run(config(tmp_path))
    aspects.run(config(tmp_path))
    assert writer.asked == ["otters", "rivers"]
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["complete"]


def test_what_divides_nothing_is_refused(tmp_path: Path, writer: Writer):
    with pytest.raises(UserError, match="--per-query is 0; expected at least 1"):
        aspects.run(config(tmp_path, per_query=0))
    with pytest.raises(UserError, match="'setwise' does not ask for queries; the prompt `aspects` does"):
        aspects.run(config(tmp_path, writer_prompt="setwise"))
