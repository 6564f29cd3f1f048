import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from shortlist import index
from shortlist.data.collections import open_collection
from shortlist.data.formats import write_corpus, write_qrels, write_queries
from shortlist.data.manifest import read_manifest
from shortlist.data.stores.terms import TermWriter
from shortlist.errors import UserError
from shortlist.index.bm25 import BM25Index
from shortlist.index.expansion import NeighbourPhrases, written_queries
from shortlist.index.informing import WordWeights, pieces
from shortlist.math.terms import TermWeights
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


VOCABULARY = ["wood", "##en", "bow", "violin", "needs"]


def weighed(folder: Path, heavy: str, doc_ids: Sequence[str] = tuple(TEXTS)) -> Path:
    """Term weights: one term is heavy in every document, the others are light."""
    numbers = np.arange(len(VOCABULARY), dtype=np.int32)
    weights = np.where(numbers == VOCABULARY.index(heavy), 3.0, 0.1).astype(np.float32)
    count = len(doc_ids)
    together = TermWeights(np.tile(numbers, count), np.tile(weights, count), np.full(count, len(numbers)))
    TermWriter(folder, VOCABULARY).write_shard(0, doc_ids, together)
    return folder


def test_weights_of_a_sparse_model_decide_which_phrase_is_first(collection: Path):
    opened = open_collection(collection)
    [first, *_] = opened.corpus()
    for heavy, expected in (("bow", "bow"), ("wood", "wooden")):
        weights = weighed(collection.with_name(heavy), heavy)
        assert NeighbourPhrases(opened, weights=weights).of_document(0, first, 1) == [expected]
        assert NeighbourPhrases(opened, weights=weights).of_text("a violin or string", 10)


def test_a_word_says_the_mean_of_its_own_and_its_neighbours_pieces(tmp_path: Path):
    rows = TermWeights(
        np.array([0, 1, 0, 2], dtype=np.int32), np.array([1, 2, 4, 8], dtype=np.float32), np.array([2, 1, 1])
    )
    TermWriter(tmp_path / "terms", VOCABULARY).write_shard(0, ["c", "a", "b"], rows)
    weights = WordWeights(tmp_path / "terms", ["a", "b", "c"])
    terms = weights.of_terms(2, np.array([0, 1]), np.array([3.0, 1.0]))  # of c, whose neighbours are a and b
    assert terms.tolist() == pytest.approx([0.8 * 1 + 0.2 * 0.75 * 4, 0.8 * 2, 0.2 * 0.25 * 8, 0, 0])
    assert [weights.of_word(word, terms) for word in ("bow", "wooden", "xy")] == pytest.approx([0.4, 1.5, 0])
    alone = weights.of_terms(None, np.array([0, 1]), np.array([3.0, 1.0]))
    assert alone.tolist() == pytest.approx([0.6, 0, 0.4, 0, 0])


def test_marks_of_vocabularies_are_understood():
    numbers = {term: number for number, term in enumerate(["Ġwood", "en", "▁bow", "##man"])}
    assert [pieces(word, numbers) for word in ("wooden", "bowman", "en", "zen")] == [[0, 1], [2, 3], [1], []]


def test_weights_of_another_collection_are_refused(collection: Path):
    weights = weighed(collection.with_name("others"), "bow", ["a", "b", "z"])
    config = index.Config(collection=str(collection), out=collection.with_name("index"), expand="neighbours")
    with pytest.raises(UserError, match=r"lacks 4 of 6 documents \(first 'c'\); encode the collection"):
        index.run(replace(config, expand_weights=weights))


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
        ({"expand_weights": Path("x")}, "--expand-weights is for --expand neighbours"),
        (
            {"expand": "neighbours", "expand_weights": Path("nowhere")},
            "--expand-weights nowhere: holds no term weights",
        ),
        ({"expand": "nowhere"}, "--expand nowhere: expected 'neighbours'"),
    ],
)
def test_what_cannot_be_expanded_is_refused(collection: Path, change: dict, message: str):
    with pytest.raises(UserError, match=message):
        index.run(replace(index.Config(collection=str(collection), out=collection.with_name("index")), **change))
