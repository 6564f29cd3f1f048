import json
from dataclasses import replace
from pathlib import Path

import pytest

from shortlist import index
from shortlist.data.collections import open_collection
from shortlist.data.formats import write_corpus, write_qrels, write_queries
from shortlist.data.manifest import read_manifest
from shortlist.errors import UserError
from shortlist.index.bm25 import BM25Index
from shortlist.index.expansion import NeighbourPhrases, written_queries
from shortlist.records import Document, Query

TEXTS = {
    "a": "a violin is a string instrument",
    "b": "the violin, a string instrument with a wooden bow",
    "c": "a string instrument needs a wooden bow",
    "d": "engines burn fuel",
    "e": "ships burn fuel in engines",
    "f": "lamps",
}


@pytest.fixture
def collection(tmp_path: Path) -> Path:
    write_corpus(tmp_path / "data" / "corpus.jsonl", [Document(name, text) for name, text in TEXTS.items()])
    return tmp_path / "data"


@pytest.fixture
def made(collection: Path) -> Path:
    """What `shortlist queries` writes."""
    folder = collection.with_name("made")
    write_corpus(folder / "corpus.jsonl", open_collection(collection).corpus())
    write_queries(folder / "queries.jsonl", [Query("m1", "who plays the fiddle"), Query("m2", "diesel")])
    write_qrels(folder / "qrels" / "train.tsv", {"m1": {"a": 1}, "m2": {"d": 1}})
    (folder / "manifest.json").write_text(
        json.dumps({"format": 3, "stage": "queries", "job": "0", "complete": True, "results": {"machine_made": "x"}})
    )
    return folder


def test_a_document_gets_the_phrases_that_its_neighbours_share_and_it_lacks(collection: Path):
    phrases = NeighbourPhrases(open_collection(collection))
    documents = [*open_collection(collection).corpus()]
    first = phrases.of_document(0, documents[0], 10)
    assert {"wooden", "bow", "wooden bow"} <= {*first}
    assert not {"violin", "string", "instrument", "string instrument", "with", "fuel"} & {*first}
    assert phrases.of_document(0, documents[0], 2) == first[:2]
    assert phrases.of_document(5, documents[5], 10) == []  # nobody is near


def test_a_query_gets_phrases_too_and_unknown_words_do_no_harm(collection: Path):
    phrases = NeighbourPhrases(open_collection(collection))
    assert "wooden bow" in phrases.of_text("a violin or string of zyxw?", 10)
    assert phrases.of_text("zyxw", 10) == phrases.of_text("the ?!", 10) == []


def test_an_expanded_index_finds_documents_by_words_that_they_lack(
    collection: Path, capsys: pytest.CaptureFixture[str]
):
    config = index.Config(collection=str(collection), out=collection.with_name("index"), expand="neighbours")
    index.run(config)
    assert "a" in {hit.doc_id for hit in BM25Index.load(config.out).search(["wooden bow"], 10)["0"]}
    told = capsys.readouterr().err
    assert "index: for example a: " in told
    assert "words to a document" in told
    results = (read_manifest(config.out) or {})["results"]
    assert results["appended_words"] > 0
    assert results["expansion_seconds"] > 0
    index.run(config)
    assert "already done" in capsys.readouterr().err
    with pytest.raises(UserError, match="another job"):
        index.run(replace(config, phrases=3))


def test_a_changed_collection_is_expanded_again(collection: Path, capsys: pytest.CaptureFixture[str]):
    config = index.Config(collection=str(collection), out=collection.with_name("index"), expand="neighbours")
    index.run(config)
    write_corpus(
        collection / "corpus.jsonl",
        [*(Document(*item) for item in TEXTS.items()), Document("g", "lamps need oil"), Document("h", "oil for lamps")],
    )
    index.run(config)
    assert "f" in {hit.doc_id for hit in BM25Index.load(config.out).search(["oil"], 10)["0"]}


def test_written_queries_are_appended_to_their_documents(collection: Path, made: Path):
    config = index.Config(collection=str(collection), out=collection.with_name("index"), expand=str(made))
    index.run(config)
    found = BM25Index.load(config.out)
    assert [hit.doc_id for hit in found.search(["fiddle"], 10)["0"]] == ["a"]
    assert [hit.doc_id for hit in found.search(["diesel"], 10)["0"]] == ["d"]


def test_queries_of_people_are_no_expansion(collection: Path, made: Path):
    (made / "manifest.json").unlink()
    with pytest.raises(UserError, match="expected 'neighbours', or a folder in which"):
        written_queries(str(made))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"phrases": 3}, "--phrases is for --expand"),
        ({"expand": "neighbours", "phrases": 0}, "--phrases is 0"),
        ({"expand": "neighbours", "dry_run": True}, "--dry-run does not foresee --expand"),
        ({"expand": "neighbours", "kind": "hnsw", "vectors": Path("x")}, "it is for --kind bm25"),
        ({"expand": "neighbours", "language": "japanese"}, "japanese has no spaces"),
        ({"expand": "nowhere"}, "--expand nowhere: expected 'neighbours'"),
    ],
)
def test_what_cannot_be_expanded_is_refused(collection: Path, change: dict, message: str):
    with pytest.raises(UserError, match=message):
        index.run(replace(index.Config(collection=str(collection), out=collection.with_name("index")), **change))
