"""Updates of a BM25 index: always what an index built anew would be, at the price of the changes."""

import json
from pathlib import Path

import numpy as np
import pytest

from shortlist import index
from shortlist.cli import main
from shortlist.data.contents import find_damage
from shortlist.data.formats import write_corpus
from shortlist.data.manifest import read_manifest
from shortlist.errors import UserError
from shortlist.index import bm25
from shortlist.index.bm25 import BM25Index
from shortlist.records import Document

RNG = np.random.default_rng(0)
WORDS = [f"w{i}" for i in range(40)]
ALL = [Document(f"d{i}", " ".join(RNG.choice(WORDS, RNG.integers(1, 9))), "title") for i in range(200)]
QUERIES = [" ".join(RNG.choice([*WORDS, "new", "title"], 3)) for _ in range(30)]


@pytest.fixture
def config(tmp_path: Path) -> index.Config:
    write_corpus(tmp_path / "data/corpus.jsonl", ALL[:100])
    config = index.Config(collection=str(tmp_path / "data"), out=tmp_path / "index")
    index.run(config)
    return config


def change(config: index.Config, documents: list[Document]) -> None:
    write_corpus(Path(str(config.collection)) / "corpus.jsonl", documents)
    index.run(config)


def check(config: index.Config, documents: list[Document]) -> None:
    """Check that the index is the one that would be built of these documents."""
    updated, fresh = BM25Index.load(config.out), BM25Index.build(documents)
    assert list(updated.doc_ids) == list(fresh.doc_ids) == [document.doc_id for document in documents]
    for k in (3, 1000):
        assert updated.search(QUERIES, k) == fresh.search(QUERIES, k)
    for word, number in fresh._vocabulary.items():
        ours, theirs = updated._index.postings(updated._vocabulary[word]), fresh._index.postings(number)
        assert np.array_equal(ours.documents, theirs.documents)
        assert np.array_equal(ours.weights, theirs.weights)
    manifest = read_manifest(config.out)
    assert manifest is not None
    assert manifest["complete"]
    assert "changing" not in manifest
    there = {path.name for path in config.out.iterdir()} - {"manifest.json", "config.yaml"}
    assert {*manifest["files"]} == there
    assert list(find_damage(config.out, manifest["files"], again=True)) == []


def is_updated(config: index.Config) -> bool:
    return "update" in json.loads((config.out / "index.json").read_text())


def renamed(document: Document) -> Document:
    return document._replace(text=f"{document.text} new")


@pytest.mark.parametrize(
    ("documents", "updated"),
    [
        (ALL[:105], True),
        (ALL[3:100], True),
        ([renamed(ALL[0]), *ALL[1:50], ALL[150], *ALL[51:100]], True),
        ([ALL[120], *ALL[:100][::-1]], True),
        ([*ALL[50:100], *ALL[:50]], True),
        (ALL[:150], False),
        (ALL[50:60], False),
        ([Document("d1", "only")], False),
    ],
)
def test_an_updated_index_is_the_one_that_would_be_built(
    config: index.Config, documents: list[Document], updated: bool
):
    change(config, documents)
    check(config, documents)
    assert is_updated(config) is updated


def test_update_follows_update_until_both_are_merged(config: index.Config, monkeypatch: pytest.MonkeyPatch):
    documents, states = list(ALL[:100]), []
    monkeypatch.setattr("shortlist.index.postings.BLOCK_TOKENS", 60)  # merged in many parts
    for step in range(6):
        documents = [*documents[1:40], renamed(documents[40]), *documents[41:], ALL[100 + step]]
        change(config, documents)
        check(config, documents)
        states.append(is_updated(config))
        assert len(list(config.out.glob("update-*"))) == states[-1]
    assert True in states
    assert False in states


def test_only_new_documents_are_read(config: index.Config, monkeypatch: pytest.MonkeyPatch):
    read: list[str] = []
    english = bm25.ANALYSERS["english"]
    monkeypatch.setitem(bm25.ANALYSERS, "english", lambda text: read.append(text) or english(text))
    monkeypatch.setattr(bm25, "outdated", lambda folder: None)
    write_corpus(Path(str(config.collection)) / "corpus.jsonl", [ALL[0], renamed(ALL[1]), *ALL[3:104]])
    index.run(config)
    assert read == [f"{document.title} {document.text}" for document in [renamed(ALL[1]), *ALL[100:104]]]


def test_a_damaged_or_earlier_index_is_built_again(config: index.Config):
    (config.out / "keys.bin").unlink()
    change(config, ALL[:101])
    check(config, ALL[:101])
    assert not is_updated(config)
    change(config, ALL[:102])
    assert is_updated(config)
    (config.out / "counts.npy").write_bytes(b"cut")
    change(config, ALL[:103])
    check(config, ALL[:103])


@pytest.mark.parametrize(
    ("line", "message"),
    [('{"_id": "d1", "text": "again"}', "id 'd1' occurs twice"), ("[", "corpus.jsonl:101: not JSON")],
)
def test_a_line_that_cannot_be_used_is_named_and_the_old_index_stays(
    config: index.Config, line: str, message: str, capsys: pytest.CaptureFixture[str]
):
    corpus = Path(str(config.collection)) / "corpus.jsonl"
    whole = corpus.read_text()
    corpus.write_text(whole + line)
    with pytest.raises(UserError, match=message):
        index.run(config)
    corpus.write_text(whole + whole.splitlines()[0])
    assert main(["index", "--collection", str(corpus.parent), "--out", str(config.out)]) == 1
    assert "occurs twice" in capsys.readouterr().err
    corpus.write_text(whole)
    assert len(BM25Index.load(config.out)) == 100
    index.run(config)
    check(config, ALL[:100])


def test_an_interrupted_update_leaves_the_old_index_and_is_done_again(
    config: index.Config, monkeypatch: pytest.MonkeyPatch
):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(bm25, "write_json", interrupted)
        with pytest.raises(KeyboardInterrupt):
            change(config, ALL[:103])
    assert len(BM25Index.load(config.out)) == 100
    index.run(config)
    check(config, ALL[:103])
    BM25Index.load(config.out).save(config.out.parent / "copy")
    assert BM25Index.load(config.out.parent / "copy").search(QUERIES, 9) == BM25Index.build(ALL[:103]).search(
        QUERIES, 9
    )
