import json
from pathlib import Path

import pytest

from shortlist.data import export
from shortlist.data.collections import open_collection
from shortlist.data.export import LAYOUTS, write_tevatron_corpus, write_training
from shortlist.data.formats import write_corpus
from shortlist.errors import UserError
from shortlist.records import Document, Group, Query

DOCUMENTS = {"a": Document("a", "one", "First"), "b": Document("b", "two"), "c": Document("c", "three")}
QUERY = Query("q", "which is one?")
GROUP = Group("q", ("a",), ("b", "c"))
PAIR = Group("q", ("a", "b"))
EXPECTED = {
    "tevatron": {
        "query_id": "q",
        "query_text": "which is one?",
        "positive_document_ids": ("a",),
        "negative_document_ids": ("b", "c"),
    },
    "tevatron-old": {
        "query_id": "q",
        "query": "which is one?",
        "positive_passages": [{"docid": "a", "title": "First", "text": "one"}],
        "negative_passages": [{"docid": "b", "title": "", "text": "two"}, {"docid": "c", "title": "", "text": "three"}],
    },
    "flagembedding": {"query": "which is one?", "pos": ["First one"], "neg": ["two", "three"]},
}


@pytest.mark.parametrize("layout", EXPECTED)
def test_a_group_is_one_record(layout: str):
    assert list(LAYOUTS[layout](GROUP, QUERY, DOCUMENTS)) == [EXPECTED[layout]]


def test_a_triplet_is_one_positive_and_one_negative():
    pair = {"anchor": "which is one?", "positive": "First one"}
    triplets = LAYOUTS["sentence-transformers"]
    assert list(triplets(GROUP, QUERY, DOCUMENTS)) == [pair | {"negative": "two"}, pair | {"negative": "three"}]
    assert list(triplets(PAIR, QUERY, DOCUMENTS)) == [pair, pair | {"positive": "two"}]


def test_groups_are_written_some_at_a_time_as_they_would_be_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(export, "GROUPS_AT_ONCE", 2)
    write_corpus(tmp_path / "corpus.jsonl", DOCUMENTS.values())
    collection = open_collection(str(tmp_path))
    groups, layout = [GROUP, PAIR, GROUP, GROUP, PAIR], LAYOUTS["sentence-transformers"]
    assert write_training(tmp_path / "t.jsonl", groups, {"q": QUERY}, collection, layout) == 10
    expected = [record for group in groups for record in layout(group, QUERY, DOCUMENTS)]
    assert list(map(json.loads, (tmp_path / "t.jsonl").read_text().splitlines())) == expected


def test_a_document_that_is_not_there_is_named_and_nothing_is_left(tmp_path: Path):
    write_corpus(tmp_path / "corpus.jsonl", [DOCUMENTS["a"]])
    collection = open_collection(str(tmp_path))
    with pytest.raises(UserError, match="'b'"):
        write_training(tmp_path / "t.jsonl", [GROUP], {"q": QUERY}, collection, LAYOUTS["tevatron-old"])
    assert [path.name for path in tmp_path.iterdir()] == ["corpus.jsonl"]


def test_a_corpus_for_tevatron_has_its_titles_in_the_texts(tmp_path: Path):
    write_tevatron_corpus(tmp_path / "corpus.jsonl", [DOCUMENTS["a"], DOCUMENTS["b"]])
    lines = (tmp_path / "corpus.jsonl").read_text().splitlines()
    assert list(map(json.loads, lines)) == [{"docid": "a", "text": "First one"}, {"docid": "b", "text": "two"}]
